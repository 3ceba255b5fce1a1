//! Some rows of a matrix on their way to codes: targets, the values that stand for them now, levels
//! and fits.
//!
//! Owns what a state of the rows costs, and the three ways to a first state or a better one: rounding
//! to the nearest, rounding with feedback, and sweeps. Columns are counted by place (see
//! [`InputMetric`]), each row is worked on alone.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use half::f16;

use super::metric::InputMetric;
use crate::fit::{Grid, GroupFit, fit};

/// What rows are rounded to, and what they should have been.
pub(super) struct Task<'a> {
    pub(super) metric: &'a InputMetric,
    /// Of each row.
    pub(super) grids: Vec<Grid>,
    /// Share of zeros that each row is to have; `None` where zeros fall as they may.
    pub(super) zeros: Option<f64>,
    /// `[rows, n]` by place: the weights of least error if nothing were rounded.
    pub(super) target: Vec<f32>,
    /// By place: whether the column is stored apart, where any value can be. Empty for none.
    pub(super) apart: Vec<bool>,
}

/// One way to stand for the rows.
#[derive(Clone)]
pub(super) struct Coded {
    /// `[rows, n]` by place.
    pub(super) value: Vec<f32>,
    /// `[rows, n]` by place.
    pub(super) level: Vec<i8>,
    /// `[rows, groups]`, groups in order of rounding.
    pub(super) fit: Vec<GroupFit>,
}

impl Task<'_> {
    pub(super) fn n(&self) -> usize {
        self.metric.cols()
    }

    pub(super) fn rows(&self) -> usize {
        self.grids.len()
    }

    fn empty(&self) -> Coded {
        let none = GroupFit {
            scale: f16::ZERO,
            shift: f16::ZERO,
            band: 0.0,
        };
        Coded {
            value: vec![0.0; self.target.len()],
            level: vec![0; self.target.len()],
            fit: vec![none; self.rows() * self.metric.groups().len()],
        }
    }

    /// Whether a place is stored apart.
    pub(super) fn apart(&self, place: usize) -> bool {
        self.apart.get(place).copied().unwrap_or(false)
    }

    /// Fits the group at `places` of `row`, whose weights are `w`; weights stored apart count
    /// nothing. Fills the levels.
    fn fit_group(
        &self,
        row: usize,
        places: &Range<usize>,
        w: &[f32],
        importance: &[f32],
        levels: &mut [i8],
    ) -> GroupFit {
        let grid = &self.grids[row];
        if self.apart.is_empty() {
            return fit(w, Some(importance), grid, levels);
        }
        let (mut w, mut importance) = (w.to_vec(), importance.to_vec());
        for (k, place) in places.clone().enumerate() {
            if self.apart(place) {
                (w[k], importance[k]) = (0.0, 0.0);
            }
        }
        let found = fit(&w, Some(&importance), grid, levels);
        for (level, place) in levels.iter_mut().zip(places.clone()) {
            if self.apart(place) {
                *level = 0;
            }
        }
        found
    }

    /// Every group fitted by itself.
    pub(super) fn nearest(&self) -> Coded {
        let places = 0..self.n();
        let importance: Vec<f32> = places.map(|place| self.metric.row(place)[place]).collect();
        self.alone(&importance)
    }

    /// Every group fitted by itself, all columns alike.
    pub(super) fn unweighted(&self) -> Coded {
        self.alone(&vec![1.0; self.n()])
    }

    fn alone(&self, importance: &[f32]) -> Coded {
        let n = self.n();
        let mut coded = self.empty();
        for row in 0..self.rows() {
            for (index, (_, places)) in self.metric.groups().iter().enumerate() {
                let own = row * n + places.start..row * n + places.end;
                let levels = &mut coded.level[own.clone()];
                let w = &self.target[own.clone()];
                let found = self.fit_group(row, places, w, &importance[places.clone()], levels);
                coded.fit[row * self.metric.groups().len() + index] = found;
                for (at, place) in own.zip(places.clone()) {
                    coded.value[at] = if self.apart(place) {
                        self.target[at]
                    } else {
                        found.value(coded.level[at])
                    };
                }
            }
        }
        coded
    }

    /// Column by column, each fitted to what the rounding of those before left it to make good.
    pub(super) fn with_feedback(&self) -> Coded {
        let (n, rows, groups) = (self.n(), self.rows(), self.metric.groups());
        let mut coded = self.empty();
        let mut w = self.target.clone();
        for (index, (_, places)) in groups.iter().enumerate() {
            // What a column's error weighs once those after it have made up for it.
            let importance: Vec<f32> = places
                .clone()
                .map(|place| self.metric.u_row(place)[place].powi(-2))
                .collect();
            let mut errors = vec![0.0_f32; rows * places.len()];
            for row in 0..rows {
                let own = row * n + places.start..row * n + places.end;
                let levels = &mut coded.level[own.clone()];
                let found = self.fit_group(row, places, &w[own.clone()], &importance, levels);
                coded.fit[row * groups.len() + index] = found;
                for place in places.clone() {
                    let at = row * n + place;
                    if self.apart(place) {
                        (coded.level[at], coded.value[at]) = (0, w[at]);
                        continue;
                    }
                    coded.level[at] = found.level(self.grids[row].levels, w[at]);
                    coded.value[at] = found.value(coded.level[at]);
                    let u = &self.metric.u_row(place)[place..places.end];
                    let error = (w[at] - coded.value[at]) / u[0];
                    for (w, u) in w[at + 1..own.end].iter_mut().zip(&u[1..]) {
                        *w -= error * u;
                    }
                    errors[row * places.len() + place - places.start] = error;
                }
            }
            let rest = MatMut::from_row_major_slice_mut(&mut w, rows, n)
                .subcols_mut(places.end, n - places.end);
            let errors = MatRef::from_row_major_slice(&errors, rows, places.len());
            let u = self.metric.u_right_of(places);
            matmul(rest, Accum::Add, errors, u, -1.0, Par::Seq);
        }
        coded
    }

    /// `(value - target) H`, `[rows, n]`.
    pub(super) fn gradient(&self, coded: &Coded) -> Vec<f32> {
        let (n, rows) = (self.n(), self.rows());
        let off: Vec<f32> = coded
            .value
            .iter()
            .zip(&self.target)
            .map(|(v, t)| v - t)
            .collect();
        let mut gradient = vec![0.0; rows * n];
        matmul(
            MatMut::from_row_major_slice_mut(&mut gradient, rows, n),
            Accum::Replace,
            MatRef::from_row_major_slice(&off, rows, n),
            self.metric.all(),
            1.0,
            Par::Seq,
        );
        gradient
    }

    /// What each row costs: `e H eᵀ` with `e = value - target`.
    pub(super) fn costs(&self, coded: &Coded) -> Vec<f64> {
        let gradient = self.gradient(coded);
        (0..self.rows())
            .map(|row| {
                let own = row * self.n()..(row + 1) * self.n();
                let terms = own.map(|at| {
                    f64::from(coded.value[at] - self.target[at]) * f64::from(gradient[at])
                });
                terms.sum()
            })
            .collect()
    }

    /// `Σ t H tᵀ` of the targets.
    pub(super) fn energy(&self) -> f64 {
        self.costs(&self.empty()).iter().sum()
    }

    /// Takes those rows of `other` that cost less.
    pub(super) fn take_better(&self, coded: &mut Coded, other: &Coded) {
        let (n, groups) = (self.n(), self.metric.groups().len());
        let (ours, theirs) = (self.costs(coded), self.costs(other));
        for row in (0..self.rows()).filter(|&row| theirs[row] < ours[row]) {
            let (own, fits) = (row * n..(row + 1) * n, row * groups..(row + 1) * groups);
            coded.value[own.clone()].copy_from_slice(&other.value[own.clone()]);
            coded.level[own.clone()].copy_from_slice(&other.level[own]);
            coded.fit[fits.clone()].copy_from_slice(&other.fit[fits]);
        }
    }
}
