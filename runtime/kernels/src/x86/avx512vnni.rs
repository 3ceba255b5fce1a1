//! Packed products by AVX-512 VNNI: one instruction multiplies four columns of 16 rows.
//!
//! `vpdpbusd` takes unsigned codes, so `int8` codes are read with 128 added, and every sum starts
//! where the offset is taken back.

use std::arch::x86_64::*;

use super::{INT4, INT8, TERNARY, ask_ahead, check_bounds, sum_for_shifts};
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
    // SAFETY: an `Isa` of this kind exists only where AVX-512 F, BW and VNNI were detected, and the
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
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn rows<const BITS: usize, const P: usize>(
    p: &Panel<'_>,
    a: &Activations,
    mut t: usize,
    y: &mut [[f32; PANEL_ROWS]],
) {
    // Two planes take the registers of twice the rows.
    let (eights, y) = y.split_at_mut(if P == 1 { y.len() / 8 * 8 } else { 0 });
    let (eights, _) = eights.as_chunks_mut::<8>();
    let (fours, y) = y.as_chunks_mut::<4>();
    let (twos, ones) = y.as_chunks_mut::<2>();
    // SAFETY: the tiles together are the rows of `y`.
    unsafe {
        for tile in eights {
            tile_of::<BITS, 8, P>(p, a, t, tile);
            t += 8;
        }
        for tile in fours {
            tile_of::<BITS, 4, P>(p, a, t, tile);
            t += 4;
        }
        for tile in twos {
            tile_of::<BITS, 2, P>(p, a, t, tile);
            t += 2;
        }
        for y in ones {
            one_row::<BITS, P>(p, a, t, y);
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

/// A unit of codes as unsigned bytes.
///
/// Safety: 64 bytes at `codes` can be read.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn load_unit<const BITS: usize>(codes: *const u8) -> __m512i {
    // SAFETY: by contract; the load needs no alignment.
    let unit = unsafe { _mm512_loadu_si512(codes.cast()) };
    if BITS == INT8 {
        _mm512_xor_si512(unit, _mm512_set1_epi8(-128))
    } else {
        unit
    }
}

/// Sixteen f16 as single precision.
///
/// Safety: group `g` of `plane` exists.
#[target_feature(enable = "avx512f")]
unsafe fn load_halves(plane: &[u8], g: usize) -> __m512 {
    // SAFETY: by contract; the load needs no alignment.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(plane.as_ptr().add(g * SCALE_BYTES).cast()) })
}

/// `y + acc * (scale * ascale)`, and with shifts `+ shift * (ascale * asum)`.
///
/// Safety: group `g` of the panel exists.
#[target_feature(enable = "avx512f")]
unsafe fn add_group(
    y: __m512,
    acc: __m512i,
    p: &Panel<'_>,
    g: usize,
    scale: __m512,
    ascale: f32,
    asum: i32,
) -> __m512 {
    let factor = _mm512_mul_ps(scale, _mm512_set1_ps(ascale));
    let y = _mm512_add_ps(y, _mm512_mul_ps(_mm512_cvtepi32_ps(acc), factor));
    match p.shifts {
        None => y,
        Some(shifts) => {
            // SAFETY: by contract.
            let shift = unsafe { load_halves(shifts, g) };
            _mm512_add_ps(
                y,
                _mm512_mul_ps(shift, _mm512_set1_ps(ascale * asum as f32)),
            )
        }
    }
}

/// The sums of the planes in one, as [`crate::activations::joined`].
#[target_feature(enable = "avx512f")]
fn join<const P: usize>(planes: [__m512i; P]) -> __m512i {
    let mut sum = planes[0];
    for &low in &planes[1..] {
        let high = _mm512_sub_epi32(_mm512_slli_epi32::<8>(sum), sum);
        sum = _mm512_add_epi32(high, low);
    }
    sum
}

/// `T` rows share each unit of codes; one chain of sums per row and plane.
///
/// Safety: as [`check_bounds`] says, for `T` rows; the activations have `P` planes.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn tile_of<const BITS: usize, const T: usize, const P: usize>(
    p: &Panel<'_>,
    a: &Activations,
    t0: usize,
    out: &mut [[f32; PANEL_ROWS]; T],
) {
    let (words_per_unit, units) = (8 / BITS, p.group * BITS / 32);
    let mask = _mm512_set1_epi8(if BITS == TERNARY { 3 } else { 15 });
    let words: [[*const i32; P]; T] =
        std::array::from_fn(|t| std::array::from_fn(|plane| a.words(t0 + t, plane).as_ptr()));
    let mut y = [_mm512_setzero_ps(); T];
    for g in 0..a.groups() {
        let mut acc = [[_mm512_setzero_si512(); P]; T];
        for t in 0..T {
            for plane in 0..P {
                acc[t][plane] = _mm512_set1_epi32(-offset::<BITS>() * a.sums(t0 + t, plane)[g]);
            }
        }
        for u in g * units..(g + 1) * units {
            // SAFETY: unit `u` lies in group `g` of the codes, its words in that of each row.
            unsafe {
                let mut unit = load_unit::<BITS>(p.codes.as_ptr().add(u * UNIT_BYTES));
                for c in 0..words_per_unit {
                    let code = if BITS == INT8 {
                        unit
                    } else {
                        _mm512_and_si512(unit, mask)
                    };
                    for t in 0..T {
                        for plane in 0..P {
                            let word = *words[t][plane].add(u * words_per_unit + c);
                            let sum = &mut acc[t][plane];
                            *sum = _mm512_dpbusd_epi32(*sum, code, _mm512_set1_epi32(word));
                        }
                    }
                    if c + 1 < words_per_unit {
                        unit = _mm512_srl_epi16(unit, _mm_cvtsi32_si128(BITS as i32));
                    }
                }
            }
        }
        // SAFETY: group `g` exists.
        unsafe {
            let scale = load_halves(p.scales, g);
            for t in 0..T {
                let (acc, ascale, asum) = (
                    join(acc[t]),
                    a.scales(t0 + t)[g],
                    sum_for_shifts(p, a, t0 + t, g),
                );
                y[t] = add_group(y[t], acc, p, g, scale, ascale, asum);
            }
        }
    }
    for (out, y) in out.iter_mut().zip(y) {
        // SAFETY: 16 floats, unaligned.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), y) };
    }
}

/// One row: codes are used where they lie in their byte, each place with a sum of its own that is
/// shifted down once per group. No code at its place exceeds a byte.
///
/// Safety: as [`check_bounds`] says, for one row; the activations have `P` planes.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn one_row<const BITS: usize, const P: usize>(
    p: &Panel<'_>,
    a: &Activations,
    t: usize,
    out: &mut [f32; PANEL_ROWS],
) {
    let words_per_unit = 8 / BITS;
    let low = if BITS == TERNARY { 3 } else { 15_u8 };
    let mut codes = p.codes.as_ptr();
    let mut words: [*const i32; P] = std::array::from_fn(|plane| a.words(t, plane).as_ptr());
    let sums: [&[i32]; P] = std::array::from_fn(|plane| a.sums(t, plane));
    let mut y = _mm512_setzero_ps();
    for (g, &ascale) in a.scales(t).iter().enumerate() {
        let mut acc = [[_mm512_setzero_si512(); 4]; P];
        for plane in 0..P {
            acc[plane][0] = _mm512_set1_epi32(-offset::<BITS>() * sums[plane][g]);
        }
        ask_ahead(codes);
        for _ in 0..p.group / 16 {
            // SAFETY: a group has a multiple of 16 columns, so codes and words last until its end.
            unsafe {
                let mut unit = _mm512_setzero_si512();
                for i in 0..4 {
                    let place = i % words_per_unit;
                    if place == 0 {
                        unit = load_unit::<BITS>(codes);
                        codes = codes.add(UNIT_BYTES);
                    }
                    let mask = _mm512_set1_epi8((low << (BITS * place % 8)) as i8);
                    let code = if BITS == INT8 {
                        unit
                    } else {
                        _mm512_and_si512(unit, mask)
                    };
                    for plane in 0..P {
                        let (sum, word) = (&mut acc[plane][i], *words[plane].add(i));
                        *sum = _mm512_dpbusd_epi32(*sum, code, _mm512_set1_epi32(word));
                    }
                }
                for plane in 0..P {
                    words[plane] = words[plane].add(4);
                }
            }
        }
        // Loops, not `map`: closures would become calls that pass registers by way of memory.
        let mut planes = [_mm512_setzero_si512(); P];
        for plane in 0..P {
            for i in 0..4 {
                let shift = _mm_cvtsi32_si128((BITS * (i % words_per_unit)) as i32);
                let part = _mm512_sra_epi32(acc[plane][i], shift);
                planes[plane] = _mm512_add_epi32(planes[plane], part);
            }
        }
        let sum = join(planes);
        let asum = sum_for_shifts(p, a, t, g);
        // SAFETY: group `g` exists.
        unsafe {
            let scale = load_halves(p.scales, g);
            y = add_group(y, sum, p, g, scale, ascale, asum);
        }
    }
    // SAFETY: 16 floats, unaligned.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), y) };
}
