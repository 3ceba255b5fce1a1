//! Levels -8..=7: a search over scales for the least squared error.
//!
//! For fixed levels `q` the best scale is `Σ w q / Σ q²`, and the squared error is then
//! `Σ w² - (Σ w q)² / Σ q²`, so the search looks for the largest of this *gain*; for a fixed scale
//! the best levels are the nearest. A scale may be negative, so that level -8, which has no
//! positive twin, serves either side.
//!
//! Scales are counted by the *place* they put the largest magnitude at, in steps. From place 4 to
//! place 12 each weight climbs a few levels; adding up who climbs where gives the gain of all
//! places of a fine grid in one pass. Below place 4 nothing is gained: halving such a scale doubles
//! its levels. Beyond 12 too much is cut off.

use half::f16;

use super::{NO_FRACTION, assign, round};
use crate::stats::{squared_error, sum};

/// Lowest and highest level.
const LEVELS: (f32, f32) = (-8.0, 7.0);
/// The lowest place.
const FIRST: f32 = 4.0;
/// Places per step of the grid.
const PER_STEP: f32 = 16.0;
/// Places of the grid, beyond the lowest.
const PLACES: usize = 128;
/// Slots before the first place, and after the last: one for each level.
const EARLY: usize = 8;
const SLOTS: usize = EARLY + 1 + PLACES + 1 + EARLY;
/// Sums that run side by side.
const LANES: usize = 16;
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

    /// Whether the gain is larger, without a division.
    fn gains_more_than(self, other: Sums) -> bool {
        self.wq * self.wq * other.qq.max(1.0) > other.wq * other.wq * self.qq.max(1.0)
    }

    /// The scale of least squared error.
    fn scale(self) -> f64 {
        f64::from(self.wq) / f64::from(self.qq)
    }
}

/// Fits one group.
///
/// Panics when `w` and `levels` differ in length.
#[inline(always)]
pub fn fit(w: &[f32], levels: &mut [i8]) -> f16 {
    assert_eq!(w.len(), levels.len(), "a level for each weight");
    let largest = w.iter().fold(0.0_f32, |largest, w| largest.max(w.abs()));
    if largest == 0.0 {
        levels.fill(0);
        return f16::ZERO;
    }
    // In units of the largest, no sum of the search can overflow or vanish.
    let unit: Vec<f32> = w.iter().map(|w| w / largest).collect();
    let [above, below] = best_starts(&unit).map(|scale| improve(&unit, scale));
    let best = if below.gain() > above.gain() {
        below
    } else {
        above
    };
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
    let mut error = squared_error(w, levels, scale.to_f32());
    let mut other_levels = vec![0; w.len()];
    for _ in 0..ROUNDS {
        let wq = sum(levels
            .iter()
            .zip(w)
            .map(|(&q, &w)| f64::from(q) * f64::from(w)));
        let qq: i32 = levels.iter().map(|&q| i32::from(q) * i32::from(q)).sum();
        let other = stored(wq / f64::from(qq.max(1)));
        if other == scale {
            break;
        }
        assign(w, other, LEVELS, &mut other_levels);
        let other_error = squared_error(w, &other_levels, other.to_f32());
        if other_error >= error {
            break;
        }
        (scale, error) = (other, other_error);
        levels.copy_from_slice(&other_levels);
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

/// The scales that the levels at the best places ask for: one positive, one negative.
#[inline(always)]
fn best_starts(unit: &[f32]) -> [f64; 2] {
    // What the sums gain at each place: by levels up to 7, and by the eighth level of weights
    // below and above zero. Slots before the first place hold the levels climbed by then, slots
    // after the last what is never climbed; each level has its own, since adding to one slot many
    // times over would take turns.
    let mut climbs = [[Sums::default(); SLOTS]; 3];
    for &w in unit {
        let magnitude = w.abs();
        let steps = PER_STEP / magnitude;
        let slots: [u16; 8] = std::array::from_fn(|level| {
            let level = level as f32;
            let at = (level + 0.5) * steps - FIRST * PER_STEP;
            let at = at.max(-level).min((PLACES + 1) as f32 + level);
            (at + (EARLY as f32 + 0.5) + NO_FRACTION).to_bits() as u16
        });
        for (level, slot) in slots.into_iter().enumerate() {
            let eighth = if w > 0.0 { 2 } else { 1 };
            let side = if level < 7 { 0 } else { eighth };
            let climb = &mut climbs[side][usize::from(slot)];
            climb.wq += magnitude;
            climb.qq += (2 * level + 1) as f32;
        }
    }
    let mut sums = [Sums::default(); 3];
    let mut best = [Sums::default(); 2];
    for i in 0..=EARLY + PLACES {
        for (sum, climb) in sums.iter_mut().zip(&climbs) {
            sum.wq += climb[i].wq;
            sum.qq += climb[i].qq;
        }
        for (best, eighth) in best.iter_mut().zip([sums[1], sums[2]]) {
            let here = Sums {
                wq: sums[0].wq + eighth.wq,
                qq: sums[0].qq + eighth.qq,
            };
            if here.gains_more_than(*best) {
                *best = here;
            }
        }
    }
    [best[0].scale(), -best[1].scale()]
}

/// Turns of nearest levels and best scale, from `scale`, as long as the gain grows.
#[inline(always)]
fn improve(unit: &[f32], scale: f64) -> Sums {
    let mut best = sums_at(unit, scale);
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
fn sums_at(unit: &[f32], scale: f64) -> Sums {
    let inverse = (1.0 / scale) as f32;
    let (mut wq, mut qq) = ([0.0; LANES], [0.0; LANES]);
    let (whole, rest) = unit.as_chunks::<LANES>();
    for w in whole {
        add_to_sums(w, inverse, &mut wq, &mut qq);
    }
    let mut last = [0.0; LANES];
    last[..rest.len()].copy_from_slice(rest);
    if !rest.is_empty() {
        add_to_sums(&last, inverse, &mut wq, &mut qq);
    }
    Sums {
        wq: total(wq),
        qq: total(qq),
    }
}

#[inline(always)]
fn add_to_sums(w: &[f32; LANES], inverse: f32, wq: &mut [f32; LANES], qq: &mut [f32; LANES]) {
    for (l, w) in w.iter().enumerate() {
        let q = round(w * inverse, LEVELS.0, LEVELS.1);
        wq[l] += w * q;
        qq[l] += q * q;
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
