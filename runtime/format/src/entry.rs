//! One entry of a safetensors header: the object that describes a tensor.

use std::fmt;
use std::ops::Range;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::dtype::ElementType;
use crate::error::{HeaderError, shown};
use crate::header::{State, Text};
use crate::limits;

/// Element type, shape and range in the data of one tensor.
pub(crate) type Fields = (ElementType, Vec<usize>, Range<u64>);

/// The object of the tensor `name`.
pub(crate) struct Entry<'a> {
    pub(crate) state: &'a mut State,
    pub(crate) name: &'a str,
}

impl<'de> DeserializeSeed<'de> for Entry<'_> {
    type Value = Fields;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Fields, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Entry<'_> {
    type Value = Fields;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of `dtype`, `shape` and `data_offsets`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        let tensor = || shown(self.name);
        let known = |field: &str| match field {
            "dtype" => Ok("dtype"),
            "shape" => Ok("shape"),
            "data_offsets" => Ok("data_offsets"),
            _ => Err(HeaderError::UnknownField {
                tensor: tensor(),
                field: shown(field),
            }),
        };
        while let Some(field) = map.next_key_seed(Text::new(known))? {
            let field = field.map_err(|error| self.state.refuse(error))?;
            let twice = match field {
                "dtype" => {
                    let parsed = map.next_value_seed(Text::new(|text: &str| {
                        ElementType::from_name(text).ok_or_else(|| HeaderError::UnknownDtype {
                            tensor: tensor(),
                            dtype: shown(text),
                        })
                    }))?;
                    dtype
                        .replace(parsed.map_err(|error| self.state.refuse(error))?)
                        .is_some()
                }
                "shape" => {
                    let (state, name) = (&mut *self.state, self.name);
                    shape
                        .replace(map.next_value_seed(Shape { state, name })?)
                        .is_some()
                }
                _ => offsets.replace(map.next_value::<[u64; 2]>()?).is_some(),
            };
            if twice {
                return Err(self.state.refuse(HeaderError::DuplicateField {
                    tensor: tensor(),
                    field,
                }));
            }
        }
        let missing = |field| HeaderError::MissingField {
            tensor: tensor(),
            field,
        };
        let checked = (|| {
            let dtype = dtype.ok_or_else(|| missing("dtype"))?;
            let shape = shape.ok_or_else(|| missing("shape"))?;
            let [begin, end] = offsets.ok_or_else(|| missing("data_offsets"))?;
            check_entry(self.name, dtype, &shape, begin..end)
        })();
        checked.map_err(|error| self.state.refuse(error))
    }
}

/// The at most [`limits::RANK`] sizes of the tensor `name`.
struct Shape<'a> {
    state: &'a mut State,
    name: &'a str,
}

impl<'de> DeserializeSeed<'de> for Shape<'_> {
    type Value = Vec<u64>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<u64>, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Shape<'_> {
    type Value = Vec<u64>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of sizes")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<u64>, A::Error> {
        let mut dims = Vec::new();
        while let Some(dim) = seq.next_element()? {
            if dims.len() >= limits::RANK {
                let tensor = shown(self.name);
                return Err(self.state.refuse(HeaderError::Rank { tensor }));
            }
            dims.push(dim);
        }
        Ok(dims)
    }
}

/// Checks one tensor by itself: sizes, element count and byte count.
fn check_entry(
    name: &str,
    dtype: ElementType,
    shape: &[u64],
    range: Range<u64>,
) -> Result<Fields, HeaderError> {
    let tensor = || shown(name);
    let sizes = shape.iter().chain([&range.start, &range.end]);
    if let Some(found) = sizes.copied().find(|&size| size > limits::SIZE) {
        return Err(HeaderError::Size {
            tensor: tensor(),
            found,
        });
    }
    let overflow = || HeaderError::Overflow {
        tensor: tensor(),
        shape: shape.to_vec(),
    };
    // Zeros count as ones here, so that the order of the dimensions decides nothing.
    let bits = shape
        .iter()
        .try_fold(dtype.bits(), |product, &dim| {
            product.checked_mul(dim.max(1))
        })
        .ok_or_else(overflow)?;
    let bits = if shape.contains(&0) { 0 } else { bits };
    if bits % 8 != 0 {
        return Err(HeaderError::PartialByte {
            tensor: tensor(),
            dtype,
            shape: shape.to_vec(),
        });
    }
    let found = range
        .end
        .checked_sub(range.start)
        .ok_or_else(|| HeaderError::Backwards {
            tensor: tensor(),
            begin: range.start,
            end: range.end,
        })?;
    if found != bits / 8 {
        return Err(HeaderError::ByteCount {
            tensor: tensor(),
            expected: bits / 8,
            found,
        });
    }
    let dims = shape
        .iter()
        .map(|&dim| usize::try_from(dim))
        .collect::<Result<_, _>>();
    Ok((dtype, dims.map_err(|_| overflow())?, range))
}
