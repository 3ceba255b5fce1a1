//! Dense products by AVX-512: the 16 lanes of a sum are one register.

use std::arch::x86_64::*;

use crate::dense::{DenseTile, Element, LANES, TILE, reduce};

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
    for t in 0..T {
        for n in 0..N {
            let mut lanes = [0.0; LANES];
            // SAFETY: 16 floats, unaligned.
            unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), sums[t][n]) };
            y[t0 + t][n0 + n] = reduce(lanes);
        }
    }
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
