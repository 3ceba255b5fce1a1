//! The header of a GGUF file: metadata, then where each tensor lies.

use std::collections::BTreeSet;
use std::io::Read;
use std::ops::Range;

use super::cursor::{Cursor, Fault, Place};
use super::error::GgufError;
use super::metadata::{Array, Metadata, Value, kind};
use super::{ALIGNMENT, ALIGNMENT_KEY, FIRST_VERSION, GgmlType, MAGIC, RANK, VERSION};
use crate::error::shown;
use crate::limits;

/// One tensor of a GGUF file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufTensor {
    /// The name in the header.
    pub name: String,
    /// Element type.
    pub kind: GgmlType,
    /// Dimensions, outermost first: the reverse of their order in the file.
    pub shape: Vec<usize>,
    /// Where the elements lie, in bytes from the start of the file.
    pub range: Range<u64>,
}

impl GgufTensor {
    /// Bytes of the elements.
    pub fn size_bytes(&self) -> u64 {
        self.range.end.saturating_sub(self.range.start)
    }
}

/// What a header says.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) metadata: Metadata,
    pub(super) tensors: Vec<GgufTensor>,
}

/// Reads the header of a file of `size` bytes and checks that its tensors tile the data.
pub(super) fn parse(reader: impl Read, size: u64) -> Result<Header, Fault> {
    let mut cursor = Cursor::new(reader, size);
    if cursor.magic()? != MAGIC {
        return Err(GgufError::Magic.into());
    }
    let version = cursor.u32()?;
    if (FIRST_VERSION..=VERSION).contains(&version.swap_bytes()) {
        return Err(GgufError::BigEndian.into());
    }
    if !(FIRST_VERSION..=VERSION).contains(&version) {
        return Err(GgufError::Version { found: version }.into());
    }
    let (tensors, keys) = (cursor.u64()?, cursor.u64()?);
    if tensors > limits::TENSORS_PER_FILE as u64 {
        return Err(GgufError::TensorCount { found: tensors }.into());
    }
    if keys > limits::METADATA_KEYS as u64 {
        return Err(GgufError::MetadataCount { found: keys }.into());
    }
    let metadata = metadata(&mut cursor, keys)?;
    let alignment = alignment(&metadata)?;
    let tensors = tensor_infos(&mut cursor, tensors)?;
    let start = padded(cursor.at(), alignment);
    Ok(Header {
        metadata,
        tensors: tile(tensors, start, size, alignment)?,
    })
}

fn metadata<R: Read>(cursor: &mut Cursor<R>, count: u64) -> Result<Metadata, Fault> {
    let mut metadata = Metadata::default();
    let mut seen = BTreeSet::new();
    for number in 0..count {
        cursor.place = Place::Key(number);
        let key = cursor.name()?;
        if !seen.insert(key.clone()) {
            return Err(GgufError::DuplicateKey { key: shown(&key) }.into());
        }
        cursor.place = Place::Value(key.clone());
        let value = value(cursor, &key)?;
        metadata.push(key, value);
    }
    Ok(metadata)
}

fn value<R: Read>(cursor: &mut Cursor<R>, key: &str) -> Result<Value, Fault> {
    let found = cursor.u32()?;
    Ok(match found {
        kind::U8 => Value::U8(cursor.number(u8::from_le_bytes)?),
        kind::I8 => Value::I8(cursor.number(i8::from_le_bytes)?),
        kind::U16 => Value::U16(cursor.number(u16::from_le_bytes)?),
        kind::I16 => Value::I16(cursor.number(i16::from_le_bytes)?),
        kind::U32 => Value::U32(cursor.u32()?),
        kind::I32 => Value::I32(cursor.number(i32::from_le_bytes)?),
        kind::F32 => Value::F32(cursor.number(f32::from_le_bytes)?),
        kind::BOOL => Value::Bool(truth(cursor.number(u8::from_le_bytes)?, key)?),
        kind::TEXT => Value::Text(cursor.text()?),
        kind::ARRAY => Value::Array(array(cursor, key)?),
        kind::U64 => Value::U64(cursor.u64()?),
        kind::I64 => Value::I64(cursor.number(i64::from_le_bytes)?),
        kind::F64 => Value::F64(cursor.number(f64::from_le_bytes)?),
        _ => return Err(unknown(key, found).into()),
    })
}

fn array<R: Read>(cursor: &mut Cursor<R>, key: &str) -> Result<Array, Fault> {
    let (found, count) = (cursor.u32()?, cursor.u64()?);
    Ok(match found {
        kind::U8 => Array::U8(cursor.numbers(count, u8::from_le_bytes)?),
        kind::I8 => Array::I8(cursor.numbers(count, i8::from_le_bytes)?),
        kind::U16 => Array::U16(cursor.numbers(count, u16::from_le_bytes)?),
        kind::I16 => Array::I16(cursor.numbers(count, i16::from_le_bytes)?),
        kind::U32 => Array::U32(cursor.numbers(count, u32::from_le_bytes)?),
        kind::I32 => Array::I32(cursor.numbers(count, i32::from_le_bytes)?),
        kind::F32 => Array::F32(cursor.numbers(count, f32::from_le_bytes)?),
        kind::BOOL => {
            let bytes = cursor.numbers(count, u8::from_le_bytes)?;
            let truths = bytes.into_iter().map(|byte| truth(byte, key));
            Array::Bool(truths.collect::<Result<_, _>>()?)
        }
        kind::TEXT => Array::Text(cursor.texts(count)?),
        kind::U64 => Array::U64(cursor.numbers(count, u64::from_le_bytes)?),
        kind::I64 => Array::I64(cursor.numbers(count, i64::from_le_bytes)?),
        kind::F64 => Array::F64(cursor.numbers(count, f64::from_le_bytes)?),
        kind::ARRAY => return Err(GgufError::NestedArray { key: shown(key) }.into()),
        _ => return Err(unknown(key, found).into()),
    })
}

fn unknown(key: &str, found: u32) -> GgufError {
    let key = shown(key);
    GgufError::ValueType { key, found }
}

fn truth(byte: u8, key: &str) -> Result<bool, GgufError> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        found => Err(GgufError::Bool {
            key: shown(key),
            found,
        }),
    }
}

/// What the offsets of tensors are multiples of.
fn alignment(metadata: &Metadata) -> Result<u64, GgufError> {
    match metadata.get(ALIGNMENT_KEY) {
        None => Ok(ALIGNMENT.into()),
        Some(&Value::U32(a)) if a.is_power_of_two() && (8..=1 << 16).contains(&a) => Ok(a.into()),
        Some(_) => Err(GgufError::Alignment),
    }
}

/// Tensors whose ranges still count from the start of the data.
fn tensor_infos<R: Read>(cursor: &mut Cursor<R>, count: u64) -> Result<Vec<GgufTensor>, Fault> {
    let mut tensors = Vec::new();
    let mut seen = BTreeSet::new();
    for number in 0..count {
        cursor.place = Place::Name(number);
        let name = cursor.name()?;
        let tensor = || shown(&name);
        if !seen.insert(name.clone()) {
            return Err(GgufError::DuplicateTensor { tensor: tensor() }.into());
        }
        cursor.place = Place::Tensor(name.clone());
        let rank = cursor.u32()?;
        if rank as usize > RANK {
            let tensor = tensor();
            return Err(GgufError::Rank {
                tensor,
                found: rank,
            }
            .into());
        }
        let innermost_first = cursor.numbers(rank.into(), u64::from_le_bytes)?;
        let id = cursor.u32()?;
        let kind = GgmlType::from_id(id).ok_or_else(|| GgufError::TensorType {
            tensor: tensor(),
            found: id,
        })?;
        let bytes = size_bytes(&name, kind, &innermost_first)?;
        let start = cursor.u64()?;
        let end = start.checked_add(bytes).filter(|&end| end <= limits::SIZE);
        let end = end.ok_or_else(|| GgufError::Size {
            tensor: tensor(),
            found: start,
        })?;
        let shape = innermost_first.iter().rev();
        tensors.push(GgufTensor {
            kind,
            shape: shape
                .map(|&dim| usize::try_from(dim).unwrap_or(usize::MAX))
                .collect(),
            range: start..end,
            name,
        });
    }
    Ok(tensors)
}

/// Bytes of a tensor with these dimensions.
pub(super) fn size_bytes(
    name: &str,
    kind: GgmlType,
    innermost_first: &[u64],
) -> Result<u64, GgufError> {
    let tensor = || shown(name);
    if let Some(&found) = innermost_first.iter().find(|&&dim| dim > limits::SIZE) {
        let tensor = tensor();
        return Err(GgufError::Size { tensor, found });
    }
    let columns = innermost_first.first().copied().unwrap_or(1);
    if !columns.is_multiple_of(kind.block()) {
        return Err(GgufError::PartialBlock {
            tensor: tensor(),
            kind,
            columns,
        });
    }
    let blocks = columns.checked_div(kind.block()).unwrap_or(0);
    let bytes = blocks.checked_mul(kind.block_bytes());
    let bytes = innermost_first
        .iter()
        .skip(1)
        .fold(bytes, |bytes, &dim| bytes?.checked_mul(dim));
    bytes
        .filter(|&bytes| bytes <= limits::SIZE)
        .ok_or_else(|| GgufError::Overflow {
            tensor: tensor(),
            shape: innermost_first.to_vec(),
        })
}

/// Checks that tensors follow each other, padded, to the end of the file, and moves their ranges
/// from offsets in the data to offsets in the file.
fn tile(
    mut tensors: Vec<GgufTensor>,
    start: u64,
    size: u64,
    alignment: u64,
) -> Result<Vec<GgufTensor>, GgufError> {
    let available = size.saturating_sub(start);
    let (mut end, mut expected) = (0, 0);
    for info in &mut tensors {
        let found = info.range.start;
        if found != expected {
            return Err(GgufError::Offset {
                tensor: shown(&info.name),
                expected,
                found,
            });
        }
        end = info.range.end;
        if end > available {
            return Err(GgufError::DataCut {
                tensor: shown(&info.name),
                end,
                available,
            });
        }
        expected = padded(end, alignment);
        info.range = start.saturating_add(found)..start.saturating_add(end);
    }
    // The padding of the last tensor may be missing.
    if available == end || available == expected {
        Ok(tensors)
    } else {
        Err(GgufError::Trailing {
            expected,
            found: available,
        })
    }
}

/// The next multiple of `alignment`, a power of two.
pub(super) fn padded(at: u64, alignment: u64) -> u64 {
    at.checked_next_multiple_of(alignment).unwrap_or(u64::MAX)
}
