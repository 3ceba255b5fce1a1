//! First and second moments of two streams of columns, and the ridge regression they suffice for.

use faer::{Mat, MatMut, MatRef};
use rayon::prelude::*;

use super::error::Error;
use super::linalg::{damped, mul, set_mul, solve_spd};

/// Sums over tokens of an input `x` and a target `y`; products of blocks in single precision, sums
/// in double.
#[derive(Clone, Debug)]
pub struct Moments {
    /// Tokens summed over.
    pub tokens: f64,
    /// `Σ x`, `[in]`.
    pub x: Vec<f64>,
    /// `Σ y`, `[out]`.
    pub y: Vec<f64>,
    /// `Σ x xᵀ`, `[in, in]`.
    pub xx: Mat<f64>,
    /// `Σ y xᵀ`, `[out, in]`.
    pub yx: Mat<f64>,
}

/// An affine map fitted to moments.
#[derive(Clone, Debug)]
pub struct Affine {
    /// `[out, in]`.
    pub weight: Mat<f64>,
    /// `[out]`.
    pub bias: Vec<f64>,
}

/// Columns of an accumulator that one task owns: fixed, so that sums never depend on the threads.
const PANEL: usize = 128;

impl Moments {
    /// No tokens yet.
    pub fn zeros(inputs: usize, outputs: usize) -> Self {
        Moments {
            tokens: 0.0,
            x: vec![0.0; inputs],
            y: vec![0.0; outputs],
            xx: Mat::zeros(inputs, inputs),
            yx: Mat::zeros(outputs, inputs),
        }
    }

    /// Adds a block of tokens, one per column.
    pub fn add_block(&mut self, x_it: MatRef<'_, f32>, y_ot: MatRef<'_, f32>) {
        self.tokens += x_it.ncols() as f64;
        for (sum, block) in [(&mut self.x, x_it), (&mut self.y, y_ot)] {
            for t in 0..block.ncols() {
                let column = block.col(t);
                sum.iter_mut()
                    .enumerate()
                    .for_each(|(i, sum)| *sum += f64::from(column[i]));
            }
        }
        add_outer(self.xx.as_mut(), x_it, x_it);
        add_outer(self.yx.as_mut(), y_ot, x_it);
    }

    /// The mean of `x`.
    pub fn x_mean(&self) -> Vec<f64> {
        self.x.iter().map(|v| v / self.tokens).collect()
    }

    /// The mean of `y`.
    pub fn y_mean(&self) -> Vec<f64> {
        self.y.iter().map(|v| v / self.tokens).collect()
    }

    /// The covariance of `x`.
    pub fn x_covariance(&self) -> Mat<f64> {
        centred(&self.xx, &self.x, &self.x, self.tokens)
    }

    /// `argmin Σ |y - W x - b|² + ridge · (mean variance of x) · tokens · |W|²`.
    pub fn ridge(&self, ridge: f64) -> Result<Affine, Error> {
        let yx = centred(&self.yx, &self.y, &self.x, self.tokens);
        let damped = damped(self.x_covariance().as_ref(), ridge);
        let weight = solve_spd(damped.as_ref(), yx.transpose())?
            .transpose()
            .to_owned();
        let bias = self.bias(&weight);
        Ok(Affine { weight, bias })
    }

    /// The bias of least error for a given weight.
    pub fn bias(&self, weight: &Mat<f64>) -> Vec<f64> {
        let (x, y) = (self.x_mean(), self.y_mean());
        let out = |o: usize| y[o] - (0..x.len()).map(|i| weight[(o, i)] * x[i]).sum::<f64>();
        (0..y.len()).map(out).collect()
    }
}

/// `sum += a bᵀ`, panels of columns in parallel.
pub(super) fn add_outer(sum: MatMut<'_, f64>, a_it: MatRef<'_, f32>, b_jt: MatRef<'_, f32>) {
    sum.par_col_chunks_mut(PANEL)
        .enumerate()
        .for_each(|(panel, mut sum)| {
            let b = b_jt.subrows(panel * PANEL, sum.ncols());
            let mut product = Mat::zeros(a_it.nrows(), sum.ncols());
            set_mul(product.as_mut(), a_it, b.transpose());
            for j in 0..sum.ncols() {
                let column = sum.as_mut().col_mut(j).try_as_col_major_mut();
                let to = column.expect("columns are contiguous").as_slice_mut();
                let from = product.col_as_slice(j);
                to.iter_mut()
                    .zip(from)
                    .for_each(|(to, from)| *to += f64::from(*from));
            }
        });
}

/// `(product - a bᵀ / tokens) / tokens`.
fn centred(product: &Mat<f64>, a: &[f64], b: &[f64], tokens: f64) -> Mat<f64> {
    Mat::from_fn(a.len(), b.len(), |i, j| {
        (product[(i, j)] - a[i] * b[j] / tokens) / tokens
    })
}

impl Affine {
    /// `after(self(x))` for a linear map on top of this one.
    #[must_use]
    pub fn then(&self, after: MatRef<'_, f64>) -> Affine {
        let plain = Affine {
            weight: after.to_owned(),
            bias: vec![0.0; after.nrows()],
        };
        Affine {
            weight: mul(after, self.weight.as_ref()),
            bias: plain.at(&self.bias),
        }
    }

    /// `self += scale · other`.
    pub fn add_scaled(&mut self, other: &Affine, scale: f64) {
        self.weight += faer::Scale(scale) * &other.weight;
        self.bias
            .iter_mut()
            .zip(&other.bias)
            .for_each(|(a, b)| *a += scale * b);
    }

    /// The value at `x`.
    pub fn at(&self, x: &[f64]) -> Vec<f64> {
        let row = |o: usize| {
            (0..x.len())
                .map(|i| self.weight[(o, i)] * x[i])
                .sum::<f64>()
        };
        (0..self.bias.len())
            .map(|o| self.bias[o] + row(o))
            .collect()
    }
}
