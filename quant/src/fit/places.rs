//! Where the search of INT4 starts: the gain of scales over a grid, in whole numbers.
//!
//! Weights are counted in 2047ths of the largest magnitude, scales by the *place* they put it at, in
//! sixteenths of a step: weight times place, over 2¹⁵, is the level. Sums of such numbers are exact, so
//! every processor finds the same.
//!
//! From place 4 to place 12 the gain is computed at places a quarter of a step apart, for scales of
//! either sign. Below place 4 nothing is gained: halving such a scale doubles its levels. Beyond 12 too
//! much is cut off. Around the two highest peaks the grid is a sixteenth of a step.
//!
//! Only weights of large magnitude, few of most groups, reach a level that a place may cut off, and only
//! they tell a scale from its negative. They are kept apart from the rest.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::__m256i;

use neuroconv_kernels::layout::MAX_GROUP;

use super::{NO_FRACTION, int4};

/// Weights side by side; zeros fill up the last.
type Block = [i16; LANES];
const LANES: usize = 16;

/// How many places are found.
pub(super) const BEST: usize = 3;
/// The largest magnitude, as a whole number. One less than 2048, so that it is never halfway between two
/// levels.
const LARGEST: i16 = 2047;
/// Places per step.
const PER_STEP: i16 = 16;
/// The lowest place.
const FIRST: i16 = 4 * PER_STEP;
/// The highest place.
const LAST: i16 = 12 * PER_STEP;
/// Distance of the places looked at first.
const STRIDE: i16 = PER_STEP / 4;
/// How many there are.
const PLACES: usize = ((LAST - FIRST) / STRIDE + 1) as usize;
/// Below this place nothing is cut off: a scale and its negative are the same.
const SIGNS_DIFFER: i16 = 15 * PER_STEP / 2;
/// Magnitudes up to this are never nearest to the eighth level, wherever the largest is put.
const NEVER_CUT: u16 = LARGEST as u16 / 8 * 5;

/// The weights of a group as whole numbers.
struct Whole {
    /// Those that some place may cut off.
    large: Codes,
    small: Codes,
}

/// Some weights, followed by zeros.
struct Codes {
    codes: [i16; MAX_GROUP],
    /// How many are no filling; 256 need more than a byte.
    count: u16,
}

impl Codes {
    const NONE: Codes = Codes {
        codes: [0; MAX_GROUP],
        count: 0,
    };

    /// Writes a code that counts if `kept`, and is written over by the next if not. Which it is cannot be
    /// foreseen, so nothing here branches on it. A byte as index needs no check.
    #[inline(always)]
    fn push(&mut self, code: i16, kept: bool) {
        self.codes[usize::from(self.count as u8)] = code;
        self.count = self.count.wrapping_add(u16::from(kept));
    }

    /// Fills the last block up.
    #[inline(always)]
    fn end(&mut self) {
        let count = usize::from(self.count);
        self.codes[count..count.next_multiple_of(LANES)].fill(0);
    }

    #[inline(always)]
    fn blocks(&self) -> &[Block] {
        &self.codes.as_chunks().0[..usize::from(self.count).div_ceil(LANES)]
    }
}

impl Whole {
    #[inline(always)]
    fn of(unit: &[f32]) -> Self {
        let mut codes = [0; MAX_GROUP];
        let codes = &mut codes[..unit.len()];
        for (code, w) in codes.iter_mut().zip(unit) {
            *code = (w * f32::from(LARGEST) + NO_FRACTION).to_bits() as i16;
        }
        let mut whole = Whole {
            large: Codes::NONE,
            small: Codes::NONE,
        };
        for &mut code in codes {
            let large = code.unsigned_abs() > NEVER_CUT;
            whole.large.push(code, large);
            whole.small.push(code, !large);
        }
        whole.large.end();
        whole.small.end();
        whole
    }
}

/// `Σ w q` and `Σ q²` for some levels `q`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sums {
    wq: i32,
    qq: i32,
}

impl Sums {
    /// By how much the levels lower the squared error. Equal gains are equal bit for bit.
    #[inline(always)]
    fn gain(self) -> f64 {
        let wq = f64::from(self.wq);
        wq * wq / f64::from(self.qq.max(1))
    }
}

/// How sums of levels are computed.
trait Lanes: Copy {
    /// Sums that are not added up yet.
    type Partial: Copy;

    /// Sums of nothing.
    fn nothing(self) -> Self::Partial;

    /// `sums` and those of the levels of `codes` at `place`, cut off at `limits` if there are any.
    fn add(
        self,
        sums: Self::Partial,
        codes: &[Block],
        place: i16,
        limits: Option<(i16, i16)>,
    ) -> Self::Partial;

    fn total(self, sums: Self::Partial) -> Sums;
}

/// One weight after the other: the truth.
#[derive(Clone, Copy)]
struct Scalar;

impl Lanes for Scalar {
    type Partial = Sums;

    fn nothing(self) -> Sums {
        Sums::default()
    }

    fn add(self, mut sums: Sums, codes: &[Block], place: i16, limits: Option<(i16, i16)>) -> Sums {
        for &code in codes.as_flattened() {
            let mut level = (i32::from(code) * i32::from(place) + (1 << 14)) >> 15;
            if let Some((low, high)) = limits {
                level = level.clamp(i32::from(low), i32::from(high));
            }
            sums.wq += i32::from(code) * level;
            sums.qq += level * level;
        }
        sums
    }

    fn total(self, sums: Sums) -> Sums {
        sums
    }
}

#[cfg(target_arch = "x86_64")]
impl Lanes for pulp::x86::V3 {
    /// Eight sums of either kind.
    type Partial = (__m256i, __m256i);

    #[inline(always)]
    fn nothing(self) -> Self::Partial {
        let zero = self.avx._mm256_setzero_si256();
        (zero, zero)
    }

    #[inline(always)]
    fn add(
        self,
        (mut wq, mut qq): Self::Partial,
        codes: &[Block],
        place: i16,
        limits: Option<(i16, i16)>,
    ) -> Self::Partial {
        let place = self.avx._mm256_set1_epi16(place);
        for &code in codes {
            let code = pulp::cast(code);
            let mut level = self.avx2._mm256_mulhrs_epi16(code, place);
            if let Some((low, high)) = limits {
                level = self
                    .avx2
                    ._mm256_max_epi16(level, self.avx._mm256_set1_epi16(low));
                level = self
                    .avx2
                    ._mm256_min_epi16(level, self.avx._mm256_set1_epi16(high));
            }
            let products = self.avx2._mm256_madd_epi16(code, level);
            wq = self.avx2._mm256_add_epi32(wq, products);
            let squares = self.avx2._mm256_madd_epi16(level, level);
            qq = self.avx2._mm256_add_epi32(qq, squares);
        }
        (wq, qq)
    }

    #[inline(always)]
    fn total(self, (wq, qq): Self::Partial) -> Sums {
        // Both at once: `[wq, wq, qq, qq]` in either half, then one of each.
        let pairs = self.avx2._mm256_hadd_epi32(wq, qq);
        let fours = self.avx2._mm256_hadd_epi32(pairs, pairs);
        let [a, b, .., c, d, _, _] = pulp::cast::<_, [i32; 8]>(fours);
        Sums {
            wq: a.wrapping_add(c),
            qq: b.wrapping_add(d),
        }
    }
}

/// The places of most gain for weights in units of the largest, in steps; negative where the scale is.
///
/// Panics where there are more than [`MAX_GROUP`].
#[inline(always)]
pub(super) fn best(unit: &[f32]) -> [f32; BEST] {
    let whole = Whole::of(unit);
    #[cfg(target_arch = "x86_64")]
    if let Some(lanes) = pulp::x86::V3::try_new() {
        return pulp::Simd::vectorize(
            lanes,
            Search {
                lanes,
                whole: &whole,
            },
        );
    }
    search(Scalar, &whole)
}

#[cfg(target_arch = "x86_64")]
struct Search<'a> {
    lanes: pulp::x86::V3,
    whole: &'a Whole,
}

#[cfg(target_arch = "x86_64")]
impl pulp::WithSimd for Search<'_> {
    type Output = [f32; BEST];

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) -> [f32; BEST] {
        search(self.lanes, self.whole)
    }
}

/// The limits of levels under a positive scale and a negative one.
const LIMITS: [(i16, i16); 2] = {
    let (low, high) = (int4::LEVELS.0 as i16, int4::LEVELS.1 as i16);
    [(low, high), (-high, -low)]
};

/// A place with its gain; `side` is that of the limits.
#[derive(Clone, Copy)]
struct Peak {
    gain: f64,
    place: i16,
    side: usize,
}

/// What is better than nothing.
const LOWEST: Peak = Peak {
    gain: 0.0,
    place: FIRST,
    side: 0,
};

#[inline(always)]
fn search(lanes: impl Lanes, whole: &Whole) -> [f32; BEST] {
    let (large, small) = (whole.large.blocks(), whole.small.blocks());
    let mut best = [LOWEST; BEST];
    for peak in peaks(lanes, large, small) {
        for place in peak.place - STRIDE + 1..peak.place + STRIDE {
            let free = lanes.add(lanes.nothing(), small, place, None);
            let sums = lanes.add(free, large, place, Some(LIMITS[peak.side]));
            let mut found = Peak {
                gain: lanes.total(sums).gain(),
                place,
                ..peak
            };
            for best in &mut best {
                if found.gain > best.gain {
                    std::mem::swap(best, &mut found);
                }
            }
        }
    }
    let mut places = [0.0; BEST];
    for (steps, peak) in places.iter_mut().zip(best) {
        let place = f32::from(peak.place) / f32::from(PER_STEP);
        *steps = if peak.side == 0 { place } else { -place };
    }
    places
}

/// The two places of most gain on the coarse grid that no neighbour exceeds.
#[inline(always)]
fn peaks(lanes: impl Lanes, large: &[Block], small: &[Block]) -> [Peak; 2] {
    let mut sums = [[Sums::default(); PLACES]; 2];
    for i in 0..PLACES {
        let place = FIRST + STRIDE * i as i16;
        let free = lanes.add(lanes.nothing(), small, place, None);
        for (side, sums) in sums.iter_mut().enumerate() {
            if side == 0 || place >= SIGNS_DIFFER {
                sums[i] = lanes.total(lanes.add(free, large, place, Some(LIMITS[side])));
            }
        }
    }
    // What stands before the first place and after the last gains nothing.
    let mut gains = [[0.0; PLACES + 2]; 2];
    for side in 0..2 {
        for i in 0..PLACES {
            gains[side][i + 1] = sums[side][i].gain();
        }
    }
    let mut peaks = [LOWEST; 2];
    for (side, gains) in gains.iter().enumerate() {
        for (i, &[below, gain, above]) in gains.array_windows().enumerate() {
            let place = FIRST + STRIDE * i as i16;
            if gain <= peaks[1].gain || below >= gain || above > gain {
                continue;
            }
            peaks[1] = Peak { gain, place, side };
            if gain > peaks[0].gain {
                peaks.swap(0, 1);
            }
        }
    }
    peaks
}

#[cfg(all(test, target_arch = "x86_64"))]
#[expect(
    clippy::float_cmp,
    reason = "the numbers compared are the same or wrong"
)]
mod tests {
    use super::*;

    #[test]
    fn wide_registers_find_what_single_weights_do() {
        let Some(lanes) = pulp::x86::V3::try_new() else {
            return;
        };
        let mut state = 1_u64;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        for n in [1, 2, 15, 16, 17, 128, 200, 255, 256] {
            for power in [1, 3, 9] {
                let mut unit: Vec<f32> = (0..n).map(|_| next().powi(power)).collect();
                unit[n / 2] = if n % 2 == 0 { 1.0 } else { -1.0 };
                let whole = Whole::of(&unit);
                assert_eq!(usize::from(whole.large.count + whole.small.count), n);
                let wide = pulp::Simd::vectorize(
                    lanes,
                    Search {
                        lanes,
                        whole: &whole,
                    },
                );
                assert_eq!(wide, search(Scalar, &whole), "{n} weights");
            }
        }
    }
}
