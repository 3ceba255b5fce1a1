//! Packed products by AVX2: the 16 rows of a unit as two halves of 8.
//!
//! `vpmaddubsw` multiplies unsigned with signed bytes and adds neighbours in 16 bits, saturating.
//! With activation codes up to 127 a pair of ternary codes gives at most 508 and one of INT4 codes
//! 3810, so several pairs fit before they are widened. INT8 codes would not fit: they are widened before
//! they are multiplied, and meet activation codes of sixteen bits without planes. `vpmaddwd` adds
//! neighbours in 32.

use std::arch::x86_64::*;

use super::{INT4, TERNARY, ask_ahead, check_bounds, sum_for_shifts};
use crate::activations::{ActivationBits, Activations};
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
        match (kind, a.bits()) {
            (Codes::Ternary, ActivationBits::Eight) => rows::<TERNARY, 1>(panel, a, t0, y),
            (Codes::Int4, ActivationBits::Eight) => rows::<INT4, 1>(panel, a, t0, y),
            (Codes::Ternary, ActivationBits::Sixteen) => rows::<TERNARY, 2>(panel, a, t0, y),
            (Codes::Int4, ActivationBits::Sixteen) => rows::<INT4, 2>(panel, a, t0, y),
            (Codes::Int8, _) => whole_rows(panel, a, t0, y),
        }
    }
}

/// Safety: as [`check_bounds`] says, for `y.len()` rows; the activations have `P` planes.
#[target_feature(enable = "avx2,f16c")]
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
            tile_of::<BITS, 4, 1, P>(p, a, t, 0, tile);
            tile_of::<BITS, 4, 1, P>(p, a, t, 1, tile);
            t += 4;
        }
        for tile in twos {
            if P == 1 {
                tile_of::<BITS, 2, 2, P>(p, a, t, 0, tile);
            } else {
                tile_of::<BITS, 2, 1, P>(p, a, t, 0, tile);
                tile_of::<BITS, 2, 1, P>(p, a, t, 1, tile);
            }
            t += 2;
        }
        for y in ones {
            tile_of::<BITS, 1, 2, P>(p, a, t, 0, std::array::from_mut(y));
        }
    }
}

/// INT8 codes with activation codes of any bits.
///
/// Safety: as [`check_bounds`] says, for `y.len()` rows.
#[target_feature(enable = "avx2,f16c")]
unsafe fn whole_rows(p: &Panel<'_>, a: &Activations, mut t: usize, y: &mut [[f32; PANEL_ROWS]]) {
    let (threes, rest) = y.as_chunks_mut::<3>();
    let (twos, ones) = rest.as_chunks_mut::<2>();
    // SAFETY: the tiles together are the rows of `y`.
    unsafe {
        for tile in threes {
            whole_tile(p, a, t, tile);
            t += 3;
        }
        for tile in twos {
            whole_tile(p, a, t, tile);
            t += 2;
        }
        for y in ones {
            whole_tile(p, a, t, std::array::from_mut(y));
        }
    }
}

/// `T` rows of activations with the whole panel: four sums of eight, each of which has two numbers for
/// each of four rows of the panel.
///
/// Sums stay within 32 bits, as [`crate::activations::joined`] says.
///
/// Safety: as [`check_bounds`] says, for `T` rows.
#[target_feature(enable = "avx2,f16c")]
unsafe fn whole_tile<const T: usize>(
    p: &Panel<'_>,
    a: &Activations,
    t0: usize,
    out: &mut [[f32; PANEL_ROWS]; T],
) {
    let codes: [*const i16; T] = std::array::from_fn(|t| a.whole_codes(t0 + t).as_ptr());
    let scales: [&[f32]; T] = std::array::from_fn(|t| a.scales(t0 + t));
    let units = p.group / 4;
    let mut y = [[_mm256_setzero_ps(); 2]; T];
    for g in 0..a.groups() {
        let mut acc = [[_mm256_setzero_si256(); 4]; T];
        for u in g * units..(g + 1) * units {
            if T == 1 {
                ask_ahead(p.codes.as_ptr().wrapping_add(u * UNIT_BYTES));
            }
            let mut four = [_mm256_setzero_si256(); T];
            for t in 0..T {
                // SAFETY: the four columns of unit `u` lie in group `g` of each row; the load needs no
                // alignment.
                let codes = unsafe { codes[t].add(4 * u).cast::<i64>().read_unaligned() };
                four[t] = _mm256_set1_epi64x(codes);
            }
            for quarter in 0..4 {
                // SAFETY: unit `u` lies in group `g` of the codes.
                let rows = unsafe {
                    let at = p
                        .codes
                        .as_ptr()
                        .add(u * UNIT_BYTES + quarter * UNIT_BYTES / 4);
                    _mm256_cvtepi8_epi16(_mm_loadu_si128(at.cast()))
                };
                for t in 0..T {
                    let products = _mm256_madd_epi16(rows, four[t]);
                    acc[t][quarter] = _mm256_add_epi32(acc[t][quarter], products);
                }
            }
        }
        for t in 0..T {
            let (ascale, asum) = (scales[t][g], sum_for_shifts(p, a, t0 + t, g));
            for half in 0..2 {
                let sums = _mm256_hadd_epi32(acc[t][2 * half], acc[t][2 * half + 1]);
                let sums = _mm256_permute4x64_epi64::<0b11_01_10_00>(sums);
                // SAFETY: group `g` and the half exist.
                y[t][half] = unsafe { add_group(y[t][half], sums, p, g, half, ascale, asum) };
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

/// The sums of the planes in one, as [`crate::activations::joined`].
#[target_feature(enable = "avx2")]
pub(super) fn join<const P: usize>(planes: [__m256i; P]) -> __m256i {
    let mut sum = planes[0];
    for &low in &planes[1..] {
        let high = _mm256_sub_epi32(_mm256_slli_epi32::<8>(sum), sum);
        sum = _mm256_add_epi32(high, low);
    }
    sum
}

/// What is subtracted from the codes as they are multiplied.
const fn offset<const BITS: usize>() -> i32 {
    if BITS == TERNARY { 1 } else { 8 }
}

/// Words of four columns whose 16-bit sums are added up before they are widened: 64 of 508, 8 of
/// 3810 stay within 16 bits.
const fn words_per_widening<const BITS: usize>() -> usize {
    if BITS == TERNARY { 64 } else { 8 }
}

/// `T` rows of activations with `H` halves of the panel, from `half` on: both in one pass where
/// there are registers enough.
///
/// Safety: as [`check_bounds`] says, for `T` rows; `half + H` is at most 2; the activations have `P`
/// planes.
#[target_feature(enable = "avx2,f16c")]
unsafe fn tile_of<const BITS: usize, const T: usize, const H: usize, const P: usize>(
    p: &Panel<'_>,
    a: &Activations,
    t0: usize,
    half: usize,
    out: &mut [[f32; PANEL_ROWS]; T],
) {
    let (words_per_unit, words_per_group) = (8 / BITS, p.group / 4);
    let run = words_per_widening::<BITS>().min(words_per_group);
    let words: [[*const i32; P]; T] =
        std::array::from_fn(|t| std::array::from_fn(|plane| a.words(t0 + t, plane).as_ptr()));
    let codes = p.codes.as_ptr().wrapping_add(half * UNIT_BYTES / 2);
    let mut y = [[_mm256_setzero_ps(); H]; T];
    for g in 0..a.groups() {
        let start = |t: usize, plane: usize| {
            _mm256_set1_epi32(-offset::<BITS>() * a.sums(t0 + t, plane)[g])
        };
        let mut acc: [[[__m256i; P]; H]; T] =
            std::array::from_fn(|t| [std::array::from_fn(|plane| start(t, plane)); H]);
        for first in (g * words_per_group..(g + 1) * words_per_group).step_by(run) {
            let mut pairs = [[[_mm256_setzero_si256(); P]; H]; T];
            for u in first / words_per_unit..(first + run) / words_per_unit {
                if T == 1 {
                    ask_ahead(codes.wrapping_add(u * UNIT_BYTES));
                }
                // SAFETY: unit `u` lies in group `g` of the codes, its words in that of each row.
                unsafe {
                    let mut unit: [__m256i; H] = std::array::from_fn(|h| {
                        let at = codes.add(u * UNIT_BYTES + h * UNIT_BYTES / 2);
                        _mm256_loadu_si256(at.cast())
                    });
                    for c in 0..words_per_unit {
                        for t in 0..T {
                            for plane in 0..P {
                                let word = *words[t][plane].add(u * words_per_unit + c);
                                let word = _mm256_set1_epi32(word);
                                for h in 0..H {
                                    let (sum, products) =
                                        (&mut pairs[t][h][plane], products::<BITS>(unit[h], word));
                                    *sum = _mm256_add_epi16(*sum, products);
                                }
                            }
                        }
                        unit = unit.map(|u| _mm256_srl_epi16(u, _mm_cvtsi32_si128(BITS as i32)));
                    }
                }
            }
            for t in 0..T {
                for h in 0..H {
                    for plane in 0..P {
                        let wide = _mm256_madd_epi16(pairs[t][h][plane], _mm256_set1_epi16(1));
                        acc[t][h][plane] = _mm256_add_epi32(acc[t][h][plane], wide);
                    }
                }
            }
        }
        for t in 0..T {
            let (ascale, asum) = (a.scales(t0 + t)[g], sum_for_shifts(p, a, t0 + t, g));
            for h in 0..H {
                let acc = join(acc[t][h]);
                // SAFETY: group `g` and the half exist.
                y[t][h] = unsafe { add_group(y[t][h], acc, p, g, half + h, ascale, asum) };
            }
        }
    }
    for (out, y) in out.iter_mut().zip(y) {
        for (out, y) in out[8 * half..].chunks_exact_mut(8).zip(y) {
            // SAFETY: eight floats, unaligned.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), y) };
        }
    }
}

/// The codes in the lowest place of each byte times activation codes, neighbours added.
#[target_feature(enable = "avx2")]
fn products<const BITS: usize>(unit: __m256i, word: __m256i) -> __m256i {
    let low = _mm256_set1_epi8(if BITS == TERNARY { 3 } else { 15 });
    _mm256_maddubs_epi16(_mm256_and_si256(unit, low), word)
}

/// `y + acc * (scale * ascale)`, and with shifts `+ shift * (ascale * asum)`.
///
/// Safety: group `g` of the panel exists and `half` is 0 or 1.
#[target_feature(enable = "avx2,f16c")]
pub(super) unsafe fn add_group(
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
