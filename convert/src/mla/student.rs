//! What the fits need to know about a converted attention block, whichever form it has.
//!
//! Scores are sums over parts; a part is a product of queries and keys, rotated or not, whose keys
//! are shared by blocks of heads. Each side of a part may be a linear map of something the fit can
//! see, and is then fitted by least squares.

use faer::{Mat, MatRef};

use super::attention::mix;
use super::linalg::{affine, narrow};
use super::rotary::Phases;

/// The two sides of a score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// What is remembered of a token.
    Key,
    /// What a token asks with.
    Query,
}

/// One term of the scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Channels per head.
    pub width: usize,
    /// Different keys; consecutive heads share one.
    pub keys: usize,
    /// Whether both sides are rotated by their positions.
    pub rotated: bool,
}

impl Part {
    /// The keys that head `h` of `heads` reads.
    pub fn key_of(&self, h: usize, heads: usize) -> usize {
        h * self.keys / heads
    }
}

/// A converted attention block.
pub trait Student: Clone + Sync {
    /// Query heads.
    fn heads(&self) -> usize;
    /// Radians per position of the rotated parts.
    fn inv_freq(&self) -> &[f64];
    /// The terms of its scores.
    fn parts(&self) -> Vec<Part>;
    /// One side of every part for the normed input `x_dt`, not yet rotated:
    /// `[keys or heads * width, tokens]`.
    fn outputs(&self, side: Side, x_dt: MatRef<'_, f32>) -> Vec<Mat<f32>>;
    /// The values, `[different values * width, tokens]`; consecutive heads share one.
    fn values(&self, x_dt: MatRef<'_, f32>) -> Mat<f32>;
    /// Channels of one head's value.
    fn value_width(&self) -> usize;
    /// Turns the latent by an orthogonal `[rank, rank]` matrix; everything computed stays the same.
    fn turn_latent(&mut self, turn: MatRef<'_, f32>);
    /// The output projection, `[hidden, heads * value]`, and its bias.
    fn output(&self) -> (MatRef<'_, f32>, &[f32]);
    /// Replaces the output projection.
    fn set_output(&mut self, o: Mat<f32>, o_bias: Vec<f32>);
    /// What `side` is a linear map of, one matrix per part, a row of ones below where the map has a
    /// bias.
    fn inputs(&self, side: Side, x_dt: MatRef<'_, f32>) -> Vec<Mat<f32>>;
    /// The linear maps of `side`, one per part, biases as their last columns; none where it is not
    /// linear in anything.
    fn weights(&self, side: Side) -> Option<Vec<Mat<f64>>>;
    /// Replaces the linear maps of `side`.
    fn store(&mut self, side: Side, weights: &[Mat<f64>]);

    /// One side of every part, rotated where it turns.
    fn turned(&self, side: Side, phases: &Phases, x_dt: MatRef<'_, f32>) -> Vec<Mat<f32>> {
        turn(&self.parts(), self.outputs(side, x_dt), phases)
    }

    /// The attention block's output for the normed input `x_dt`, `[hidden, tokens]`.
    fn forward(&self, phases: &Phases, x_dt: MatRef<'_, f32>) -> Mat<f32> {
        let (o, bias) = self.output();
        affine(o, bias, self.mix(phases, x_dt).as_ref())
    }

    /// The concatenated head outputs before the output projection, `[heads * value, tokens]`.
    fn mix(&self, phases: &Phases, x_dt: MatRef<'_, f32>) -> Mat<f32> {
        let (parts, heads, width) = (self.parts(), self.heads(), self.value_width());
        let q = self.turned(Side::Query, phases, x_dt);
        let k = self.turned(Side::Key, phases, x_dt);
        let values = self.values(x_dt);
        let mut out = Mat::zeros(heads * width, x_dt.ncols());
        for h in 0..heads {
            let own = h * (values.nrows() / width) / heads;
            let terms = head_terms(&parts, heads, &k, &q, h);
            let to = out.subrows_mut(h * width, width);
            mix(to, &terms, values.subrows(own * width, width), None);
        }
        out
    }
}

/// Rotates those of `outputs` whose parts turn.
pub fn turn(parts: &[Part], mut outputs: Vec<Mat<f32>>, phases: &Phases) -> Vec<Mat<f32>> {
    for (output, _) in outputs
        .iter_mut()
        .zip(parts)
        .filter(|(_, part)| part.rotated)
    {
        phases.rotate(output.as_mut());
    }
    outputs
}

/// Keys and queries of head `h`, part by part.
pub fn head_terms<'a>(
    parts: &[Part],
    heads: usize,
    k: &'a [Mat<f32>],
    q: &'a [Mat<f32>],
    h: usize,
) -> Vec<(MatRef<'a, f32>, MatRef<'a, f32>)> {
    let term = |(i, part): (usize, &Part)| {
        let own = part.key_of(h, heads) * part.width;
        (
            k[i].subrows(own, part.width),
            q[i].subrows(h * part.width, part.width),
        )
    };
    parts.iter().enumerate().map(term).collect()
}

/// `x` with a row of ones below.
pub fn with_one(x: MatRef<'_, f32>) -> Mat<f32> {
    let rows = x.nrows();
    let mut out = Mat::zeros(rows + 1, x.ncols());
    out.subrows_mut(0, rows).copy_from(x);
    out.row_mut(rows).fill(1.0);
    out
}

/// A weight and its bias as one map of an input with a one below.
pub fn with_bias(weight: &Mat<f32>, bias: &[f32]) -> Mat<f64> {
    let columns = weight.ncols();
    Mat::from_fn(weight.nrows(), columns + 1, |i, j| {
        f64::from(if j < columns { weight[(i, j)] } else { bias[i] })
    })
}

/// Undoes [`with_bias`].
pub fn without_bias(weight: &Mat<f64>) -> (Mat<f32>, Vec<f32>) {
    let columns = weight.ncols() - 1;
    let bias = (0..weight.nrows())
        .map(|i| weight[(i, columns)] as f32)
        .collect();
    (narrow(weight.subcols(0, columns)), bias)
}
