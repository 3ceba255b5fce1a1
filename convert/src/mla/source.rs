//! One layer of the source model: its weights, and the forward pass calibration needs.
//!
//! Rotated pairs are half-split here ([`super::rotary`]); a source with another layout is
//! rearranged before it comes in.

use faer::{Mat, MatRef};

use super::activations::rms_norm;
use super::attention::weights;
use super::linalg::{affine, set_mul};
use super::rotary::Phases;

/// The shape of an attention block.
#[derive(Clone, Debug, PartialEq)]
pub struct Geometry {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// Radians per position of each of the `head_dim / 2` pairs.
    pub inv_freq: Vec<f64>,
    /// Added to the mean square inside each norm.
    pub norm_eps: f64,
}

impl Geometry {
    /// Rotated pairs of one head.
    pub fn pairs(&self) -> usize {
        self.head_dim / 2
    }

    /// Query heads per key/value head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Channels of all query heads.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Channels of all key (or value) heads.
    pub fn key_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// What scores are multiplied with: `head_dim^(-1/2)`.
    pub fn scale(&self) -> f64 {
        (self.head_dim as f64).powf(-0.5)
    }
}

/// The attention weights of one layer. Missing biases are zeros.
#[derive(Clone, Debug)]
pub struct SourceAttention {
    /// Queries, keys and values in this order, `[(heads + 2 kv_heads) * head_dim, hidden]`.
    pub qkv: Mat<f32>,
    /// Their bias.
    pub qkv_bias: Vec<f32>,
    /// Output projection, `[hidden, heads * head_dim]`.
    pub o: Mat<f32>,
    /// Its bias.
    pub o_bias: Vec<f32>,
}

/// The gated feed-forward weights of one layer. Missing biases are zeros.
#[derive(Clone, Debug)]
pub struct FeedForward {
    /// Gate and up projection in this order, `[2 * ffn, hidden]`.
    pub gate_up: Mat<f32>,
    /// Their bias.
    pub gate_up_bias: Vec<f32>,
    /// Down projection, `[hidden, ffn]`.
    pub down: Mat<f32>,
    /// Its bias.
    pub down_bias: Vec<f32>,
}

/// One layer of the source.
#[derive(Clone, Debug)]
pub struct SourceLayer {
    /// Norm gain before attention.
    pub attn_norm: Vec<f32>,
    /// Attention.
    pub attention: SourceAttention,
    /// Norm gain before the feed-forward block.
    pub mlp_norm: Vec<f32>,
    /// Feed-forward block.
    pub feed_forward: FeedForward,
}

/// Queries (the score scale in them), keys and values of one window before rotation.
#[derive(Clone, Debug)]
pub struct Projected {
    /// `[heads * head_dim, tokens]`.
    pub q: Mat<f32>,
    /// `[kv_heads * head_dim, tokens]`.
    pub k: Mat<f32>,
    /// `[kv_heads * head_dim, tokens]`.
    pub v: Mat<f32>,
}

impl SourceAttention {
    /// Queries, keys and values of the normed input `x_dt`.
    pub fn project(&self, g: &Geometry, x_dt: MatRef<'_, f32>) -> Projected {
        let all = affine(self.qkv.as_ref(), &self.qkv_bias, x_dt);
        let (hd, n, scale) = (g.query_width(), g.key_width(), g.scale() as f32);
        let q = Mat::from_fn(hd, all.ncols(), |i, t| scale * all[(i, t)]);
        let k = all.subrows(hd, n).to_owned();
        let v = all.subrows(hd + n, n).to_owned();
        Projected { q, k, v }
    }

    /// The attention block's output, `[hidden, tokens]`.
    pub fn forward(&self, g: &Geometry, phases: &Phases, x_dt: MatRef<'_, f32>) -> Mat<f32> {
        let p = self.project(g, x_dt);
        let a_hst = p.weights(g, phases);
        let mut heads = Mat::zeros(g.query_width(), x_dt.ncols());
        for (h, a_st) in a_hst.iter().enumerate() {
            let out = heads.subrows_mut(h * g.head_dim, g.head_dim);
            set_mul(out, p.value(g, h), a_st.as_ref());
        }
        affine(self.o.as_ref(), &self.o_bias, heads.as_ref())
    }
}

impl Projected {
    /// The values head `h` reads.
    pub fn value(&self, g: &Geometry, h: usize) -> MatRef<'_, f32> {
        self.v.subrows(h / g.group() * g.head_dim, g.head_dim)
    }

    /// The attention weights of every head.
    pub fn weights(&self, g: &Geometry, phases: &Phases) -> Vec<Mat<f32>> {
        let (mut q, mut k) = (self.q.clone(), self.k.clone());
        phases.rotate(q.as_mut());
        phases.rotate(k.as_mut());
        let d = g.head_dim;
        (0..g.heads)
            .map(|h| weights(q.subrows(h * d, d), k.subrows(h / g.group() * d, d)))
            .collect()
    }
}

impl FeedForward {
    /// `down(silu(gate(x)) * up(x))` of the normed input.
    pub fn forward(&self, x_dt: MatRef<'_, f32>) -> Mat<f32> {
        let gate_up = affine(self.gate_up.as_ref(), &self.gate_up_bias, x_dt);
        let ffn = self.down.ncols();
        let inner = Mat::from_fn(ffn, gate_up.ncols(), |i, t| {
            let gate = gate_up[(i, t)];
            gate / (1.0 + (-gate).exp()) * gate_up[(ffn + i, t)]
        });
        affine(self.down.as_ref(), &self.down_bias, inner.as_ref())
    }
}

impl SourceLayer {
    /// The normed input of attention.
    pub fn attention_input(&self, g: &Geometry, h_dt: MatRef<'_, f32>) -> Mat<f32> {
        rms_norm(h_dt, &self.attn_norm, g.norm_eps)
    }

    /// What the feed-forward block adds to the residual stream `h_dt`.
    pub fn feed_forward(&self, g: &Geometry, h_dt: MatRef<'_, f32>) -> Mat<f32> {
        self.feed_forward
            .forward(rms_norm(h_dt, &self.mlp_norm, g.norm_eps).as_ref())
    }
}
