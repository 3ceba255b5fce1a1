//! What a packed tensor carries beside its codes: a low-rank product, and columns stored apart.
//!
//! Owns the parts as tensors of a weights file: their names, layouts and order, for whoever plans,
//! writes or opens them. With `Q` the matrix of the codes, the weight is
//!
//! ```text
//! W = (Q, but the columns `indexes` replaced by `values`) + B A
//! ```
//!
//! so a product is `y = Q x' + values x[indexes] + B (A x)`, where `x'` is `x` with zeros at
//! `indexes`: what is apart takes no part in the rounding of activations either.

use serde::{Deserialize, Serialize};

use crate::artifact_error::TensorFault;
use crate::codec::{ActivationBits, Codec, LayoutError, PackedLayout, UNIT_BYTES};
use crate::dtype::DType;
use crate::tensor::{DenseTensor, PackedTensor, SharedBytes, Tensor};
use crate::writer::PlannedTensor;

/// Bytes of one column index.
const INDEX_BYTES: usize = 4;

/// The parts of a packed tensor. By default there are none.
#[derive(Clone, Debug, Default)]
pub struct Corrections {
    /// A product of two thin matrices.
    pub low_rank: Option<LowRank>,
    /// Columns that are stored apart.
    pub columns: Option<Columns>,
}

/// `B A`, both dense and in half precision.
#[derive(Clone, Debug)]
pub struct LowRank {
    /// `[rank, cols]`.
    pub a: DenseTensor,
    /// `[rows, rank]`.
    pub b: DenseTensor,
}

/// Columns whose codes mean zero and that are stored apart.
#[derive(Clone, Debug)]
pub struct Columns {
    /// Which columns, ascending.
    pub indexes: Vec<u32>,
    /// `[rows, indexes]`: dense in half precision, or packed as [`Codec::Int8`] without a shift, for
    /// activations in sixteen bits.
    pub values: Box<Tensor>,
}

/// A part of a packed tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PartKind {
    /// [`LowRank::a`].
    LowRankA,
    /// [`LowRank::b`].
    LowRankB,
    /// [`Columns::values`].
    Columns,
    /// [`Columns::indexes`].
    ColumnIndex,
}

impl PartKind {
    /// The name used in manifests and at the end of the tensor's name.
    pub const fn name(self) -> &'static str {
        match self {
            PartKind::LowRankA => "low_rank_a",
            PartKind::LowRankB => "low_rank_b",
            PartKind::Columns => "columns",
            PartKind::ColumnIndex => "column_index",
        }
    }

    /// The part without which this one means nothing.
    pub(crate) const fn partner(self) -> PartKind {
        match self {
            PartKind::LowRankA => PartKind::LowRankB,
            PartKind::LowRankB => PartKind::LowRankA,
            PartKind::Columns => PartKind::ColumnIndex,
            PartKind::ColumnIndex => PartKind::Columns,
        }
    }

    /// Whether the part may be stored so.
    pub(crate) const fn takes(self, codec: PartCodec) -> bool {
        match self {
            PartKind::LowRankA | PartKind::LowRankB => matches!(codec, PartCodec::F16),
            PartKind::Columns => matches!(codec, PartCodec::F16 | PartCodec::Int8),
            PartKind::ColumnIndex => matches!(codec, PartCodec::U32),
        }
    }
}

/// How a part is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PartCodec {
    /// Dense, in half precision.
    F16,
    /// Packed, [`Codec::Int8`].
    Int8,
    /// Numbers of four bytes, low byte first, with zeros up to a multiple of 64 bytes.
    U32,
}

impl PartCodec {
    /// The name used in manifests.
    pub const fn name(self) -> &'static str {
        match self {
            PartCodec::F16 => "f16",
            PartCodec::Int8 => "int8",
            PartCodec::U32 => "u32",
        }
    }

    /// The element type that the header of the weight file gives it.
    pub(crate) const fn dtype(self) -> DType {
        match self {
            PartCodec::F16 => DType::F16,
            PartCodec::Int8 | PartCodec::U32 => DType::U8,
        }
    }
}

/// The corrections that a tensor is going to have. By default none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CorrectionsPlan {
    /// Rank of the low-rank product; 0 where there is none.
    pub rank: usize,
    /// Number of columns stored apart.
    pub columns: usize,
    /// Columns that share a scale where the values of `columns` are packed; dense where `None`.
    pub column_group: Option<usize>,
}

impl CorrectionsPlan {
    /// The parts of a `[rows, cols]` matrix, in the order in which they are stored.
    pub fn parts(&self, rows: usize, cols: usize) -> Result<Vec<PartLayout>, LayoutError> {
        let mut parts = Vec::new();
        if self.rank > 0 {
            let part = |kind, shape| PartLayout::new(kind, PartCodec::F16, shape, None);
            parts.push(part(PartKind::LowRankA, vec![self.rank, cols])?);
            parts.push(part(PartKind::LowRankB, vec![rows, self.rank])?);
        }
        if self.columns > 0 {
            let codec = match self.column_group {
                Some(_) => PartCodec::Int8,
                None => PartCodec::F16,
            };
            let (shape, group) = (vec![rows, self.columns], self.column_group);
            parts.push(PartLayout::new(PartKind::Columns, codec, shape, group)?);
            let shape = vec![self.columns];
            let (kind, codec) = (PartKind::ColumnIndex, PartCodec::U32);
            parts.push(PartLayout::new(kind, codec, shape, None)?);
        }
        Ok(parts)
    }
}

/// One part as it lies in a weights file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartLayout {
    kind: PartKind,
    codec: PartCodec,
    shape: Vec<usize>,
    group: Option<usize>,
    size_bytes: usize,
}

impl PartLayout {
    /// A part of this shape; `group` is the group size of packed ones. Refuses what has no bytes
    /// or too many.
    pub fn new(
        kind: PartKind,
        codec: PartCodec,
        shape: Vec<usize>,
        group: Option<usize>,
    ) -> Result<Self, LayoutError> {
        let rows = shape.first().copied().unwrap_or_default();
        let cols = shape
            .iter()
            .skip(1)
            .try_fold(1, |n: usize, &dim| n.checked_mul(dim));
        let size = LayoutError::Size {
            rows,
            cols: cols.unwrap_or(usize::MAX),
        };
        let elements = cols
            .and_then(|cols| rows.checked_mul(cols))
            .filter(|&n| n > 0);
        let elements = elements.ok_or(size)?;
        let size_bytes = match (codec, shape.as_slice()) {
            (PartCodec::F16, _) => elements.checked_mul(DType::F16.size()).ok_or(size)?,
            (PartCodec::Int8, &[rows, cols]) => {
                let group = group.unwrap_or_default();
                PackedLayout::new(Codec::Int8, rows, cols, group, false)?.size_bytes()
            }
            (PartCodec::Int8, _) => return Err(size),
            (PartCodec::U32, _) => elements
                .checked_mul(INDEX_BYTES)
                .and_then(|bytes| bytes.checked_next_multiple_of(UNIT_BYTES))
                .ok_or(size)?,
        };
        Ok(PartLayout {
            kind,
            codec,
            shape,
            group,
            size_bytes,
        })
    }

    /// Which part it is.
    pub fn kind(&self) -> PartKind {
        self.kind
    }
    /// How it is stored.
    pub fn codec(&self) -> PartCodec {
        self.codec
    }
    /// Dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }
    /// Columns that share a scale, where it is packed.
    pub fn group(&self) -> Option<usize> {
        self.group
    }
    /// Stored bytes.
    pub fn size_bytes(&self) -> usize {
        self.size_bytes
    }
    /// Its name in a weights file, as a part of `tensor`.
    pub fn name(&self, tensor: &str) -> String {
        format!("{tensor}.{}", self.kind.name())
    }

    /// Its entry in the header of a weights file.
    pub fn entry(&self, tensor: &str) -> PlannedTensor {
        PlannedTensor {
            name: self.name(tensor),
            dtype: self.codec.dtype(),
            shape: self.header_shape(),
        }
    }

    /// The shape that the header gives it.
    pub(crate) fn header_shape(&self) -> Vec<usize> {
        match self.codec {
            PartCodec::F16 => self.shape.clone(),
            PartCodec::Int8 | PartCodec::U32 => vec![self.size_bytes],
        }
    }
}

impl Columns {
    /// Columns whose values are packed.
    pub fn packed(indexes: Vec<u32>, values: PackedTensor) -> Self {
        let values = PackedTensor {
            activations: ActivationBits::Sixteen,
            ..values
        };
        Columns {
            indexes,
            values: Box::new(Tensor::Packed(values)),
        }
    }

    /// Columns whose values are dense.
    pub fn dense(indexes: Vec<u32>, values: DenseTensor) -> Self {
        Columns {
            indexes,
            values: Box::new(Tensor::Dense(values)),
        }
    }
}

impl Corrections {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.low_rank.is_none() && self.columns.is_none()
    }

    /// Stored bytes of all parts.
    pub fn size_bytes(&self) -> usize {
        let parts = self.parts().unwrap_or_default();
        parts
            .iter()
            .fold(0, |sum, (_, bytes)| sum.saturating_add(bytes.len()))
    }

    /// Every part and its stored bytes, in the order of [`CorrectionsPlan::parts`].
    pub fn parts(&self) -> Result<Vec<(PartLayout, SharedBytes)>, LayoutError> {
        let mut parts = Vec::new();
        let dense = |kind, tensor: &DenseTensor| {
            let layout = PartLayout::new(kind, PartCodec::F16, tensor.shape.clone(), None)?;
            Ok((layout, tensor.bytes.clone()))
        };
        if let Some(LowRank { a, b }) = &self.low_rank {
            parts.push(dense(PartKind::LowRankA, a)?);
            parts.push(dense(PartKind::LowRankB, b)?);
        }
        if let Some(Columns { indexes, values }) = &self.columns {
            parts.push(match &**values {
                Tensor::Dense(values) => dense(PartKind::Columns, values)?,
                Tensor::Packed(values) => {
                    let (shape, group) = (values.shape(), Some(values.layout.group()));
                    let kind = PartKind::Columns;
                    let layout = PartLayout::new(kind, PartCodec::Int8, shape, group)?;
                    (layout, values.bytes.clone())
                }
            });
            let (kind, codec) = (PartKind::ColumnIndex, PartCodec::U32);
            let layout = PartLayout::new(kind, codec, vec![indexes.len()], None)?;
            let mut bytes: Vec<u8> = indexes.iter().flat_map(|i| i.to_le_bytes()).collect();
            bytes.resize(layout.size_bytes(), 0);
            parts.push((layout, bytes.into()));
        }
        Ok(parts)
    }

    /// Checks that the parts fit a `[rows, cols]` matrix and that their bytes fit their shapes.
    /// What the numbers are is not looked at, but for the indexes.
    pub fn check(&self, rows: usize, cols: usize) -> Result<(), TensorFault> {
        let of = |part: PartKind| {
            move |fault| TensorFault::Part {
                part,
                fault: Box::new(fault),
            }
        };
        if let Some(LowRank { a, b }) = &self.low_rank {
            let rank = a.shape.first().copied().unwrap_or_default();
            if rank == 0 || rank > rows.min(cols) {
                return Err(TensorFault::Rank { rank, rows, cols });
            }
            check_dense(a, [rank, cols]).map_err(of(PartKind::LowRankA))?;
            check_dense(b, [rows, rank]).map_err(of(PartKind::LowRankB))?;
        }
        if let Some(Columns { indexes, values }) = &self.columns {
            check_indexes(indexes, cols).map_err(of(PartKind::ColumnIndex))?;
            let shape = [rows, indexes.len()];
            match &**values {
                Tensor::Dense(values) => check_dense(values, shape),
                Tensor::Packed(values) => check_packed(values, shape),
            }
            .map_err(of(PartKind::Columns))?;
        }
        Ok(())
    }
}

fn check_indexes(indexes: &[u32], cols: usize) -> Result<(), TensorFault> {
    let mut least = 0;
    for (place, &index) in indexes.iter().enumerate() {
        if index < least || index as usize >= cols {
            return Err(TensorFault::ColumnIndex {
                place,
                index,
                least,
                cols,
            });
        }
        least = index.saturating_add(1);
    }
    Ok(())
}

fn check_dense(tensor: &DenseTensor, shape: [usize; 2]) -> Result<(), TensorFault> {
    if tensor.dtype != DType::F16 {
        let (expected, found) = (DType::F16, tensor.dtype.into());
        return Err(TensorFault::Dtype { expected, found });
    }
    let expected = shape
        .iter()
        .try_fold(DType::F16.size(), |n, &dim| n.checked_mul(dim));
    check_part(shape, &tensor.shape, expected, tensor.bytes.len())
}

fn check_packed(tensor: &PackedTensor, shape: [usize; 2]) -> Result<(), TensorFault> {
    let layout = tensor.layout;
    let plain = layout.codec() == Codec::Int8
        && !layout.shift()
        && tensor.activations == ActivationBits::Sixteen
        && tensor.corrections.is_empty();
    if !plain {
        let (codec, shape) = (layout.codec().into(), tensor.shape());
        return Err(TensorFault::BadShape { codec, shape });
    }
    let found = tensor.shape();
    check_part(shape, &found, Some(layout.size_bytes()), tensor.bytes.len())
}

fn check_part(
    shape: [usize; 2],
    found: &[usize],
    expected_bytes: Option<usize>,
    bytes: usize,
) -> Result<(), TensorFault> {
    if shape != found || shape.contains(&0) {
        let (expected, found) = (shape.to_vec(), found.to_vec());
        return Err(TensorFault::Shape { expected, found });
    }
    if expected_bytes != Some(bytes) {
        let (expected, found) = (expected_bytes.unwrap_or(usize::MAX) as u64, bytes as u64);
        return Err(TensorFault::LayoutSize { expected, found });
    }
    Ok(())
}

/// The numbers of a part of [`PartCodec::U32`]; an error where the bytes behind them are not zero.
pub(crate) fn read_indexes(bytes: &[u8], count: usize) -> Result<Vec<u32>, TensorFault> {
    let words = bytes.as_chunks::<INDEX_BYTES>().0;
    let indexes: Vec<u32> = words
        .iter()
        .take(count)
        .map(|w| u32::from_le_bytes(*w))
        .collect();
    let start = count.saturating_mul(INDEX_BYTES);
    match bytes.iter().skip(start).position(|&byte| byte != 0) {
        Some(at) => Err(TensorFault::Tail {
            byte: start.saturating_add(at),
        }),
        None => Ok(indexes),
    }
}
