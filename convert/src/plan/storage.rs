//! How a tensor will lie in the file: what a scheme comes to for a matrix of its shape.

use std::sync::Arc;

use neuroconv_format::codec::{Codec, PackedLayout};
use neuroconv_format::writer;
use neuroconv_format::{ActivationBits, CorrectionsPlan, DType, PartLayout, TensorCodec};
use neuroconv_quant::{Levels, QuantizeSpec, choose_group};
use neuroconv_recipes::{Apart, KeepDtype, Packed, PackedKind, Scheme, TensorId};

use super::PlannedTensor;
use crate::Error;

/// How a tensor will lie in the file.
#[derive(Clone, Debug)]
pub(crate) enum Storage {
    /// Elements of this type.
    Dense(TensorCodec),
    /// Codes in panels.
    Packed(Box<PackedPlan>),
}

impl Storage {
    /// Stored bytes of a tensor of so many elements.
    pub(crate) fn bytes(&self, elements: u64) -> u64 {
        match self {
            Storage::Dense(codec) => elements * codec.dtype().size() as u64,
            Storage::Packed(packed) => packed.stored_bytes() as u64,
        }
    }
}

/// How a matrix will be packed.
#[derive(Clone, Debug)]
pub(crate) struct PackedPlan {
    /// What to round to.
    pub(crate) spec: QuantizeSpec,
    /// The layout of the result.
    pub(crate) layout: PackedLayout,
    /// How finely activations are rounded that meet the codes.
    pub(crate) activations: ActivationBits,
    /// What it carries beside its codes.
    pub(crate) corrections: CorrectionsPlan,
    /// The same, part by part.
    pub(crate) parts: Vec<PartLayout>,
    /// What the recipe asks for.
    pub(crate) how: Packed,
    /// Columns stored apart in half precision, ascending, once they are known.
    pub(crate) outliers: Option<Arc<[u32]>>,
    /// What the squared error of each column weighs where it is rounded by itself, `[columns]`.
    pub(crate) importance: Option<Arc<[f32]>>,
}

impl PackedPlan {
    /// Bytes of codes, scales, shifts and parts.
    pub(crate) fn stored_bytes(&self) -> usize {
        let parts = self.parts.iter().map(PartLayout::size_bytes);
        parts.fold(self.layout.size_bytes(), usize::saturating_add)
    }
}

/// The storage that a scheme comes to, and the group size it asks for.
pub(crate) fn storage(
    id: TensorId,
    shape: &[usize],
    source: DType,
    scheme: &Scheme,
) -> Result<(Storage, Option<usize>), Error> {
    let how = match scheme {
        Scheme::Keep { dtype } => {
            let codec = match (dtype, source) {
                (Some(KeepDtype::F32), _) | (None, DType::F32 | DType::U8) => TensorCodec::F32,
                (Some(KeepDtype::F16), _) | (None, DType::F16) => TensorCodec::F16,
                (Some(KeepDtype::Bf16), _) | (None, DType::BF16) => TensorCodec::Bf16,
            };
            return Ok((Storage::Dense(codec), None));
        }
        Scheme::Packed(packed) => *packed,
    };
    let &[rows, cols] = shape else {
        return Err(Error::NotAMatrix {
            tensor: id,
            scheme: how.kind.name(),
            shape: shape.to_vec(),
        });
    };
    let levels = levels(&how);
    let spec = QuantizeSpec {
        levels,
        group: choose_group(levels.codec(), rows, cols, how.group_size),
        threshold: how.threshold,
        shift: how.shift,
    };
    let layout = PackedLayout::new(levels.codec(), rows, cols, spec.group, spec.shift)
        .map_err(|source| Error::Layout { tensor: id, source })?;
    let corrections = corrections(&how, rows, cols);
    let parts = corrections.parts(rows, cols);
    let parts = parts.map_err(|source| Error::Layout { tensor: id, source })?;
    let packed = PackedPlan {
        spec,
        layout,
        activations: match how.activations {
            16 => ActivationBits::Sixteen,
            _ => ActivationBits::Eight,
        },
        corrections,
        parts,
        how,
        outliers: None,
        importance: None,
    };
    Ok((Storage::Packed(Box::new(packed)), Some(how.group_size)))
}

/// The corrections that a scheme gives a `[rows, cols]` matrix.
fn corrections(how: &Packed, rows: usize, cols: usize) -> CorrectionsPlan {
    let columns = match how.apart {
        // How many outliers there are is found in the calibration text.
        Apart::None | Apart::Outliers(_) => 0,
        Apart::Salient(share) => ((share * cols as f64).ceil() as usize).min(cols),
    };
    let group = choose_group(Codec::Int8, rows, columns.max(1), how.group_size);
    CorrectionsPlan {
        rank: how.correct_rank.min(rows).min(cols),
        columns,
        column_group: (columns > 0).then_some(group),
    }
}

/// The levels that a scheme rounds to.
fn levels(how: &Packed) -> Levels {
    match (how.kind, how.planes) {
        (PackedKind::Ternary, 2) => Levels::Nine,
        (PackedKind::Ternary, _) => Levels::Ternary,
        (PackedKind::Int4, _) => Levels::Int4,
        (PackedKind::Int8, _) => Levels::Int8,
    }
}

/// The entries of a tensor and its parts in the safetensors header.
pub(crate) fn entries(tensor: &PlannedTensor) -> Vec<writer::PlannedTensor> {
    let name = tensor.id.to_string();
    let (dtype, shape, parts) = match &tensor.storage {
        Storage::Dense(codec) => (codec.dtype(), tensor.shape.clone(), &[][..]),
        Storage::Packed(packed) => {
            let size = packed.layout.size_bytes();
            (DType::U8, vec![size], &packed.parts[..])
        }
    };
    let parts: Vec<writer::PlannedTensor> = parts.iter().map(|part| part.entry(&name)).collect();
    let own = writer::PlannedTensor { name, dtype, shape };
    [own].into_iter().chain(parts).collect()
}
