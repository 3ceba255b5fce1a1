//! Causal softmax attention with grouped key/value heads and an optional window.

use neuroconv_recipes::AttentionSpec;
use rayon::prelude::*;

use crate::cache::LayerCache;
use crate::linear::{Input, Linear};
use crate::norm::RmsNorm;
use crate::ops::{add_scaled, dot, softmax};
use crate::rope::Rotations;

/// Rows of one head that one task computes, with one row of scores in memory at a time.
const BLOCK_ROWS: usize = 32;

/// The attention of one layer (Vaswani et al. 2017; grouped heads: Ainslie et al. 2023).
#[derive(Debug)]
pub(crate) struct Attention {
    pub(crate) spec: AttentionSpec,
    pub(crate) q: Linear,
    pub(crate) k: Linear,
    pub(crate) v: Linear,
    pub(crate) o: Linear,
    /// Norms of the heads of queries and keys.
    pub(crate) qk_norm: Option<(RmsNorm, RmsNorm)>,
}

impl Attention {
    /// `[t, hidden]` to `[t, hidden]` for the tokens after those in `cache`, which it takes in.
    pub(crate) fn forward(
        &self,
        x: &mut Input<'_>,
        cache: &mut LayerCache,
        rotations: &Rotations,
    ) -> Vec<f32> {
        let AttentionSpec {
            heads,
            kv_heads,
            head_dim,
            rope,
            window,
            ..
        } = self.spec;
        let mut q_thd = self.q.forward(x);
        let mut k_thd = self.k.forward(x);
        let v_thd = self.v.forward(x);
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            q_norm.apply(&mut q_thd);
            k_norm.apply(&mut k_thd);
        }
        if let Some(rotation) = rotations.of(head_dim).filter(|_| rope) {
            rotation.apply(&mut q_thd, heads, head_dim);
            rotation.apply(&mut k_thd, kv_heads, head_dim);
        }
        cache.append(&k_thd, &v_thd);
        let o_thd = attend(&q_thd, cache, heads, head_dim, window);
        self.o.forward(&mut Input::new(&o_thd, heads * head_dim))
    }
}

/// `softmax(q kᵀ / sqrt(head_dim)) v` for the queries `[t, heads, head_dim]` of the last `t`
/// tokens in `cache`. Query head `h` reads key/value head `h · kv_heads / heads`.
fn attend(
    q_thd: &[f32],
    cache: &LayerCache,
    heads: usize,
    head_dim: usize,
    window: Option<usize>,
) -> Vec<f32> {
    let width = heads * head_dim;
    let t = q_thd.len() / width;
    let group = heads / cache.keys.len();
    let start = cache.keys[0].len() / head_dim - t;
    let scale = 1.0 / (head_dim as f32).sqrt();

    let mut o_htd = vec![0.0; q_thd.len()];
    o_htd
        .par_chunks_mut(t * head_dim)
        .enumerate()
        .for_each(|(head, o_td)| {
            let (k_sd, v_sd) = (&cache.keys[head / group], &cache.values[head / group]);
            let rows = |(block, o_bd): (usize, &mut [f32])| {
                let mut scores = Vec::new();
                for (row, o_d) in o_bd.chunks_mut(head_dim).enumerate() {
                    let row = block * BLOCK_ROWS + row;
                    let q_d = &q_thd[row * width + head * head_dim..][..head_dim];
                    let end = start + row + 1;
                    let seen = end.saturating_sub(window.unwrap_or(end))..end;
                    let span = seen.start * head_dim..seen.end * head_dim;
                    let keys = k_sd[span.clone()].chunks_exact(head_dim);
                    scores.clear();
                    scores.extend(keys.map(|k_d| dot(q_d, k_d) * scale));
                    softmax(&mut scores);
                    for (&p, v_d) in scores.iter().zip(v_sd[span].chunks_exact(head_dim)) {
                        add_scaled(o_d, p, v_d);
                    }
                }
            };
            o_td.par_chunks_mut(BLOCK_ROWS * head_dim)
                .enumerate()
                .for_each(rows);
        });
    if t == 1 {
        return o_htd;
    }
    let mut o_thd = vec![0.0; q_thd.len()];
    for (row, o_hd) in o_thd.chunks_mut(width).enumerate() {
        for (head, o_d) in o_hd.chunks_mut(head_dim).enumerate() {
            o_d.copy_from_slice(&o_htd[(head * t + row) * head_dim..][..head_dim]);
        }
    }
    o_thd
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD_DIM: usize = 4;

    fn values(n: usize, seed: f32) -> Vec<f32> {
        (0..n)
            .map(|i| (i as f32 * 0.37 + seed).sin() * 2.0)
            .collect()
    }

    /// Attention as written in a textbook: all scores, a mask, double precision.
    fn brute_force(
        q: &[f32],
        k: &[f32],
        v: &[f32],
        (heads, kv_heads): (usize, usize),
        window: Option<usize>,
    ) -> Vec<f32> {
        let (n, t) = (
            k.len() / (kv_heads * HEAD_DIM),
            q.len() / (heads * HEAD_DIM),
        );
        let mut out = Vec::new();
        for row in 0..t {
            for head in 0..heads {
                let of_kv = |x: &[f32], s: usize, d: usize| {
                    f64::from(x[(s * kv_heads + head / (heads / kv_heads)) * HEAD_DIM + d])
                };
                let query = |d: usize| f64::from(q[(row * heads + head) * HEAD_DIM + d]);
                let weights: Vec<f64> = (0..n)
                    .map(|s| {
                        let at = n - t + row;
                        let visible = s <= at && window.is_none_or(|w| at - s < w);
                        let dot: f64 = (0..HEAD_DIM).map(|d| query(d) * of_kv(k, s, d)).sum();
                        if visible {
                            (dot / (HEAD_DIM as f64).sqrt()).exp()
                        } else {
                            0.0
                        }
                    })
                    .collect();
                let sum: f64 = weights.iter().sum();
                for d in 0..HEAD_DIM {
                    let mixed: f64 = weights
                        .iter()
                        .enumerate()
                        .map(|(s, w)| w * of_kv(v, s, d))
                        .sum();
                    out.push((mixed / sum) as f32);
                }
            }
        }
        out
    }

    #[test]
    fn masks_windows_and_groups_match_the_textbook() {
        for (heads, kv_heads) in [(1, 1), (4, 4), (4, 2), (6, 2), (3, 1)] {
            for window in [None, Some(1), Some(3), Some(40), Some(1000)] {
                for (n, t) in [(1, 1), (5, 5), (9, 1), (70, 37)] {
                    let q = values(t * heads * HEAD_DIM, 0.1);
                    let k = values(n * kv_heads * HEAD_DIM, 0.2);
                    let v = values(n * kv_heads * HEAD_DIM, 0.3);
                    let mut cache = LayerCache::new(kv_heads, HEAD_DIM);
                    cache.append(&k, &v);
                    let found = attend(&q, &cache, heads, HEAD_DIM, window);
                    let expected = brute_force(&q, &k, &v, (heads, kv_heads), window);
                    let off = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
                    assert!(
                        off.fold(0.0, f32::max) < 2e-6,
                        "{heads} {kv_heads} {window:?} {n} {t}"
                    );
                }
            }
        }
    }

    #[test]
    fn grouped_heads_equal_repeated_ones_exactly() {
        let (heads, kv_heads, n) = (6, 2, 11);
        let q = values(n * heads * HEAD_DIM, 0.5);
        let k = values(n * kv_heads * HEAD_DIM, 0.6);
        let v = values(n * kv_heads * HEAD_DIM, 0.7);
        let repeat = |x: &[f32]| -> Vec<f32> {
            x.chunks(HEAD_DIM)
                .flat_map(|head| head.repeat(heads / kv_heads))
                .collect()
        };
        let mut grouped = LayerCache::new(kv_heads, HEAD_DIM);
        grouped.append(&k, &v);
        let mut repeated = LayerCache::new(heads, HEAD_DIM);
        repeated.append(&repeat(&k), &repeat(&v));
        assert_eq!(
            attend(&q, &grouped, heads, HEAD_DIM, Some(4)),
            attend(&q, &repeated, heads, HEAD_DIM, Some(4))
        );
    }
}
