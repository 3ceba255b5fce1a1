//! Sums of squares over one step of two implementations, and what they amount to.

use super::Step;

/// The larger of two, NaN above all; `max` would drop it.
pub(super) fn larger(a: f64, b: f64) -> f64 {
    if b > a || b.is_nan() { b } else { a }
}

pub(super) fn ratio(difference: f64, reference: f64) -> f64 {
    if difference == 0.0 {
        0.0
    } else {
        (difference / reference).sqrt()
    }
}

/// Sums of squares of one step, by channel.
pub(super) struct StepSums {
    name: String,
    difference: Vec<f64>,
    change: Vec<f64>,
    /// The largest upper quartile of a channel, where quartiles were taken.
    quartile: Option<f64>,
    rows: f64,
}

impl StepSums {
    pub(super) fn new(name: String, width: usize) -> Self {
        StepSums {
            name,
            difference: vec![0.0; width],
            change: vec![0.0; width],
            quartile: None,
            rows: 0.0,
        }
    }

    /// Takes the upper quartile over tokens of the difference in each channel.
    pub(super) fn quartiles(&mut self, meant: &[Vec<f32>], found: &[Vec<f32>]) {
        let width = self.difference.len();
        let off = |channel: usize| {
            let pairs = meant.iter().zip(found).flat_map(|(m, f)| {
                let places = (channel..m.len()).step_by(width);
                places.map(move |i| (f64::from(m[i]) - f64::from(f[i])).abs())
            });
            let mut off: Vec<f64> = pairs.collect();
            let place = off.len() * 3 / 4;
            if off.is_empty() {
                return 0.0;
            }
            // NaN comes after everything, so that much of it shows.
            *off.select_nth_unstable_by(place, f64::total_cmp).1
        };
        let worst = (0..width).map(off).fold(0.0, larger);
        self.quartile = Some(larger(self.quartile.unwrap_or(0.0), worst));
    }

    /// Takes in one step from `before` to `meant` by the reference and to `found` by the
    /// runtime; `before` is empty where the step replaces everything.
    pub(super) fn add(&mut self, before: &[f32], meant: &[f32], found: &[f32]) {
        let width = self.difference.len();
        for (i, (&meant, &found)) in meant.iter().zip(found).enumerate() {
            let before = before.get(i).copied().unwrap_or(0.0);
            let square = |x: f32, y: f32| (f64::from(x) - f64::from(y)).powi(2);
            self.difference[i % width] += square(meant, found);
            self.change[i % width] += square(meant, before);
        }
        self.rows += (meant.len() / width.max(1)) as f64;
    }

    pub(super) fn step(self) -> Step {
        let change: f64 = self.change.iter().sum();
        let difference: f64 = self.difference.iter().sum();
        let worst = self.difference.iter().copied().fold(0.0, larger);
        let average = change / self.change.len() as f64;
        let channel = match self.quartile {
            Some(off) => ratio(off.powi(2), average / self.rows),
            None => ratio(worst, average),
        };
        Step {
            name: self.name,
            rel_l2: ratio(difference, change),
            channel,
        }
    }
}

pub(super) fn merge(all: &mut Vec<StepSums>, more: Vec<StepSums>) {
    if all.is_empty() {
        *all = more;
        return;
    }
    for (own, other) in all.iter_mut().zip(more) {
        own.rows += other.rows;
        own.quartile = match (own.quartile, other.quartile) {
            (Some(a), Some(b)) => Some(larger(a, b)),
            (a, b) => a.or(b),
        };
        for (a, b) in own.difference.iter_mut().zip(other.difference) {
            *a += b;
        }
        for (a, b) in own.change.iter_mut().zip(other.change) {
            *a += b;
        }
    }
}
