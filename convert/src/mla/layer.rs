//! Multi-head latent attention of one layer: its weights and its forward pass over one window.
//!
//! The native form: biases on every projection, no norm on the latent, its own frequency table, the
//! score scale inside the queries. Cached per token are the latent (`rank` numbers) and one rotated
//! key shared by all heads (`rope` numbers).

use faer::{Mat, MatRef};

use super::activations::norm_heads;
use super::linalg::{affine, column, mul, narrow, par_mul, wide};
use super::student::{Part, Side, Student, with_bias, with_one, without_bias};

/// With normed input `x`, per head `h`: score `q_nope_hᵀ kb_h c + rot(q_rope_h)ᵀ rot(k_rope)`, output
/// `o [vb_h c mixed by softmax(score)] + o_bias`; queries, latent `c` and `k_rope` by the encoder.
#[derive(Clone, Debug)]
pub struct MlaAttention {
    /// Query heads.
    pub heads: usize,
    /// Radians per position of each rotated pair, `[rope / 2]`; pairs are half-split.
    pub inv_freq: Vec<f64>,
    /// From the input to queries and what is cached.
    pub encoder: Encoder,
    /// Keys from the latent, `[heads * head_dim, rank]`.
    pub kb: Mat<f32>,
    /// Values from the latent, `[heads * head_dim, rank]`.
    pub vb: Mat<f32>,
    /// Output projection, `[hidden, heads * head_dim]`.
    pub o: Mat<f32>,
    /// Its bias.
    pub o_bias: Vec<f32>,
}

/// How queries and the cached numbers come from a layer's normed input.
#[derive(Clone, Debug)]
pub enum Encoder {
    /// All by affine maps.
    Linear {
        /// Queries against the latent keys, `[heads * head_dim, hidden]`.
        q_nope: Mat<f32>,
        /// Its bias.
        q_nope_bias: Vec<f32>,
        /// Queries against the rotated key, `[heads * rope, hidden]`.
        q_rope: Mat<f32>,
        /// Its bias.
        q_rope_bias: Vec<f32>,
        /// The rotated key all heads share, `[rope, hidden]`.
        k_rope: Mat<f32>,
        /// Its bias.
        k_rope_bias: Vec<f32>,
        /// The latent, `[rank, hidden]`.
        kv_a: Mat<f32>,
        /// Its bias: the latent is centred.
        kv_a_bias: Vec<f32>,
    },
    /// For sources that norm queries and keys per head: both are formed and normed as before, then
    /// `[keys; values]` is encoded.
    Normed {
        /// Queries, `[heads * head_dim, hidden]`; normed, they are the queries against the latent.
        q: Mat<f32>,
        /// Its bias.
        q_bias: Vec<f32>,
        /// Gain of the queries' norm, the score scale in it, `[head_dim]`.
        q_norm: Vec<f32>,
        /// From a head's normed queries to its rotated ones, `[heads * rope, head_dim]`.
        q_rope_map: Mat<f32>,
        /// Keys, `[kv_heads * head_dim, hidden]`.
        k: Mat<f32>,
        /// Its bias.
        k_bias: Vec<f32>,
        /// Gain of the keys' norm, `[head_dim]`.
        k_norm: Vec<f32>,
        /// Values, `[kv_heads * head_dim, hidden]`.
        v: Mat<f32>,
        /// Its bias.
        v_bias: Vec<f32>,
        /// From `[normed keys; values]` to the latent and then the rotated key,
        /// `[rank + rope, 2 * kv_heads * head_dim]`.
        kv_a: Mat<f32>,
        /// Its bias.
        kv_a_bias: Vec<f32>,
        /// Added to the mean square inside both norms.
        norm_eps: f64,
    },
}

impl MlaAttention {
    /// Rotated channels.
    pub fn rope(&self) -> usize {
        2 * self.inv_freq.len()
    }

    /// Width of the latent.
    pub fn rank(&self) -> usize {
        self.kb.ncols()
    }

    /// Channels of one head's latent key, and of its value.
    pub fn head_dim(&self) -> usize {
        self.kb.nrows() / self.heads
    }

    /// The latent of the normed input, `[rank, tokens]`.
    pub fn latent(&self, x_dt: MatRef<'_, f32>) -> Mat<f32> {
        let rank = self.rank();
        match &self.encoder {
            Encoder::Linear {
                kv_a, kv_a_bias, ..
            } => affine(kv_a.as_ref(), kv_a_bias, x_dt),
            Encoder::Normed {
                kv_a, kv_a_bias, ..
            } => {
                let z = self.encoder.encoded(x_dt);
                affine(kv_a.subrows(0, rank), &kv_a_bias[..rank], z.as_ref())
            }
        }
    }

    fn rotated_key(&self, x_dt: MatRef<'_, f32>) -> Mat<f32> {
        let (rank, rope) = (self.rank(), self.rope());
        match &self.encoder {
            Encoder::Linear {
                k_rope,
                k_rope_bias,
                ..
            } => affine(k_rope.as_ref(), k_rope_bias, x_dt),
            Encoder::Normed {
                kv_a, kv_a_bias, ..
            } => {
                let z = self.encoder.encoded(x_dt);
                affine(kv_a.subrows(rank, rope), &kv_a_bias[rank..], z.as_ref())
            }
        }
    }

    fn queries(&self, x_dt: MatRef<'_, f32>) -> Vec<Mat<f32>> {
        match &self.encoder {
            Encoder::Linear {
                q_nope,
                q_nope_bias,
                q_rope,
                q_rope_bias,
                ..
            } => vec![
                affine(q_nope.as_ref(), q_nope_bias, x_dt),
                affine(q_rope.as_ref(), q_rope_bias, x_dt),
            ],
            Encoder::Normed {
                q,
                q_bias,
                q_norm,
                q_rope_map,
                norm_eps,
                ..
            } => {
                let mut q_nope = affine(q.as_ref(), q_bias, x_dt);
                norm_heads(q_nope.as_mut(), q_norm, *norm_eps);
                let (rope, d) = (self.rope(), self.head_dim());
                let mut q_rope = Mat::zeros(self.heads * rope, x_dt.ncols());
                for h in 0..self.heads {
                    let map = q_rope_map.subrows(h * rope, rope);
                    let to = q_rope.subrows_mut(h * rope, rope);
                    super::linalg::set_mul(to, map, q_nope.subrows(h * d, d));
                }
                vec![q_nope, q_rope]
            }
        }
    }
}

impl Encoder {
    /// What latent and rotated key are affine maps of: the input itself, or the normed keys and
    /// the values.
    pub fn encoded(&self, x_dt: MatRef<'_, f32>) -> Mat<f32> {
        match self {
            Encoder::Linear { .. } => x_dt.to_owned(),
            Encoder::Normed {
                k,
                k_bias,
                k_norm,
                v,
                v_bias,
                norm_eps,
                ..
            } => {
                let mut z = Mat::zeros(k.nrows() + v.nrows(), x_dt.ncols());
                let mut keys = affine(k.as_ref(), k_bias, x_dt);
                norm_heads(keys.as_mut(), k_norm, *norm_eps);
                z.subrows_mut(0, k.nrows()).copy_from(&keys);
                let values = affine(v.as_ref(), v_bias, x_dt);
                z.subrows_mut(k.nrows(), v.nrows()).copy_from(&values);
                z
            }
        }
    }
}

impl Student for MlaAttention {
    fn heads(&self) -> usize {
        self.heads
    }

    fn inv_freq(&self) -> &[f64] {
        &self.inv_freq
    }

    fn parts(&self) -> Vec<Part> {
        vec![
            Part {
                width: self.head_dim(),
                keys: self.heads,
                rotated: false,
            },
            Part {
                width: self.rope(),
                keys: 1,
                rotated: true,
            },
        ]
    }

    fn outputs(&self, side: Side, x_dt: MatRef<'_, f32>) -> Vec<Mat<f32>> {
        match side {
            Side::Query => self.queries(x_dt),
            Side::Key => {
                let c_rt = self.latent(x_dt);
                vec![mul(self.kb.as_ref(), c_rt.as_ref()), self.rotated_key(x_dt)]
            }
        }
    }

    fn values(&self, x_dt: MatRef<'_, f32>) -> Mat<f32> {
        mul(self.vb.as_ref(), self.latent(x_dt).as_ref())
    }

    fn value_width(&self) -> usize {
        self.vb.nrows() / self.heads
    }

    fn turn_latent(&mut self, turn: MatRef<'_, f32>) {
        let rank = self.rank();
        self.kb = par_mul(self.kb.as_ref(), turn.transpose());
        self.vb = par_mul(self.vb.as_ref(), turn.transpose());
        match &mut self.encoder {
            Encoder::Linear {
                kv_a, kv_a_bias, ..
            } => {
                *kv_a = par_mul(turn, kv_a.as_ref());
                *kv_a_bias = mul(turn, column(kv_a_bias)).col_as_slice(0).to_vec();
            }
            Encoder::Normed {
                kv_a, kv_a_bias, ..
            } => {
                let rows = par_mul(turn, kv_a.subrows(0, rank));
                kv_a.subrows_mut(0, rank).copy_from(&rows);
                let bias = mul(turn, column(&kv_a_bias[..rank]));
                kv_a_bias[..rank].copy_from_slice(bias.col_as_slice(0));
            }
        }
    }

    fn output(&self) -> (MatRef<'_, f32>, &[f32]) {
        (self.o.as_ref(), &self.o_bias)
    }

    fn set_output(&mut self, o: Mat<f32>, o_bias: Vec<f32>) {
        (self.o, self.o_bias) = (o, o_bias);
    }

    fn inputs(&self, side: Side, x_dt: MatRef<'_, f32>) -> Vec<Mat<f32>> {
        let encoded = with_one(self.encoder.encoded(x_dt).as_ref());
        match side {
            Side::Query => vec![encoded.clone(), encoded],
            Side::Key => vec![self.latent(x_dt), encoded],
        }
    }

    fn weights(&self, side: Side) -> Option<Vec<Mat<f64>>> {
        let (rank, rope) = (self.rank(), self.rope());
        Some(match (side, &self.encoder) {
            (
                Side::Query,
                Encoder::Linear {
                    q_nope,
                    q_nope_bias,
                    q_rope,
                    q_rope_bias,
                    ..
                },
            ) => {
                vec![
                    with_bias(q_nope, q_nope_bias),
                    with_bias(q_rope, q_rope_bias),
                ]
            }
            (Side::Query, Encoder::Normed { .. }) => return None,
            (
                Side::Key,
                Encoder::Linear {
                    k_rope,
                    k_rope_bias,
                    ..
                },
            ) => {
                vec![wide(self.kb.as_ref()), with_bias(k_rope, k_rope_bias)]
            }
            (
                Side::Key,
                Encoder::Normed {
                    kv_a, kv_a_bias, ..
                },
            ) => {
                let rotated = kv_a.subrows(rank, rope).to_owned();
                vec![
                    wide(self.kb.as_ref()),
                    with_bias(&rotated, &kv_a_bias[rank..]),
                ]
            }
        })
    }

    fn store(&mut self, side: Side, weights: &[Mat<f64>]) {
        let rank = self.rank();
        match (side, &mut self.encoder) {
            (
                Side::Query,
                Encoder::Linear {
                    q_nope,
                    q_nope_bias,
                    q_rope,
                    q_rope_bias,
                    ..
                },
            ) => {
                (*q_nope, *q_nope_bias) = without_bias(&weights[0]);
                (*q_rope, *q_rope_bias) = without_bias(&weights[1]);
            }
            (Side::Query, Encoder::Normed { .. }) => {}
            (
                Side::Key,
                Encoder::Linear {
                    k_rope,
                    k_rope_bias,
                    ..
                },
            ) => {
                self.kb = narrow(weights[0].as_ref());
                (*k_rope, *k_rope_bias) = without_bias(&weights[1]);
            }
            (
                Side::Key,
                Encoder::Normed {
                    kv_a, kv_a_bias, ..
                },
            ) => {
                self.kb = narrow(weights[0].as_ref());
                let (rows, bias) = without_bias(&weights[1]);
                kv_a.subrows_mut(rank, rows.nrows()).copy_from(&rows);
                kv_a_bias[rank..].copy_from_slice(&bias);
            }
        }
    }
}
