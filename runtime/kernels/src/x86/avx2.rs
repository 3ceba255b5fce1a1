//! Packed products by AVX2: the 16 rows of a unit as two halves of 8.
//!
//! `vpmaddubsw` multiplies unsigned with signed bytes and adds neighbours in 16 bits, saturating.
//! With activation codes up to 127 a pair of ternary codes gives at most 508 and one of INT4 codes
//! 3810, so several pairs fit before they are widened; INT8 pairs reach 32258 with the sign moved to
//! the activation.

use std::arch::x86_64::*;

use super::{INT4, INT8, TERNARY, check_bounds};
use crate::activations::Activations;
use crate::layout::{Codes, PANEL_ROWS, UNIT_BYTES};
use crate::packed::{Panel, SCALE_BYTES};

/// See [`crate::scalar::panel`], whose bits this gives.
pub(crate) fn panel(
    kind: Codes,
    panel: &Panel<'_>,
    a: &Activations,
    t0: usize,
    y: &mut [[f32; PANEL_ROWS]],
) {
    check_bounds(kind, panel, a, t0, y.len());
    // SAFETY: an `Isa` of this kind exists only where AVX2 and F16C were detected, and the bounds
    // were just checked.
    unsafe {
        match kind {
            Codes::Ternary => rows::<TERNARY>(panel, a, t0, y),
            Codes::Int4 => rows::<INT4>(panel, a, t0, y),
            Codes::Int8 => rows::<INT8>(panel, a, t0, y),
        }
    }
}

/// Safety: as [`check_bounds`] says, for `y.len()` rows.
#[target_feature(enable = "avx2,f16c")]
unsafe fn rows<const BITS: usize>(
    p: &Panel<'_>,
    a: &Activations,
    mut t: usize,
    y: &mut [[f32; PANEL_ROWS]],
) {
    let (fours, y) = y.as_chunks_mut::<4>();
    let (twos, ones) = y.as_chunks_mut::<2>();
    // SAFETY: the tiles together are the rows of `y`.
    unsafe {
        for tile in fours {
            tile_of::<BITS, 4>(p, a, t, tile);
            t += 4;
        }
        for tile in twos {
            tile_of::<BITS, 2>(p, a, t, tile);
            t += 2;
        }
        for y in ones {
            tile_of::<BITS, 1>(p, a, t, std::array::from_mut(y));
        }
    }
}

/// `T` rows of activations with both halves of a panel.
///
/// Safety: as [`check_bounds`] says, for `T` rows.
#[target_feature(enable = "avx2,f16c")]
unsafe fn tile_of<const BITS: usize, const T: usize>(
    p: &Panel<'_>,
    a: &Activations,
    t0: usize,
    out: &mut [[f32; PANEL_ROWS]; T],
) {
    // SAFETY: the contract is the same.
    unsafe {
        half_of::<BITS, T>(p, a, t0, 0, out);
        half_of::<BITS, T>(p, a, t0, 1, out);
    }
}

/// What is subtracted from the codes as they are multiplied.
const fn offset<const BITS: usize>() -> i32 {
    match BITS {
        TERNARY => 1,
        INT4 => 8,
        _ => 0,
    }
}

/// Words of four columns whose 16-bit sums are added up before they are widened: 64 of 508, 8 of
/// 3810, 1 of 32258 stay within 16 bits.
const fn words_per_widening<const BITS: usize>() -> usize {
    match BITS {
        TERNARY => 64,
        INT4 => 8,
        _ => 1,
    }
}

/// Rows `8 half .. 8 half + 8` of the panel.
///
/// Safety: as [`check_bounds`] says, for `T` rows.
#[target_feature(enable = "avx2,f16c")]
unsafe fn half_of<const BITS: usize, const T: usize>(
    p: &Panel<'_>,
    a: &Activations,
    t0: usize,
    half: usize,
    out: &mut [[f32; PANEL_ROWS]; T],
) {
    let (words_per_unit, words_per_group) = (8 / BITS, p.group / 4);
    let run = words_per_widening::<BITS>().min(words_per_group);
    let mask = _mm256_set1_epi8(if BITS == TERNARY { 3 } else { 15 });
    let words: [*const i32; T] = std::array::from_fn(|t| a.words(t0 + t).as_ptr());
    let codes = p.codes.as_ptr().wrapping_add(half * UNIT_BYTES / 2);
    let mut y = [_mm256_setzero_ps(); T];
    for g in 0..a.groups() {
        let mut acc: [__m256i; T] =
            std::array::from_fn(|t| _mm256_set1_epi32(-offset::<BITS>() * a.sums(t0 + t)[g]));
        for first in (g * words_per_group..(g + 1) * words_per_group).step_by(run) {
            let mut pairs = [_mm256_setzero_si256(); T];
            for u in first / words_per_unit..(first + run) / words_per_unit {
                // SAFETY: unit `u` lies in group `g` of the codes, its words in that of each row.
                let mut unit = unsafe { _mm256_loadu_si256(codes.add(u * UNIT_BYTES).cast()) };
                for c in 0..words_per_unit {
                    for t in 0..T {
                        // SAFETY: as above.
                        let word =
                            _mm256_set1_epi32(unsafe { *words[t].add(u * words_per_unit + c) });
                        let products = if BITS == INT8 {
                            _mm256_maddubs_epi16(
                                _mm256_abs_epi8(unit),
                                _mm256_sign_epi8(word, unit),
                            )
                        } else {
                            _mm256_maddubs_epi16(_mm256_and_si256(unit, mask), word)
                        };
                        pairs[t] = _mm256_add_epi16(pairs[t], products);
                    }
                    unit = _mm256_srl_epi16(unit, _mm_cvtsi32_si128(BITS as i32));
                }
            }
            for t in 0..T {
                let wide = _mm256_madd_epi16(pairs[t], _mm256_set1_epi16(1));
                acc[t] = _mm256_add_epi32(acc[t], wide);
            }
        }
        for t in 0..T {
            let (ascale, asum) = (a.scales(t0 + t)[g], a.sums(t0 + t)[g]);
            // SAFETY: group `g` exists.
            y[t] = unsafe { add_group(y[t], acc[t], p, g, half, ascale, asum) };
        }
    }
    for (out, y) in out.iter_mut().zip(y) {
        // SAFETY: eight of 16 floats, unaligned.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr().add(8 * half), y) };
    }
}

/// `y + acc * (scale * ascale)`, and with shifts `+ shift * (ascale * asum)`.
///
/// Safety: group `g` of the panel exists and `half` is 0 or 1.
#[target_feature(enable = "avx2,f16c")]
unsafe fn add_group(
    y: __m256,
    acc: __m256i,
    p: &Panel<'_>,
    g: usize,
    half: usize,
    ascale: f32,
    asum: i32,
) -> __m256 {
    // SAFETY: by contract, for both planes; the loads need no alignment.
    let load = |plane: &[u8]| unsafe {
        let at = plane.as_ptr().add(g * SCALE_BYTES + half * SCALE_BYTES / 2);
        _mm256_cvtph_ps(_mm_loadu_si128(at.cast()))
    };
    let factor = _mm256_mul_ps(load(p.scales), _mm256_set1_ps(ascale));
    let y = _mm256_add_ps(y, _mm256_mul_ps(_mm256_cvtepi32_ps(acc), factor));
    match p.shifts {
        None => y,
        Some(shifts) => _mm256_add_ps(
            y,
            _mm256_mul_ps(load(shifts), _mm256_set1_ps(ascale * asum as f32)),
        ),
    }
}
