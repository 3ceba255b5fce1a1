//! One layer of the source model: its weights, and the forward pass calibration needs.
//!
//! Rotated pairs are half-split here ([`super::rotary`]); a source with another layout is
//! rearranged before it comes in.

use faer::{Mat, MatRef};

use super::activations::{norm_heads, rms_norm};
use super::attention::{exp, log_weights, mix, weights};
use super::linalg::affine;
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
    /// Radians per position of each of the `head_dim / 2` pairs; zeros where nothing is rotated.
    pub inv_freq: Vec<f64>,
    /// A token attends to itself and the `window - 1` before it; `None` is all before it.
    pub window: Option<usize>,
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
    /// Gains of the norms over each head's queries and keys, `[head_dim]`, where there are any.
    pub qk_norm: Option<(Vec<f32>, Vec<f32>)>,
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

/// Queries (the score scale in them), keys and values of one window, normed but not rotated.
#[derive(Clone, Debug)]
pub struct Projected {
    /// `[heads * head_dim, tokens]`.
    pub q: Mat<f32>,
    /// `[kv_heads * head_dim, tokens]`.
    pub k: Mat<f32>,
    /// `[kv_heads * head_dim, tokens]`.
    pub v: Mat<f32>,
    /// Per key head: its mean square before the norm summed over tokens, one per token where there
    /// is no norm.
    pub key_squares: Vec<f64>,
}

impl SourceAttention {
    /// Queries, keys and values of the normed input `x_dt`.
    pub fn project(&self, g: &Geometry, x_dt: MatRef<'_, f32>) -> Projected {
        let all = affine(self.qkv.as_ref(), &self.qkv_bias, x_dt);
        let (hd, n, scale) = (g.query_width(), g.key_width(), g.scale() as f32);
        let mut q = all.subrows(0, hd).to_owned();
        let mut k = all.subrows(hd, n).to_owned();
        let mut key_squares = vec![all.ncols() as f64; g.kv_heads];
        if let Some((q_gain, k_gain)) = &self.qk_norm {
            for (j, square) in key_squares.iter_mut().enumerate() {
                let head = k.subrows(j * g.head_dim, g.head_dim);
                *square = head.squared_norm_l2() as f64 / g.head_dim as f64;
            }
            norm_heads(q.as_mut(), q_gain, g.norm_eps);
            norm_heads(k.as_mut(), k_gain, g.norm_eps);
        }
        q *= faer::Scale(scale);
        let v = all.subrows(hd + n, n).to_owned();
        Projected {
            q,
            k,
            v,
            key_squares,
        }
    }

    /// The attention block's output, `[hidden, tokens]`.
    pub fn forward(&self, g: &Geometry, phases: &Phases, x_dt: MatRef<'_, f32>) -> Mat<f32> {
        let p = self.project(g, x_dt);
        let rotated = p.rotated(phases);
        let mut heads = Mat::zeros(g.query_width(), x_dt.ncols());
        for h in 0..g.heads {
            let out = heads.subrows_mut(h * g.head_dim, g.head_dim);
            mix(out, &[rotated.of_head(g, h)], p.value(g, h), g.window);
        }
        affine(self.o.as_ref(), &self.o_bias, heads.as_ref())
    }
}

impl Projected {
    /// The values head `h` reads.
    pub fn value(&self, g: &Geometry, h: usize) -> MatRef<'_, f32> {
        self.v.subrows(h / g.group() * g.head_dim, g.head_dim)
    }

    /// Queries and keys turned by their positions.
    pub fn rotated(&self, phases: &Phases) -> Rotated {
        let (mut q, mut k) = (self.q.clone(), self.k.clone());
        phases.rotate(q.as_mut());
        phases.rotate(k.as_mut());
        Rotated { q, k }
    }
}

/// Rotated queries and keys of one window.
#[derive(Clone, Debug)]
pub struct Rotated {
    q: Mat<f32>,
    k: Mat<f32>,
}

impl Rotated {
    /// Keys and queries of head `h`.
    fn of_head(&self, g: &Geometry, h: usize) -> (MatRef<'_, f32>, MatRef<'_, f32>) {
        let d = g.head_dim;
        (
            self.k.subrows(h / g.group() * d, d),
            self.q.subrows(h * d, d),
        )
    }

    /// The attention weights of head `h`, `[keys, queries]`.
    pub fn weights(&self, g: &Geometry, h: usize) -> Mat<f32> {
        let (k, q) = self.of_head(g, h);
        weights(q, k)
    }

    /// Their logarithms.
    pub fn log_weights(&self, g: &Geometry, h: usize) -> Mat<f32> {
        let (k, q) = self.of_head(g, h);
        log_weights(q, k)
    }
}

impl FeedForward {
    /// `down(silu(gate(x)) * up(x))` of the normed input.
    pub fn forward(&self, x_dt: MatRef<'_, f32>) -> Mat<f32> {
        let gate_up = affine(self.gate_up.as_ref(), &self.gate_up_bias, x_dt);
        let ffn = self.down.ncols();
        let mut inner = Mat::zeros(ffn, gate_up.ncols());
        for t in 0..gate_up.ncols() {
            let (gate, up) = gate_up.col_as_slice(t).split_at(ffn);
            for (inner, (gate, up)) in inner
                .col_as_slice_mut(t)
                .iter_mut()
                .zip(gate.iter().zip(up))
            {
                *inner = gate / (1.0 + exp(-gate)) * up;
            }
        }
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
