//! What losing its rotation costs a pair, and the best constant to put in its place.
//!
//! For one head and one pair, with teacher queries `q_t`, keys `k_s` and weights `a_t` over the keys,
//! the constant `φ` stands for the rotation `exp(-i θ (t - s))`. Its loss is the variance of the score
//! error under the teacher's own attention,
//! `Σ_t Var_{s~a_t} Re(conj(q_t) k_s (exp(-i θ (t - s)) - φ))`:
//! the second-order term of the KL divergence of the softmax, for which whatever is the same for all
//! keys of a query is free. It is quadratic in `φ`, and every sum is a product of the attention
//! matrix with numbers of single tokens, so nothing per (query, key) is formed but the weights.

use faer::{Mat, MatRef, c32, c64};

use super::linalg::mul;
use super::rotary::Phases;

/// The quadratic `loss(φ) = energy - Re(conj(target) φ) + (square |φ|² + Re(cross φ²)) / 2`.
#[derive(Clone, Copy, Debug, Default)]
pub struct PairFit {
    /// Coefficient of `|φ|² / 2`.
    pub square: f64,
    /// Coefficient of `φ² / 2`.
    pub cross: c64,
    /// The linear term.
    pub target: c64,
    /// The loss of `φ = 0`.
    pub energy: f64,
}

impl PairFit {
    /// The constant of least loss.
    pub fn best(&self) -> c64 {
        let square = self.square * (1.0 + 1e-6) + 1e-12;
        let determinant = square * square - self.cross.norm_sqr();
        (self.target * square - self.cross.conj() * self.target.conj()) * (1.0 / determinant)
    }

    /// The loss of `φ`, never below zero.
    pub fn loss(&self, phi: c64) -> f64 {
        let quadratic = self.square * phi.norm_sqr() + (self.cross * phi * phi).re;
        (self.energy - (self.target.conj() * phi).re + 0.5 * quadratic).max(0.0)
    }

    /// Adds the sums of other tokens.
    pub fn add(&mut self, other: &PairFit) {
        self.square += other.square;
        self.cross += other.cross;
        self.target += other.target;
        self.energy += other.energy;
    }
}

/// Numbers of a single key that attention mixes: per pair 13, `[13 * pairs, keys]`.
const FEATURES: usize = 13;

/// What the keys of one head contribute, to be mixed by the weights of each query head that reads it.
pub fn key_features(k_ds: MatRef<'_, f32>, phases: &Phases) -> Mat<f32> {
    let pairs = k_ds.nrows() / 2;
    let mut out = Mat::zeros(FEATURES * pairs, k_ds.ncols());
    for s in 0..k_ds.ncols() {
        for l in 0..pairs {
            let k = c32::new(k_ds[(l, s)], k_ds[(l + pairs, s)]);
            let e = c32::new(phases.cos_lt[(l, s)], phases.sin_lt[(l, s)]);
            let (turned, square) = (k * e, k.norm_sqr());
            let (kk, kt, tt) = (k * k, k * turned, turned * turned);
            let values = [
                k.re,
                k.im,
                turned.re,
                turned.im,
                square,
                kk.re,
                kk.im,
                square * e.re,
                square * e.im,
                kt.re,
                kt.im,
                tt.re,
                tt.im,
            ];
            for (f, value) in values.into_iter().enumerate() {
                out[(f * pairs + l, s)] = value;
            }
        }
    }
    out
}

/// Adds to `fits` (one per pair) what the queries `q_dt` of one head contribute, given the features
/// of its keys and its weights.
pub fn accumulate(
    fits: &mut [PairFit],
    features_fs: MatRef<'_, f32>,
    a_st: MatRef<'_, f32>,
    q_dt: MatRef<'_, f32>,
    phases: &Phases,
) {
    let pairs = fits.len();
    let mixed_ft = mul(features_fs, a_st);
    for t in 0..q_dt.ncols() {
        let (m, q) = (mixed_ft.col_as_slice(t), q_dt.col(t));
        for (l, fit) in fits.iter_mut().enumerate() {
            let mixed = |f: usize| c32::new(m[f * pairs + l], m[(f + 1) * pairs + l]);
            let q = c32::new(q[l], -q[l + pairs]);
            let e = c32::new(phases.cos_lt[(l, t)], -phases.sin_lt[(l, t)]);
            let (q2, qa) = (q * q, q.norm_sqr());
            let (m1, m2, mk2) = (mixed(0), mixed(2), m[4 * pairs + l]);
            let (kk, k2e, kt, tt) = (mixed(5), mixed(7), mixed(9), mixed(11));
            let target = e * (k2e - m2 * m1.conj()) * qa + (q2 * e * (kt - m2 * m1)).conj();
            let turned = q2 * e * e * (tt - m2 * m2);
            fit.square += f64::from(qa * (mk2 - m1.norm_sqr()));
            fit.cross += wide(q2 * (kk - m1 * m1));
            fit.target += wide(target);
            fit.energy += 0.5 * f64::from(qa * (mk2 - m2.norm_sqr()) + turned.re);
        }
    }
}

fn wide(z: c32) -> c64 {
    c64::new(f64::from(z.re), f64::from(z.im))
}
