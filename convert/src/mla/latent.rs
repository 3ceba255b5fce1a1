//! The latent: reduced-rank regression of the unrotated keys and the values in the metric of what
//! they do.
//!
//! With `z = [k; v]` the teacher's keys and values, an error `e` of `z` costs
//! `Σ_h τ_h E (q_hᵀ M_h e_k)² + λ Σ_h |o_h e_v|²`: key errors as the queries see them (`M_h` maps the
//! keys to the unrotated key of head `h`), value errors as the output projection passes them on.
//! Both parts are scaled to weight one; `λ` is their balance. With `W` that metric and `F` the
//! covariance of the teacher's `z` as far as the student's input explains it, the best encoder of
//! rank `r` holds the top eigenvectors of `W^½ F W^½`.

use faer::{Mat, MatRef};

use super::error::Error;
use super::linalg::{dot, eigen, mul, sqrt_psd, wide};
use super::moments::Affine;
use super::slots::Split;
use super::source::{Geometry, SourceAttention};
use super::teacher::{TeacherStats, output_grams};

/// Everything about the latent that does not depend on rank and balance.
#[derive(Clone, Debug)]
pub struct LatentProblem {
    /// Per head `M_h`, `[head_dim, kv_heads * head_dim]`.
    unrotated: Vec<Mat<f64>>,
    /// `z` from the student's input.
    z: Affine,
    /// Mean of the student's input.
    x_mean: Vec<f64>,
    /// Covariance of `z`.
    f: Mat<f64>,
    /// Root of the metric at balance one.
    root: Mat<f64>,
    /// `root F root`.
    weighted: Mat<f64>,
}

/// Encoder and decoders of one latent.
#[derive(Clone, Debug)]
pub struct Latent {
    /// `[rank, hidden]`.
    pub kv_a: Mat<f64>,
    /// `[rank]`.
    pub kv_a_bias: Vec<f64>,
    /// `[heads * head_dim, rank]`.
    pub kb: Mat<f64>,
    /// `[heads * head_dim, rank]`.
    pub vb: Mat<f64>,
    /// Share of the weighted variance the rank keeps.
    pub energy: f64,
}

impl LatentProblem {
    /// `z` is the teacher's `[k; v]` as an affine map of the student's input with the given mean and
    /// covariance.
    pub fn new(
        g: &Geometry,
        attention: &SourceAttention,
        stats: &TeacherStats,
        split: &Split,
        z: Affine,
        x_mean: Vec<f64>,
        x_covariance: MatRef<'_, f64>,
    ) -> Result<Self, Error> {
        let n = g.key_width();
        let f = mul(
            mul(z.weight.as_ref(), x_covariance).as_ref(),
            z.weight.transpose(),
        );
        let unrotated: Vec<Mat<f64>> = (0..g.heads).map(|h| split.unrotated_key(g, h)).collect();
        let (keys, all_keys) = key_metric(g, stats, &unrotated, f.as_ref());
        let values = value_metric(g, attention);
        let (f_k, f_v) = (f.submatrix(0, 0, n, n), f.submatrix(n, n, n, n));
        let (key_cost, value_cost) = (dot(keys.as_ref(), f_k), dot(values.as_ref(), f_v));
        // Where the slots took every pair, what is left of the keys is rounding and weighs nothing.
        let key_scale = if key_cost > 1e-10 * all_keys {
            1.0 / key_cost
        } else {
            0.0
        };
        let value_scale = if value_cost > 0.0 {
            1.0 / value_cost
        } else {
            0.0
        };
        let (k_root, v_root) = (sqrt_psd(keys.as_ref())?, sqrt_psd(values.as_ref())?);
        let mut root = Mat::zeros(2 * n, 2 * n);
        for j in 0..n {
            for i in 0..n {
                root[(i, j)] = k_root[(i, j)] * key_scale.sqrt();
                root[(n + i, n + j)] = v_root[(i, j)] * value_scale.sqrt();
            }
        }
        let weighted = mul(mul(root.as_ref(), f.as_ref()).as_ref(), root.as_ref());
        Ok(LatentProblem {
            unrotated,
            z,
            x_mean,
            f,
            root,
            weighted,
        })
    }

    /// The best latent of `rank` numbers at `balance` (`λ`).
    pub fn solve(&self, g: &Geometry, rank: usize, balance: f64) -> Result<Latent, Error> {
        let (n, d) = (g.key_width(), g.head_dim);
        let side = |i: usize| if i < n { 1.0 } else { balance.sqrt() };
        let weighted = Mat::from_fn(2 * n, 2 * n, |i, j| {
            self.weighted[(i, j)] * side(i) * side(j)
        });
        let (values, vectors) = eigen(weighted.as_ref())?;
        let total: f64 = values.iter().map(|v| v.max(0.0)).sum();
        let kept: f64 = values[..rank].iter().map(|v| v.max(0.0)).sum();
        // root · E, the balance on the root's rows.
        let basis = Mat::from_fn(2 * n, rank, |i, c| vectors[(i, c)] * side(i));
        let basis = mul(self.root.as_ref(), basis.as_ref());
        let kv_a = mul(basis.transpose(), self.z.weight.as_ref());
        let mut decode = mul(self.f.as_ref(), basis.as_ref());
        for (c, value) in values[..rank].iter().enumerate() {
            let scale = if *value > 1e-10 * values[0] {
                1.0 / value
            } else {
                0.0
            };
            (0..2 * n).for_each(|i| decode[(i, c)] *= scale);
        }
        let mean = |c: usize| -> f64 {
            -(0..self.x_mean.len())
                .map(|i| kv_a[(c, i)] * self.x_mean[i])
                .sum::<f64>()
        };
        let kv_a_bias = (0..rank).map(mean).collect();
        let (mut kb, mut vb) = (
            Mat::zeros(g.query_width(), rank),
            Mat::zeros(g.query_width(), rank),
        );
        for (h, unrotated) in self.unrotated.iter().enumerate() {
            let key = mul(unrotated.as_ref(), decode.subrows(0, n));
            kb.subrows_mut(h * d, d).copy_from(&key);
            vb.subrows_mut(h * d, d)
                .copy_from(decode.subrows(n + h / g.group() * d, d));
        }
        let energy = if total > 0.0 { kept / total } else { 1.0 };
        Ok(Latent {
            kv_a,
            kv_a_bias,
            kb,
            vb,
            energy,
        })
    }
}

/// `Σ_h τ_h M_hᵀ E[q qᵀ] M_h`, and its cost were every pair left unrotated.
fn key_metric(
    g: &Geometry,
    stats: &TeacherStats,
    unrotated: &[Mat<f64>],
    f: MatRef<'_, f64>,
) -> (Mat<f64>, f64) {
    let (n, d) = (g.key_width(), g.head_dim);
    let (mut metric, mut all) = (Mat::<f64>::zeros(n, n), 0.0);
    for (h, tau) in stats.head_weights().iter().enumerate() {
        let q = &stats.query_moment[h];
        let q = Mat::from_fn(d, d, |i, j| q[(i, j)] * tau / stats.tokens as f64);
        let m = unrotated[h].as_ref();
        metric += mul(mul(m.transpose(), q.as_ref()).as_ref(), m);
        let own = h / g.group() * d;
        all += dot(q.as_ref(), f.submatrix(own, own, d, d));
    }
    (metric, all)
}

/// `o_hᵀ o_h` summed over the heads that share a value head, one block per value head.
fn value_metric(g: &Geometry, attention: &SourceAttention) -> Mat<f64> {
    let (n, d) = (g.key_width(), g.head_dim);
    let mut metric = Mat::<f64>::zeros(n, n);
    for (h, gram) in output_grams(g, &attention.o).iter().enumerate() {
        let own = h / g.group() * d;
        let mut block = metric.submatrix_mut(own, own, d, d);
        block += wide(gram.as_ref());
    }
    metric
}
