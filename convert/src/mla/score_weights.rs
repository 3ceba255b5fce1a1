//! The weights of one side of the scores as one vector of unknowns.

use faer::Mat;

use super::layer::MlaAttention;
use super::linalg::{dot, narrow, wide};
use super::score_ls::Side;

/// The weights of one side, biases as the last column where the input is the residual stream.
#[derive(Clone, Debug)]
pub struct Weights {
    /// `[heads * nope, hidden + 1]` or `[heads * nope, rank]`.
    pub nope: Mat<f64>,
    /// `[heads * rope, hidden + 1]` or `[rope, hidden + 1]`.
    pub rope: Mat<f64>,
}

impl Weights {
    /// As large, all zero.
    #[must_use]
    pub fn zeros_like(&self) -> Self {
        Weights {
            nope: Mat::zeros(self.nope.nrows(), self.nope.ncols()),
            rope: Mat::zeros(self.rope.nrows(), self.rope.ncols()),
        }
    }

    /// `self += scale · other`.
    pub fn add_scaled(&mut self, other: &Weights, scale: f64) {
        self.nope += faer::Scale(scale) * &other.nope;
        self.rope += faer::Scale(scale) * &other.rope;
    }

    /// The sum over all products of elements.
    pub fn dot(&self, other: &Weights) -> f64 {
        dot(self.nope.as_ref(), other.nope.as_ref()) + dot(self.rope.as_ref(), other.rope.as_ref())
    }

    /// Those of `side` in `layer`.
    pub fn of(layer: &MlaAttention, side: Side) -> Self {
        match side {
            Side::Key => Weights {
                nope: wide(layer.kb.as_ref()),
                rope: with_bias(&layer.k_rope, &layer.k_rope_bias),
            },
            Side::Query => Weights {
                nope: with_bias(&layer.q_nope, &layer.q_nope_bias),
                rope: with_bias(&layer.q_rope, &layer.q_rope_bias),
            },
        }
    }

    /// Puts them back into `layer`.
    pub fn store(&self, layer: &mut MlaAttention, side: Side) {
        match side {
            Side::Key => {
                layer.kb = narrow(self.nope.as_ref());
                (layer.k_rope, layer.k_rope_bias) = without_bias(&self.rope);
            }
            Side::Query => {
                (layer.q_nope, layer.q_nope_bias) = without_bias(&self.nope);
                (layer.q_rope, layer.q_rope_bias) = without_bias(&self.rope);
            }
        }
    }
}

fn with_bias(weight: &Mat<f32>, bias: &[f32]) -> Mat<f64> {
    let columns = weight.ncols();
    let value = |i: usize, j| if j < columns { weight[(i, j)] } else { bias[i] };
    Mat::from_fn(weight.nrows(), columns + 1, |i, j| f64::from(value(i, j)))
}

fn without_bias(weight: &Mat<f64>) -> (Mat<f32>, Vec<f32>) {
    let columns = weight.ncols() - 1;
    let bias = (0..weight.nrows())
        .map(|i| weight[(i, columns)] as f32)
        .collect();
    (narrow(weight.subcols(0, columns)), bias)
}
