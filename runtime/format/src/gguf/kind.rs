//! The element types that GGUF files name by number.

use std::fmt;

/// An element type of a tensor, in blocks along the innermost dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names are the documentation")]
#[expect(non_camel_case_types, reason = "spelled as others spell them")]
pub enum GgmlType {
    F32,
    F16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q8_1,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_K,
    IQ2_XXS,
    IQ2_XS,
    IQ3_XXS,
    IQ1_S,
    IQ4_NL,
    IQ3_S,
    IQ2_S,
    IQ4_XS,
    I8,
    I16,
    I32,
    I64,
    F64,
    IQ1_M,
    BF16,
    TQ1_0,
    TQ2_0,
    MXFP4,
    NVFP4,
    Q1_0,
    Q2_0,
}

/// What a file and a reader need to know of a type.
struct Row {
    kind: GgmlType,
    id: u32,
    name: &'static str,
    /// Elements of a block.
    block: u64,
    /// Bytes of a block.
    bytes: u64,
}

const fn row(kind: GgmlType, id: u32, name: &'static str, block: u64, bytes: u64) -> Row {
    Row {
        kind,
        id,
        name,
        block,
        bytes,
    }
}

impl GgmlType {
    /// Every type that a file may hold. Numbers left out were withdrawn.
    const TABLE: [Row; 35] = [
        row(GgmlType::F32, 0, "F32", 1, 4),
        row(GgmlType::F16, 1, "F16", 1, 2),
        row(GgmlType::Q4_0, 2, "Q4_0", 32, 18),
        row(GgmlType::Q4_1, 3, "Q4_1", 32, 20),
        row(GgmlType::Q5_0, 6, "Q5_0", 32, 22),
        row(GgmlType::Q5_1, 7, "Q5_1", 32, 24),
        row(GgmlType::Q8_0, 8, "Q8_0", 32, 34),
        row(GgmlType::Q8_1, 9, "Q8_1", 32, 36),
        row(GgmlType::Q2_K, 10, "Q2_K", 256, 84),
        row(GgmlType::Q3_K, 11, "Q3_K", 256, 110),
        row(GgmlType::Q4_K, 12, "Q4_K", 256, 144),
        row(GgmlType::Q5_K, 13, "Q5_K", 256, 176),
        row(GgmlType::Q6_K, 14, "Q6_K", 256, 210),
        row(GgmlType::Q8_K, 15, "Q8_K", 256, 292),
        row(GgmlType::IQ2_XXS, 16, "IQ2_XXS", 256, 66),
        row(GgmlType::IQ2_XS, 17, "IQ2_XS", 256, 74),
        row(GgmlType::IQ3_XXS, 18, "IQ3_XXS", 256, 98),
        row(GgmlType::IQ1_S, 19, "IQ1_S", 256, 50),
        row(GgmlType::IQ4_NL, 20, "IQ4_NL", 32, 18),
        row(GgmlType::IQ3_S, 21, "IQ3_S", 256, 110),
        row(GgmlType::IQ2_S, 22, "IQ2_S", 256, 82),
        row(GgmlType::IQ4_XS, 23, "IQ4_XS", 256, 136),
        row(GgmlType::I8, 24, "I8", 1, 1),
        row(GgmlType::I16, 25, "I16", 1, 2),
        row(GgmlType::I32, 26, "I32", 1, 4),
        row(GgmlType::I64, 27, "I64", 1, 8),
        row(GgmlType::F64, 28, "F64", 1, 8),
        row(GgmlType::IQ1_M, 29, "IQ1_M", 256, 56),
        row(GgmlType::BF16, 30, "BF16", 1, 2),
        row(GgmlType::TQ1_0, 34, "TQ1_0", 256, 54),
        row(GgmlType::TQ2_0, 35, "TQ2_0", 256, 66),
        row(GgmlType::MXFP4, 39, "MXFP4", 32, 17),
        row(GgmlType::NVFP4, 40, "NVFP4", 64, 36),
        row(GgmlType::Q1_0, 41, "Q1_0", 128, 18),
        row(GgmlType::Q2_0, 42, "Q2_0", 64, 18),
    ];

    fn row(self) -> Option<&'static Row> {
        Self::TABLE.iter().find(|row| row.kind == self)
    }

    /// The type of this number.
    pub fn from_id(id: u32) -> Option<Self> {
        let row = Self::TABLE.iter().find(|row| row.id == id);
        row.map(|row| row.kind)
    }

    /// The number in files.
    pub fn id(self) -> u32 {
        self.row().map_or(u32::MAX, |row| row.id)
    }

    /// The name people know it by.
    pub fn name(self) -> &'static str {
        self.row().map_or("", |row| row.name)
    }

    /// Elements of a block.
    pub fn block(self) -> u64 {
        self.row().map_or(1, |row| row.block)
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> u64 {
        self.row().map_or(0, |row| row.bytes)
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_stands_in_the_table_once() {
        for (at, row) in GgmlType::TABLE.iter().enumerate() {
            assert_eq!(row.kind as usize, at);
            assert_eq!(GgmlType::from_id(row.id), Some(row.kind));
            assert_eq!((row.kind.id(), row.kind.name()), (row.id, row.name));
            assert!(row.kind.block() > 0 && row.kind.block_bytes() > 0);
        }
        for withdrawn in [4, 5, 31, 32, 33, 36, 37, 38, 43, u32::MAX] {
            assert_eq!(GgmlType::from_id(withdrawn), None);
        }
    }

    #[test]
    fn blocks_have_the_bits_that_names_promise() {
        let bits = |kind: GgmlType| kind.block_bytes() as f64 * 8.0 / kind.block() as f64;
        for (kind, expected) in [
            (GgmlType::Q4_0, 4.5),
            (GgmlType::Q8_0, 8.5),
            (GgmlType::Q6_K, 6.5625),
            (GgmlType::Q4_K, 4.5),
            (GgmlType::TQ1_0, 1.6875),
            (GgmlType::TQ2_0, 2.0625),
            (GgmlType::MXFP4, 4.25),
            (GgmlType::BF16, 16.0),
        ] {
            assert!((bits(kind) - expected).abs() < 1e-12, "{kind}");
        }
    }
}
