//! What will become of every tensor, decided from headers alone.
//!
//! Owns the assignment of storage to tensors and the sizes that follow from it. Reads no
//! weights and writes nothing; any doubt is an error here, before the work begins.

use std::fmt::Write as _;
use std::ops::Range;
use std::path::Path;

use neuroconv_format::codec::{Codec, PackedLayout};
use neuroconv_format::manifest::DroppedRecord;
use neuroconv_format::writer::{self, SafetensorsLayout};
use neuroconv_format::{DType, TensorCodec};
use neuroconv_quant::{QuantizeSpec, choose_group};
use neuroconv_recipes::{
    Assignment, KeepDtype, ModelSpec, Recipe, Role, Scheme, Slot, TensorId, Threshold,
};
use neuroconv_runtime::Checkpoint;
use serde::Serialize;

use crate::Error;
use crate::job::relative;

/// The fate of a whole checkpoint.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Where the weights come from.
    pub source: PlannedSource,
    /// Name of the recipe.
    pub recipe: String,
    /// Every tensor of the artifact, in storage order.
    pub tensors: Vec<PlannedTensor>,
    /// Source tensors that are left out.
    pub dropped: Vec<DroppedRecord>,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// Size of the weights file, header and padding included.
    pub weights_bytes: u64,
    /// `8 * weights_bytes` over the parameters.
    pub bits_per_weight: f64,
    /// Estimate of the most memory held at a time: one tensor being quantized, its neighbours
    /// being read and written.
    pub peak_memory_bytes: u64,
    /// Free space the conversion needs: weights and copied files.
    pub disk_bytes: u64,
    #[serde(skip)]
    pub(crate) spec: ModelSpec,
    #[serde(skip)]
    pub(crate) recipe_toml: String,
    #[serde(skip)]
    pub(crate) layout: SafetensorsLayout,
}

impl Plan {
    /// Where a tensor lies in the weights file.
    pub(crate) fn range(&self, name: &str) -> Range<u64> {
        self.layout
            .range(name)
            .expect("the layout was made of the planned tensors")
    }
}

/// Where the weights of a plan come from.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedSource {
    /// Name of the folder, or the hub id when the caller sets it. Never a path.
    pub id: String,
    /// Commit of the hub repository, when the caller knows it.
    pub commit: Option<String>,
    /// Architecture.
    pub arch: String,
    /// Number of parameters, a tied head counted once.
    pub params: u64,
    /// Element type of the weights: the one, or those joined by `+`.
    pub dtype: String,
    /// Bytes of all source tensors that are used.
    pub bytes: u64,
}

/// The fate of one tensor.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedTensor {
    /// Name in the artifact.
    pub id: TensorId,
    /// Name in the checkpoint.
    pub source: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Element type in the checkpoint.
    pub source_dtype: DType,
    /// What the recipe asks for.
    pub scheme: Scheme,
    /// What it comes to.
    pub codec: TensorCodec,
    /// Columns that share a scale, for packed codecs.
    pub group: Option<usize>,
    /// Stored bytes.
    pub bytes: u64,
    /// Stored bits per weight, everything counted.
    pub bits_per_weight: f64,
    /// Why.
    pub reason: String,
    #[serde(skip)]
    pub(crate) storage: Storage,
}

impl PlannedTensor {
    /// Number of weights.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&d| d as u64).product()
    }

    /// Bytes in the checkpoint.
    fn source_bytes(&self) -> u64 {
        self.elements() * self.source_dtype.size() as u64
    }
}

/// How a tensor will lie in the file.
#[derive(Clone, Debug)]
pub(crate) enum Storage {
    /// Elements of this type.
    Dense(TensorCodec),
    /// Codes in panels.
    Packed {
        /// What to quantize to.
        spec: QuantizeSpec,
        /// The layout of the result.
        layout: PackedLayout,
    },
}

/// Plans the conversion of `source` by `recipe`.
///
/// Errors name the tensor: a scheme that does not fit it, a rule that matches nothing, an
/// element type that weights are not read from.
pub fn plan(source: &Checkpoint, recipe: &Recipe) -> Result<Plan, Error> {
    let files = source.files();
    let resolved = source.resolved();
    let spec = &resolved.spec;
    let mut tensors = Vec::new();
    for assignment in recipe.assign(spec)? {
        let slot = resolved
            .slots
            .iter()
            .find(|slot| slot.id == assignment.id)
            .ok_or(neuroconv_runtime::Error::NoTensor(assignment.id))?;
        let found = files
            .info(&slot.source)
            .ok_or(neuroconv_runtime::Error::NoTensor(assignment.id))?
            .dtype;
        let dtype = found.dense().ok_or_else(|| Error::SourceDType {
            tensor: assignment.id,
            name: slot.source.clone(),
            found,
        })?;
        tensors.push(plan_tensor(slot, dtype, assignment, spec.tied)?);
    }
    let layout = SafetensorsLayout::new(tensors.iter().map(entry).collect())?;
    let weights_bytes = layout.file_size();
    let params = spec.parameters();
    let mut side_bytes = 0;
    for path in files.side_files()? {
        side_bytes += fs_err::metadata(path)?.len();
    }
    Ok(Plan {
        source: PlannedSource {
            id: folder_name(files.path()),
            commit: None,
            arch: spec.arch.clone(),
            params,
            dtype: dtypes(&tensors),
            bytes: tensors.iter().map(PlannedTensor::source_bytes).sum(),
        },
        recipe: recipe.name.clone(),
        dropped: resolved
            .dropped
            .iter()
            .map(|d| DroppedRecord {
                source: d.source.clone(),
                reason: d.reason.clone(),
            })
            .collect(),
        warnings: resolved.warnings.clone(),
        weights_bytes,
        bits_per_weight: weights_bytes as f64 * 8.0 / params as f64,
        peak_memory_bytes: peak_memory(&tensors),
        disk_bytes: weights_bytes + side_bytes + REPORTS_BYTES,
        spec: spec.clone(),
        recipe_toml: recipe.to_toml(),
        layout,
        tensors,
    })
}

/// Room for manifest, recipe, reports, card and journal.
pub(crate) const REPORTS_BYTES: u64 = 16 << 20;

fn plan_tensor(
    slot: &Slot,
    source_dtype: DType,
    assignment: Assignment,
    tied: bool,
) -> Result<PlannedTensor, Error> {
    let Assignment {
        id,
        scheme,
        mut reason,
    } = assignment;
    let (storage, asked) = storage(id, &slot.shape, source_dtype, &scheme)?;
    if tied && id.role == Role::Embed {
        reason += "; also serves as the head";
    }
    let elements: u64 = slot.shape.iter().map(|&d| d as u64).product();
    let (codec, group, bytes) = match &storage {
        Storage::Dense(codec) => (*codec, None, elements * codec.dtype().size() as u64),
        Storage::Packed { layout, .. } => (
            layout.codec().into(),
            Some(layout.group()),
            layout.size_bytes() as u64,
        ),
    };
    if let (Some(group), Some(asked)) = (group, asked)
        && group != asked
    {
        let cols = slot.shape.last().copied().unwrap_or_default();
        let _ = write!(
            reason,
            "; groups of {group} instead of {asked}: padding {cols} columns would cost more"
        );
    }
    Ok(PlannedTensor {
        id,
        source: slot.source.clone(),
        shape: slot.shape.clone(),
        source_dtype,
        scheme,
        codec,
        group,
        bytes,
        bits_per_weight: bytes as f64 * 8.0 / elements as f64,
        reason,
        storage,
    })
}

/// The storage that a scheme comes to, and the group size it asks for.
fn storage(
    id: TensorId,
    shape: &[usize],
    source: DType,
    scheme: &Scheme,
) -> Result<(Storage, Option<usize>), Error> {
    let (codec, asked, threshold) = match scheme {
        Scheme::Keep { dtype } => {
            let codec = match (dtype, source) {
                (Some(KeepDtype::F32), _) | (None, DType::F32 | DType::U8) => TensorCodec::F32,
                (Some(KeepDtype::F16), _) | (None, DType::F16) => TensorCodec::F16,
                (Some(KeepDtype::Bf16), _) | (None, DType::BF16) => TensorCodec::Bf16,
            };
            return Ok((Storage::Dense(codec), None));
        }
        Scheme::Ternary {
            group_size,
            threshold,
        } => (Codec::Ternary, *group_size, *threshold),
        Scheme::Int4 { group_size } => (Codec::Int4, *group_size, Threshold::Mse),
        Scheme::Int8 { group_size } => (Codec::Int8, *group_size, Threshold::Mse),
    };
    let &[rows, cols] = shape else {
        return Err(Error::NotAMatrix {
            tensor: id,
            scheme: codec.name(),
            shape: shape.to_vec(),
        });
    };
    let group = choose_group(codec, rows, cols, asked);
    let layout = PackedLayout::new(codec, rows, cols, group, false)
        .map_err(|source| Error::Layout { tensor: id, source })?;
    Ok((
        Storage::Packed {
            spec: QuantizeSpec {
                codec,
                group,
                threshold,
            },
            layout,
        },
        Some(asked),
    ))
}

/// The entry of a tensor in the safetensors header.
fn entry(tensor: &PlannedTensor) -> writer::PlannedTensor {
    let (dtype, shape) = match &tensor.storage {
        Storage::Dense(codec) => (codec.dtype(), tensor.shape.clone()),
        Storage::Packed { layout, .. } => (DType::U8, vec![layout.size_bytes()]),
    };
    writer::PlannedTensor {
        name: tensor.id.to_string(),
        dtype,
        shape,
    }
}

/// While tensor `i` is quantized (f32 in, codes out), `i + 1` has been read (source bytes and
/// f32) and `i - 1` is being written.
fn peak_memory(tensors: &[PlannedTensor]) -> u64 {
    (0..tensors.len())
        .map(|i| {
            let before = i.checked_sub(1).map_or(0, |i| tensors[i].bytes);
            let after = tensors
                .get(i + 1)
                .map_or(0, |t| t.source_bytes() + t.elements() * 4);
            before + tensors[i].elements() * 4 + tensors[i].bytes + after
        })
        .max()
        .unwrap_or(0)
}

fn dtypes(tensors: &[PlannedTensor]) -> String {
    let mut names: Vec<&str> = tensors.iter().map(|t| t.source_dtype.name()).collect();
    names.sort_unstable();
    names.dedup();
    names.join("+").to_lowercase()
}

/// The last component of a path, looked up when the path ends in dots.
fn folder_name(dir: &Path) -> String {
    let full = if dir.file_name().is_none() {
        fs_err::canonicalize(dir).ok()
    } else {
        None
    };
    let dir = full.as_deref().unwrap_or(dir);
    relative(dir, dir.file_name().map_or(dir, Path::new))
}
