//! What products with real inputs weigh: second moments of the inputs of a matrix, prepared for
//! rounding column by column.
//!
//! With `H = E[x xᵀ]` the output of a matrix whose weights are off by `e` is off by `e H eᵀ` on
//! average. Rounding goes through the columns in an order, and what a column's rounding costs is
//! passed on to the columns after it by the factor `U` of `H⁻¹ = Uᵀ U` (Frantar et al. 2022, GPTQ).

use std::ops::Range;

use faer::linalg::cholesky::llt::factor::{self as llt, LltRegularization};
use faer::linalg::matmul::matmul;
use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::{Accum, Mat, MatRef, Par, Spec};
use rayon::prelude::*;

use crate::error::Error;
use crate::linalg::with_scratch;

/// Share of the mean second moment that is added to every one.
const DAMPING: f64 = 0.01;
/// Rows whose cost one task computes: fixed, so that sums do not depend on the threads.
const COST_ROWS: usize = 64;
/// How often the damping may grow tenfold before a matrix is given up.
const DAMPINGS: usize = 6;

/// Second moments of inputs, ready for rounding in groups of one size.
#[derive(Debug)]
pub struct InputMetric {
    /// The column at each place in the order of rounding.
    order: Vec<usize>,
    /// The places of each group, in the order of rounding, with the group's index.
    groups: Vec<(usize, Range<usize>)>,
    /// `[n, n]`: moments over the mean of their diagonal, damped, by place.
    h: Vec<f32>,
    /// `[n, n]`: the upper triangular `U`, by place.
    u: Vec<f32>,
    /// What was added to the diagonal, as a share of its mean.
    damping: f64,
    /// Columns that no input ever reached.
    dead: usize,
}

impl InputMetric {
    /// Prepares the moments `E[x xᵀ]` (`[n, n]`, symmetric) of inputs for groups of `group` columns.
    ///
    /// Groups are rounded whole, those of the largest moments first, and so are the columns within a
    /// group, so that scales stay contiguous. Where the matrix is not positive definite the damping
    /// is raised tenfold, several times.
    pub fn new(moments: MatRef<'_, f64>, group: usize) -> Result<Self, Error> {
        let n = moments.nrows();
        if n != moments.ncols() || n == 0 {
            return Err(Error::NotSquare {
                operation: "an input metric",
                rows: n,
                cols: moments.ncols(),
            });
        }
        let diagonal: Vec<f64> = (0..n).map(|i| moments[(i, i)]).collect();
        let mean = diagonal.iter().sum::<f64>() / n as f64;
        if !mean.is_finite() {
            return Err(Error::NotFiniteMatrix {
                operation: "an input metric",
            });
        }
        // Inputs that are always zero say nothing: every weight counts the same then.
        let unit = if mean > 0.0 { mean } else { 1.0 };
        let (order, groups) = places(&diagonal, group);
        let mut damping = DAMPING;
        for _ in 0..DAMPINGS {
            let damped = Mat::from_fn(n, n, |i, j| {
                let moment = moments[(order[i], order[j])] / unit;
                if i == j { moment + damping } else { moment }
            });
            if let Ok(u) = inverse_factor(damped.as_ref()) {
                return Ok(InputMetric {
                    h: row_major(n, |i, j| damped[(i, j)] as f32),
                    u,
                    dead: diagonal.iter().filter(|&&moment| moment <= 0.0).count(),
                    order,
                    groups,
                    damping,
                });
            }
            damping *= 10.0;
        }
        Err(Error::NotPositiveDefinite)
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.order.len()
    }

    /// What was added to the diagonal, as a share of its mean.
    pub fn damping(&self) -> f64 {
        self.damping
    }

    /// Columns that no input ever reached; their weights are rounded to the nearest.
    pub fn dead(&self) -> usize {
        self.dead
    }

    /// The mean square of each input, over the mean of all.
    pub fn weights(&self) -> Vec<f32> {
        let mut weights = vec![0.0; self.cols()];
        for (place, &col) in self.order.iter().enumerate() {
            weights[col] = self.row(place)[place];
        }
        weights
    }

    /// What rows `off_nk` (`[rows, n]`, row-major, columns as in the matrix) cost in outputs:
    /// `Σ e H eᵀ`.
    ///
    /// Panics when the rows are not whole.
    pub fn cost(&self, off_nk: &[f32]) -> f64 {
        let n = self.cols();
        assert!(off_nk.len().is_multiple_of(n), "whole rows");
        let rows = |rows: &[f32]| -> f64 {
            let count = rows.len() / n;
            let placed: Vec<f32> = rows
                .chunks(n)
                .flat_map(|row| self.order.iter().map(|&col| row[col]))
                .collect();
            let off = MatRef::from_row_major_slice(&placed, count, n);
            let mut weighed = Mat::<f32>::zeros(count, n);
            matmul(
                weighed.as_mut(),
                Accum::Replace,
                off,
                self.all(),
                1.0,
                Par::Seq,
            );
            let term = |(i, j): (usize, usize)| f64::from(off[(i, j)]) * f64::from(weighed[(i, j)]);
            (0..count)
                .flat_map(|i| (0..n).map(move |j| (i, j)))
                .map(term)
                .sum()
        };
        let blocks: Vec<f64> = off_nk.par_chunks(COST_ROWS * n).map(rows).collect();
        blocks.iter().sum()
    }

    pub(super) fn order(&self) -> &[usize] {
        &self.order
    }

    pub(super) fn groups(&self) -> &[(usize, Range<usize>)] {
        &self.groups
    }

    /// Row `i` of the moments, by place.
    pub(super) fn row(&self, i: usize) -> &[f32] {
        let n = self.cols();
        &self.h[i * n..(i + 1) * n]
    }

    /// The rows `places` of the moments.
    pub(super) fn rows(&self, places: &Range<usize>) -> MatRef<'_, f32> {
        let n = self.cols();
        MatRef::from_row_major_slice(&self.h[places.start * n..places.end * n], places.len(), n)
    }

    /// All moments.
    pub(super) fn all(&self) -> MatRef<'_, f32> {
        self.rows(&(0..self.cols()))
    }

    /// Row `i` of `U`, by place.
    pub(super) fn u_row(&self, i: usize) -> &[f32] {
        let n = self.cols();
        &self.u[i * n..(i + 1) * n]
    }

    /// What the rows `places` of `U` have to the right of these places.
    pub(super) fn u_right_of(&self, places: &Range<usize>) -> MatRef<'_, f32> {
        let n = self.cols();
        let rows = &self.u[places.start * n..places.end * n];
        MatRef::from_row_major_slice(rows, places.len(), n).subcols(places.end, n - places.end)
    }
}

/// The order of rounding, and where each group lies in it.
fn places(diagonal: &[f64], group: usize) -> (Vec<usize>, Vec<(usize, Range<usize>)>) {
    let descending = |a: f64, b: f64| b.total_cmp(&a);
    let mean = |g: usize| {
        let own = &diagonal[g * group..diagonal.len().min((g + 1) * group)];
        own.iter().sum::<f64>() / own.len() as f64
    };
    let mut sequence: Vec<usize> = (0..diagonal.len().div_ceil(group)).collect();
    sequence.sort_by(|&a, &b| descending(mean(a), mean(b)));
    let (mut order, mut groups) = (Vec::with_capacity(diagonal.len()), Vec::new());
    for g in sequence {
        let mut own: Vec<usize> = (g * group..diagonal.len().min((g + 1) * group)).collect();
        own.sort_by(|&a, &b| descending(diagonal[a], diagonal[b]));
        groups.push((g, order.len()..order.len() + own.len()));
        order.extend(own);
    }
    (order, groups)
}

/// The upper triangular `U` with `Uᵀ U = a⁻¹`, row-major.
///
/// With the order of rows and columns reversed `a = m mᵀ` for a lower triangular `m`; then `U` is
/// `m⁻¹` in the order of before.
fn inverse_factor(a: MatRef<'_, f64>) -> Result<Vec<f32>, Error> {
    let n = a.nrows();
    let mut m = Mat::from_fn(n, n, |i, j| a[(n - 1 - i, n - 1 - j)]);
    let scratch = llt::cholesky_in_place_scratch::<f64>(n, Par::Seq, Spec::default());
    with_scratch(scratch, |stack| {
        llt::cholesky_in_place(
            m.as_mut(),
            LltRegularization::default(),
            Par::Seq,
            stack,
            Spec::default(),
        )
    })
    .map_err(|_| Error::NotPositiveDefinite)?;
    let mut inverse = Mat::zeros(n, n);
    invert_lower_triangular(inverse.as_mut(), m.as_ref(), Par::Seq);
    let diagonal_is_good = (0..n).all(|i| inverse[(i, i)].is_finite() && inverse[(i, i)] > 0.0);
    if !diagonal_is_good {
        return Err(Error::NotPositiveDefinite);
    }
    Ok(row_major(n, |i, j| {
        if j >= i {
            inverse[(n - 1 - i, n - 1 - j)] as f32
        } else {
            0.0
        }
    }))
}

fn row_major(n: usize, value: impl Fn(usize, usize) -> f32) -> Vec<f32> {
    let row = |i: usize| {
        let value = &value;
        (0..n).map(move |j| value(i, j))
    };
    (0..n).flat_map(row).collect()
}
