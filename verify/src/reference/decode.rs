//! What the stored bytes of a tensor mean, written a second time.
//!
//! Follows the layout table of the format and nothing else: the fitting and packing code has its
//! own reader, and a mistake in either shows up as a parity failure.

use half::f16;
use neuroconv_format::codec::{PANEL_ROWS, UNIT_BYTES};
use neuroconv_format::{Codec, DenseTensor, PackedTensor, Tensor};
use rayon::prelude::*;

/// Writes row `row` of the codes of a packed matrix into `out`, which has one place per column.
///
/// The caller has checked that `bytes` is as long as the layout says and that `row` exists.
pub(crate) fn packed_row(t: &PackedTensor, row: usize, out: &mut [f32]) {
    let layout = &t.layout;
    let (panel, r) = (row / PANEL_ROWS, row % PANEL_ROWS);
    let (codes, scales) = (&t.bytes[layout.codes()], &t.bytes[layout.scales()]);
    let shifts = &t.bytes[layout.shifts()];
    for (g, weights) in out.chunks_mut(layout.group()).enumerate() {
        let block = panel * layout.groups() + g;
        let codes = &codes[block * layout.block_bytes()..][..layout.block_bytes()];
        let at = (block * PANEL_ROWS + r) * 2;
        let scale = half_at(scales, at);
        let shift = if layout.shift() {
            half_at(shifts, at)
        } else {
            0.0
        };
        for (k, weight) in weights.iter_mut().enumerate() {
            *weight = scale * level(layout.codec(), codes, r, k) + shift;
        }
    }
}

/// A packed matrix with everything that it has beside its codes, row by row.
pub(crate) struct PackedRows<'t> {
    tensor: &'t PackedTensor,
    /// The factors of the low-rank product, `[rank, cols]` and `[rows, rank]`.
    low_rank: Option<(Vec<f32>, Vec<f32>)>,
    /// The columns that are stored apart, `[rows, columns]`.
    columns: Vec<f32>,
}

impl<'t> PackedRows<'t> {
    /// The caller has checked that the bytes and parts are as the layout says.
    pub(crate) fn new(tensor: &'t PackedTensor) -> Self {
        let parts = &tensor.corrections;
        let columns = parts.columns.as_ref();
        PackedRows {
            tensor,
            low_rank: parts
                .low_rank
                .as_ref()
                .map(|l| (l.a.to_f32(), l.b.to_f32())),
            columns: columns.map(|c| matrix(&c.values)).unwrap_or_default(),
        }
    }

    /// Writes row `row` into `out`, which has one place per column.
    pub(crate) fn read(&self, row: usize, out: &mut [f32]) {
        packed_row(self.tensor, row, out);
        if let Some(columns) = &self.tensor.corrections.columns {
            for (place, &index) in columns.indexes.iter().enumerate() {
                out[index as usize] = self.columns[row * columns.indexes.len() + place];
            }
        }
        if let Some((a_rk, b_nr)) = &self.low_rank {
            let cols = out.len();
            let rank = a_rk.len() / cols;
            for (k, weight) in out.iter_mut().enumerate() {
                let products = (0..rank)
                    .map(|r| f64::from(b_nr[row * rank + r]) * f64::from(a_rk[r * cols + k]));
                *weight = (f64::from(*weight) + products.sum::<f64>()) as f32;
            }
        }
    }
}

/// All rows of a matrix that has no parts.
pub(crate) fn matrix(tensor: &Tensor) -> Vec<f32> {
    match tensor {
        Tensor::Dense(dense) => DenseTensor::to_f32(dense),
        Tensor::Packed(packed) => {
            let cols = packed.layout.cols();
            let mut values = vec![0.0; packed.layout.rows() * cols];
            let rows = values.par_chunks_mut(cols).enumerate();
            rows.for_each(|(row, out)| packed_row(packed, row, out));
            values
        }
    }
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// The level of column `k` of a group in row `r` of a panel, as a number.
fn level(codec: Codec, codes: &[u8], r: usize, k: usize) -> f32 {
    let byte = codes[k / codec.unit_cols() * UNIT_BYTES + 4 * r + k % 4];
    match codec {
        Codec::Ternary => f32::from(byte >> (2 * (k / 4 % 4)) & 3) - 1.0,
        Codec::Int4 => f32::from(byte >> (4 * (k / 4 % 2)) & 15) - 8.0,
        Codec::Int8 => f32::from(byte.cast_signed()),
    }
}

#[cfg(test)]
mod tests {
    use neuroconv_format::PackedLayout;

    use super::*;

    /// One row in the second panel, its second group set by hand, byte by byte.
    fn packed(codec: Codec, shift: bool, put: &dyn Fn(&mut [u8])) -> Vec<f32> {
        let layout = PackedLayout::new(codec, 18, 40, 32, shift).unwrap();
        let mut bytes = vec![0u8; layout.size_bytes()];
        let block = 3; // panel 1, group 1
        put(&mut bytes[block * layout.block_bytes()..][..layout.block_bytes()]);
        let at = layout.scales().start + (block * 16 + 1) * 2;
        bytes[at..at + 2].copy_from_slice(&f16::from_f32(0.5).to_le_bytes());
        if shift {
            let at = layout.shifts().start + (block * 16 + 1) * 2;
            bytes[at..at + 2].copy_from_slice(&f16::from_f32(0.25).to_le_bytes());
        }
        let mut row = vec![f32::NAN; 40];
        packed_row(&PackedTensor::new(layout, bytes), 17, &mut row);
        row[32..].to_vec()
    }

    #[test]
    fn ternary_codes_stand_in_bit_pairs() {
        // Row 1 owns bytes 4..8; columns 0..4 are the lowest pair, 4..8 the next.
        let row = packed(Codec::Ternary, false, &|b| {
            b[4] = 0b10_00; // columns 0 and 4: 0 and 2
            b[5] = 0b01_10;
            b[6] = 0b01_01;
            b[7] = 0b00_01;
        });
        assert_eq!(row, [-0.5, 0.5, 0.0, 0.0, 0.5, 0.0, 0.0, -0.5]);
    }

    #[test]
    fn int4_codes_stand_in_nibbles() {
        let row = packed(Codec::Int4, true, &|b| {
            b[4..8].copy_from_slice(&[0xF0, 0x88, 0x19, 0x0A]);
        });
        assert_eq!(row, [-3.75, 0.25, 0.75, 1.25, 3.75, 0.25, -3.25, -3.75]);
    }

    #[test]
    fn int8_codes_are_signed_bytes() {
        let row = packed(Codec::Int8, false, &|b| {
            b[4..8].copy_from_slice(&[127, 129, 0, 1]);
            b[64 + 4..64 + 8].copy_from_slice(&[255, 2, 3, 4]);
        });
        assert_eq!(row, [63.5, -63.5, 0.0, 0.5, -0.5, 1.0, 1.5, 2.0]);
    }
}
