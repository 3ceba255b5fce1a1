//! Several levels under importance, with or without a shift: a search over scales.
//!
//! For fixed levels `q` the best scale, or scale and shift, is a weighted regression of the weights
//! on the levels. The search assigns the nearest levels under each scale of a grid around the one
//! that just holds the largest weight, regresses, and keeps the least weighted error; a few more
//! turns of assigning and regressing follow.

use super::{GroupFit, NEAREST, round, to_f16};
use crate::levels::Levels;
use half::f16;

/// Scales tried, evenly spread over [`SHARES`].
const STEPS: usize = 24;
/// The part of the range of the weights that the levels are laid over, for few and for many levels.
const SHARES: [(f32, f32); 2] = [(0.55, 1.05), (0.9, 1.02)];
/// Turns of improvement.
const TURNS: usize = 4;
/// Sums that run side by side.
const LANES: usize = 8;

/// Weights, importance and the levels they may have.
struct Group<'a> {
    w: &'a [f32],
    h: &'a [f32],
    low: f32,
    high: f32,
    shifted: bool,
}

/// Fits one group, with a shift where `shifted`.
///
/// Panics when the lengths differ.
pub fn fit(
    w: &[f32],
    h: Option<&[f32]>,
    levels: Levels,
    shifted: bool,
    out: &mut [i8],
) -> GroupFit {
    assert_eq!(w.len(), out.len(), "a level for each weight");
    assert!(
        h.is_none_or(|h| h.len() == w.len()),
        "an importance for each weight"
    );
    let (low, high) = levels.range();
    // In units of the largest, so that sums of squares stay well inside single precision.
    let largest_h = h.map_or(1.0, |h| h.iter().copied().fold(f32::MIN_POSITIVE, f32::max));
    let h: Vec<f32> = match h {
        Some(h) => h.iter().map(|h| h / largest_h).collect(),
        None => vec![1.0; w.len()],
    };
    let group = Group {
        w,
        h: &h,
        low: f32::from(low),
        high: f32::from(high),
        shifted,
    };
    // Every start is judged once; only the best is worth improving.
    let mut found = (f64::INFINITY, (f16::ZERO, f16::ZERO));
    for (scale, shift) in group.starts() {
        let start = (to_f16(f64::from(scale)), to_f16(f64::from(shift)));
        let error = group.regress(start).0;
        if error < found.0 {
            found = (error, start);
        }
    }
    group.improve(found.1, &mut found);
    let (scale, shift) = found.1;
    let fit = GroupFit {
        scale,
        shift,
        band: NEAREST,
    };
    for (level, &w) in out.iter_mut().zip(w) {
        *level = fit.level(levels, w);
    }
    fit
}

impl Group<'_> {
    /// Scales and shifts to begin with; a scale may be negative where the levels are not symmetric.
    fn starts(&self) -> Vec<(f32, f32)> {
        let (low, high) = (self.low, self.high);
        let (from, to) = SHARES[usize::from(high > 16.0)];
        let share = |step: usize| from + (to - from) * step as f32 / (STEPS - 1) as f32;
        let least = self.w.iter().copied().fold(f32::INFINITY, f32::min);
        let most = self.w.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let largest = most.max(-least);
        let steps = (0..STEPS).map(share);
        if self.shifted {
            let middle = f32::midpoint(least, most);
            let centre = f32::midpoint(low, high);
            let start = |share: f32| {
                let scale = share * (most - least) / (high - low);
                (scale, middle - centre * scale)
            };
            return steps.map(start).collect();
        }
        if -low > high {
            let both = |share: f32| {
                let scale = share * largest / -low;
                [(scale, 0.0), (-scale, 0.0)]
            };
            return steps.flat_map(both).collect();
        }
        steps.map(|share| (share * largest / high, 0.0)).collect()
    }

    /// Turns of nearest levels and regression from `start` on; keeps in `found` what has the least
    /// error of all that was stored.
    fn improve(&self, mut start: (f16, f16), found: &mut (f64, (f16, f16))) {
        for _ in 0..TURNS {
            let (error, next) = self.regress(start);
            if error < found.0 {
                *found = (error, start);
            }
            if next == start || next.0.to_f32() == 0.0 || !next.0.is_finite() {
                break;
            }
            start = next;
        }
    }

    /// The error of the nearest levels under a scale and shift, and what these levels ask for.
    fn regress(&self, (scale, shift): (f16, f16)) -> (f64, (f16, f16)) {
        let (s, m) = (scale.to_f32(), shift.to_f32());
        let inverse = if s == 0.0 { 0.0 } else { 1.0 / s };
        let mut lanes = [[0.0_f32; LANES]; 6];
        let chunks = self.w.chunks(LANES).zip(self.h.chunks(LANES));
        for (w, h) in chunks {
            // A last chunk that is short is filled up with what counts nothing.
            let (mut w8, mut h8) = ([0.0; LANES], [0.0; LANES]);
            w8[..w.len()].copy_from_slice(w);
            h8[..h.len()].copy_from_slice(h);
            for l in 0..LANES {
                let (w, h) = (w8[l], h8[l]);
                let q = round((w - m) * inverse, self.low, self.high);
                let off = w - (s * q + m);
                lanes[0][l] += h * off * off;
                lanes[1][l] += h;
                lanes[2][l] += h * q;
                lanes[3][l] += h * q * q;
                lanes[4][l] += h * w;
                lanes[5][l] += h * q * w;
            }
        }
        let [error, h0, hq, hqq, hw, hqw] = lanes.map(|lane| f64::from(lane.iter().sum::<f32>()));
        if !self.shifted {
            let next = if hqq > 0.0 { hqw / hqq } else { 0.0 };
            return (error, (to_f16(next), shift));
        }
        let determinant = h0 * hqq - hq * hq;
        if determinant <= 1e-6 * h0 * hqq {
            return (error, (scale, shift));
        }
        let next = (h0 * hqw - hq * hw) / determinant;
        (error, (to_f16(next), to_f16((hw - next * hq) / h0)))
    }
}
