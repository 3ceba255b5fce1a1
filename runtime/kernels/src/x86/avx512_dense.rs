//! Dense products by AVX-512: the 16 lanes of a sum are one register.

use std::arch::x86_64::*;

use crate::dense::{DenseTile, Element, LANES, TILE};

/// See the scalar tile, whose bits this gives.
pub(crate) fn tile(tile: &DenseTile<'_>, y: &mut [[f32; TILE]; TILE]) {
    tile.check();
    // SAFETY: an `Isa` of this kind exists only where AVX-512 F and BW were detected, and the bounds
    // were just checked.
    unsafe {
        match tile.element {
            Element::F32 => rows::<F32>(tile, y),
            Element::F16 => rows::<F16>(tile, y),
            Element::Bf16 => rows::<BF16>(tile, y),
        }
    }
}

const F32: u8 = 0;
const F16: u8 = 1;
const BF16: u8 = 2;

/// Safety: [`DenseTile::check`] has passed.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn rows<const E: u8>(tile: &DenseTile<'_>, y: &mut [[f32; TILE]; TILE]) {
    // SAFETY: the counts are those of the tile.
    unsafe {
        match (tile.w_rows(), tile.x_rows()) {
            (4, 4) => block::<E, 4, 4>(tile, 0, 0, y),
            (4, x) => (0..x).for_each(|t| block::<E, 4, 1>(tile, 0, t, y)),
            (w, x) => (0..x).for_each(|t| (0..w).for_each(|n| block::<E, 1, 1>(tile, n, t, y))),
        }
    }
}

/// Rows `n0..n0 + N` of the matrix with rows `t0..t0 + T` of the activations.
///
/// Safety: these rows exist.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn block<const E: u8, const N: usize, const T: usize>(
    tile: &DenseTile<'_>,
    n0: usize,
    t0: usize,
    y: &mut [[f32; TILE]; TILE],
) {
    let (cols, size) = (tile.cols, tile.element.size());
    let (w, x) = (
        tile.w.as_ptr().wrapping_add(n0 * cols * size),
        tile.x.as_ptr().wrapping_add(t0 * cols),
    );
    let mut sums = [[_mm512_setzero_ps(); N]; T];
    let whole = cols / LANES * LANES;
    let mut step = |k: usize, mask: __mmask16| {
        // SAFETY: `mask` keeps the columns from `k` on that exist, so no load leaves its row.
        unsafe {
            let x: [__m512; T] =
                std::array::from_fn(|t| _mm512_maskz_loadu_ps(mask, x.add(t * cols + k)));
            for n in 0..N {
                let w = load::<E>(w.add((n * cols + k) * size), mask);
                for t in 0..T {
                    sums[t][n] = _mm512_add_ps(sums[t][n], _mm512_mul_ps(w, x[t]));
                }
            }
        }
    };
    for k in (0..whole).step_by(LANES) {
        step(k, !0);
    }
    if whole < cols {
        step(whole, (1 << (cols - whole)) - 1);
    }
    if N == TILE && T == TILE {
        let all = reduce_16(&std::array::from_fn(|i| sums[i % TILE][i / TILE]));
        // SAFETY: 16 floats, unaligned.
        unsafe { _mm512_storeu_ps(y.as_mut_ptr().cast(), all) };
        return;
    }
    for t in 0..T {
        for n in 0..N {
            y[t0 + t][n0 + n] = reduce(sums[t][n]);
        }
    }
}

/// The sum of all lanes, halves first, as [`crate::dense::reduce`].
#[target_feature(enable = "avx512f")]
fn reduce(sum: __m512) -> f32 {
    let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(sum)));
    let eight = _mm256_add_ps(_mm512_castps512_ps256(sum), high);
    let four = _mm_add_ps(
        _mm256_castps256_ps128(eight),
        _mm256_extractf128_ps::<1>(eight),
    );
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

/// [`reduce`] of 16 sums at once: lane `4m + q` is that of `sums[4q + m]`.
#[target_feature(enable = "avx512f")]
fn reduce_16(sums: &[__m512; 16]) -> __m512 {
    let eight = |i: usize| {
        let (a, b) = (sums[2 * i], sums[2 * i + 1]);
        let (low, high) = (
            _mm512_shuffle_f32x4::<0x44>(a, b),
            _mm512_shuffle_f32x4::<0xee>(a, b),
        );
        _mm512_add_ps(low, high)
    };
    let four = |i: usize| {
        let (a, b) = (eight(2 * i), eight(2 * i + 1));
        let (low, high) = (
            _mm512_shuffle_f32x4::<0x88>(a, b),
            _mm512_shuffle_f32x4::<0xdd>(a, b),
        );
        _mm512_add_ps(low, high)
    };
    let two = |i: usize| {
        let (a, b) = (four(2 * i), four(2 * i + 1));
        let (low, high) = (
            _mm512_shuffle_ps::<0x44>(a, b),
            _mm512_shuffle_ps::<0xee>(a, b),
        );
        _mm512_add_ps(low, high)
    };
    let (a, b) = (two(0), two(1));
    let (low, high) = (
        _mm512_shuffle_ps::<0x88>(a, b),
        _mm512_shuffle_ps::<0xdd>(a, b),
    );
    _mm512_add_ps(low, high)
}

/// The elements that `mask` keeps, as single precision; zeros elsewhere.
///
/// Safety: the elements that `mask` keeps can be read.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn load<const E: u8>(at: *const u8, mask: __mmask16) -> __m512 {
    // SAFETY: by contract; masked-out elements are not touched, and no alignment is needed.
    let halves = unsafe {
        if E == F32 {
            return _mm512_maskz_loadu_ps(mask, at.cast());
        }
        if mask == !0 {
            _mm256_loadu_si256(at.cast())
        } else {
            _mm512_castsi512_si256(_mm512_maskz_loadu_epi16(u32::from(mask), at.cast()))
        }
    };
    if E == F16 {
        _mm512_cvtph_ps(halves)
    } else {
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
    }
}
