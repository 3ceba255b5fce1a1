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

/// The lowest place.
const FIRST: f32 = 4.0;
/// Places per step of the grid.
const PER_STEP: f32 = 32.0;
/// Places of the grid, beyond the lowest.
const PLACES: usize = 256;
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
/// Panics when `w` and `levels` differ in length.
pub fn fit(w: &[f32], levels: &mut [i8]) -> f16 {
    assert_eq!(w.len(), levels.len(), "a level for each weight");
    let largest = w.iter().fold(0.0_f32, |largest, w| largest.max(w.abs()));
    // In units of the largest, no sum of the search can overflow or vanish.
    let unit: Vec<f32> = w.iter().map(|w| w / largest).collect();
    let mut best: Option<(f64, f16)> = None;
    if largest > 0.0 {
        for scale in best_starts(&unit) {
            let scale = stored(improve(&unit, scale) * f64::from(largest));
            settle(w, scale, levels, &mut best);
        }
    }
    let scale = best.map_or(f16::ZERO, |(_, scale)| scale);
    assign(w, scale, levels);
    if levels.iter().all(|&level| level == 0) && scale.is_finite() {
        f16::ZERO
    } else {
        scale
    }
}

/// Keeps `scale`, and those that its levels ask for in turn, where they beat `best`, a pair of
/// squared error and scale.
fn settle(w: &[f32], mut scale: f16, levels: &mut [i8], best: &mut Option<(f64, f16)>) {
    for _ in 0..ROUNDS {
        assign(w, scale, levels);
        let error = crate::stats::squared_error(w, levels, scale.to_f32());
        if best.is_some_and(|(least, _)| error >= least) {
            return;
        }
        *best = Some((error, scale));
        let (wq, qq) = levels.iter().zip(w).fold((0.0, 0.0), |(wq, qq), (&q, &w)| {
            (
                wq + f64::from(w) * f64::from(q),
                qq + f64::from(q) * f64::from(q),
            )
        });
        if qq > 0.0 {
            scale = stored(wq / qq);
        }
    }
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

/// The nearest levels under a scale; all zero for none.
fn assign(w: &[f32], scale: f16, levels: &mut [i8]) {
    let scale = scale.to_f32();
    for (level, w) in levels.iter_mut().zip(w) {
        *level = if scale == 0.0 {
            0
        } else {
            nearest(w / scale) as i8
        };
    }
}

/// The nearest level to `value`.
fn nearest(value: f32) -> f32 {
    super::round(value).clamp(-8.0, 7.0)
}

/// The scales that the levels at the best places ask for: one positive, one negative.
fn best_starts(unit: &[f32]) -> [f64; 2] {
    // What the sums gain between one place and the next: by levels up to 7, and by the eighth
    // level of weights below and above zero.
    let mut climbs = [[Sums::default(); PLACES + 1]; 3];
    for &w in unit {
        let magnitude = w.abs();
        let start = super::round(magnitude * FIRST);
        climbs[0][0].wq += magnitude * start;
        climbs[0][0].qq += start * start;
        let mut level = start + 1.0;
        while level <= 8.0 {
            let at = ((level - 0.5) / magnitude - FIRST) * PER_STEP;
            if at > PLACES as f32 {
                break;
            }
            let side = if level < 8.0 {
                0
            } else {
                1 + usize::from(w > 0.0)
            };
            let climb = &mut climbs[side][at.max(0.0).ceil() as usize];
            climb.wq += magnitude;
            climb.qq += 2.0 * level - 1.0;
            level += 1.0;
        }
    }
    let mut sums = [Sums::default(); 3];
    let mut best = [Sums::default(); 2];
    for i in 0..=PLACES {
        for (sum, climb) in sums.iter_mut().zip(&climbs) {
            sum.wq += climb[i].wq;
            sum.qq += climb[i].qq;
        }
        for (best, eighth) in best.iter_mut().zip([sums[1], sums[2]]) {
            let here = Sums {
                wq: sums[0].wq + eighth.wq,
                qq: sums[0].qq + eighth.qq,
            };
            if here.gain() > best.gain() {
                *best = here;
            }
        }
    }
    [best[0].scale(), -best[1].scale()]
}

/// Turns of nearest levels and best scale, from `scale`, as long as the gain grows.
fn improve(unit: &[f32], mut scale: f64) -> f64 {
    let mut gain = 0.0;
    for _ in 0..ROUNDS {
        let sums = sums_at(unit, (1.0 / scale) as f32);
        if sums.gain() <= gain {
            break;
        }
        gain = sums.gain();
        scale = sums.scale();
    }
    scale
}

/// The sums of the nearest levels under the scale `1 / inverse`, in eight interleaved lanes.
fn sums_at(unit: &[f32], inverse: f32) -> Sums {
    const LANES: usize = 8;
    let mut lanes = ([0.0; LANES], [0.0; LANES]);
    let (whole, rest) = unit.as_chunks::<LANES>();
    let mut last = [0.0; LANES];
    last[..rest.len()].copy_from_slice(rest);
    for w in whole.iter().chain([&last]) {
        for (l, w) in w.iter().enumerate() {
            let q = nearest(w * inverse);
            lanes.0[l] += w * q;
            lanes.1[l] += q * q;
        }
    }
    let total = |l: [f32; LANES]| ((l[0] + l[4]) + (l[1] + l[5])) + ((l[2] + l[6]) + (l[3] + l[7]));
    Sums {
        wq: total(lanes.0),
        qq: total(lanes.1),
    }
}
