//! Packed products by AVX-VNNI: the 16 rows of a unit as two halves of 8, four columns of each by
//! one instruction.
//!
//! For processors that have `vpdpbusd` in 256 bits but no AVX-512. It takes unsigned codes, so
//! `int8` codes are read with 128 added, and every sum starts where the offset is taken back.

use std::arch::x86_64::*;

use super::avx2::{add_group, join};
use super::{INT4, INT8, TERNARY, ask_ahead, check_bounds, sum_for_shifts};
use crate::activations::{ActivationBits, Activations};
use crate::layout::{Codes, PANEL_ROWS, UNIT_BYTES};
use crate::packed::Panel;

/// Both halves of 16 rows.
type Halves = [__m256i; 2];

/// See [`crate::scalar::panel`], whose bits this gives.
pub(crate) fn panel(
    kind: Codes,
    panel: &Panel<'_>,
    a: &Activations,
    t0: usize,
    y: &mut [[f32; PANEL_ROWS]],
) {
    check_bounds(kind, panel, a, t0, y.len());
    // SAFETY: an `Isa` of this kind exists only where AVX2, F16C and AVX-VNNI were detected, and the
    // bounds were just checked.
    unsafe {
        match (kind, a.bits()) {
            (Codes::Ternary, ActivationBits::Eight) => rows::<TERNARY, 1>(panel, a, t0, y),
            (Codes::Int4, ActivationBits::Eight) => rows::<INT4, 1>(panel, a, t0, y),
            (Codes::Int8, ActivationBits::Eight) => rows::<INT8, 1>(panel, a, t0, y),
            (Codes::Ternary, ActivationBits::Sixteen) => rows::<TERNARY, 2>(panel, a, t0, y),
            (Codes::Int4, ActivationBits::Sixteen) => rows::<INT4, 2>(panel, a, t0, y),
            (Codes::Int8, ActivationBits::Sixteen) => rows::<INT8, 2>(panel, a, t0, y),
        }
    }
}

/// Safety: as [`check_bounds`] says, for `y.len()` rows; the activations have `P` planes.
#[target_feature(enable = "avx2,f16c,avxvnni")]
unsafe fn rows<const BITS: usize, const P: usize>(
    p: &Panel<'_>,
    a: &Activations,
    mut t: usize,
    y: &mut [[f32; PANEL_ROWS]],
) {
    // Two planes take the registers of twice the rows.
    let (fours, y) = y.split_at_mut(if P == 1 { y.len() / 4 * 4 } else { 0 });
    let (fours, _) = fours.as_chunks_mut::<4>();
    let (twos, ones) = y.as_chunks_mut::<2>();
    // SAFETY: the tiles together are the rows of `y`.
    unsafe {
        for tile in fours {
            tile_of::<BITS, 4, P>(p, a, t, tile);
            t += 4;
        }
        for tile in twos {
            tile_of::<BITS, 2, P>(p, a, t, tile);
            t += 2;
        }
        for y in ones {
            tile_of::<BITS, 1, P>(p, a, t, std::array::from_mut(y));
        }
    }
}

/// What is subtracted from the codes as `vpdpbusd` sees them.
const fn offset<const BITS: usize>() -> i32 {
    match BITS {
        TERNARY => 1,
        INT4 => 8,
        _ => 128,
    }
}

/// Sums that a row keeps of each half, so that one row alone does not wait for its own sums.
const CHAINS: usize = 2;

/// `T` rows of activations with the whole panel.
///
/// Safety: as [`check_bounds`] says, for `T` rows; the activations have `P` planes.
#[target_feature(enable = "avx2,f16c,avxvnni")]
unsafe fn tile_of<const BITS: usize, const T: usize, const P: usize>(
    p: &Panel<'_>,
    a: &Activations,
    t0: usize,
    out: &mut [[f32; PANEL_ROWS]; T],
) {
    let (words_per_unit, words_per_group) = (8 / BITS, p.group / 4);
    let words: [[*const i32; P]; T] =
        std::array::from_fn(|t| std::array::from_fn(|plane| a.words(t0 + t, plane).as_ptr()));
    let chains = if T == 1 { CHAINS } else { 1 };
    let mut y = [[_mm256_setzero_ps(); 2]; T];
    for g in 0..a.groups() {
        let start = |t: usize, plane: usize| {
            _mm256_set1_epi32(-offset::<BITS>() * a.sums(t0 + t, plane)[g])
        };
        let mut acc: [[[Halves; CHAINS]; P]; T] = std::array::from_fn(|t| {
            std::array::from_fn(|plane| [[start(t, plane); 2], [_mm256_setzero_si256(); 2]])
        });
        if T == 1 {
            let at = g * words_per_group / words_per_unit * UNIT_BYTES;
            ask_ahead(p.codes.as_ptr().wrapping_add(at));
        }
        for first in (g * words_per_group..(g + 1) * words_per_group).step_by(4) {
            let mut unit = [_mm256_setzero_si256(); 2];
            // Unrolled, so that unit and chain are known for each of the four words.
            for i in 0..4 {
                // SAFETY: a group has a multiple of 16 columns, so its units and its words of each row
                // last for four words.
                unsafe {
                    if i % words_per_unit == 0 {
                        let at = (first + i) / words_per_unit * UNIT_BYTES;
                        unit = load_unit::<BITS>(p.codes.as_ptr().add(at));
                    } else {
                        unit = unit.map(|u| _mm256_srl_epi16(u, _mm_cvtsi32_si128(BITS as i32)));
                    }
                    let code = unit.map(|half| low_code::<BITS>(half));
                    for t in 0..T {
                        for plane in 0..P {
                            let word = _mm256_set1_epi32(*words[t][plane].add(first + i));
                            for h in 0..2 {
                                let sum = &mut acc[t][plane][i % chains][h];
                                *sum = _mm256_dpbusd_avx_epi32(*sum, code[h], word);
                            }
                        }
                    }
                }
            }
        }
        for t in 0..T {
            let (ascale, asum) = (a.scales(t0 + t)[g], sum_for_shifts(p, a, t0 + t, g));
            for h in 0..2 {
                let sum = join(acc[t].map(|sums| _mm256_add_epi32(sums[0][h], sums[1][h])));
                // SAFETY: group `g` and the half exist.
                y[t][h] = unsafe { add_group(y[t][h], sum, p, g, h, ascale, asum) };
            }
        }
    }
    for (out, y) in out.iter_mut().zip(y) {
        for (out, y) in out.chunks_exact_mut(8).zip(y) {
            // SAFETY: eight floats, unaligned.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), y) };
        }
    }
}

/// A unit of codes as unsigned bytes.
///
/// Safety: 64 bytes at `codes` can be read.
#[target_feature(enable = "avx2")]
unsafe fn load_unit<const BITS: usize>(codes: *const u8) -> Halves {
    [0, UNIT_BYTES / 2].map(|at| {
        // SAFETY: by contract; the loads need no alignment.
        let half = unsafe { _mm256_loadu_si256(codes.add(at).cast()) };
        if BITS == INT8 {
            _mm256_xor_si256(half, _mm256_set1_epi8(-128))
        } else {
            half
        }
    })
}

/// The codes in the lowest place of each byte.
#[target_feature(enable = "avx2")]
fn low_code<const BITS: usize>(unit: __m256i) -> __m256i {
    match BITS {
        TERNARY => _mm256_and_si256(unit, _mm256_set1_epi8(3)),
        INT4 => _mm256_and_si256(unit, _mm256_set1_epi8(15)),
        _ => unit,
    }
}
