//! The table of packed codecs and the arithmetic of their one layout, N16K4 panels.
//!
//! A matrix `[rows, cols]` is cut into panels of 16 rows and groups of `group` columns, both
//! padded with the code for zero. A packed tensor is three planes, one after the other:
//!
//! ```text
//! codes   [panel][group][unit of 64 bytes]      16 rows x 4 columns per 16 row-dwords
//! scales  [panel][group][16] f16
//! shifts  [panel][group][16] f16                 only where the layout has a shift
//! zero bytes up to a multiple of 64
//! ```
//!
//! Byte `4r + i` of a unit belongs to row `r` of the panel. With `k` counted inside the group:
//!
//! | codec | columns per unit | where column `k` of row `r` lies |
//! |---|---|---|
//! | ternary | 16 | unit `k/16`, byte `4r + k%4`, bits `2c..2c+2` with `c = k/4 % 4` |
//! | int4 | 8 | unit `k/8`, byte `4r + k%4`, low nibble if `k%8 < 4`, else high |
//! | int8 | 4 | unit `k/4`, byte `4r + k%4` |
//!
//! A weight is `scale * (code - offset) + shift`.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Rows of one panel.
pub const PANEL_ROWS: usize = 16;
/// Bytes of one unit, and the alignment of every packed tensor.
pub const UNIT_BYTES: usize = 64;
/// Group sizes a layout may have.
pub const GROUP_SIZES: [usize; 4] = [32, 64, 128, 256];

/// How the codes of a packed tensor are stored and what they mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// Three levels -1, 0, 1 in two bits.
    Ternary,
    /// Sixteen levels -8..=7 in four bits.
    Int4,
    /// Levels -127..=127 in eight bits.
    Int8,
}

impl Codec {
    /// Every packed codec.
    pub const ALL: [Codec; 3] = [Codec::Ternary, Codec::Int4, Codec::Int8];

    /// The name used in recipes, manifests and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Codec::Ternary => "ternary",
            Codec::Int4 => "int4",
            Codec::Int8 => "int8",
        }
    }

    /// Bits of one stored code.
    pub const fn bits(self) -> usize {
        match self {
            Codec::Ternary => 2,
            Codec::Int4 => 4,
            Codec::Int8 => 8,
        }
    }

    /// What is subtracted from the stored code, read as unsigned (`int8`: as signed).
    pub const fn offset(self) -> i32 {
        match self {
            Codec::Ternary => 1,
            Codec::Int4 => 8,
            Codec::Int8 => 0,
        }
    }

    /// Smallest and largest level, that is code minus offset.
    pub const fn levels(self) -> (i32, i32) {
        match self {
            Codec::Ternary => (-1, 1),
            Codec::Int4 => (-8, 7),
            Codec::Int8 => (-127, 127),
        }
    }

    /// Columns that one 64-byte unit covers.
    pub const fn unit_cols(self) -> usize {
        match self {
            Codec::Ternary => 16,
            Codec::Int4 => 8,
            Codec::Int8 => 4,
        }
    }

    /// A byte of codes that all mean zero.
    pub const fn zero_byte(self) -> u8 {
        match self {
            Codec::Ternary => 0b0101_0101,
            Codec::Int4 => 0x88,
            Codec::Int8 => 0,
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How finely activations are rounded before they meet the codes of a packed tensor.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(try_from = "u8", into = "u8")]
pub enum ActivationBits {
    /// 127 levels on either side of zero.
    #[default]
    Eight,
    /// 32512 levels on either side of zero: half as fast where many rows share the weights, as fast
    /// where one row waits for them.
    Sixteen,
}

impl ActivationBits {
    /// The number that manifests give.
    pub const fn bits(self) -> u8 {
        match self {
            ActivationBits::Eight => 8,
            ActivationBits::Sixteen => 16,
        }
    }
}

impl From<ActivationBits> for u8 {
    fn from(bits: ActivationBits) -> u8 {
        bits.bits()
    }
}

impl TryFrom<u8> for ActivationBits {
    type Error = String;

    fn try_from(bits: u8) -> Result<Self, String> {
        match bits {
            8 => Ok(ActivationBits::Eight),
            16 => Ok(ActivationBits::Sixteen),
            _ => Err(format!("activations have 8 or 16 bits, not {bits}")),
        }
    }
}

/// The layout of one packed matrix. All sizes follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PackedLayout {
    codec: Codec,
    rows: usize,
    cols: usize,
    group: usize,
    shift: bool,
    size_bytes: usize,
}

/// Why a packed layout cannot exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The group size is not one of [`GROUP_SIZES`].
    #[error("group size {0} is not one of 32, 64, 128, 256")]
    Group(usize),
    /// A dimension is zero or the size overflows.
    #[error("a matrix of {rows} x {cols} cannot be packed")]
    Size {
        /// Output features.
        rows: usize,
        /// Input features.
        cols: usize,
    },
}

#[expect(
    clippy::arithmetic_side_effects,
    reason = "`new` computed the size in bytes with checks, and every other figure is below it"
)]
impl PackedLayout {
    /// The layout of a `[rows, cols]` matrix; rejects sizes whose byte count overflows.
    pub fn new(
        codec: Codec,
        rows: usize,
        cols: usize,
        group: usize,
        shift: bool,
    ) -> Result<Self, LayoutError> {
        if !GROUP_SIZES.contains(&group) {
            return Err(LayoutError::Group(group));
        }
        let size = || -> Option<usize> {
            if rows == 0 || cols == 0 {
                return None;
            }
            let blocks = rows
                .div_ceil(PANEL_ROWS)
                .checked_mul(cols.div_ceil(group))?;
            let codes = (group.checked_mul(PANEL_ROWS)?.checked_mul(codec.bits())?) / 8;
            let scales = PANEL_ROWS.checked_mul(if shift { 4 } else { 2 })?;
            let bytes = blocks.checked_mul(codes.checked_add(scales)?)?;
            bytes.checked_next_multiple_of(UNIT_BYTES)
        };
        let size_bytes = size().ok_or(LayoutError::Size { rows, cols })?;
        Ok(PackedLayout {
            codec,
            rows,
            cols,
            group,
            shift,
            size_bytes,
        })
    }

    /// How codes are stored.
    pub const fn codec(&self) -> Codec {
        self.codec
    }
    /// Output features.
    pub const fn rows(&self) -> usize {
        self.rows
    }
    /// Input features.
    pub const fn cols(&self) -> usize {
        self.cols
    }
    /// Columns that share a scale.
    pub const fn group(&self) -> usize {
        self.group
    }
    /// Whether groups have a shift beside the scale.
    pub const fn shift(&self) -> bool {
        self.shift
    }
    /// Panels of 16 rows.
    pub const fn panels(&self) -> usize {
        self.rows.div_ceil(PANEL_ROWS)
    }
    /// Groups of columns.
    pub const fn groups(&self) -> usize {
        self.cols.div_ceil(self.group)
    }
    /// Bytes of the codes of one panel and one group.
    pub const fn block_bytes(&self) -> usize {
        self.group * PANEL_ROWS * self.codec.bits() / 8
    }
    /// Where the codes lie.
    pub const fn codes(&self) -> Range<usize> {
        0..self.panels() * self.groups() * self.block_bytes()
    }
    /// Where the scales lie.
    pub const fn scales(&self) -> Range<usize> {
        let start = self.codes().end;
        start..start + self.panels() * self.groups() * PANEL_ROWS * 2
    }
    /// Where the shifts lie; empty without a shift.
    pub const fn shifts(&self) -> Range<usize> {
        let start = self.scales().end;
        if self.shift {
            start..start + self.panels() * self.groups() * PANEL_ROWS * 2
        } else {
            start..start
        }
    }
    /// Where the code of `row` and `col` lies: the byte, and the bit in it where the code begins.
    /// Rows and columns may be padding.
    pub const fn code_at(&self, row: usize, col: usize) -> (usize, usize) {
        let (panel, group, k) = (row / PANEL_ROWS, col / self.group, col % self.group);
        let block = (panel * self.groups() + group) * self.block_bytes();
        let unit_cols = self.codec.unit_cols();
        let byte = block + k / unit_cols * UNIT_BYTES + 4 * (row % PANEL_ROWS) + k % 4;
        (byte, k % unit_cols / 4 * self.codec.bits())
    }
    /// Where the scale of `row` and `group` lies among the scales, and the shift among the
    /// shifts, in bytes.
    pub const fn scale_at(&self, row: usize, group: usize) -> usize {
        2 * ((row / PANEL_ROWS * self.groups() + group) * PANEL_ROWS + row % PANEL_ROWS)
    }
    /// Bytes of the whole packed tensor, a multiple of 64.
    pub const fn size_bytes(&self) -> usize {
        self.size_bytes
    }
    /// Stored bits per weight of the unpadded matrix, everything counted.
    pub fn bits_per_weight(&self) -> f64 {
        self.size_bytes as f64 * 8.0 / (self.rows as f64 * self.cols as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_matrices_cost_what_the_design_says() {
        for (codec, bits) in [
            (Codec::Ternary, 2.125),
            (Codec::Int4, 4.125),
            (Codec::Int8, 8.125),
        ] {
            let layout = PackedLayout::new(codec, 256, 512, 128, false).unwrap();
            assert!((layout.bits_per_weight() - bits).abs() < 1e-12);
            assert_eq!(codec.unit_cols() * codec.bits(), 32);
        }
    }

    #[test]
    fn planes_follow_each_other_and_the_end_is_padded() {
        let layout = PackedLayout::new(Codec::Ternary, 17, 100, 32, true).unwrap();
        assert_eq!(
            (layout.panels(), layout.groups(), layout.block_bytes()),
            (2, 4, 128)
        );
        assert_eq!(layout.codes(), 0..1024);
        assert_eq!(layout.scales(), 1024..1280);
        assert_eq!(layout.shifts(), 1280..1536);
        assert_eq!(layout.size_bytes(), 1536);
        let odd = PackedLayout::new(Codec::Int8, 16, 32, 32, false).unwrap();
        assert_eq!(odd.size_bytes(), 512 + 64);
    }

    #[test]
    fn impossible_layouts_are_refused() {
        assert_eq!(
            PackedLayout::new(Codec::Int4, 16, 64, 48, false),
            Err(LayoutError::Group(48))
        );
        assert!(PackedLayout::new(Codec::Int4, 0, 64, 64, false).is_err());
        assert!(PackedLayout::new(Codec::Int4, usize::MAX, usize::MAX, 64, false).is_err());
    }
}
