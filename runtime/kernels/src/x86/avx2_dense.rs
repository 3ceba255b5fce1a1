//! Dense products by AVX2: the 16 lanes of a sum are two registers.

use std::arch::x86_64::*;

use crate::dense::{DenseTile, Element, LANES, TILE, reduce};

/// See the scalar tile, whose bits this gives.
pub(crate) fn tile(tile: &DenseTile<'_>, y: &mut [[f32; TILE]; TILE]) {
    tile.check();
    // SAFETY: an `Isa` of this kind exists only where AVX2 and F16C were detected, and the bounds
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
#[target_feature(enable = "avx2,f16c")]
unsafe fn rows<const E: u8>(tile: &DenseTile<'_>, y: &mut [[f32; TILE]; TILE]) {
    // SAFETY: the counts are those of the tile.
    unsafe {
        match (tile.w_rows(), tile.x_rows()) {
            (4, 4) => {
                for (n, t) in [(0, 0), (0, 2), (2, 0), (2, 2)] {
                    block::<E, 2, 2>(tile, n, t, y);
                }
            }
            (4, x) => (0..x).for_each(|t| block::<E, 4, 1>(tile, 0, t, y)),
            (w, x) => (0..x).for_each(|t| (0..w).for_each(|n| block::<E, 1, 1>(tile, n, t, y))),
        }
    }
}

/// Rows `n0..n0 + N` of the matrix with rows `t0..t0 + T` of the activations.
///
/// Safety: these rows exist.
#[target_feature(enable = "avx2,f16c")]
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
    let mut sums = [[[_mm256_setzero_ps(); 2]; N]; T];
    let whole = cols / LANES * LANES;
    for k in (0..whole).step_by(LANES) {
        for half in 0..2 {
            let k = k + 8 * half;
            // SAFETY: eight columns from `k` on exist; no alignment is needed.
            unsafe {
                let x: [__m256; T] = std::array::from_fn(|t| _mm256_loadu_ps(x.add(t * cols + k)));
                for n in 0..N {
                    let w = load::<E>(w.add((n * cols + k) * size));
                    for t in 0..T {
                        sums[t][n][half] = _mm256_add_ps(sums[t][n][half], _mm256_mul_ps(w, x[t]));
                    }
                }
            }
        }
    }
    if whole == cols {
        for t in 0..T {
            for n in 0..N {
                let [low, high] = sums[t][n];
                y[t0 + t][n0 + n] = reduce_8(_mm256_add_ps(low, high));
            }
        }
        return;
    }
    for t in 0..T {
        for n in 0..N {
            let mut lanes = [0.0; LANES];
            // SAFETY: 16 floats, unaligned.
            unsafe {
                _mm256_storeu_ps(lanes.as_mut_ptr(), sums[t][n][0]);
                _mm256_storeu_ps(lanes.as_mut_ptr().add(8), sums[t][n][1]);
            }
            let rest = |row: usize| row * cols + whole..(row + 1) * cols;
            let (w, x) = (rest(n0 + n), &tile.x[rest(t0 + t)]);
            let w = tile.element.read(&tile.w[w.start * size..w.end * size]);
            for (lane, (w, x)) in lanes.iter_mut().zip(w.iter().zip(x)) {
                *lane += w * x;
            }
            y[t0 + t][n0 + n] = reduce(lanes);
        }
    }
}

/// The sum of all lanes, halves first, as [`reduce`] once lanes `l` and `l + 8` are added.
#[target_feature(enable = "avx2")]
fn reduce_8(eight: __m256) -> f32 {
    let four = _mm_add_ps(
        _mm256_castps256_ps128(eight),
        _mm256_extractf128_ps::<1>(eight),
    );
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

/// Eight elements as single precision.
///
/// Safety: eight elements can be read.
#[target_feature(enable = "avx2,f16c")]
unsafe fn load<const E: u8>(at: *const u8) -> __m256 {
    // SAFETY: by contract; no alignment is needed.
    unsafe {
        match E {
            F32 => _mm256_loadu_ps(at.cast()),
            F16 => _mm256_cvtph_ps(_mm_loadu_si128(at.cast())),
            _ => {
                let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
            }
        }
    }
}
