//! Rounding again: every code, scale and shift in turn, given all others.
//!
//! The cost of a row is quadratic in what stands for its weights, so the best code of one weight, the
//! best scale and the best shift of one group follow from the gradient alone (coordinate descent, as
//! in Behdin et al. 2023, `QuantEase`). Nothing is changed that would cost more, but where zeros are
//! asked for.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use half::f16;

use super::rows::{Coded, Task};
use crate::fit::GroupFit;

impl Task<'_> {
    /// One turn through all groups. Gives the number of codes that changed.
    pub(super) fn sweep(&self, coded: &mut Coded) -> usize {
        let (n, rows) = (self.n(), self.rows());
        self.set_bands(coded);
        let mut gradient = self.gradient(coded);
        let mut changed = 0;
        for (index, (_, places)) in self.metric.groups().iter().enumerate() {
            let width = places.len();
            let mut moved = vec![0.0_f32; rows * width];
            for row in 0..rows {
                let own = row * n + places.start..row * n + places.end;
                let mut group = Group {
                    task: self,
                    row,
                    places,
                    value: &mut coded.value[own.clone()],
                    level: &mut coded.level[own.clone()],
                    fit: &mut coded.fit[row * self.metric.groups().len() + index],
                    gradient: gradient[own.clone()].to_vec(),
                };
                let before = group.value.to_vec();
                changed += group.round();
                group.rescale();
                if self.grids[row].shift {
                    group.reshift();
                }
                let moved = &mut moved[row * width..(row + 1) * width];
                for ((moved, now), before) in moved.iter_mut().zip(&*group.value).zip(before) {
                    *moved = now - before;
                }
            }
            matmul(
                MatMut::from_row_major_slice_mut(&mut gradient, rows, n),
                Accum::Add,
                MatRef::from_row_major_slice(&moved, rows, width),
                self.metric.rows(places),
                1.0,
                Par::Seq,
            );
        }
        changed
    }

    /// Where a share of zeros is asked for, sets the band of every row so that this share of its
    /// weights lies within.
    fn set_bands(&self, coded: &mut Coded) {
        let Some(zeros) = self.zeros else { return };
        let (n, groups) = (self.n(), self.metric.groups());
        let gradient = self.gradient(coded);
        for row in 0..self.rows() {
            let fits = &mut coded.fit[row * groups.len()..(row + 1) * groups.len()];
            let mut sizes: Vec<f32> = Vec::with_capacity(n);
            for (fit, (_, places)) in fits.iter().zip(groups) {
                let scale = fit.scale.to_f32();
                for place in places
                    .clone()
                    .filter(|&place| scale > 0.0 && !self.apart(place))
                {
                    let at = row * n + place;
                    let wanted = coded.value[at] - gradient[at] / self.metric.row(place)[place];
                    sizes.push(((wanted - fit.shift.to_f32()) / scale).abs());
                }
            }
            let within = (zeros * sizes.len() as f64).round() as usize;
            if within == 0 || sizes.is_empty() {
                continue;
            }
            let band = *sizes.select_nth_unstable_by(within - 1, f32::total_cmp).1;
            for fit in fits {
                fit.band = band;
            }
        }
    }
}

/// One group of one row.
struct Group<'a> {
    task: &'a Task<'a>,
    row: usize,
    places: &'a Range<usize>,
    value: &'a mut [f32],
    level: &'a mut [i8],
    fit: &'a mut GroupFit,
    /// Of the row's cost, halved, at these places.
    gradient: Vec<f32>,
}

impl Group<'_> {
    /// The moments of place `k` of the group with the places of the group.
    fn moments(&self, k: usize) -> &[f32] {
        &self.task.metric.row(self.places.start + k)[self.places.clone()]
    }

    /// Gives every code its best level; the number of codes that changed.
    fn round(&mut self) -> usize {
        let levels = self.task.grids[self.row].levels;
        let mut changed = 0;
        for k in 0..self.value.len() {
            // Borrowed from the task alone, so that the gradient may change.
            let task = self.task;
            let moments = &task.metric.row(self.places.start + k)[self.places.clone()];
            let wanted = self.value[k] - self.gradient[k] / moments[k];
            let apart = task.apart(self.places.start + k);
            let level = if apart {
                0
            } else {
                self.fit.level(levels, wanted)
            };
            if level == self.level[k] && !apart {
                continue;
            }
            let value = if apart { wanted } else { self.fit.value(level) };
            let step = value - self.value[k];
            add_scaled(&mut self.gradient, step, moments);
            (self.level[k], self.value[k]) = (level, value);
            changed += usize::from(!apart);
        }
        changed
    }

    /// Gives the scale its best value.
    fn rescale(&mut self) {
        let along: Vec<f32> = self.level.iter().map(|&level| f32::from(level)).collect();
        let (step, effect, cost) = self.step_along(&along);
        let old = self.fit.scale.to_f32();
        let new = f16::from_f32(old + step);
        let keeps_its_sign = new.to_f32() * old > 0.0 && new.is_finite();
        let fit = GroupFit {
            scale: new,
            ..*self.fit
        };
        if keeps_its_sign && self.gains(new.to_f32() - old, &along, cost) {
            self.take(fit, &effect, new.to_f32() - old);
        }
    }

    /// Gives the shift its best value.
    fn reshift(&mut self) {
        let places = self.places.clone();
        let share = |place| {
            if self.task.apart(place) { 0.0 } else { 1.0 }
        };
        let along: Vec<f32> = places.map(share).collect();
        let (step, effect, cost) = self.step_along(&along);
        let old = self.fit.shift.to_f32();
        let new = f16::from_f32(old + step);
        let fit = GroupFit {
            shift: new,
            ..*self.fit
        };
        if new.is_finite() && self.gains(new.to_f32() - old, &along, cost) {
            self.take(fit, &effect, new.to_f32() - old);
        }
    }

    /// How far to go along a direction for the least cost, what a step of one does to the gradient,
    /// and what it costs by itself.
    fn step_along(&self, along: &[f32]) -> (f32, Vec<f32>, f64) {
        let mut effect = vec![0.0; along.len()];
        for (k, &share) in along.iter().enumerate().filter(|(_, share)| **share != 0.0) {
            add_scaled(&mut effect, share, self.moments(k));
        }
        let cost = dot(along, &effect);
        let slope = dot(along, &self.gradient);
        let step = if cost > 0.0 { -slope / cost } else { 0.0 };
        (step as f32, effect, cost)
    }

    /// Whether a step along a direction costs less than none.
    fn gains(&self, step: f32, along: &[f32], cost: f64) -> bool {
        let step = f64::from(step);
        2.0 * step * dot(along, &self.gradient) + step * step * cost < 0.0
    }

    /// Takes a fit that is `step` further along what has this `effect` on the gradient.
    fn take(&mut self, fit: GroupFit, effect: &[f32], step: f32) {
        *self.fit = fit;
        add_scaled(&mut self.gradient, step, effect);
        for (k, (value, &level)) in self.value.iter_mut().zip(&*self.level).enumerate() {
            if !self.task.apart(self.places.start + k) {
                *value = fit.value(level);
            }
        }
    }
}

fn add_scaled(to: &mut [f32], scale: f32, from: &[f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += scale * from;
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    crate::stats::sum_pairs(a, b, |a, b| f64::from(a) * f64::from(b))
}
