//! Where the code of a weight lies inside a block: the truth about packed bytes, one code at a
//! time, and the packing and unpacking of the rows of a block.
//!
//! A block is 16 rows by one group of columns, stored as units of 64 bytes. Byte `4r + i` of a
//! unit belongs to row `r`; with `k` counted inside the group:
//!
//! | codes | columns per unit | where column `k` lies | offset |
//! |---|---|---|---|
//! | ternary | 16 | unit `k/16`, `i = k%4`, bits `2c..2c+2` with `c = k/4 % 4` | 1 |
//! | int4 | 8 | unit `k/8`, `i = k%4`, bits `4c..4c+4` with `c = k/4 % 2` | 8 |
//! | int8 | 4 | unit `k/4`, `i = k%4`, the whole byte, two's complement | 0 |
//!
//! So four neighbouring columns of a row fill one 32-bit word, the operand of a four-way integer
//! dot product, for 16 rows at once.

/// Rows of one panel.
pub const PANEL_ROWS: usize = 16;
/// Bytes of one unit.
pub const UNIT_BYTES: usize = 64;
/// Group sizes a packed matrix may have.
pub const GROUP_SIZES: [usize; 4] = [32, 64, 128, 256];
/// The largest of [`GROUP_SIZES`].
pub const MAX_GROUP: usize = 256;

/// How levels are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codes {
    /// Levels -1, 0, 1 in two bits.
    Ternary,
    /// Levels -8..=7 in four bits.
    Int4,
    /// Levels -127..=127 in eight bits.
    Int8,
}

impl Codes {
    /// All of them.
    pub const ALL: [Codes; 3] = [Codes::Ternary, Codes::Int4, Codes::Int8];

    /// Bits of one code.
    pub const fn bits(self) -> usize {
        match self {
            Codes::Ternary => 2,
            Codes::Int4 => 4,
            Codes::Int8 => 8,
        }
    }

    /// Code minus level; an `int8` code is read as signed.
    pub const fn offset(self) -> i32 {
        match self {
            Codes::Ternary => 1,
            Codes::Int4 => 8,
            Codes::Int8 => 0,
        }
    }

    /// The byte that holds the level zero in every place.
    pub const fn zero_byte(self) -> u8 {
        match self {
            Codes::Ternary => 0b0101_0101,
            Codes::Int4 => 0x88,
            Codes::Int8 => 0,
        }
    }

    /// Words of four columns that share one byte position.
    const fn words_per_unit(self) -> usize {
        8 / self.bits()
    }

    /// Columns that one unit covers.
    pub const fn unit_cols(self) -> usize {
        4 * self.words_per_unit()
    }

    /// Bytes of one block of `group` columns.
    pub const fn block_bytes(self, group: usize) -> usize {
        PANEL_ROWS * group * self.bits() / 8
    }

    /// Byte and first bit of column `k` of row `r` inside a block.
    const fn locate(self, r: usize, k: usize) -> (usize, usize) {
        let unit = k / self.unit_cols();
        let word = k / 4 % self.words_per_unit();
        (unit * UNIT_BYTES + 4 * r + k % 4, word * self.bits())
    }

    /// The level that the low bits of `byte` hold.
    const fn level(self, byte: u8) -> i8 {
        match self {
            Codes::Ternary => (byte & 3) as i8 - 1,
            Codes::Int4 => (byte & 15) as i8 - 8,
            Codes::Int8 => byte as i8,
        }
    }

    /// The code of `level`, in the low bits.
    const fn code(self, level: i8) -> u8 {
        match self {
            Codes::Ternary => (level + 1) as u8 & 3,
            Codes::Int4 => (level + 8) as u8 & 15,
            Codes::Int8 => level as u8,
        }
    }
}

/// The level of column `k` of row `r` of a block. Panics outside the block.
pub fn get(codes: Codes, block: &[u8], r: usize, k: usize) -> i8 {
    let (byte, bit) = codes.locate(r, k);
    codes.level(block[byte] >> bit)
}

/// Stores the level of column `k` of row `r` of a block. Panics outside the block.
pub fn set(codes: Codes, block: &mut [u8], r: usize, k: usize, level: i8) {
    let (byte, bit) = codes.locate(r, k);
    let mask = if codes.bits() == 8 {
        0xff
    } else {
        (1 << codes.bits()) - 1
    };
    block[byte] = block[byte] & !(mask << bit) | codes.code(level) << bit;
}

/// The levels of the first `levels.len()` columns of row `r` of a block.
pub fn unpack_row(codes: Codes, block: &[u8], r: usize, levels: &mut [i8]) {
    let units = block.chunks_exact(UNIT_BYTES);
    for (unit, out) in units.zip(levels.chunks_mut(codes.unit_cols())) {
        let bytes = &unit[4 * r..4 * r + 4];
        for (word, out) in out.chunks_mut(4).enumerate() {
            for (level, byte) in out.iter_mut().zip(bytes) {
                *level = codes.level(byte >> (word * codes.bits()));
            }
        }
    }
}

/// Stores the levels of row `r` of a block; columns beyond `levels.len()` become zero.
pub fn pack_row(codes: Codes, block: &mut [u8], r: usize, levels: &[i8]) {
    let mut rest = levels.chunks(codes.unit_cols());
    for unit in block.chunks_exact_mut(UNIT_BYTES) {
        let mut padded = [0_i8; 16];
        let levels = rest.next().unwrap_or_default();
        padded[..levels.len()].copy_from_slice(levels);
        for (i, byte) in unit[4 * r..4 * r + 4].iter_mut().enumerate() {
            *byte = (0..codes.words_per_unit()).fold(0, |byte, word| {
                byte | codes.code(padded[4 * word + i]) << (word * codes.bits())
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extremes(codes: Codes) -> (i8, i8) {
        match codes {
            Codes::Ternary => (-1, 1),
            Codes::Int4 => (-8, 7),
            Codes::Int8 => (-127, 127),
        }
    }

    /// A level for each place, without a pattern that a misplaced code could hide in.
    fn level_at(codes: Codes, r: usize, k: usize) -> i8 {
        let (low, high) = extremes(codes);
        let span = (i32::from(high) - i32::from(low) + 1) as usize;
        (((r * 7919 + k * 104_729 + r * k) % span) as i32 + i32::from(low)) as i8
    }

    #[test]
    fn the_place_of_a_code_is_the_documented_one() {
        for group in GROUP_SIZES {
            for (r, k) in [(0, 0), (3, 5), (15, 31), (7, group - 1), (9, 18 % group)] {
                for codes in Codes::ALL {
                    let (low, high) = extremes(codes);
                    let mut block = vec![codes.zero_byte(); codes.block_bytes(group)];
                    set(codes, &mut block, r, k, high);
                    let (byte, expected) = match codes {
                        Codes::Ternary => {
                            (k / 16 * 64 + 4 * r + k % 4, 0x55 + (1 << (2 * (k / 4 % 4))))
                        }
                        Codes::Int4 if k % 8 < 4 => (k / 8 * 64 + 4 * r + k % 4, 0x8f),
                        Codes::Int4 => (k / 8 * 64 + 4 * r + k % 4, 0xf8),
                        Codes::Int8 => (k / 4 * 64 + 4 * r + k % 4, 127),
                    };
                    assert_eq!(block[byte], expected, "{codes:?} {r} {k}");
                    assert_eq!(get(codes, &block, r, k), high);
                    set(codes, &mut block, r, k, low);
                    assert_eq!(get(codes, &block, r, k), low);
                    set(codes, &mut block, r, k, 0);
                    assert!(block.iter().all(|&b| b == codes.zero_byte()));
                }
            }
        }
    }

    #[test]
    fn rows_pack_and_unpack_as_single_codes_do() {
        for (codes, group) in Codes::ALL
            .into_iter()
            .flat_map(|c| GROUP_SIZES.map(|g| (c, g)))
        {
            for cols in [1, 3, 4, 5, 15, 16, 17, group - 1, group] {
                let mut single = vec![codes.zero_byte(); codes.block_bytes(group)];
                let mut packed = vec![0xa5; codes.block_bytes(group)];
                for r in 0..PANEL_ROWS {
                    let levels: Vec<i8> = (0..cols).map(|k| level_at(codes, r, k)).collect();
                    for (k, &level) in levels.iter().enumerate() {
                        set(codes, &mut single, r, k, level);
                    }
                    pack_row(codes, &mut packed, r, &levels);
                }
                assert_eq!(single, packed, "{codes:?} {group} {cols}");
                for r in 0..PANEL_ROWS {
                    let mut levels = vec![0; cols];
                    unpack_row(codes, &packed, r, &mut levels);
                    for (k, &level) in levels.iter().enumerate() {
                        assert_eq!(level, level_at(codes, r, k));
                        assert_eq!(level, get(codes, &packed, r, k));
                    }
                }
            }
        }
    }
}
