//! The layout of a GGUF file that is going to be written: every offset is fixed before the first
//! byte.

use std::ops::Range;

use super::cursor::Fault;
use super::error::GgufError;
use super::header::{self, GgufTensor, padded};
use super::metadata::{Array, Metadata, Value};
use super::{ALIGNMENT, ALIGNMENT_KEY, GgmlType, MAGIC, VERSION};
use crate::error::Error;

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedGguf {
    /// The name in the header.
    pub name: String,
    /// Element type.
    pub kind: GgmlType,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
}

/// Where everything lies in a GGUF file. Bytes that are in no range are zero.
#[derive(Clone, Debug)]
pub struct GgufLayout {
    header: Vec<u8>,
    tensors: Vec<GgufTensor>,
    size: u64,
}

impl GgufLayout {
    /// Lays `tensors` out in the order given; an error where the result is not a file that this
    /// crate would read.
    pub fn new(metadata: &Metadata, tensors: &[PlannedGguf]) -> Result<Self, Error> {
        let alignment = match metadata.get(ALIGNMENT_KEY) {
            Some(&Value::U32(alignment)) if alignment > 0 => alignment,
            _ => ALIGNMENT,
        };
        let mut header = MAGIC.to_vec();
        header.extend(VERSION.to_le_bytes());
        header.extend((tensors.len() as u64).to_le_bytes());
        header.extend((metadata.len() as u64).to_le_bytes());
        for (key, value) in metadata.iter() {
            put_text(&mut header, key);
            put_value(&mut header, value);
        }
        let mut offset = 0_u64;
        for tensor in tensors {
            let dims: Vec<u64> = tensor.shape.iter().rev().map(|&dim| dim as u64).collect();
            put_text(&mut header, &tensor.name);
            header.extend(u32::try_from(dims.len()).unwrap_or(u32::MAX).to_le_bytes());
            for dim in &dims {
                header.extend(dim.to_le_bytes());
            }
            header.extend(tensor.kind.id().to_le_bytes());
            header.extend(offset.to_le_bytes());
            let bytes = header::size_bytes(&tensor.name, tensor.kind, &dims).map_err(refuse)?;
            offset = padded(offset.saturating_add(bytes), alignment.into());
        }
        let start = padded(header.len() as u64, alignment.into());
        header.resize(usize::try_from(start).unwrap_or(usize::MAX), 0);
        let size = (header.len() as u64).saturating_add(offset);
        // Whatever the reader refuses is refused here, with the same words.
        let parsed = header::parse(&header[..], size).map_err(|fault| match fault {
            Fault::Bytes(error) => refuse(error),
            Fault::Io(_) => refuse(GgufError::Magic),
        })?;
        Ok(GgufLayout {
            tensors: parsed.tensors,
            header,
            size,
        })
    }

    /// The bytes before the first tensor.
    pub fn header_bytes(&self) -> &[u8] {
        &self.header
    }

    /// Every tensor in file order.
    pub fn tensors(&self) -> &[GgufTensor] {
        &self.tensors
    }

    /// Where the tensor `name` lies, in bytes from the start of the file.
    pub fn range(&self, name: &str) -> Option<Range<u64>> {
        let info = self.tensors.iter().find(|info| info.name == name);
        info.map(|info| info.range.clone())
    }

    /// Bytes of the whole file.
    pub fn file_size(&self) -> u64 {
        self.size
    }
}

fn refuse(error: GgufError) -> Error {
    Error::GgufLayout(Box::new(error))
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    out.extend(value.kind().to_le_bytes());
    match value {
        Value::U8(v) => out.extend(v.to_le_bytes()),
        Value::I8(v) => out.extend(v.to_le_bytes()),
        Value::U16(v) => out.extend(v.to_le_bytes()),
        Value::I16(v) => out.extend(v.to_le_bytes()),
        Value::U32(v) => out.extend(v.to_le_bytes()),
        Value::I32(v) => out.extend(v.to_le_bytes()),
        Value::F32(v) => out.extend(v.to_le_bytes()),
        Value::Bool(v) => out.push(u8::from(*v)),
        Value::Text(v) => put_text(out, v),
        Value::Array(v) => put_array(out, v),
        Value::U64(v) => out.extend(v.to_le_bytes()),
        Value::I64(v) => out.extend(v.to_le_bytes()),
        Value::F64(v) => out.extend(v.to_le_bytes()),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    let (kind, count) = array.kind();
    out.extend(kind.to_le_bytes());
    out.extend((count as u64).to_le_bytes());
    match array {
        Array::U8(v) => out.extend(v),
        Array::I8(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::U16(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::I16(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::U32(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::I32(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::F32(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::Bool(v) => out.extend(v.iter().map(|v| u8::from(*v))),
        Array::Text(v) => v.iter().for_each(|text| put_text(out, text)),
        Array::U64(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::I64(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::F64(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
    }
}
