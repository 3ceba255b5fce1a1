//! Attention whose keys and values are rebuilt from a cached latent: all keys keep their own
//! rotation, at the price of rebuilding them. Its weights and its forward pass over one window.

use faer::{Mat, MatRef};

use super::activations::norm_heads;
use super::linalg::{affine, column, mul, par_mul};
use super::student::{Part, Side, Student, with_bias, with_one, without_bias};

/// With normed input `x`: the latent `c = kv_a x + kv_a_bias` is cached; keys `kb c + k_bias` (normed
/// where the source norms them) and queries are rotated, values are `vb c`; their mean is part of
/// `o_bias`.
#[derive(Clone, Debug)]
pub struct LatentAttention {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Radians per position of each pair of a head, `[head_dim / 2]`; pairs are half-split.
    pub inv_freq: Vec<f64>,
    /// Queries, `[heads * head_dim, hidden]`; scores are scaled by `head_dim^(-1/2)` outside.
    pub q: Mat<f32>,
    /// Its bias.
    pub q_bias: Vec<f32>,
    /// Gain of the queries' norm, if there is one, `[head_dim]`.
    pub q_norm: Option<Vec<f32>>,
    /// The latent, `[rank, hidden]`.
    pub kv_a: Mat<f32>,
    /// Its bias: the latent is centred.
    pub kv_a_bias: Vec<f32>,
    /// Keys from the latent, `[kv_heads * head_dim, rank]`.
    pub kb: Mat<f32>,
    /// Its bias: the mean key, which rotates and so cannot be left out.
    pub k_bias: Vec<f32>,
    /// Gain of the keys' norm, if there is one, `[head_dim]`.
    pub k_norm: Option<Vec<f32>>,
    /// Values from the latent, `[kv_heads * head_dim, rank]`.
    pub vb: Mat<f32>,
    /// Output projection, `[hidden, heads * head_dim]`.
    pub o: Mat<f32>,
    /// Its bias.
    pub o_bias: Vec<f32>,
    /// Added to the mean square inside both norms.
    pub norm_eps: f64,
}

impl LatentAttention {
    /// Width of the latent.
    pub fn rank(&self) -> usize {
        self.kv_a.nrows()
    }

    /// Channels of one head.
    pub fn head_dim(&self) -> usize {
        self.q.nrows() / self.heads
    }

    /// The latent of the normed input, `[rank, tokens]`.
    pub fn latent(&self, x_dt: MatRef<'_, f32>) -> Mat<f32> {
        affine(self.kv_a.as_ref(), &self.kv_a_bias, x_dt)
    }

    fn scale(&self) -> f64 {
        (self.head_dim() as f64).powf(-0.5)
    }
}

impl Student for LatentAttention {
    fn heads(&self) -> usize {
        self.heads
    }

    fn inv_freq(&self) -> &[f64] {
        &self.inv_freq
    }

    fn parts(&self) -> Vec<Part> {
        vec![Part {
            width: self.head_dim(),
            keys: self.kv_heads,
            rotated: true,
        }]
    }

    fn outputs(&self, side: Side, x_dt: MatRef<'_, f32>) -> Vec<Mat<f32>> {
        let (mut out, norm) = match side {
            Side::Query => (affine(self.q.as_ref(), &self.q_bias, x_dt), &self.q_norm),
            Side::Key => {
                let c_rt = self.latent(x_dt);
                (
                    affine(self.kb.as_ref(), &self.k_bias, c_rt.as_ref()),
                    &self.k_norm,
                )
            }
        };
        if let Some(gain) = norm {
            norm_heads(out.as_mut(), gain, self.norm_eps);
        }
        if side == Side::Query {
            out *= faer::Scale(self.scale() as f32);
        }
        vec![out]
    }

    fn values(&self, x_dt: MatRef<'_, f32>) -> Mat<f32> {
        mul(self.vb.as_ref(), self.latent(x_dt).as_ref())
    }

    fn value_width(&self) -> usize {
        self.head_dim()
    }

    fn turn_latent(&mut self, turn: MatRef<'_, f32>) {
        self.kb = par_mul(self.kb.as_ref(), turn.transpose());
        self.vb = par_mul(self.vb.as_ref(), turn.transpose());
        self.kv_a = par_mul(turn, self.kv_a.as_ref());
        self.kv_a_bias = mul(turn, column(&self.kv_a_bias)).col_as_slice(0).to_vec();
    }

    fn output(&self) -> (MatRef<'_, f32>, &[f32]) {
        (self.o.as_ref(), &self.o_bias)
    }

    fn set_output(&mut self, o: Mat<f32>, o_bias: Vec<f32>) {
        (self.o, self.o_bias) = (o, o_bias);
    }

    fn inputs(&self, side: Side, x_dt: MatRef<'_, f32>) -> Vec<Mat<f32>> {
        vec![match side {
            Side::Query => with_one(x_dt),
            Side::Key => with_one(self.latent(x_dt).as_ref()),
        }]
    }

    fn weights(&self, side: Side) -> Option<Vec<Mat<f64>>> {
        match side {
            Side::Query if self.q_norm.is_none() => Some(vec![
                faer::Scale(self.scale()) * with_bias(&self.q, &self.q_bias),
            ]),
            Side::Key if self.k_norm.is_none() => Some(vec![with_bias(&self.kb, &self.k_bias)]),
            _ => None,
        }
    }

    fn store(&mut self, side: Side, weights: &[Mat<f64>]) {
        match side {
            Side::Query => {
                let unscaled = faer::Scale(1.0 / self.scale()) * &weights[0];
                (self.q, self.q_bias) = without_bias(&unscaled);
            }
            Side::Key => (self.kb, self.k_bias) = without_bias(&weights[0]),
        }
    }
}
