//! Tensors as they lie in a file: dense elements or packed codes over shared bytes.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

use crate::codec::PackedLayout;
use crate::dtype::DType;

/// A range of bytes kept alive by whoever shares it: a mapped file or a buffer.
#[derive(Clone)]
pub struct SharedBytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl SharedBytes {
    /// All bytes of `owner`.
    pub fn new(owner: Arc<dyn AsRef<[u8]> + Send + Sync>) -> Self {
        let range = 0..(*owner).as_ref().len();
        SharedBytes { owner, range }
    }

    /// A part of these bytes, or `None` when `range` reaches beyond them.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        if range.start > range.end || range.end > self.range.len() {
            return None;
        }
        let start = self.range.start.checked_add(range.start)?;
        let end = self.range.start.checked_add(range.end)?;
        Some(SharedBytes { owner: Arc::clone(&self.owner), range: start..end })
    }
}

impl From<Vec<u8>> for SharedBytes {
    fn from(bytes: Vec<u8>) -> Self {
        SharedBytes::new(Arc::new(bytes))
    }
}

impl Deref for SharedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        (*self.owner).as_ref().get(self.range.clone()).unwrap_or_default()
    }
}

impl fmt::Debug for SharedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedBytes({} bytes)", self.len())
    }
}

/// A dense tensor: little-endian elements in row-major order.
#[derive(Clone, Debug)]
pub struct DenseTensor {
    /// Element type; never [`DType::U8`].
    pub dtype: DType,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// The elements; `shape` and `dtype` give its length.
    pub bytes: SharedBytes,
}

impl DenseTensor {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The elements as single precision: exact for each stored type.
    pub fn to_f32(&self) -> Vec<f32> {
        match self.dtype {
            DType::F32 => self.bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            DType::F16 => self
                .bytes
                .chunks_exact(2)
                .map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32())
                .collect(),
            DType::BF16 => self
                .bytes
                .chunks_exact(2)
                .map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32())
                .collect(),
            DType::U8 => self.bytes.iter().map(|&b| f32::from(b)).collect(),
        }
    }
}

/// A packed matrix: `bytes.len() == layout.size_bytes()`.
#[derive(Clone, Debug)]
pub struct PackedTensor {
    /// What the bytes mean.
    pub layout: PackedLayout,
    /// Codes, scales, shifts, padding.
    pub bytes: SharedBytes,
}

/// One tensor of a model.
#[derive(Clone, Debug)]
pub enum Tensor {
    /// Elements.
    Dense(DenseTensor),
    /// Codes in panels.
    Packed(PackedTensor),
}

impl Tensor {
    /// Dimensions, outermost first.
    pub fn shape(&self) -> Vec<usize> {
        match self {
            Tensor::Dense(t) => t.shape.clone(),
            Tensor::Packed(t) => vec![t.layout.rows(), t.layout.cols()],
        }
    }

    /// Stored bytes.
    pub fn size_bytes(&self) -> usize {
        match self {
            Tensor::Dense(t) => t.bytes.len(),
            Tensor::Packed(t) => t.bytes.len(),
        }
    }

    /// The name of the codec as manifests spell it: `ternary`, `int4`, `int8`, `f32`, `f16`, `bf16`.
    pub fn codec_name(&self) -> &'static str {
        match self {
            Tensor::Dense(t) => match t.dtype {
                DType::F32 => "f32",
                DType::F16 => "f16",
                DType::BF16 => "bf16",
                DType::U8 => "u8",
            },
            Tensor::Packed(t) => t.layout.codec().name(),
        }
    }
}
