//! Tensors as they lie in a file: dense elements or packed codes over shared bytes.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

use crate::codec::{ActivationBits, PackedLayout};
use crate::corrections::Corrections;
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
        Some(SharedBytes {
            owner: Arc::clone(&self.owner),
            range: start..end,
        })
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
        (*self.owner)
            .as_ref()
            .get(self.range.clone())
            .unwrap_or_default()
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
        self.bytes.len().checked_div(self.dtype.size()).unwrap_or(0)
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// A range of the elements in row-major order, as one row; `None` when it reaches beyond them.
    pub fn part(&self, range: Range<usize>) -> Option<Self> {
        let size = self.dtype.size();
        Some(DenseTensor {
            dtype: self.dtype,
            shape: vec![range.len()],
            bytes: self
                .bytes
                .slice(range.start.checked_mul(size)?..range.end.checked_mul(size)?)?,
        })
    }

    /// The elements as single precision: exact for each stored type.
    pub fn to_f32(&self) -> Vec<f32> {
        match self.dtype {
            DType::F32 => elements(&self.bytes)
                .iter()
                .copied()
                .map(f32::from_le_bytes)
                .collect(),
            DType::F16 => {
                let half = |&b: &[u8; 2]| half::f16::from_le_bytes(b).to_f32();
                elements(&self.bytes).iter().map(half).collect()
            }
            DType::BF16 => {
                let half = |&b: &[u8; 2]| half::bf16::from_le_bytes(b).to_f32();
                elements(&self.bytes).iter().map(half).collect()
            }
            DType::U8 => self.bytes.iter().map(|&b| f32::from(b)).collect(),
        }
    }

    /// The place of the first element that is infinite or not a number.
    pub fn first_non_finite(&self) -> Option<usize> {
        match self.dtype {
            DType::F32 => first(elements(&self.bytes), |&b| {
                u32::from_le_bytes(b) & 0x7f80_0000 == 0x7f80_0000
            }),
            DType::F16 => first_non_finite_f16(&self.bytes),
            DType::BF16 => first(elements(&self.bytes), |&b| {
                u16::from_le_bytes(b) & 0x7f80 == 0x7f80
            }),
            DType::U8 => None,
        }
    }
}

/// `bytes` as whole elements of `N` bytes.
fn elements<const N: usize>(bytes: &[u8]) -> &[[u8; N]] {
    bytes.as_chunks().0
}

/// The place of the first element of half precision that is infinite or not a number.
pub(crate) fn first_non_finite_f16(bytes: &[u8]) -> Option<usize> {
    first(elements(bytes), |&b| {
        u16::from_le_bytes(b) & 0x7c00 == 0x7c00
    })
}

/// The place of the first element that is `bad`. Tells good blocks without a branch per element.
pub(crate) fn first<T>(elements: &[T], bad: impl Fn(&T) -> bool) -> Option<usize> {
    const BLOCK: usize = 1024;
    let any = |block: &[T]| {
        block
            .iter()
            .fold(0, |found, element| found | u8::from(bad(element)))
            != 0
    };
    let skipped = elements
        .chunks(BLOCK)
        .take_while(|block| !any(block))
        .count();
    let start = skipped.saturating_mul(BLOCK);
    let found = elements.get(start..)?.iter().position(bad)?;
    Some(start.saturating_add(found))
}

/// A packed matrix: `bytes.len() == layout.size_bytes()`.
#[derive(Clone, Debug)]
pub struct PackedTensor {
    /// What the bytes mean.
    pub layout: PackedLayout,
    /// Codes, scales, shifts, padding.
    pub bytes: SharedBytes,
    /// How finely products round the activations that meet the codes.
    pub activations: ActivationBits,
    /// What belongs to the matrix beside the codes.
    pub corrections: Corrections,
}

impl PackedTensor {
    /// Codes alone, for activations in eight bits.
    pub fn new(layout: PackedLayout, bytes: impl Into<SharedBytes>) -> Self {
        PackedTensor {
            layout,
            bytes: bytes.into(),
            activations: ActivationBits::default(),
            corrections: Corrections::default(),
        }
    }

    /// Rows and columns.
    pub fn shape(&self) -> Vec<usize> {
        vec![self.layout.rows(), self.layout.cols()]
    }

    /// Stored bytes, corrections included.
    pub fn size_bytes(&self) -> usize {
        self.bytes
            .len()
            .saturating_add(self.corrections.size_bytes())
    }
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
            Tensor::Packed(t) => t.shape(),
        }
    }

    /// Stored bytes, everything counted.
    pub fn size_bytes(&self) -> usize {
        match self {
            Tensor::Dense(t) => t.bytes.len(),
            Tensor::Packed(t) => t.size_bytes(),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn dense(dtype: DType, bytes: Vec<u8>) -> DenseTensor {
        DenseTensor {
            dtype,
            shape: vec![bytes.len() / dtype.size()],
            bytes: bytes.into(),
        }
    }

    #[test]
    fn the_first_element_that_is_not_finite_is_found() {
        for at in [0, 1, 1023, 1024, 2999] {
            for (dtype, one, bad) in [
                (
                    DType::F32,
                    1_f32.to_le_bytes().to_vec(),
                    f32::NAN.to_le_bytes().to_vec(),
                ),
                (
                    DType::F32,
                    0_f32.to_le_bytes().to_vec(),
                    f32::NEG_INFINITY.to_le_bytes().to_vec(),
                ),
                (DType::F16, vec![0xff, 0x7b], vec![0x00, 0x7c]),
                (DType::BF16, vec![0x7f, 0x7f], vec![0xc0, 0xff]),
            ] {
                let mut bytes = one.repeat(3000);
                assert_eq!(dense(dtype, bytes.clone()).first_non_finite(), None);
                for place in [at, 2999] {
                    let start = place * dtype.size();
                    bytes[start..start + dtype.size()].copy_from_slice(&bad);
                }
                assert_eq!(dense(dtype, bytes).first_non_finite(), Some(at), "{dtype}");
            }
        }
    }

    #[test]
    fn elements_convert_exactly() {
        let f16 = dense(DType::F16, vec![0x00, 0x3c, 0x00, 0xc0]);
        assert_eq!(f16.to_f32(), [1.0, -2.0]);
        assert_eq!(
            dense(DType::BF16, vec![0x80, 0x3f, 0x40, 0xc0]).to_f32(),
            [1.0, -3.0]
        );
        assert_eq!(
            dense(DType::F32, 0.1_f32.to_le_bytes().to_vec()).to_f32(),
            [0.1]
        );
    }

    #[test]
    fn slices_stay_inside() {
        let bytes = SharedBytes::from(vec![1, 2, 3, 4]).slice(1..4).unwrap();
        assert_eq!(&*bytes.slice(1..2).unwrap(), [3]);
        assert!(bytes.slice(0..4).is_none());
        #[expect(clippy::reversed_empty_ranges, reason = "what is tested")]
        let backwards = bytes.slice(2..1);
        assert!(backwards.is_none());
    }
}
