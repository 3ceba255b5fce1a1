//! What the stored bytes of a tensor mean, written a second time.
//!
//! Follows the layout table of the format and nothing else: the fitting and packing code has its
//! own reader, and a mistake in either shows up as a parity failure.

use half::f16;
use neuroconv_format::codec::{PANEL_ROWS, UNIT_BYTES};
use neuroconv_format::{Codec, PackedTensor};

/// Writes row `row` of a packed matrix into `out`, which has one place per column.
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
    use neuroconv_format::{PackedLayout, SharedBytes};

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
        packed_row(
            &PackedTensor {
                layout,
                bytes: SharedBytes::from(bytes),
            },
            17,
            &mut row,
        );
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
