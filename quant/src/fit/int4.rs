//! Levels -8..=7: a search over scales for the least squared error.
//!
//! For fixed levels `q` the best scale is `Σ w q / Σ q²`, and the squared error is then
//! `Σ w² - (Σ w q)² / Σ q²`, so the search looks for the largest of this *gain*; for a fixed scale
//! the best levels are the nearest. A scale may be negative, so that level -8, which has no
//! positive twin, serves either side. `places` tells where to start; turns of nearest levels and best
//! scale follow.

use half::f16;
use neuroconv_kernels::layout::MAX_GROUP;

use super::{assign, largest, places, round};
use crate::stats::{squared_error, sum_pairs};

/// Lowest and highest level.
pub(super) const LEVELS: (f32, f32) = (-8.0, 7.0);
/// Sums that run side by side.
const LANES: usize = 16;
/// Where else the best scale may lie, by the distance of the places that were told apart.
const BESIDE: [f64; 2] = [0.997, 1.003];
/// Rounds of improvement; almost always two are enough.
const ROUNDS: usize = 8;

/// `Σ w q` and `Σ q²` for some levels `q`.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    wq: f32,
    qq: f32,
}

impl Sums {
    fn gain(self) -> f32 {
        if self.qq > 0.0 {
            self.wq * self.wq / self.qq
        } else {
            0.0
        }
    }

    /// The scale of least squared error.
    fn scale(self) -> f64 {
        f64::from(self.wq) / f64::from(self.qq)
    }
}

/// Fits one group.
///
/// Panics when `w` and `levels` differ in length or are longer than [`MAX_GROUP`].
#[inline(always)]
pub fn fit(w: &[f32], levels: &mut [i8]) -> f16 {
    assert_eq!(w.len(), levels.len(), "a level for each weight");
    let largest = largest(w);
    if largest == 0.0 {
        levels.fill(0);
        return f16::ZERO;
    }
    // In units of the largest, no sum of the search can overflow or vanish.
    let mut unit = [0.0; MAX_GROUP];
    let unit = &mut unit[..w.len().next_multiple_of(LANES)];
    for (unit, w) in unit.iter_mut().zip(w) {
        *unit = w / largest;
    }
    let best = improve(unit.as_chunks().0, places::best(&unit[..w.len()]));
    let scale = settle(w, stored(best.scale() * f64::from(largest)), levels);
    if levels.iter().all(|&level| level == 0) && scale.is_finite() {
        f16::ZERO
    } else {
        scale
    }
}

/// Fills in the levels of `scale`, or of the scale that these ask for, and so on, as long as the
/// error falls; gives the last scale.
#[inline(always)]
fn settle(w: &[f32], mut scale: f16, levels: &mut [i8]) -> f16 {
    assign(w, scale, LEVELS, levels);
    let mut other = [0; MAX_GROUP];
    let other = &mut other[..w.len()];
    for _ in 0..ROUNDS {
        let wq = sum_pairs(w, levels, |w, q| f64::from(w) * f64::from(q));
        let squares = levels.iter().map(|&q| i32::from(q) * i32::from(q));
        let qq = squares.fold(0, i32::wrapping_add);
        let next = stored(wq / f64::from(qq.max(1)));
        if next == scale {
            break;
        }
        assign(w, next, LEVELS, other);
        let error = |levels, scale: f16| squared_error(w, levels, scale.to_f32());
        if error(other, next) >= error(levels, scale) {
            break;
        }
        scale = next;
        levels.copy_from_slice(other);
    }
    scale
}

/// Nearest f16, but never zero.
fn stored(scale: f64) -> f16 {
    let nearest = super::to_f16(scale);
    if nearest == f16::ZERO {
        f16::MIN_POSITIVE_SUBNORMAL.copysign(f16::from_f64(scale))
    } else {
        nearest
    }
}

/// The levels of most gain at some places, and a little beside the best of these; then turns of nearest
/// levels and best scale as long as the gain grows.
#[inline(always)]
fn improve(unit: &[[f32; LANES]], places: [f32; places::BEST]) -> Sums {
    let mut best = Sums::default();
    for place in places {
        let sums = sums_at(unit, 1.0 / f64::from(place));
        if sums.gain() > best.gain() {
            best = sums;
        }
    }
    let scale = best.scale();
    for beside in BESIDE {
        let sums = sums_at(unit, beside * scale);
        if sums.gain() > best.gain() {
            best = sums;
        }
    }
    for _ in 0..ROUNDS {
        let next = sums_at(unit, best.scale());
        if next.gain() <= best.gain() {
            break;
        }
        best = next;
    }
    best
}

/// The sums of the nearest levels under `scale`.
#[inline(always)]
fn sums_at(unit: &[[f32; LANES]], scale: f64) -> Sums {
    let inverse = (1.0 / scale) as f32;
    let (mut wq, mut qq) = ([0.0; LANES], [0.0; LANES]);
    for w in unit {
        for (l, w) in w.iter().enumerate() {
            let q = round(w * inverse, LEVELS.0, LEVELS.1);
            wq[l] += w * q;
            qq[l] += q * q;
        }
    }
    Sums {
        wq: total(wq),
        qq: total(qq),
    }
}

/// The sum of all lanes, in the order of a tree.
#[inline(always)]
fn total(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for l in 0..half {
            lanes[l] += lanes[l + half];
        }
        half /= 2;
    }
    lanes[0]
}
