//! The matrices of a converted layer as the tensors of the model description.

use std::collections::BTreeMap;

use faer::Mat;
use neuroconv_recipes::{Mixer, MlaEncoder, MlaSpec, ModelSpec, QkNorm, Role};

use crate::mla::{Converted, Encoder, LatentAttention, MlaAttention};

/// One tensor, row-major.
pub(super) struct RoleTensor {
    pub(super) role: Role,
    pub(super) shape: Vec<usize>,
    pub(super) values: Vec<f32>,
}

/// The tensors of a converted layer; `None` for one that stays as it is.
pub(super) fn of(found: &Converted) -> Option<Vec<RoleTensor>> {
    match found {
        Converted::Mla(a) => Some(of_mla(a)),
        Converted::Latent(a) => Some(of_latent(a)),
        Converted::Kept => None,
    }
}

fn of_mla(a: &MlaAttention) -> Vec<RoleTensor> {
    let mut out = match &a.encoder {
        Encoder::Linear {
            q_nope,
            q_nope_bias,
            q_rope,
            q_rope_bias,
            k_rope,
            k_rope_bias,
            kv_a,
            kv_a_bias,
        } => {
            let (nope, rope) = (q_nope.nrows() / a.heads, q_rope.nrows() / a.heads);
            let q = rows_by_head(q_nope, nope, q_rope, rope, a.heads);
            let both = by_head(q_nope_bias, nope, q_rope_bias, rope, a.heads);
            vec![
                tensor(Role::Q, vec![both.len(), q_nope.ncols()], q),
                vector(Role::QBias, &both),
                stacked(Role::KvA, kv_a, k_rope),
                vector(Role::KvABias, &[&kv_a_bias[..], k_rope_bias].concat()),
            ]
        }
        Encoder::Normed {
            q,
            q_bias,
            q_norm,
            q_rope_map,
            k,
            k_bias,
            k_norm,
            v,
            v_bias,
            kv_a,
            kv_a_bias,
            ..
        } => {
            let mut normed = vec![
                matrix(Role::Q, q),
                vector(Role::QBias, q_bias),
                vector(Role::QNorm, q_norm),
                matrix(Role::K, k),
                vector(Role::KBias, k_bias),
                vector(Role::KNorm, k_norm),
                matrix(Role::V, v),
                vector(Role::VBias, v_bias),
                matrix(Role::KvA, kv_a),
                vector(Role::KvABias, kv_a_bias),
            ];
            if q_rope_map.nrows() > 0 {
                normed.push(matrix(Role::QRope, q_rope_map));
            }
            normed
        }
    };
    out.extend([
        matrix(Role::KB, &a.kb),
        matrix(Role::VB, &a.vb),
        matrix(Role::O, &a.o),
        vector(Role::OBias, &a.o_bias),
    ]);
    if !a.inv_freq.is_empty() {
        let frequencies: Vec<f32> = a.inv_freq.iter().map(|&f| f as f32).collect();
        out.push(vector(Role::RopeFreq, &frequencies));
    }
    out
}

fn of_latent(a: &LatentAttention) -> Vec<RoleTensor> {
    let mut out = vec![
        matrix(Role::Q, &a.q),
        vector(Role::QBias, &a.q_bias),
        matrix(Role::KvA, &a.kv_a),
        vector(Role::KvABias, &a.kv_a_bias),
        matrix(Role::KB, &a.kb),
        vector(Role::KBias, &a.k_bias),
        matrix(Role::VB, &a.vb),
        matrix(Role::O, &a.o),
        vector(Role::OBias, &a.o_bias),
    ];
    for (role, gain) in [(Role::QNorm, &a.q_norm), (Role::KNorm, &a.k_norm)] {
        out.extend(gain.as_ref().map(|gain| vector(role, gain)));
    }
    out
}

fn tensor(role: Role, shape: Vec<usize>, values: Vec<f32>) -> RoleTensor {
    RoleTensor {
        role,
        shape,
        values,
    }
}

fn matrix(role: Role, m: &Mat<f32>) -> RoleTensor {
    tensor(role, vec![m.nrows(), m.ncols()], rows(m))
}

fn vector(role: Role, v: &[f32]) -> RoleTensor {
    tensor(role, vec![v.len()], v.to_vec())
}

fn stacked(role: Role, top: &Mat<f32>, bottom: &Mat<f32>) -> RoleTensor {
    let shape = vec![top.nrows() + bottom.nrows(), top.ncols()];
    tensor(role, shape, [rows(top), rows(bottom)].concat())
}

/// The elements row by row.
fn rows(m: &Mat<f32>) -> Vec<f32> {
    let row = |i: usize| (0..m.ncols()).map(move |j| m[(i, j)]);
    (0..m.nrows()).flat_map(row).collect()
}

/// The rows of two matrices, head by head: `a` rows of the one, then `b` rows of the other.
fn rows_by_head(one: &Mat<f32>, a: usize, other: &Mat<f32>, b: usize, heads: usize) -> Vec<f32> {
    let width = one.ncols();
    by_head(&rows(one), a * width, &rows(other), b * width, heads)
}

fn by_head(one: &[f32], a: usize, other: &[f32], b: usize, heads: usize) -> Vec<f32> {
    (0..heads)
        .flat_map(|h| {
            let (first, second) = (&one[h * a..(h + 1) * a], &other[h * b..(h + 1) * b]);
            first.iter().chain(second).copied()
        })
        .collect()
}

/// A converted layer from its tensors: what [`of`] took apart. `read` gives the values of a role.
pub(super) fn read<E>(
    spec: &ModelSpec,
    layer: usize,
    read: impl Fn(Role) -> Result<Vec<f32>, E>,
) -> Result<Converted, E> {
    let columns: BTreeMap<Role, usize> = spec
        .tensors()
        .into_iter()
        .filter(|(id, _)| id.layer == Some(layer))
        .map(|(id, shape)| (id.role, shape.last().copied().unwrap_or(1)))
        .collect();
    let matrix = |role: Role| {
        let (values, width) = (read(role)?, columns.get(&role).copied().unwrap_or(1));
        Ok::<_, E>(from_rows(&values, width))
    };
    match &spec.layers[layer].mixer {
        Mixer::Attention(_) => Ok(Converted::Kept),
        Mixer::Mla(a) => Ok(Converted::Mla(MlaAttention {
            heads: a.heads,
            inv_freq: if a.rope_dim > 0 {
                read(Role::RopeFreq)?.into_iter().map(f64::from).collect()
            } else {
                Vec::new()
            },
            encoder: encoder(a, spec.norm_eps, &read, &matrix)?,
            kb: matrix(Role::KB)?,
            vb: matrix(Role::VB)?,
            o: matrix(Role::O)?,
            o_bias: read(Role::OBias)?,
        })),
        Mixer::Latent(a) => {
            let gain = |role| (a.qk_norm != QkNorm::None).then(|| read(role)).transpose();
            Ok(Converted::Latent(LatentAttention {
                heads: a.heads,
                kv_heads: a.kv_heads,
                inv_freq: spec.rope.inv_freq(a.head_dim),
                q: matrix(Role::Q)?,
                q_bias: read(Role::QBias)?,
                q_norm: gain(Role::QNorm)?,
                kv_a: matrix(Role::KvA)?,
                kv_a_bias: read(Role::KvABias)?,
                kb: matrix(Role::KB)?,
                k_bias: read(Role::KBias)?,
                k_norm: gain(Role::KNorm)?,
                vb: matrix(Role::VB)?,
                o: matrix(Role::O)?,
                o_bias: read(Role::OBias)?,
                norm_eps: spec.norm_eps,
            }))
        }
    }
}

fn encoder<E>(
    a: &MlaSpec,
    norm_eps: f64,
    read: &impl Fn(Role) -> Result<Vec<f32>, E>,
    matrix: &impl Fn(Role) -> Result<Mat<f32>, E>,
) -> Result<Encoder, E> {
    let (kv_a, kv_a_bias) = (matrix(Role::KvA)?, read(Role::KvABias)?);
    if let MlaEncoder::Normed { .. } = a.encoder {
        return Ok(Encoder::Normed {
            q: matrix(Role::Q)?,
            q_bias: read(Role::QBias)?,
            q_norm: read(Role::QNorm)?,
            q_rope_map: if a.rope_dim > 0 {
                matrix(Role::QRope)?
            } else {
                Mat::zeros(0, a.head_dim)
            },
            k: matrix(Role::K)?,
            k_bias: read(Role::KBias)?,
            k_norm: read(Role::KNorm)?,
            v: matrix(Role::V)?,
            v_bias: read(Role::VBias)?,
            kv_a,
            kv_a_bias,
            norm_eps,
        });
    }
    let (q, bias) = (matrix(Role::Q)?, read(Role::QBias)?);
    let width = a.head_dim + a.rope_dim;
    let part = |start: usize, count: usize| {
        let row = |i: usize| i / count.max(1) * width + start + i % count.max(1);
        let rows = Mat::from_fn(a.heads * count, q.ncols(), |i, j| q[(row(i), j)]);
        let bias: Vec<f32> = (0..a.heads * count).map(|i| bias[row(i)]).collect();
        (rows, bias)
    };
    let (q_nope, q_nope_bias) = part(0, a.head_dim);
    let (q_rope, q_rope_bias) = part(a.head_dim, a.rope_dim);
    Ok(Encoder::Linear {
        q_nope,
        q_nope_bias,
        q_rope,
        q_rope_bias,
        k_rope: kv_a.subrows(a.rank, a.rope_dim).to_owned(),
        k_rope_bias: kv_a_bias[a.rank..].to_vec(),
        kv_a: kv_a.subrows(0, a.rank).to_owned(),
        kv_a_bias: kv_a_bias[..a.rank].to_vec(),
    })
}

fn from_rows(values: &[f32], width: usize) -> Mat<f32> {
    Mat::from_fn(values.len() / width.max(1), width, |i, j| {
        values[i * width + j]
    })
}
