//! A packed matrix as three checked planes of bytes, and one panel of it.

use crate::error::Error;
use crate::layout::{Codes, GROUP_SIZES, PANEL_ROWS};

/// Bytes of the scales (or shifts) of one block: one f16 per row.
pub(crate) const SCALE_BYTES: usize = 2 * PANEL_ROWS;

/// A packed `[rows, cols]` matrix. A weight is `scale * level + shift`.
///
/// The fields are private because the SIMD paths rely on the lengths that [`PackedView::new`]
/// has checked.
#[derive(Clone, Copy, Debug)]
pub struct PackedView<'a> {
    kind: Codes,
    rows: usize,
    cols: usize,
    group: usize,
    codes: &'a [u8],
    scales: &'a [u8],
    shifts: Option<&'a [u8]>,
}

impl<'a> PackedView<'a> {
    /// Checks that the planes have the lengths that the shape asks for.
    ///
    /// `codes` are blocks `[panel][group]` ([`crate::layout`]), `scales` and `shifts` are
    /// little-endian f16 `[panel][group][16]`.
    pub fn new(
        kind: Codes,
        rows: usize,
        cols: usize,
        group: usize,
        codes: &'a [u8],
        scales: &'a [u8],
        shifts: Option<&'a [u8]>,
    ) -> Result<Self, Error> {
        if !GROUP_SIZES.contains(&group) {
            return Err(Error::Group(group));
        }
        let size = Error::Size { rows, cols };
        if rows == 0 || cols == 0 {
            return Err(size);
        }
        let blocks = rows.div_ceil(PANEL_ROWS).checked_mul(cols.div_ceil(group));
        let bytes = |each: usize| blocks.and_then(|n| n.checked_mul(each)).ok_or(size.clone());
        let check = |plane, found: usize, each| match bytes(each)? {
            expected if expected == found => Ok(()),
            expected => Err(Error::Length {
                plane,
                rows,
                cols,
                expected,
                found,
            }),
        };
        check("codes", codes.len(), kind.block_bytes(group))?;
        check("scales", scales.len(), SCALE_BYTES)?;
        if let Some(shifts) = shifts {
            check("shifts", shifts.len(), SCALE_BYTES)?;
        }
        Ok(PackedView {
            kind,
            rows,
            cols,
            group,
            codes,
            scales,
            shifts,
        })
    }

    /// How levels are stored.
    pub fn kind(&self) -> Codes {
        self.kind
    }
    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }
    /// Columns that share a scale.
    pub fn group(&self) -> usize {
        self.group
    }
    /// Panels of 16 rows.
    pub fn panels(&self) -> usize {
        self.rows.div_ceil(PANEL_ROWS)
    }
    /// Groups of columns.
    pub fn groups(&self) -> usize {
        self.cols.div_ceil(self.group)
    }
    /// Bytes of all planes.
    pub fn size_bytes(&self) -> usize {
        self.codes.len() + self.scales.len() + self.shifts.map_or(0, <[u8]>::len)
    }

    /// Panel `index`; panics beyond the last.
    pub(crate) fn panel(&self, index: usize) -> Panel<'a> {
        let groups = self.groups();
        let part = |plane: &'a [u8], each: usize| {
            let bytes = groups * each;
            &plane[index * bytes..(index + 1) * bytes]
        };
        Panel {
            group: self.group,
            codes: part(self.codes, self.kind.block_bytes(self.group)),
            scales: part(self.scales, SCALE_BYTES),
            shifts: self.shifts.map(|plane| part(plane, SCALE_BYTES)),
        }
    }

    /// Writes row `row` as single precision: `scale * level + shift`, the product exact.
    ///
    /// Panics when `row` is none or `out` is not `cols` long.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        assert!(
            row < self.rows && out.len() == self.cols,
            "row {row} of {} x {}",
            self.rows,
            self.cols
        );
        let panel = self.panel(row / PANEL_ROWS);
        let r = row % PANEL_ROWS;
        let block_bytes = self.kind.block_bytes(self.group);
        let mut levels = [0_i8; crate::layout::MAX_GROUP];
        for (g, out) in out.chunks_mut(self.group).enumerate() {
            let levels = &mut levels[..out.len()];
            let block = &panel.codes[g * block_bytes..(g + 1) * block_bytes];
            crate::layout::unpack_row(self.kind, block, r, levels);
            let (scale, shift) = (half_at(panel.scales, g, r), panel.shift(g, r));
            for (value, &level) in out.iter_mut().zip(levels.iter()) {
                *value = match shift {
                    Some(shift) => f32::from(level) * scale + shift,
                    None => f32::from(level) * scale,
                };
            }
        }
    }
}

/// The planes of 16 rows.
#[derive(Clone, Copy)]
pub(crate) struct Panel<'a> {
    pub(crate) group: usize,
    pub(crate) codes: &'a [u8],
    pub(crate) scales: &'a [u8],
    pub(crate) shifts: Option<&'a [u8]>,
}

impl Panel<'_> {
    pub(crate) fn scale(&self, group: usize, r: usize) -> f32 {
        half_at(self.scales, group, r)
    }

    pub(crate) fn shift(&self, group: usize, r: usize) -> Option<f32> {
        self.shifts.map(|plane| half_at(plane, group, r))
    }
}

fn half_at(plane: &[u8], group: usize, r: usize) -> f32 {
    let at = group * SCALE_BYTES + 2 * r;
    half::f16::from_le_bytes([plane[at], plane[at + 1]]).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_of_wrong_length_are_refused() {
        let (codes, scales) = (vec![0; 2 * 16 * 64], vec![0; 2 * 32]);
        let new = |c: &[u8], s: &[u8], shifts: Option<&[u8]>| {
            PackedView::new(Codes::Int8, 17, 60, 64, c, s, shifts).map(|v| v.panels())
        };
        assert_eq!(new(&codes, &scales, None), Ok(2));
        assert_eq!(new(&codes, &scales, Some(&scales)), Ok(2));
        let length = |plane, expected, found| {
            Err(Error::Length {
                plane,
                rows: 17,
                cols: 60,
                expected,
                found,
            })
        };
        assert_eq!(new(&codes[1..], &scales, None), length("codes", 2048, 2047));
        assert_eq!(new(&codes, &codes, None), length("scales", 64, 2048));
        assert_eq!(new(&codes, &scales, Some(&[])), length("shifts", 64, 0));
    }

    #[test]
    fn impossible_shapes_are_refused() {
        let new = |rows, cols, group| {
            PackedView::new(Codes::Int4, rows, cols, group, &[], &[], None).map(|_| ())
        };
        assert_eq!(new(16, 64, 48), Err(Error::Group(48)));
        for (rows, cols) in [(0, 64), (64, 0), (usize::MAX, usize::MAX)] {
            assert_eq!(new(rows, cols, 64), Err(Error::Size { rows, cols }));
        }
    }
}
