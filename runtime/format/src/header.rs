//! The JSON header of a safetensors file: parsed in one pass, then checked to tile the data.
//!
//! Stricter than the reference reader: a key occurs once however it is escaped, nothing unknown
//! is skipped, and every size is bounded. Holds at most the header and its tensors in memory.

use std::collections::BTreeSet;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};

use crate::dtype::ElementType;
use crate::entry::Entry;
use crate::error::{HeaderError, json_reason, shown};
use crate::limits;

/// The key that holds free text instead of a tensor.
pub(crate) const METADATA: &str = "__metadata__";

/// One tensor of a safetensors file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name in the header.
    pub name: String,
    /// Element type; weights are read where [`ElementType::dense`] knows it.
    pub dtype: ElementType,
    /// Dimensions, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// Where the elements lie, in bytes from the start of the file.
    pub range: Range<u64>,
}

impl TensorInfo {
    /// Bytes of the elements.
    pub fn size_bytes(&self) -> u64 {
        self.range.end.saturating_sub(self.range.start)
    }
}

/// The tensors of the header `json`, in the order in which they tile `data`, the bytes of the
/// file that follow the header.
pub(crate) fn parse(json: &[u8], data: Range<u64>) -> Result<Vec<TensorInfo>, HeaderError> {
    let mut state = State::default();
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let parsed = Header(&mut state)
        .deserialize(&mut deserializer)
        .and_then(|()| deserializer.end());
    if let Err(error) = parsed {
        return Err(state.error.unwrap_or_else(|| HeaderError::Json {
            tensor: state.within.as_deref().map(shown),
            line: error.line(),
            column: error.column(),
            reason: json_reason(&error),
        }));
    }
    let mut tensors = state.tensors;
    tensors.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    if let Some((a, _)) = tensors
        .iter()
        .zip(tensors.iter().skip(1))
        .find(|(a, b)| a.name == b.name)
    {
        return Err(HeaderError::DuplicateTensor {
            tensor: shown(&a.name),
        });
    }
    tensors.sort_by_key(|t| (t.range.start, t.range.end));
    tile(&mut tensors, data)?;
    Ok(tensors)
}

/// Checks that tensors sorted by offset cover `data` without hole or overlap, and moves their
/// ranges from offsets in the data to offsets in the file.
fn tile(tensors: &mut [TensorInfo], data: Range<u64>) -> Result<(), HeaderError> {
    let available = data.end.saturating_sub(data.start);
    let mut expected = 0;
    for info in tensors {
        let (found, end) = (info.range.start, info.range.end);
        let tensor = || shown(&info.name);
        if found > expected {
            return Err(HeaderError::Hole {
                tensor: tensor(),
                expected,
                found,
            });
        }
        if found < expected {
            return Err(HeaderError::Overlap {
                tensor: tensor(),
                expected,
                found,
            });
        }
        if end > available {
            return Err(HeaderError::DataCut {
                tensor: tensor(),
                end,
                available,
            });
        }
        expected = end;
        info.range = data.start.saturating_add(found)..data.start.saturating_add(end);
    }
    if expected == available {
        Ok(())
    } else {
        Err(HeaderError::Trailing {
            expected,
            found: available,
        })
    }
}

/// What the visitors share: the tensors so far, and the reason once there is one.
#[derive(Default)]
pub(crate) struct State {
    tensors: Vec<TensorInfo>,
    error: Option<HeaderError>,
    within: Option<String>,
}

impl State {
    /// Keeps `error`, which the parser's own error type cannot carry.
    pub(crate) fn refuse<E: serde::de::Error>(&mut self, error: HeaderError) -> E {
        let out = E::custom(&error);
        self.error = Some(error);
        out
    }
}

/// A string that is looked at where it lies and turned into a `T`.
pub(crate) struct Text<F, T>(F, PhantomData<T>);

impl<F, T> Text<F, T> {
    pub(crate) fn new(f: F) -> Self {
        Text(f, PhantomData)
    }
}

impl<'de, T, F: FnOnce(&str) -> T> DeserializeSeed<'de> for Text<F, T> {
    type Value = T;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<T, F: FnOnce(&str) -> T> Visitor<'_> for Text<F, T> {
    type Value = T;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }
    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        Ok((self.0)(text))
    }
}

/// The whole header.
struct Header<'a>(&'a mut State);

impl<'de> DeserializeSeed<'de> for Header<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Header<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let state = self.0;
        let mut metadata = false;
        while let Some(name) = map.next_key_seed(Text::new(checked_name))? {
            let name = name.map_err(|error| state.refuse(error))?;
            if name == METADATA {
                if std::mem::replace(&mut metadata, true) {
                    return Err(state.refuse(HeaderError::DuplicateMetadata { key: name }));
                }
                map.next_value_seed(Metadata(state))?;
                continue;
            }
            if state.tensors.len() >= limits::TENSORS_PER_FILE {
                return Err(state.refuse(HeaderError::TensorCount));
            }
            let entry = Entry { state, name: &name };
            match map.next_value_seed(entry) {
                Ok((dtype, shape, range)) => {
                    state.tensors.push(TensorInfo {
                        name,
                        dtype,
                        shape,
                        range,
                    });
                }
                Err(error) => {
                    state.within = Some(name);
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

/// A tensor name, owned once it is known to be short and printable.
fn checked_name(name: &str) -> Result<String, HeaderError> {
    if name.is_empty() || name.len() > limits::NAME_BYTES {
        return Err(HeaderError::NameLength {
            tensor: shown(name),
            bytes: name.len(),
        });
    }
    if name.chars().any(char::is_control) {
        return Err(HeaderError::NameControl {
            tensor: shown(name),
        });
    }
    Ok(name.to_owned())
}

/// The `__metadata__` object: strings by unique keys, checked and forgotten.
struct Metadata<'a>(&'a mut State);

impl<'de> DeserializeSeed<'de> for Metadata<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Metadata<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut keys = BTreeSet::new();
        while let Some(key) = map.next_key::<String>()? {
            map.next_value_seed(Text::new(|_: &str| ()))?;
            if keys.contains(&key) {
                return Err(self
                    .0
                    .refuse(HeaderError::DuplicateMetadata { key: shown(&key) }));
            }
            keys.insert(key);
            if keys.len() > limits::METADATA_KEYS {
                return Err(self.0.refuse(HeaderError::MetadataCount));
            }
        }
        Ok(())
    }
}
