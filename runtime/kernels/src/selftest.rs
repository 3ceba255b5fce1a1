//! A product or two of each kind, on an instruction set and by the scalar path, before it is used.
//!
//! Owns the question whether a path computes what it must on this processor: a virtual machine
//! may promise instructions that it gets wrong.

use crate::activations::{ActivationBits, Activations, quantize_activations};
use crate::dense::{DenseSlice, matmul_dense_on};
use crate::isa::Isa;
use crate::layout::{Codes, GROUP_SIZES, PANEL_ROWS};
use crate::matmul::matmul_packed_on;
use crate::packed::PackedView;

/// Rows of the matrices: a whole panel and a part of one.
const ROWS: usize = 20;
/// Columns: whole groups and a part of one, whole vectors and a part of one.
const COLS: usize = 300;
/// Rows of activations: every tile there is.
const TOKENS: usize = 15;

/// Whether `isa` gives the bits of the scalar path.
pub(crate) fn passes(isa: Isa) -> bool {
    packed_equal(|w, a, y| matmul_packed_on(isa, w, a, y))
        && dense_equal(|w, x, y| matmul_dense_on(isa, w, ROWS, COLS, x, TOKENS, y))
}

/// Bytes without a pattern, by a linear congruential generator.
fn bytes(count: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..count).map(|_| next()).collect()
}

fn activations() -> Vec<f32> {
    let signed = bytes(TOKENS * COLS)
        .into_iter()
        .map(|b| f32::from(b) - 127.5);
    signed.map(|x| x * x * x * 1e-4).collect()
}

fn packed_equal(product: impl Fn(&PackedView<'_>, &Activations, &mut [f32])) -> bool {
    let x_tk = activations();
    let kinds = Codes::ALL.into_iter();
    kinds.zip(GROUP_SIZES).all(|(kind, group)| {
        let blocks = ROWS.div_ceil(PANEL_ROWS) * COLS.div_ceil(group);
        let codes: Vec<u8> = bytes(blocks * kind.block_bytes(group))
            .into_iter()
            .map(|byte| match kind {
                // No pair of bits is 3, no byte is -128.
                Codes::Ternary => byte & !(byte >> 1 & 0b0101_0101),
                Codes::Int8 if byte == 0x80 => 0x81,
                Codes::Int4 | Codes::Int8 => byte,
            })
            .collect();
        // Halves between 2⁻⁶ and 2⁻⁵.
        let scales: Vec<u8> = bytes(blocks * PANEL_ROWS)
            .into_iter()
            .flat_map(|low| [low, 0x24])
            .collect();
        let view = PackedView::new(kind, ROWS, COLS, group, &codes, &scales, Some(&scales));
        let Ok(view) = view else { return false };
        ActivationBits::ALL.into_iter().all(|bits| {
            let a = quantize_activations(&x_tk, TOKENS, COLS, group, bits);
            let (mut y, mut truth) = (vec![0.0; TOKENS * ROWS], vec![0.0; TOKENS * ROWS]);
            product(&view, &a, &mut y);
            matmul_packed_on(Isa::SCALAR, &view, &a, &mut truth);
            same(&y, &truth)
        })
    })
}

fn dense_equal(product: impl Fn(DenseSlice<'_>, &[f32], &mut [f32])) -> bool {
    let x_tk = activations();
    // Halves and upper halves of singles around one.
    let halves: Vec<u8> = bytes(ROWS * COLS)
        .into_iter()
        .flat_map(|low| [low, 0x3c])
        .collect();
    let singles = &x_tk.repeat(ROWS.div_ceil(TOKENS))[..ROWS * COLS];
    let kinds = [
        DenseSlice::F32(singles),
        DenseSlice::F16(&halves),
        DenseSlice::Bf16(&halves),
    ];
    kinds.into_iter().all(|w| {
        let (mut y, mut truth) = (vec![0.0; TOKENS * ROWS], vec![0.0; TOKENS * ROWS]);
        product(w, &x_tk, &mut y);
        matmul_dense_on(Isa::SCALAR, w, ROWS, COLS, &x_tk, TOKENS, &mut truth);
        same(&y, &truth)
    })
}

/// Whether all numbers are finite and have the same bits.
fn same(y: &[f32], truth: &[f32]) -> bool {
    y.iter()
        .zip(truth)
        .all(|(y, truth)| y.is_finite() && y.to_bits() == truth.to_bits())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_passes_and_a_wrong_number_is_noticed() {
        for isa in Isa::available() {
            assert!(passes(isa), "{}", isa.name());
        }
        for place in [0, 17, TOKENS * ROWS - 1] {
            assert!(!packed_equal(|w, a, y| {
                matmul_packed_on(Isa::SCALAR, w, a, y);
                y[place] = f32::from_bits(y[place].to_bits() ^ 1);
            }));
            assert!(!dense_equal(|w, x, y| {
                matmul_dense_on(Isa::SCALAR, w, ROWS, COLS, x, TOKENS, y);
                y[place] = f32::from_bits(y[place].to_bits() ^ 1);
            }));
        }
    }
}
