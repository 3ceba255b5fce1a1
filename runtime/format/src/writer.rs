//! The layout of a safetensors file that is going to be written: every offset is fixed before
//! the first byte, so the bytes do not depend on the order in which tensors are finished.

use std::fmt::Write as _;
use std::ops::Range;

use serde_json::{Value, json};

use crate::codec::UNIT_BYTES;
use crate::dtype::DType;
use crate::error::{Error, HeaderError, shown};
use crate::header::{self, METADATA, TensorInfo};
use crate::limits;

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedTensor {
    /// The name in the header.
    pub name: String,
    /// Element type; [`DType::U8`] is a packed tensor.
    pub dtype: DType,
    /// Dimensions, outermost first; the size in bytes of a packed tensor.
    pub shape: Vec<usize>,
}

/// Where everything lies in a safetensors file.
///
/// Packed tensors come first, each 64-byte aligned, then dense tensors by falling element size,
/// which aligns them to their elements. Otherwise the order is the one given.
#[derive(Clone, Debug)]
pub struct SafetensorsLayout {
    header: Vec<u8>,
    tensors: Vec<TensorInfo>,
    size: u64,
}

impl SafetensorsLayout {
    /// Lays `tensors` out; an error where the result is not a file that this crate would read.
    pub fn new(mut tensors: Vec<PlannedTensor>) -> Result<Self, Error> {
        tensors.sort_by_key(|tensor| match tensor.dtype {
            DType::U8 => 0,
            DType::F32 => 1,
            DType::F16 | DType::BF16 => 2,
        });
        if tensors.len() > limits::TENSORS_PER_FILE {
            return Err(refuse(HeaderError::TensorCount));
        }
        let (json, data_bytes) = header_json(&tensors)?;
        let length = json.len() as u64;
        if length > limits::HEADER_BYTES {
            return Err(refuse(HeaderError::HeaderLength { declared: length }));
        }
        let mut header = length.to_le_bytes().to_vec();
        header.extend(json);
        let start = header.len() as u64;
        let size = start.saturating_add(data_bytes);
        // Whatever the reader refuses is refused here, with the same words.
        let json = header.get(8..).unwrap_or_default();
        let tensors = header::parse(json, start..size).map_err(refuse)?;
        Ok(SafetensorsLayout {
            header,
            tensors,
            size,
        })
    }

    /// The bytes before the first tensor: the length, the header and its padding.
    pub fn header_bytes(&self) -> Vec<u8> {
        self.header.clone()
    }

    /// Every tensor in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Where the tensor `name` lies, in bytes from the start of the file.
    pub fn range(&self, name: &str) -> Option<Range<u64>> {
        self.tensors
            .iter()
            .find(|info| info.name == name)
            .map(|info| info.range.clone())
    }

    /// Bytes of the whole file.
    pub fn file_size(&self) -> u64 {
        self.size
    }
}

fn refuse(error: HeaderError) -> Error {
    Error::Layout(Box::new(error))
}

/// The header text, padded so that the data begins at a multiple of 64, and the bytes of data.
fn header_json(tensors: &[PlannedTensor]) -> Result<(Vec<u8>, u64), Error> {
    let mut json = format!(r#"{{"{METADATA}":{{"format":"neuroconv"}}"#);
    let mut offset = 0_u64;
    for tensor in tensors {
        let overflow = || {
            let shape = tensor.shape.iter().map(|&dim| dim as u64).collect();
            refuse(HeaderError::Overflow {
                tensor: shown(&tensor.name),
                shape,
            })
        };
        let bytes = tensor
            .shape
            .iter()
            .try_fold(tensor.dtype.size() as u64, |bytes, &dim| {
                bytes.checked_mul(dim as u64)
            })
            .ok_or_else(overflow)?;
        if tensor.dtype == DType::U8 && !bytes.is_multiple_of(UNIT_BYTES as u64) {
            return Err(Error::Unaligned {
                tensor: shown(&tensor.name),
                bytes,
            });
        }
        let end = offset.checked_add(bytes).ok_or_else(overflow)?;
        let entry = json!({
            "dtype": tensor.dtype.name(),
            "shape": tensor.shape,
            "data_offsets": [offset, end],
        });
        let _ = write!(json, ",{}:{entry}", Value::from(tensor.name.as_str()));
        offset = end;
    }
    json.push('}');
    let mut json = json.into_bytes();
    let start = json.len().saturating_add(8).next_multiple_of(UNIT_BYTES);
    json.resize(start.saturating_sub(8), b' ');
    Ok((json, offset))
}
