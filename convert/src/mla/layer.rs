//! A converted attention block: its weights and its forward pass over one window.
//!
//! The native form: biases on every projection, no norm on the latent, its own frequency table, the
//! score scale inside the query weights. Cached per token are the latent (`rank` numbers) and one
//! rotated key shared by all heads (`rope` numbers).

use faer::{Mat, MatRef};

use super::attention::causal_softmax;
use super::linalg::{add_mul, affine, mul, set_mul};
use super::rotary::Phases;

/// Multi-head latent attention of one layer. With input `x`, per head `h`:
/// `c = kv_a x + kv_a_bias`, score `(q_nope_h x + b)ᵀ kb_h c + rot(q_rope_h x + b)ᵀ rot(k_rope x + b)`,
/// output `o [vb_h c mixed by softmax(score)] + o_bias`.
#[derive(Clone, Debug)]
pub struct MlaAttention {
    /// Query heads.
    pub heads: usize,
    /// Radians per position of each rotated pair, `[rope / 2]`.
    pub inv_freq: Vec<f64>,
    /// Queries against the latent keys, `[heads * nope, hidden]`.
    pub q_nope: Mat<f32>,
    /// Its bias.
    pub q_nope_bias: Vec<f32>,
    /// Queries against the rotated key, `[heads * rope, hidden]`, half-split pairs.
    pub q_rope: Mat<f32>,
    /// Its bias.
    pub q_rope_bias: Vec<f32>,
    /// The rotated key all heads share, `[rope, hidden]`.
    pub k_rope: Mat<f32>,
    /// Its bias.
    pub k_rope_bias: Vec<f32>,
    /// Encoder of the latent, `[rank, hidden]`.
    pub kv_a: Mat<f32>,
    /// Its bias: the latent is centred.
    pub kv_a_bias: Vec<f32>,
    /// Keys from the latent, `[heads * nope, rank]`.
    pub kb: Mat<f32>,
    /// Values from the latent, `[heads * value, rank]`.
    pub vb: Mat<f32>,
    /// Output projection, `[hidden, heads * value]`.
    pub o: Mat<f32>,
    /// Its bias.
    pub o_bias: Vec<f32>,
}

/// Both sides of the scores of one window, the rotated parts rotated.
#[derive(Clone, Debug)]
pub struct Sides {
    /// `[heads * nope, tokens]`.
    pub q_nope: Mat<f32>,
    /// `[heads * rope, tokens]`.
    pub q_rope: Mat<f32>,
    /// `[heads * nope, tokens]`.
    pub k_nope: Mat<f32>,
    /// `[rope, tokens]`.
    pub k_rope: Mat<f32>,
}

impl MlaAttention {
    /// Rotated channels.
    pub fn rope(&self) -> usize {
        self.k_rope.nrows()
    }

    /// Width of the latent.
    pub fn rank(&self) -> usize {
        self.kv_a.nrows()
    }

    /// Channels of one head's latent key.
    pub fn nope(&self) -> usize {
        self.q_nope.nrows() / self.heads
    }

    /// Channels of one head's value.
    pub fn value(&self) -> usize {
        self.vb.nrows() / self.heads
    }

    /// The latent of the normed input `x_dt`, `[rank, tokens]`.
    pub fn latent(&self, x_dt: MatRef<'_, f32>) -> Mat<f32> {
        affine(self.kv_a.as_ref(), &self.kv_a_bias, x_dt)
    }

    /// Queries of both kinds, rotated where they turn.
    pub fn queries(&self, phases: &Phases, x_dt: MatRef<'_, f32>) -> (Mat<f32>, Mat<f32>) {
        let mut q_rope = affine(self.q_rope.as_ref(), &self.q_rope_bias, x_dt);
        phases.rotate(q_rope.as_mut());
        (
            affine(self.q_nope.as_ref(), &self.q_nope_bias, x_dt),
            q_rope,
        )
    }

    /// Keys of both kinds of the input and its latent, rotated where they turn.
    pub fn keys(
        &self,
        phases: &Phases,
        x_dt: MatRef<'_, f32>,
        c_rt: MatRef<'_, f32>,
    ) -> (Mat<f32>, Mat<f32>) {
        let mut k_rope = affine(self.k_rope.as_ref(), &self.k_rope_bias, x_dt);
        phases.rotate(k_rope.as_mut());
        (mul(self.kb.as_ref(), c_rt), k_rope)
    }

    /// The concatenated head outputs before `o`, `[heads * value, tokens]`.
    pub fn mix(&self, phases: &Phases, x_dt: MatRef<'_, f32>) -> Mat<f32> {
        let c_rt = self.latent(x_dt);
        let (q_nope, q_rope) = self.queries(phases, x_dt);
        let (k_nope, k_rope) = self.keys(phases, x_dt, c_rt.as_ref());
        let values = mul(self.vb.as_ref(), c_rt.as_ref());
        let sides = Sides {
            q_nope,
            q_rope,
            k_nope,
            k_rope,
        };
        let mut heads = Mat::zeros(values.nrows(), x_dt.ncols());
        let v = self.value();
        for h in 0..self.heads {
            let a_st = causal_softmax(sides.scores(self, h));
            set_mul(
                heads.subrows_mut(h * v, v),
                values.subrows(h * v, v),
                a_st.as_ref(),
            );
        }
        heads
    }

    /// The attention block's output, `[hidden, tokens]`.
    pub fn forward(&self, phases: &Phases, x_dt: MatRef<'_, f32>) -> Mat<f32> {
        affine(
            self.o.as_ref(),
            &self.o_bias,
            self.mix(phases, x_dt).as_ref(),
        )
    }
}

impl Sides {
    /// The scores of head `h`, `[keys, queries]`.
    pub fn scores(&self, layer: &MlaAttention, h: usize) -> Mat<f32> {
        let (nope, rope) = (layer.nope(), layer.rope());
        let mut scores_st = mul(
            self.k_nope.subrows(h * nope, nope).transpose(),
            self.q_nope.subrows(h * nope, nope),
        );
        let q_rope = self.q_rope.subrows(h * rope, rope);
        add_mul(scores_st.as_mut(), self.k_rope.transpose(), q_rope);
        scores_st
    }
}
