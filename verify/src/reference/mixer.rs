//! What mixes the tokens of one layer: its weights as f32, and its step.

use candle_core::{Result, Tensor};
use neuroconv_recipes::{
    AttentionSpec, LatentSpec, Mixer, MlaEncoder, MlaSpec, ModelSpec, QkNorm, Role, TensorId,
};

use super::attention::attend;
use super::layer::rms_norm;
use super::linear::Linear;
use super::rope::Rotary;
use super::weights::Weights;
use crate::Error;

/// The mixer of one layer.
pub(super) enum Mix {
    Attention(Attention),
    Mla(Mla),
    Latent(Latent),
}

/// Grouped-query attention.
pub(super) struct Attention {
    spec: AttentionSpec,
    heads: Heads,
    k: Linear,
    v: Linear,
}

/// Grouped-query attention behind a latent.
pub(super) struct Latent {
    spec: LatentSpec,
    heads: Heads,
    kv_a: Linear,
    k_b: Linear,
    v_b: Linear,
}

/// Multi-head latent attention.
pub(super) struct Mla {
    spec: MlaSpec,
    heads: Heads,
    kv_a: Linear,
    k_b: Linear,
    v_b: Linear,
    normed: Option<Normed>,
    /// Gain and epsilon of the norm of the latent.
    latent_norm: Option<(Tensor, f64)>,
}

/// What the encoder of models with query and key norms has besides.
struct Normed {
    k: Linear,
    v: Linear,
    /// `[heads, rope_dim, head_dim]`.
    q_rope: Option<Tensor>,
}

/// What all mixers have.
struct Heads {
    q: Linear,
    o: Linear,
    qk_norm: Option<(Tensor, Tensor)>,
    rotary: Option<Rotary>,
    eps: f64,
}

/// Reads the tensors of one layer.
#[derive(Clone, Copy)]
struct Reader<'a> {
    weights: Weights<'a>,
    spec: &'a ModelSpec,
    index: usize,
    positions: usize,
}

impl Reader<'_> {
    fn get(self, role: Role, shape: &[usize]) -> std::result::Result<Tensor, Error> {
        self.weights.get(TensorId::layer(self.index, role), shape)
    }

    fn linear(
        self,
        role: Role,
        shape: [usize; 2],
        bias: Option<Role>,
    ) -> std::result::Result<Linear, Error> {
        Linear::load(self.weights, self.index, role, shape, bias)
    }

    fn norms(self, dim: usize) -> std::result::Result<Option<(Tensor, Tensor)>, Error> {
        let q = self.get(Role::QNorm, &[dim])?;
        Ok(Some((q, self.get(Role::KNorm, &[dim])?)))
    }

    fn rotary(self, head_dim: usize) -> std::result::Result<Rotary, Error> {
        Rotary::new(&self.spec.rope, head_dim, self.positions).map_err(|e| self.rotation(e))
    }

    fn rotation(self, source: candle_core::Error) -> Error {
        Error::Reference {
            place: format!("rotation of layer {}", self.index),
            source,
        }
    }
}

impl Mix {
    /// Reads the mixer of layer `index`, ready for windows of up to `positions` tokens.
    pub(super) fn load(
        weights: Weights<'_>,
        spec: &ModelSpec,
        index: usize,
        positions: usize,
    ) -> std::result::Result<Self, Error> {
        let reader = Reader {
            weights,
            spec,
            index,
            positions,
        };
        match &spec.layers[index].mixer {
            Mixer::Attention(a) => Attention::load(reader, a).map(Mix::Attention),
            Mixer::Mla(a) => Mla::load(reader, a).map(Mix::Mla),
            Mixer::Latent(a) => Latent::load(reader, a).map(Mix::Latent),
        }
    }

    /// `[t, hidden]` to `[t, hidden]`.
    pub(super) fn forward(&self, x_td: &Tensor) -> Result<Tensor> {
        match self {
            Mix::Attention(mix) => mix.forward(x_td),
            Mix::Mla(mix) => mix.forward(x_td),
            Mix::Latent(mix) => mix.forward(x_td),
        }
    }
}

/// `[t, heads * dim]` as `[heads, t, dim]`.
fn by_head(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (len, width) = x.dims2()?;
    x.reshape((len, heads, width / heads))?
        .transpose(0, 1)?
        .contiguous()
}

impl Heads {
    /// Norms and rotates grouped queries and keys, attends, and projects back.
    fn grouped(&self, q: Tensor, k: Tensor, v: &Tensor, window: Option<usize>) -> Result<Tensor> {
        let (mut q, mut k) = (q, k);
        if let Some((q_gain, k_gain)) = &self.qk_norm {
            q = rms_norm(&q, q_gain, self.eps)?;
            k = rms_norm(&k, k_gain, self.eps)?;
        }
        if let Some(rotary) = &self.rotary {
            q = rotary.rotate(&q)?;
            k = rotary.rotate(&k)?;
        }
        let q = (&q / (q.dim(2)? as f64).sqrt())?;
        self.o.forward(&attend(&q, &k, v, window)?)
    }
}

impl Attention {
    fn load(r: Reader<'_>, a: &AttentionSpec) -> std::result::Result<Self, Error> {
        let hidden = r.spec.hidden;
        let (q_dim, kv_dim) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
        let bias = |role| a.bias.qkv.then_some(role);
        Ok(Attention {
            spec: a.clone(),
            heads: Heads {
                q: r.linear(Role::Q, [q_dim, hidden], bias(Role::QBias))?,
                o: r.linear(Role::O, [hidden, q_dim], a.bias.o.then_some(Role::OBias))?,
                qk_norm: match a.qk_norm {
                    QkNorm::None => None,
                    QkNorm::PerHead => r.norms(a.head_dim)?,
                },
                rotary: a.rope.then(|| r.rotary(a.head_dim)).transpose()?,
                eps: r.spec.norm_eps,
            },
            k: r.linear(Role::K, [kv_dim, hidden], bias(Role::KBias))?,
            v: r.linear(Role::V, [kv_dim, hidden], bias(Role::VBias))?,
        })
    }

    fn forward(&self, x_td: &Tensor) -> Result<Tensor> {
        let a = &self.spec;
        let q = by_head(&self.heads.q.forward(x_td)?, a.heads)?;
        let k = by_head(&self.k.forward(x_td)?, a.kv_heads)?;
        let v = by_head(&self.v.forward(x_td)?, a.kv_heads)?;
        self.heads.grouped(q, k, &v, a.window)
    }
}

impl Latent {
    fn load(r: Reader<'_>, a: &LatentSpec) -> std::result::Result<Self, Error> {
        let hidden = r.spec.hidden;
        let (q_dim, kv_dim) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
        Ok(Latent {
            spec: a.clone(),
            heads: Heads {
                q: r.linear(Role::Q, [q_dim, hidden], Some(Role::QBias))?,
                o: r.linear(Role::O, [hidden, q_dim], Some(Role::OBias))?,
                qk_norm: match a.qk_norm {
                    QkNorm::None => None,
                    QkNorm::PerHead => r.norms(a.head_dim)?,
                },
                rotary: Some(r.rotary(a.head_dim)?),
                eps: r.spec.norm_eps,
            },
            kv_a: r.linear(Role::KvA, [a.rank, hidden], Some(Role::KvABias))?,
            k_b: r.linear(Role::KB, [kv_dim, a.rank], Some(Role::KBias))?,
            v_b: r.linear(Role::VB, [kv_dim, a.rank], None)?,
        })
    }

    fn forward(&self, x_td: &Tensor) -> Result<Tensor> {
        let a = &self.spec;
        let q = by_head(&self.heads.q.forward(x_td)?, a.heads)?;
        let c_tr = self.kv_a.forward(x_td)?;
        let k = by_head(&self.k_b.forward(&c_tr)?, a.kv_heads)?;
        let v = by_head(&self.v_b.forward(&c_tr)?, a.kv_heads)?;
        self.heads.grouped(q, k, &v, None)
    }
}

impl Mla {
    fn load(r: Reader<'_>, a: &MlaSpec) -> std::result::Result<Self, Error> {
        let hidden = r.spec.hidden;
        let (width, cached) = (a.heads * a.head_dim, a.rank + a.rope_dim);
        let (q_dim, input, normed, qk_norm) = match a.encoder {
            MlaEncoder::Linear => (width + a.heads * a.rope_dim, hidden, None, None),
            MlaEncoder::Normed { kv_heads } => {
                let n = kv_heads * a.head_dim;
                let maps = [a.heads * a.rope_dim, a.head_dim];
                let q_rope = (a.rope_dim > 0).then(|| r.get(Role::QRope, &maps));
                let normed = Normed {
                    k: r.linear(Role::K, [n, hidden], Some(Role::KBias))?,
                    v: r.linear(Role::V, [n, hidden], Some(Role::VBias))?,
                    q_rope: q_rope.transpose()?,
                };
                (width, 2 * n, Some(normed), r.norms(a.head_dim)?)
            }
        };
        let rotary = (a.rope_dim > 0).then(|| {
            let frequencies = r.get(Role::RopeFreq, &[a.rope_dim / 2])?;
            Rotary::of_table(&frequencies, r.positions).map_err(|e| r.rotation(e))
        });
        Ok(Mla {
            spec: a.clone(),
            heads: Heads {
                q: r.linear(Role::Q, [q_dim, hidden], Some(Role::QBias))?,
                o: r.linear(Role::O, [hidden, width], Some(Role::OBias))?,
                qk_norm,
                rotary: rotary.transpose()?,
                eps: r.spec.norm_eps,
            },
            kv_a: r.linear(Role::KvA, [cached, input], Some(Role::KvABias))?,
            // Multiplied from either side, and so never by rounded activations.
            k_b: r.linear(Role::KB, [width, a.rank], None)?.exact(),
            v_b: r.linear(Role::VB, [width, a.rank], None)?.exact(),
            normed,
            latent_norm: match a.latent_norm {
                Some(eps) => Some((r.get(Role::KvANorm, &[a.rank])?, eps)),
                None => None,
            },
        })
    }

    /// Always the expanded form: keys and values of every head are written out.
    fn forward(&self, x_td: &Tensor) -> Result<Tensor> {
        let a = &self.spec;
        let (q_nope, q_rope, row) = self.encode(x_td)?;
        let mut c_tr = row.narrow(1, 0, a.rank)?.contiguous()?;
        if let Some((gain, eps)) = &self.latent_norm {
            c_tr = rms_norm(&c_tr, gain, *eps)?;
        }
        let mut q = q_nope;
        let mut k = by_head(&self.k_b.forward(&c_tr)?, a.heads)?;
        if let (Some(rotary), Some(q_rope)) = (&self.heads.rotary, q_rope) {
            let shared = by_head(&row.narrow(1, a.rank, a.rope_dim)?.contiguous()?, 1)?;
            let shared = rotary.rotate(&shared)?;
            let (_, len, dim) = shared.dims3()?;
            let k_rope = shared.broadcast_as((a.heads, len, dim))?;
            q = Tensor::cat(&[&q, &rotary.rotate(&q_rope)?], 2)?;
            k = Tensor::cat(&[&k, &k_rope.contiguous()?], 2)?;
        }
        let v = by_head(&self.v_b.forward(&c_tr)?, a.heads)?;
        self.heads.o.forward(&attend(&q, &k, &v, None)?)
    }

    /// Unrotated and rotated parts of the queries, `[heads, t, dim]`, before rotation, and
    /// `[t, rank + rope_dim]`.
    fn encode(&self, x_td: &Tensor) -> Result<(Tensor, Option<Tensor>, Tensor)> {
        let a = &self.spec;
        let q = by_head(&self.heads.q.forward(x_td)?, a.heads)?;
        let (Some(normed), Some((q_gain, k_gain))) = (&self.normed, &self.heads.qk_norm) else {
            let nope = q.narrow(2, 0, a.head_dim)?.contiguous()?;
            let rope = q.narrow(2, a.head_dim, a.rope_dim)?.contiguous()?;
            let rope = (a.rope_dim > 0).then_some(rope);
            return Ok((nope, rope, self.kv_a.forward(x_td)?));
        };
        let q = rms_norm(&q, q_gain, self.heads.eps)?;
        let k = normed.k.forward(x_td)?;
        let (len, n) = k.dims2()?;
        let k = k.reshape((len, n / a.head_dim, a.head_dim))?;
        let k = rms_norm(&k, k_gain, self.heads.eps)?.reshape((len, n))?;
        let z = Tensor::cat(&[&k, &normed.v.forward(x_td)?], 1)?;
        let rope = match &normed.q_rope {
            Some(maps) => {
                let maps = maps.reshape((a.heads, a.rope_dim, a.head_dim))?;
                Some(q.matmul(&maps.transpose(1, 2)?.contiguous()?)?)
            }
            None => None,
        };
        Ok((q, rope, self.kv_a.forward(&z)?))
    }
}
