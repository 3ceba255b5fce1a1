//! How the weights of a checkpoint are stored: which form, which tensors, and their bytes.

use neuroconv_format::{Codec, DType};
use neuroconv_recipes::{RoleKind, TensorId};
use neuroconv_runtime::WeightSource;

use super::layouts::{bitnet, codes, floats, gptq, words};
use crate::export::ExportError;
use crate::export::foreign::Foreign;
use crate::export::matrix::{Levels, elements, plain_levels};

/// How the weights of matrices are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// Plain numbers.
    Dense,
    /// The `pack-quantized` form of compressed-tensors.
    CompressedTensors,
    /// The layout of GPTQ, version 1.
    Gptq,
    /// Two bits per weight and one scale per matrix.
    BitNet,
}

impl Packing {
    /// The name in flags and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Packing::Dense => "dense",
            Packing::CompressedTensors => "compressed-tensors",
            Packing::Gptq => "gptq",
            Packing::BitNet => "bitnet",
        }
    }
}

/// The levels of one matrix in a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Scheme {
    /// Bits of a stored level.
    pub(crate) bits: usize,
    /// Columns that share a scale.
    pub(crate) group: usize,
}

/// One stored tensor: its name, element type as safetensors headers spell it, shape and bytes.
pub(crate) struct Stored {
    pub(crate) name: String,
    pub(crate) dtype: &'static str,
    pub(crate) shape: Vec<usize>,
}

/// What a tensor of the export becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Storage {
    Dense(DType),
    Compressed(Scheme, DType),
    Gptq(Scheme),
    BitNet(DType),
}

/// How each of `tensors` is stored; matrices that cannot be packed stay dense, with a note. An error
/// where `packing` fits none, or where it needs all of them to be alike and they are not.
pub(crate) fn choose(
    tensors: &[Foreign],
    model: &dyn WeightSource,
    packing: Packing,
    dtype: DType,
) -> Result<(Vec<Storage>, Vec<String>), ExportError> {
    let (mut storages, mut dense) = (Vec::new(), Vec::new());
    for tensor in tensors {
        let storage = match linear(tensor, model)? {
            Linear::No => Storage::Dense(dtype),
            Linear::Plain(reason) => {
                dense.push((tensor.name.clone(), reason));
                Storage::Dense(dtype)
            }
            Linear::Packed(codec, group) => packed(tensor, model, packing, dtype, codec, group)?,
        };
        storages.push(storage);
    }
    if packing == Packing::Dense {
        return Ok((storages, Vec::new()));
    }
    let refuse = |reason: String| ExportError::Packing {
        packing: packing.name(),
        reason,
    };
    if storages.iter().all(|s| matches!(s, Storage::Dense(_))) {
        let reason = match dense.first() {
            Some((name, why)) => format!("no matrix can be packed; `{name}` {why}"),
            None => "the model has no matrix".to_owned(),
        };
        return Err(refuse(reason));
    }
    let uniform = matches!(packing, Packing::Gptq | Packing::BitNet);
    if uniform {
        if let Some((name, why)) = dense.first() {
            return Err(refuse(format!(
                "every matrix must be packed alike; `{name}` {why}"
            )));
        }
        let mut schemes = storages.iter().filter_map(|s| match s {
            Storage::Gptq(scheme) => Some(scheme),
            _ => None,
        });
        if let Some(first) = schemes.next()
            && let Some(other) = schemes.find(|scheme| *scheme != first)
        {
            return Err(refuse(format!(
                "every matrix must be packed alike; there are groups of {} at {} bits and of {} at {}",
                first.group, first.bits, other.group, other.bits
            )));
        }
    }
    let notes = dense
        .into_iter()
        .map(|(name, why)| format!("`{name}` is written as plain numbers: it {why}"))
        .collect();
    Ok((storages, notes))
}

/// What a tensor is to a loader that packs the weights of linear maps.
enum Linear {
    /// None: a vector, or a table of the vocabulary.
    No,
    /// One whose weights are not levels, and why.
    Plain(&'static str),
    /// One in levels.
    Packed(Codec, usize),
}

fn linear(tensor: &Foreign, model: &dyn WeightSource) -> Result<Linear, ExportError> {
    let of_kind = |id: TensorId| id.role.kind() == RoleKind::Linear;
    let Some(id) = tensor.stored() else {
        // A composed matrix is a linear map of the engine all the same.
        let matrix = tensor.shape.len() == 2;
        return Ok(if matrix {
            Linear::Plain("is composed of several tensors, or rescaled")
        } else {
            Linear::No
        });
    };
    if !of_kind(id) {
        return Ok(Linear::No);
    }
    let stored = model.tensor(id)?;
    Ok(match plain_levels(&stored) {
        None if stored.codec_name().starts_with(['f', 'b']) => Linear::Plain("is stored so"),
        None => Linear::Plain("has corrections beside its levels"),
        Some(packed) if packed.layout.shift() => Linear::Plain("has shifts that are no levels"),
        Some(packed) if !packed.layout.cols().is_multiple_of(packed.layout.group()) => {
            Linear::Plain("ends with a group that is not whole")
        }
        Some(packed) => Linear::Packed(packed.layout.codec(), packed.layout.group()),
    })
}

/// How a matrix in levels is stored.
fn packed(
    tensor: &Foreign,
    model: &dyn WeightSource,
    packing: Packing,
    dtype: DType,
    codec: Codec,
    group: usize,
) -> Result<Storage, ExportError> {
    let refuse = |reason: String| ExportError::Packing {
        packing: packing.name(),
        reason,
    };
    let rows = tensor.shape.first().copied().unwrap_or(0);
    Ok(match packing {
        Packing::Dense => Storage::Dense(dtype),
        Packing::CompressedTensors => {
            // Loaders know four and eight bits; three levels fit into four.
            let bits = if codec == Codec::Int8 { 8 } else { 4 };
            Storage::Compressed(Scheme { bits, group }, dtype)
        }
        Packing::Gptq => {
            let bits = if codec == Codec::Int8 { 8 } else { 4 };
            if !(rows * bits).is_multiple_of(32) {
                return Err(refuse(format!(
                    "`{}` has {rows} rows of {bits} bits",
                    tensor.name
                )));
            }
            Storage::Gptq(Scheme { bits, group })
        }
        Packing::BitNet => {
            if codec != Codec::Ternary {
                return Err(refuse(format!(
                    "`{}` has more than three levels",
                    tensor.name
                )));
            }
            if !rows.is_multiple_of(4) {
                return Err(refuse(format!(
                    "`{}` has {rows} rows, not a multiple of 4",
                    tensor.name
                )));
            }
            let levels = tensor.levels(model)?;
            let one = levels.is_some_and(|l| l.scales_ng.windows(2).all(|two| two[0] == two[1]));
            if !one {
                return Err(refuse(format!("`{}` has more than one scale", tensor.name)));
            }
            Storage::BitNet(dtype)
        }
    })
}

impl Storage {
    /// The tensors that hold `tensor`, in the order of [`Storage::bytes`].
    pub(crate) fn stored(self, tensor: &Foreign) -> Vec<Stored> {
        let one = |name: String, dtype, shape: Vec<usize>| Stored { name, dtype, shape };
        let base = tensor.name.strip_suffix("weight").unwrap_or(&tensor.name);
        let (rows, cols) = match tensor.shape.as_slice() {
            [rows, cols] => (*rows, *cols),
            _ => (1, 1),
        };
        match self {
            Storage::Dense(dtype) => {
                vec![one(tensor.name.clone(), dtype.name(), tensor.shape.clone())]
            }
            Storage::Compressed(scheme, dtype) => vec![
                one(
                    format!("{base}weight_packed"),
                    "I32",
                    vec![rows, (cols * scheme.bits).div_ceil(32)],
                ),
                one(
                    format!("{base}weight_scale"),
                    dtype.name(),
                    vec![rows, cols / scheme.group],
                ),
                one(format!("{base}weight_shape"), "I64", vec![2]),
            ],
            Storage::Gptq(scheme) => {
                let groups = cols / scheme.group;
                vec![
                    one(
                        format!("{base}qweight"),
                        "I32",
                        vec![cols * scheme.bits / 32, rows],
                    ),
                    one(
                        format!("{base}qzeros"),
                        "I32",
                        vec![groups, rows * scheme.bits / 32],
                    ),
                    one(format!("{base}scales"), "F16", vec![groups, rows]),
                    one(format!("{base}g_idx"), "I32", vec![cols]),
                ]
            }
            Storage::BitNet(dtype) => vec![
                one(format!("{base}weight"), "U8", vec![rows / 4, cols]),
                one(format!("{base}weight_scale"), dtype.name(), vec![1]),
            ],
        }
    }

    /// The bytes of each tensor of [`Storage::stored`].
    pub(crate) fn bytes(
        self,
        tensor: &Foreign,
        model: &dyn WeightSource,
    ) -> Result<Vec<Vec<u8>>, ExportError> {
        let too_large = |dtype: DType| ExportError::TooLarge {
            tensor: tensor.name.clone(),
            dtype: dtype.to_string(),
        };
        let narrow =
            |values: &[f32], dtype| elements(values, dtype).ok_or_else(|| too_large(dtype));
        let levels = || -> Result<Levels, ExportError> {
            tensor.levels(model)?.ok_or_else(|| too_large(DType::U8))
        };
        Ok(match self {
            Storage::Dense(dtype) => vec![narrow(&tensor.numbers(model)?, dtype)?],
            Storage::Compressed(Scheme { bits, .. }, dtype) => {
                let levels = levels()?;
                let row = |row: &[i8]| words(&codes(row, bits), bits);
                let packed = levels.codes_nk.chunks(levels.cols).flat_map(row).collect();
                let shape = [levels.rows() as i64, levels.cols as i64];
                vec![
                    packed,
                    narrow(&floats(&levels.scales_ng), dtype)?,
                    shape.iter().flat_map(|n| n.to_le_bytes()).collect(),
                ]
            }
            Storage::Gptq(Scheme { bits, group }) => gptq(&levels()?, bits, group),
            Storage::BitNet(dtype) => {
                let levels = levels()?;
                let scale = floats(levels.scales_ng.get(..1).unwrap_or_default());
                vec![bitnet(&levels), narrow(&scale, dtype)?]
            }
        })
    }
}
