//! Element types: those that dense tensors are held in, and all that a safetensors header names.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An element type that a dense tensor is stored in. Spelled as in safetensors headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// Upper half of a single.
    BF16,
    /// Bytes: the container of packed tensors.
    U8,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F16 | DType::BF16 => 2,
            DType::U8 => 1,
        }
    }

    /// The name used in safetensors headers.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "F32",
            DType::F16 => "F16",
            DType::BF16 => "BF16",
            DType::U8 => "U8",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Any element type of the safetensors format. A header may hold all of them; weights are read
/// only from those that [`ElementType::dense`] maps to a [`DType`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names are the documentation")]
#[expect(non_camel_case_types, reason = "spelled as in safetensors headers")]
pub enum ElementType {
    BOOL,
    F4,
    F6_E2M3,
    F6_E3M2,
    U8,
    I8,
    F8_E5M2,
    F8_E4M3,
    F8_E8M0,
    F8_E4M3FNUZ,
    F8_E5M2FNUZ,
    I16,
    U16,
    F16,
    BF16,
    I32,
    U32,
    F32,
    C64,
    F64,
    I64,
    U64,
}

impl ElementType {
    /// Every element type, its name in headers and its bits.
    const TABLE: [(ElementType, &'static str, u64); 22] = [
        (ElementType::BOOL, "BOOL", 8),
        (ElementType::F4, "F4", 4),
        (ElementType::F6_E2M3, "F6_E2M3", 6),
        (ElementType::F6_E3M2, "F6_E3M2", 6),
        (ElementType::U8, "U8", 8),
        (ElementType::I8, "I8", 8),
        (ElementType::F8_E5M2, "F8_E5M2", 8),
        (ElementType::F8_E4M3, "F8_E4M3", 8),
        (ElementType::F8_E8M0, "F8_E8M0", 8),
        (ElementType::F8_E4M3FNUZ, "F8_E4M3FNUZ", 8),
        (ElementType::F8_E5M2FNUZ, "F8_E5M2FNUZ", 8),
        (ElementType::I16, "I16", 16),
        (ElementType::U16, "U16", 16),
        (ElementType::F16, "F16", 16),
        (ElementType::BF16, "BF16", 16),
        (ElementType::I32, "I32", 32),
        (ElementType::U32, "U32", 32),
        (ElementType::F32, "F32", 32),
        (ElementType::C64, "C64", 64),
        (ElementType::F64, "F64", 64),
        (ElementType::I64, "I64", 64),
        (ElementType::U64, "U64", 64),
    ];

    fn row(self) -> (&'static str, u64) {
        let row = Self::TABLE.iter().find(|(element, ..)| *element == self);
        row.map_or(("", 0), |(_, name, bits)| (name, *bits))
    }

    /// The element type that headers call `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::TABLE
            .iter()
            .find(|(_, known, _)| *known == name)
            .map(|(element, ..)| *element)
    }

    /// The name used in safetensors headers.
    pub fn name(self) -> &'static str {
        self.row().0
    }

    /// Bits of one element.
    pub fn bits(self) -> u64 {
        self.row().1
    }

    /// The type that weights of this element type are read as, or `None` where they are not.
    pub const fn dense(self) -> Option<DType> {
        match self {
            ElementType::F32 => Some(DType::F32),
            ElementType::F16 => Some(DType::F16),
            ElementType::BF16 => Some(DType::BF16),
            _ => None,
        }
    }
}

impl From<DType> for ElementType {
    fn from(dtype: DType) -> Self {
        match dtype {
            DType::F32 => ElementType::F32,
            DType::F16 => ElementType::F16,
            DType::BF16 => ElementType::BF16,
            DType::U8 => ElementType::U8,
        }
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_type_has_one_name_and_one_size() {
        for (i, (element, name, bits)) in ElementType::TABLE.into_iter().enumerate() {
            assert_eq!(element as usize, i);
            assert_eq!(ElementType::from_name(name), Some(element));
            assert_eq!((element.name(), element.bits()), (name, bits));
        }
        assert_eq!(ElementType::from_name("f32"), None);
    }

    #[test]
    fn dense_types_keep_name_and_size() {
        for dtype in [DType::F32, DType::F16, DType::BF16, DType::U8] {
            let element = ElementType::from(dtype);
            assert_eq!(
                (element.name(), element.bits()),
                (dtype.name(), dtype.size() as u64 * 8)
            );
            assert_eq!(element.dense(), (dtype != DType::U8).then_some(dtype));
        }
    }
}
