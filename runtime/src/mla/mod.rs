//! Multi-head latent attention (`DeepSeek-V2`, 2024) in its native form: frequencies of the layer's
//! own, biases, the score scale inside the query, and a norm of the latent only where other engines
//! are imitated.
//!
//! Two ways to the same result. *Absorbed*: queries are carried into the latent space and attend
//! to the remembered rows as they are. *Expanded*: keys and values of all heads are formed from the
//! latents first. Which one runs is a matter of cost alone.

use neuroconv_kernels::{DenseSlice, matmul_dense};
use neuroconv_recipes::{MlaSpec, RopeLayout};
use rayon::prelude::*;

use crate::attention::attend;
use crate::cache::{CacheShape, LayerCache};
use crate::linear::{Input, Linear};
use crate::norm::RmsNorm;
use crate::plane::KvCodec;
use crate::rope::{Positions, Rotation};

/// Latent attention of one layer.
#[derive(Debug)]
pub(crate) struct Mla {
    pub(crate) spec: MlaSpec,
    pub(crate) encoder: Encoder,
    /// Norm of the latent before it is remembered.
    pub(crate) latent_norm: Option<RmsNorm>,
    /// Radians per position of the rotated pairs.
    pub(crate) inv_freq: Vec<f64>,
    pub(crate) decoder: LatentDecoder,
    pub(crate) o: Linear,
}

/// How queries and latent come out of the input.
#[derive(Debug)]
pub(crate) enum Encoder {
    Linear(Box<LinearEncoder>),
    Normed(Box<NormedEncoder>),
}

/// One affine map each.
#[derive(Debug)]
pub(crate) struct LinearEncoder {
    /// Per head the unrotated part, then the rotated one.
    pub(crate) q: Linear,
    pub(crate) kv_a: Linear,
}

/// The encoder of models that norm queries and keys.
#[derive(Debug)]
pub(crate) struct NormedEncoder {
    pub(crate) q: Linear,
    pub(crate) k: Linear,
    pub(crate) v: Linear,
    pub(crate) q_norm: RmsNorm,
    pub(crate) k_norm: RmsNorm,
    /// Per head, a normed query to its rotated part, `[heads, rope_dim, head_dim]`.
    pub(crate) q_rope: Vec<f32>,
    pub(crate) kv_a: Linear,
}

/// Latent to keys and values of every head, in single precision: the absorbed form multiplies by
/// the keys' part from its other side, which packed codes are not laid out for.
#[derive(Debug)]
pub(crate) struct LatentDecoder {
    /// `[heads, rank, head_dim]`.
    pub(crate) k_hrd: Vec<f32>,
    /// `[heads, head_dim, rank]`.
    pub(crate) v_hdr: Vec<f32>,
}

/// Queries of some tokens, split.
struct Queries {
    /// `[t, heads, head_dim]`.
    nope_thd: Vec<f32>,
    /// `[t, heads, rope_dim]`, rotated.
    rope_thp: Vec<f32>,
}

impl LatentDecoder {
    /// From `k_b` and `v_b`, both `[heads * head_dim, rank]`.
    pub(crate) fn new(spec: &MlaSpec, k_b: &[f32], v_b: Vec<f32>) -> Self {
        let mut k_hrd = vec![0.0; k_b.len()];
        let size = spec.head_dim * spec.rank;
        for (from, to) in k_b.chunks(size).zip(k_hrd.chunks_mut(size)) {
            transpose(from, spec.rank, to);
        }
        LatentDecoder { k_hrd, v_hdr: v_b }
    }

    /// Bytes a token reads of it.
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&self.k_hrd[..]) + size_of_val(&self.v_hdr[..])
    }
}

impl Mla {
    /// From `[t, hidden]` to what the output projection reads, `[t, heads, head_dim]`, for the tokens
    /// after those in `cache`, which it takes in.
    pub(crate) fn mixed(
        &self,
        x: &mut Input<'_>,
        cache: &mut LayerCache,
        positions: &Positions<'_>,
    ) -> Vec<f32> {
        let queries = self.take_in(x, cache, positions);
        if self.prefers_expanded(positions.count) {
            self.expanded(&queries, cache)
        } else {
            self.absorbed(&queries, cache)
        }
    }

    /// Whether `t` queries cost less when keys and values are formed first: that is
    /// `4 · rank · head_dim` operations per head and key, and then each query saves
    /// `4 · (rank - head_dim)` of them per key.
    fn prefers_expanded(&self, t: usize) -> bool {
        let MlaSpec { rank, head_dim, .. } = self.spec;
        t * rank.saturating_sub(head_dim) > rank * head_dim
    }

    /// Forms queries, and adds latents and rotated keys to the cache.
    fn take_in(
        &self,
        x: &mut Input<'_>,
        cache: &mut LayerCache,
        positions: &Positions<'_>,
    ) -> Queries {
        let MlaSpec {
            heads,
            head_dim,
            rank,
            rope_dim,
            ..
        } = self.spec;
        let (queries, mut rows_tc) = match &self.encoder {
            Encoder::Linear(encoder) => {
                let q_thx = encoder.q.forward(x);
                let (nope_thd, rope_thp) = split(&q_thx, head_dim, rope_dim);
                (Queries { nope_thd, rope_thp }, encoder.kv_a.forward(x))
            }
            Encoder::Normed(encoder) => encoder.forward(x, &self.spec),
        };
        let Queries {
            nope_thd,
            mut rope_thp,
        } = queries;
        if rope_dim > 0 || self.latent_norm.is_some() {
            let (mut latents, mut keys) = split(&rows_tc, rank, rope_dim);
            if rope_dim > 0 {
                let Positions { start, count, .. } = *positions;
                let rotation = Rotation::new(RopeLayout::Half, &self.inv_freq, start, count);
                rotation.apply(&mut rope_thp, heads, rope_dim);
                rotation.apply(&mut keys, 1, rope_dim);
            }
            if let Some(norm) = &self.latent_norm {
                norm.apply(&mut latents);
            }
            rows_tc = join(&latents, rank, &keys, rope_dim);
        }
        cache.append(&rows_tc, &[]);
        Queries { nope_thd, rope_thp }
    }

    /// Attention in the latent space; `[t, heads, head_dim]`.
    fn absorbed(&self, queries: &Queries, cache: &LayerCache) -> Vec<f32> {
        let MlaSpec {
            heads,
            head_dim,
            rank,
            rope_dim,
            ..
        } = self.spec;
        let latent_thr = per_head(
            &queries.nope_thd,
            &self.decoder.k_hrd,
            heads,
            head_dim,
            rank,
        );
        let q_thc = join(&latent_thr, rank, &queries.rope_thp, rope_dim);
        let mixed_thr = attend(&q_thc, cache, heads, None);
        per_head(&mixed_thr, &self.decoder.v_hdr, heads, rank, head_dim)
    }

    /// Attention over the keys and values of all heads; `[t, heads, head_dim]`.
    fn expanded(&self, queries: &Queries, cache: &LayerCache) -> Vec<f32> {
        let MlaSpec {
            heads,
            head_dim,
            rank,
            rope_dim,
            ..
        } = self.spec;
        let rows_sc = cache.heads[0].rows(cache.len);
        let (c_sr, k_rope_sp) = split(&rows_sc, rank, rope_dim);
        let size = head_dim * rank;
        let mut k_hdr = vec![0.0; self.decoder.k_hrd.len()];
        let both = k_hdr
            .par_chunks_mut(size)
            .zip(self.decoder.k_hrd.par_chunks(size));
        both.for_each(|(to, from)| transpose(from, head_dim, to));
        let expand = |w: &[f32]| {
            let mut y = vec![0.0; cache.len * heads * head_dim];
            matmul_dense(
                DenseSlice::F32(w),
                heads * head_dim,
                rank,
                &c_sr,
                cache.len,
                &mut y,
            );
            y
        };
        let (k_shd, v_shd) = (expand(&k_hdr), expand(&self.decoder.v_hdr));
        let shared = k_rope_sp.chunks(rope_dim.max(1));
        let k_rope_shp: Vec<f32> = shared.flat_map(|k_p| k_p.repeat(heads)).collect();
        let shape = CacheShape::of_heads(heads, head_dim + rope_dim, head_dim);
        let mut all = LayerCache::new(shape, KvCodec::F32);
        all.append(&join(&k_shd, head_dim, &k_rope_shp, rope_dim), &v_shd);
        let q_thd = join(&queries.nope_thd, head_dim, &queries.rope_thp, rope_dim);
        attend(&q_thd, &all, heads, None)
    }
}

impl NormedEncoder {
    /// Queries before rotation, and `[t, rank + rope_dim]` to be remembered.
    fn forward(&self, x: &mut Input<'_>, spec: &MlaSpec) -> (Queries, Vec<f32>) {
        let mut nope_thd = self.q.forward(x);
        let (mut k_tn, v_tn) = (self.k.forward(x), self.v.forward(x));
        self.q_norm.apply(&mut nope_thd);
        self.k_norm.apply(&mut k_tn);
        let n = self.k.rows();
        let z_tn = join(&k_tn, n, &v_tn, n);
        let rows_tc = self.kv_a.forward(&mut Input::new(&z_tn, 2 * n));
        let MlaSpec {
            heads,
            head_dim,
            rope_dim,
            ..
        } = *spec;
        let rope_thp = per_head(&nope_thd, &self.q_rope, heads, head_dim, rope_dim);
        (Queries { nope_thd, rope_thp }, rows_tc)
    }
}

/// `[t, heads, cols]` times one matrix `[rows, cols]` per head: `[t, heads, rows]`.
fn per_head(x_thk: &[f32], w_hnk: &[f32], heads: usize, cols: usize, rows: usize) -> Vec<f32> {
    let t = x_thk.len() / (heads * cols);
    let mut y_thn = vec![0.0; t * heads * rows];
    if rows == 0 {
        return y_thn;
    }
    let of_head = |h: usize| {
        let x_tk: Vec<f32> = x_thk
            .chunks(cols)
            .skip(h)
            .step_by(heads)
            .flatten()
            .copied()
            .collect();
        let w = DenseSlice::F32(&w_hnk[h * rows * cols..][..rows * cols]);
        let mut y_tn = vec![0.0; t * rows];
        matmul_dense(w, rows, cols, &x_tk, t, &mut y_tn);
        y_tn
    };
    let outputs: Vec<Vec<f32>> = (0..heads).into_par_iter().map(of_head).collect();
    for (h, y_tn) in outputs.iter().enumerate() {
        let places = y_thn.chunks_mut(rows).skip(h).step_by(heads);
        places
            .zip(y_tn.chunks(rows))
            .for_each(|(place, y)| place.copy_from_slice(y));
    }
    y_thn
}

/// Rows of `left + right` numbers into those of `left` and those of `right`.
fn split(rows: &[f32], left: usize, right: usize) -> (Vec<f32>, Vec<f32>) {
    let count = rows.len() / (left + right);
    let mut parts = (
        Vec::with_capacity(count * left),
        Vec::with_capacity(count * right),
    );
    for row in rows.chunks(left + right) {
        parts.0.extend_from_slice(&row[..left]);
        parts.1.extend_from_slice(&row[left..]);
    }
    parts
}

/// Rows of `left` and rows of `right` numbers side by side.
fn join(left_rows: &[f32], left: usize, right_rows: &[f32], right: usize) -> Vec<f32> {
    let mut rows = Vec::with_capacity(left_rows.len() + right_rows.len());
    for (i, row) in left_rows.chunks(left).enumerate() {
        rows.extend_from_slice(row);
        rows.extend_from_slice(&right_rows[i * right..][..right]);
    }
    rows
}

/// `from`, rows of `cols` numbers, with rows and columns exchanged.
fn transpose(from: &[f32], cols: usize, to: &mut [f32]) {
    let rows = from.len() / cols;
    for (i, row) in from.chunks(cols).enumerate() {
        for (j, &value) in row.iter().enumerate() {
            to[j * rows + i] = value;
        }
    }
}

#[cfg(test)]
mod tests;
