//! Causal softmax attention with grouped heads, in blocks of queries.

use candle_core::{Device, Result, Tensor};

/// Queries scored at once: bounds the memory of scores at `heads * 256 * positions`.
const QUERY_BLOCK: usize = 256;

/// Attends with scaled queries `q_htd` to keys `k_gtd` and values `v_gte`; returns
/// `[t, heads * e]`.
///
/// Query head `h` reads key/value head `h / (heads / kv_heads)`. A token sees itself and what
/// came before it, with a `window` only the `window - 1` tokens before it.
pub(super) fn attend(
    q_htd: &Tensor,
    k_gtd: &Tensor,
    v_gte: &Tensor,
    window: Option<usize>,
) -> Result<Tensor> {
    let (heads, len, dim) = q_htd.dims3()?;
    let groups = k_gtd.dim(0)?;
    // No groups is an error of the reshape below, not a division by zero.
    let per_group = heads.checked_div(groups).unwrap_or(0);
    let value_dim = v_gte.dim(2)?;
    let mut blocks = Vec::with_capacity(len.div_ceil(QUERY_BLOCK));
    for start in (0..len).step_by(QUERY_BLOCK) {
        let rows = QUERY_BLOCK.min(len - start);
        let seen = start + rows;
        let q = q_htd
            .narrow(1, start, rows)?
            .reshape((groups, per_group * rows, dim))?;
        let k = k_gtd.narrow(1, 0, seen)?;
        let v = v_gte.narrow(1, 0, seen)?;
        let scores = q
            .matmul(&k.transpose(1, 2)?)?
            .reshape((heads, rows, seen))?;
        let scores = scores.broadcast_add(&mask(start, rows, window)?)?;
        let shares = candle_nn::ops::softmax_last_dim(&scores)?;
        let mixed = shares
            .reshape((groups, per_group * rows, seen))?
            .matmul(&v)?;
        blocks.push(mixed.reshape((heads, rows, value_dim))?);
    }
    Tensor::cat(&blocks, 1)?
        .transpose(0, 1)?
        .reshape((len, heads * value_dim))
}

/// 0 where query `start + i` may see key `j`, minus infinity elsewhere: `[rows, start + rows]`.
fn mask(start: usize, rows: usize, window: Option<usize>) -> Result<Tensor> {
    let seen = start + rows;
    let reach = window.unwrap_or(usize::MAX);
    let cell = |i: usize, j: usize| {
        if j <= i && i - j < reach {
            0.0
        } else {
            f32::NEG_INFINITY
        }
    };
    let cells: Vec<f32> = (start..seen)
        .flat_map(|i| (0..seen).map(move |j| cell(i, j)))
        .collect();
    Tensor::from_vec(cells, (rows, seen), &Device::Cpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Attention written out in scalars.
    fn brute(
        q: &[f32],
        k: &[f32],
        v: &[f32],
        dims: (usize, usize, usize, usize),
        window: Option<usize>,
    ) -> Vec<f32> {
        let (heads, groups, len, dim) = dims;
        let mut out = vec![0.0; len * heads * dim];
        for h in 0..heads {
            let g = h * groups / heads;
            for i in 0..len {
                let first = window.map_or(0, |w| (i + 1).saturating_sub(w));
                let at = |m: &[f32], head: usize, t: usize, c: usize| {
                    f64::from(m[(head * len + t) * dim + c])
                };
                let score = |j: usize| {
                    (0..dim)
                        .map(|c| at(q, h, i, c) * at(k, g, j, c))
                        .sum::<f64>()
                        / (dim as f64).sqrt()
                };
                let weights: Vec<f64> = (first..=i).map(|j| score(j).exp()).collect();
                let total: f64 = weights.iter().sum();
                for c in 0..dim {
                    let mixed: f64 = weights
                        .iter()
                        .enumerate()
                        .map(|(n, w)| w * at(v, g, first + n, c))
                        .sum();
                    out[i * heads * dim + h * dim + c] = (mixed / total) as f32;
                }
            }
        }
        out
    }

    #[test]
    fn agrees_with_scalars_across_query_blocks() {
        let (heads, groups, len, dim) = (4, 2, QUERY_BLOCK + 3, 6);
        let noise = |n: usize, seed: f32| -> Vec<f32> {
            (0..n)
                .map(|i| ((i as f32 + seed) * 12.9898).sin() * 1.5)
                .collect()
        };
        let (q, k, v) = (
            noise(heads * len * dim, 0.1),
            noise(groups * len * dim, 0.2),
            noise(groups * len * dim, 0.3),
        );
        let tensor =
            |data: &[f32], h: usize| Tensor::from_slice(data, (h, len, dim), &Device::Cpu).unwrap();
        for window in [None, Some(1), Some(7), Some(10_000)] {
            let found = attend(
                &(tensor(&q, heads) / (dim as f64).sqrt()).unwrap(),
                &tensor(&k, groups),
                &tensor(&v, groups),
                window,
            )
            .unwrap();
            let found: Vec<f32> = found.flatten_all().unwrap().to_vec1().unwrap();
            let expected = brute(&q, &k, &v, (heads, groups, len, dim), window);
            let worst = found
                .iter()
                .zip(&expected)
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f32::max);
            assert!(worst < 2e-5, "{window:?}: {worst}");
        }
    }
}
