//! From a model's tensors to the matrices the conversion works on, and the refusal of layers it
//! cannot convert.

use faer::{Mat, MatRef};
use neuroconv_quant::dequantize;
use neuroconv_recipes::{AttentionSpec, Mixer, ModelSpec, QkNorm, Role, RopeLayout, TensorId};
use neuroconv_runtime::WeightSource;

use super::error::Error;
use super::source::{FeedForward, Geometry, SourceAttention, SourceLayer};

/// Whether the attention of a layer can be converted.
pub fn convertible(spec: &ModelSpec, layer: usize) -> Result<(), Error> {
    let a = attention(spec, layer)?;
    if a.window.is_some() {
        return Err(Error::SlidingWindow { layer });
    }
    if !a.rope {
        return Err(Error::NoRotation { layer });
    }
    Ok(())
}

/// The shape of the attention of a layer.
pub fn geometry(spec: &ModelSpec, layer: usize) -> Result<Geometry, Error> {
    let a = attention(spec, layer)?;
    let inv_freq = if a.rope {
        spec.rope.inv_freq(a.head_dim)
    } else {
        vec![0.0; a.head_dim / 2]
    };
    Ok(Geometry {
        hidden: spec.hidden,
        heads: a.heads,
        kv_heads: a.kv_heads,
        head_dim: a.head_dim,
        inv_freq,
        window: a.window,
        norm_eps: spec.norm_eps,
    })
}

fn attention(spec: &ModelSpec, layer: usize) -> Result<&AttentionSpec, Error> {
    match &spec.layers[layer].mixer {
        Mixer::Attention(a) => Ok(a),
        Mixer::Mla(_) | Mixer::Latent(_) => Err(Error::HasLatent { layer }),
    }
}

/// Reads one layer.
pub fn layer(source: &dyn WeightSource, layer: usize) -> Result<SourceLayer, Error> {
    let spec = source.spec();
    let a = attention(spec, layer)?;
    let read = |role: Role| vector(source, TensorId::layer(layer, role));
    let optional = |present: bool, role: Role, len: usize| {
        if present {
            read(role)
        } else {
            Ok(vec![0.0; len])
        }
    };
    let (hd, n) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
    let half = |mut rows: Vec<f32>, width: usize| {
        if spec.rope.layout == RopeLayout::Interleaved {
            rows = split_halves(&rows, a.head_dim, width);
        }
        rows
    };
    let mut qkv = half(read(Role::Q)?, spec.hidden);
    qkv.extend(half(read(Role::K)?, spec.hidden));
    qkv.extend(read(Role::V)?);
    let mut qkv_bias = half(optional(a.bias.qkv, Role::QBias, hd)?, 1);
    qkv_bias.extend(half(optional(a.bias.qkv, Role::KBias, n)?, 1));
    qkv_bias.extend(optional(a.bias.qkv, Role::VBias, n)?);
    let mut gate_up = read(Role::Gate)?;
    gate_up.extend(read(Role::Up)?);
    let mut gate_up_bias = optional(spec.block.mlp_bias, Role::GateBias, spec.ffn)?;
    gate_up_bias.extend(optional(spec.block.mlp_bias, Role::UpBias, spec.ffn)?);
    Ok(SourceLayer {
        attn_norm: read(Role::AttnNorm)?,
        attention: SourceAttention {
            qkv: matrix(&qkv, spec.hidden),
            qkv_bias,
            qk_norm: match a.qk_norm {
                QkNorm::None => None,
                QkNorm::PerHead => Some((read(Role::QNorm)?, read(Role::KNorm)?)),
            },
            o: matrix(&read(Role::O)?, hd),
            o_bias: optional(a.bias.o, Role::OBias, spec.hidden)?,
        },
        mlp_norm: read(Role::MlpNorm)?,
        feed_forward: FeedForward {
            gate_up: matrix(&gate_up, spec.hidden),
            gate_up_bias,
            down: matrix(&read(Role::Down)?, spec.ffn),
            down_bias: optional(spec.block.mlp_bias, Role::DownBias, spec.hidden)?,
        },
    })
}

/// The values of one tensor, row by row.
pub fn vector(source: &dyn WeightSource, id: TensorId) -> Result<Vec<f32>, Error> {
    let tensor = source.tensor(id).map_err(|e| Error::Read {
        tensor: id,
        source: Box::new(e),
    })?;
    Ok(dequantize(&tensor))
}

fn matrix(row_major: &[f32], columns: usize) -> Mat<f32> {
    MatRef::from_row_major_slice(row_major, row_major.len() / columns, columns).to_owned()
}

/// Rows of interleaved pairs `(2l, 2l + 1)` reordered to half-split ones `(l, l + head_dim / 2)`.
fn split_halves(rows: &[f32], head_dim: usize, width: usize) -> Vec<f32> {
    let pairs = head_dim / 2;
    let row = |i: usize| {
        let (head, channel) = (i / head_dim, i % head_dim);
        let from = head * head_dim + 2 * (channel % pairs) + channel / pairs;
        &rows[from * width..][..width]
    };
    (0..rows.len() / width).flat_map(row).copied().collect()
}
