//! Causal softmax attention with grouped key/value heads and an optional window.

use std::ops::Range;

use neuroconv_kernels::matmul_dense;
use neuroconv_recipes::AttentionSpec;
use rayon::prelude::*;

use crate::cache::{CacheShape, HeadCache, LayerCache};
use crate::linear::{Input, Linear};
use crate::norm::RmsNorm;
use crate::ops::{RunningSoftmax, add_scaled};
use crate::plane::PAGE;
use crate::rope::Positions;

/// Queries that one task computes, with their scores in memory at a time.
const TASK_QUERIES: usize = 64;

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
    /// From `[t, hidden]` to what the output projection reads, `[t, heads, head_dim]`, for the tokens
    /// after those in `cache`, which it takes in.
    pub(crate) fn mixed(
        &self,
        x: &mut Input<'_>,
        cache: &mut LayerCache,
        positions: &Positions<'_>,
    ) -> Vec<f32> {
        let AttentionSpec {
            heads,
            kv_heads,
            head_dim,
            rope,
            window,
            ..
        } = self.spec;
        let [mut q_thd, mut k_thd, v_thd] = Linear::forward_all([&self.q, &self.k, &self.v], x);
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            q_norm.apply(&mut q_thd);
            k_norm.apply(&mut k_thd);
        }
        if let Some(rotation) = positions.rotations().of(head_dim).filter(|_| rope) {
            rotation.apply(&mut q_thd, heads, head_dim);
            rotation.apply(&mut k_thd, kv_heads, head_dim);
        }
        cache.append(&k_thd, &v_thd);
        scale_by(&mut q_thd, 1.0 / (head_dim as f32).sqrt());
        attend(&q_thd, cache, heads, window)
    }
}

/// Multiplies all numbers by `scale`.
pub(crate) fn scale_by(x: &mut [f32], scale: f32) {
    for x in x {
        *x *= scale;
    }
}

/// `softmax(q kᵀ) v`, `[t, heads, value_dim]`, for the queries `[t, heads, key_dim]` of the last
/// `t` tokens in `cache`. Query head `h` reads key/value head `h · kv_heads / heads`.
pub(crate) fn attend(
    q_thd: &[f32],
    cache: &LayerCache,
    heads: usize,
    window: Option<usize>,
) -> Vec<f32> {
    let shape = cache.shape();
    let t = q_thd.len() / (heads * shape.key_dim);
    let group = heads / shape.heads;
    let (q_group, o_group) = (group * shape.key_dim, group * shape.value_dim);
    let task_rows = (TASK_QUERIES / group).max(1);
    let tasks: Vec<(usize, Range<usize>)> = (0..shape.heads)
        .flat_map(|kv_head| {
            let starts = (0..t).step_by(task_rows);
            starts.map(move |row| (kv_head, row..t.min(row + task_rows)))
        })
        .collect();
    let of_rows = |rows: &Range<usize>, group: usize| {
        rows.start * shape.heads * group..rows.end * shape.heads * group
    };
    let before = cache.len - t;
    let outputs: Vec<Vec<f32>> = tasks
        .par_iter()
        .map(|(kv_head, rows)| {
            let groups = q_thd[of_rows(rows, q_group)].chunks(q_group);
            let groups = groups.skip(*kv_head).step_by(shape.heads);
            let q_xd = groups.collect::<Vec<_>>().concat();
            let first_end = before + rows.start + 1;
            let ends = first_end..first_end + rows.len();
            attend_head(&q_xd, shape, &cache.heads[*kv_head], ends, window)
        })
        .collect();
    let mut o_thd = vec![0.0; t * heads * shape.value_dim];
    for ((kv_head, rows), o_xd) in tasks.iter().zip(outputs) {
        let groups = o_thd[of_rows(rows, o_group)].chunks_mut(o_group);
        let groups = groups.skip(*kv_head).step_by(shape.heads);
        for (o, group) in groups.zip(o_xd.chunks(o_group)) {
            o.copy_from_slice(group);
        }
    }
    o_thd
}

/// The outputs `[x, value_dim]` of the queries `q_xd` that read one key/value head. Equally many
/// queries, one after the other, belong to each of `ends`, the ends of the positions they see.
///
/// Works page by page with a running softmax (Milakov and Gimelshein 2018), so that scores take no
/// more memory for a longer text. What a query does not see gets the weight zero, which changes no
/// sum, so the output of a query does not depend on the queries beside it.
fn attend_head(
    q_xd: &[f32],
    shape: CacheShape,
    head: &HeadCache,
    ends: Range<usize>,
    window: Option<usize>,
) -> Vec<f32> {
    let CacheShape {
        key_dim, value_dim, ..
    } = shape;
    let queries = q_xd.len() / key_dim;
    let group = queries / ends.len();
    let seen_to = |end: usize| end.saturating_sub(window.unwrap_or(end))..end;

    let mut running = vec![RunningSoftmax::new(); queries];
    let mut weights_xs = vec![0.0; queries * PAGE];
    let mut o_xd = vec![0.0; queries * value_dim];
    let mut part_xd = o_xd.clone();
    for page in seen_to(ends.start).start / PAGE..(ends.end - 1).div_ceil(PAGE) {
        matmul_dense(
            head.keys(page).slice(),
            PAGE,
            key_dim,
            q_xd,
            queries,
            &mut weights_xs,
        );
        let rows = weights_xs.chunks_mut(PAGE).zip(o_xd.chunks_mut(value_dim));
        for (x, ((weights_s, o_d), running)) in rows.zip(&mut running).enumerate() {
            let seen = seen_to(ends.start + x / group);
            let place = |position: usize| position.saturating_sub(page * PAGE).min(PAGE);
            let factor = running.take_in(weights_s, place(seen.start)..place(seen.end));
            scale_by(o_d, factor);
        }
        let values = head.values(shape, page);
        matmul_dense(
            values.slice(),
            value_dim,
            PAGE,
            &weights_xs,
            queries,
            &mut part_xd,
        );
        add_scaled(&mut o_xd, 1.0, &part_xd);
    }
    for (o_d, running) in o_xd.chunks_mut(value_dim).zip(running) {
        scale_by(o_d, 1.0 / running.sum());
    }
    o_xd
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KvCodec;

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
            for window in [None, Some(1), Some(3), Some(40), Some(150), Some(1000)] {
                for (n, t) in [(1, 1), (5, 5), (9, 1), (70, 37), (300, 1), (300, 290)] {
                    let q = values(t * heads * HEAD_DIM, 0.1);
                    let k = values(n * kv_heads * HEAD_DIM, 0.2);
                    let v = values(n * kv_heads * HEAD_DIM, 0.3);
                    let shape = CacheShape::of_heads(kv_heads, HEAD_DIM, HEAD_DIM);
                    let mut cache = LayerCache::new(shape, KvCodec::F32);
                    cache.append(&k, &v);
                    let mut scaled = q.clone();
                    scale_by(&mut scaled, 0.5);
                    let found = attend(&scaled, &cache, heads, window);
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
        let shape = |heads| CacheShape::of_heads(heads, HEAD_DIM, HEAD_DIM);
        let cache = |heads| LayerCache::new(shape(heads), KvCodec::F32);
        let mut grouped = cache(kv_heads);
        grouped.append(&k, &v);
        let mut repeated = cache(heads);
        repeated.append(&repeat(&k), &repeat(&v));
        assert_eq!(
            attend(&q, &grouped, heads, Some(4)),
            attend(&q, &repeated, heads, Some(4))
        );
    }
}
