//! The latent: reduced-rank regression of keys and values in the metric of what they do.
//!
//! With `z = [k; v]` an error `e` of `z` costs `e_kᵀ K e_k + λ e_vᵀ V e_v`: key errors as the queries
//! see them, value errors as the output projection passes them on. Both parts are scaled to weight
//! one; `λ` is their balance. With `W` that metric and `F` the covariance of `z`, the best encoder of
//! rank `r` holds the top eigenvectors of `W^½ F W^½`.

use faer::{Mat, MatRef};

use super::error::Error;
use super::linalg::{dot, eigen, par_mul, sqrt_psd, wide};
use super::moments::Affine;
use super::source::{Geometry, SourceAttention};
use super::teacher::output_grams;

/// What errors of keys and values cost.
#[derive(Clone, Debug)]
pub struct Metric {
    /// `K`, `[kv_heads * head_dim, kv_heads * head_dim]`.
    pub keys: Mat<f64>,
    /// `K` while no key has lost a part to other slots: keys that cost next to nothing of what all
    /// do are rounding and weigh nothing.
    pub whole_keys: Mat<f64>,
    /// `V`, of the same size.
    pub values: Mat<f64>,
}

/// Everything about the latent that does not depend on rank and balance.
#[derive(Clone, Debug)]
pub struct ReducedRank {
    /// `z` from the input.
    z: Affine,
    /// Mean of the input.
    mean: Vec<f64>,
    /// Covariance of `z`.
    f: Mat<f64>,
    /// Root of the metric at balance one.
    root: Mat<f64>,
    /// `root F root`.
    weighted: Mat<f64>,
}

/// Encoder and decoder of one latent.
#[derive(Clone, Debug)]
pub struct Reduced {
    /// `[rank, inputs]`.
    pub encode: Mat<f64>,
    /// `[rank]`: the latent is centred.
    pub encode_bias: Vec<f64>,
    /// From the latent to `[k; v]` less their mean, `[2 * kv_heads * head_dim, rank]`.
    pub decode: Mat<f64>,
    /// Share of the weighted variance that the first `1, 2, …` numbers keep.
    pub energy: Vec<f64>,
}

impl ReducedRank {
    /// `z` is `[k; v]` as an affine map of an input with the given mean and covariance.
    pub fn new(
        z: Affine,
        mean: Vec<f64>,
        covariance: MatRef<'_, f64>,
        metric: &Metric,
    ) -> Result<Self, Error> {
        let n = metric.keys.nrows();
        let f = par_mul(
            par_mul(z.weight.as_ref(), covariance).as_ref(),
            z.weight.transpose(),
        );
        let (f_k, f_v) = (f.submatrix(0, 0, n, n), f.submatrix(n, n, n, n));
        let key_cost = dot(metric.keys.as_ref(), f_k);
        let value_cost = dot(metric.values.as_ref(), f_v);
        let whole = dot(metric.whole_keys.as_ref(), f_k);
        let key_scale = if key_cost > 1e-10 * whole {
            1.0 / key_cost
        } else {
            0.0
        };
        let value_scale = if value_cost > 0.0 {
            1.0 / value_cost
        } else {
            0.0
        };
        let roots = rayon::join(
            || sqrt_psd(metric.keys.as_ref()),
            || sqrt_psd(metric.values.as_ref()),
        );
        let (k_root, v_root) = (roots.0?, roots.1?);
        let mut root = Mat::zeros(2 * n, 2 * n);
        for j in 0..n {
            for i in 0..n {
                root[(i, j)] = k_root[(i, j)] * key_scale.sqrt();
                root[(n + i, n + j)] = v_root[(i, j)] * value_scale.sqrt();
            }
        }
        let weighted = par_mul(par_mul(root.as_ref(), f.as_ref()).as_ref(), root.as_ref());
        Ok(ReducedRank {
            z,
            mean,
            f,
            root,
            weighted,
        })
    }

    /// The best latent of `rank` numbers at `balance` (`λ`).
    pub fn solve(&self, rank: usize, balance: f64) -> Result<Reduced, Error> {
        let size = self.f.nrows();
        let side = |i: usize| if 2 * i < size { 1.0 } else { balance.sqrt() };
        let weighted = Mat::from_fn(size, size, |i, j| self.weighted[(i, j)] * side(i) * side(j));
        let (values, vectors) = eigen(weighted.as_ref())?;
        // root · E, the balance on the root's rows.
        let basis = Mat::from_fn(size, rank, |i, c| vectors[(i, c)] * side(i));
        let basis = par_mul(self.root.as_ref(), basis.as_ref());
        let encode = par_mul(basis.transpose(), self.z.weight.as_ref());
        let mut decode = par_mul(self.f.as_ref(), basis.as_ref());
        for (c, value) in values[..rank].iter().enumerate() {
            let scale = if *value > 1e-10 * values[0] {
                1.0 / value
            } else {
                0.0
            };
            (0..size).for_each(|i| decode[(i, c)] *= scale);
        }
        let bias = |c: usize| -> f64 {
            -(0..self.mean.len())
                .map(|i| encode[(c, i)] * self.mean[i])
                .sum::<f64>()
        };
        let encode_bias = (0..rank).map(bias).collect();
        Ok(Reduced {
            encode,
            encode_bias,
            decode,
            energy: cumulative(&values),
        })
    }
}

/// Shares of the total that the first `1, 2, …` values make up.
fn cumulative(values: &[f64]) -> Vec<f64> {
    let total: f64 = values.iter().map(|v| v.max(0.0)).sum();
    let mut sum = 0.0;
    let mut share = |v: &f64| {
        sum += v.max(0.0);
        if total > 0.0 {
            (sum / total).min(1.0)
        } else {
            1.0
        }
    };
    values.iter().map(&mut share).collect()
}

/// `o_hᵀ o_h` summed over the heads that share a value head, one block per value head.
pub fn value_metric(g: &Geometry, attention: &SourceAttention) -> Mat<f64> {
    let (n, d) = (g.key_width(), g.head_dim);
    let mut metric = Mat::<f64>::zeros(n, n);
    for (h, gram) in output_grams(g, &attention.o).iter().enumerate() {
        let own = h / g.group() * d;
        let mut block = metric.submatrix_mut(own, own, d, d);
        block += wide(gram.as_ref());
    }
    metric
}
