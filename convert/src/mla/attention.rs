//! Causal softmax attention of one head over one window, a block of queries at a time: the keys
//! after a block are never touched. A matrix of scores or weights is `[keys, queries]`: a column
//! belongs to one query.

use faer::{Accum, Mat, MatMut, MatRef, Par};

/// Queries whose scores are formed at a time.
const QUERIES: usize = 64;

/// First query and end of each block; a block sees the keys before its end.
pub fn query_blocks(tokens: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..tokens)
        .step_by(QUERIES)
        .map(move |first| (first, tokens.min(first + QUERIES)))
}

/// Softmax over the keys `s <= t` (of them the last `window`) of each query `t`, the first of which
/// is `first`; other keys get zero.
pub fn causal_softmax(mut scores_st: MatMut<'_, f32>, first: usize, window: Option<usize>) {
    for t in 0..scores_st.ncols() {
        let (seen, ahead) = slice(scores_st.as_mut(), t).split_at_mut(first + t + 1);
        ahead.fill(0.0);
        let passed = window.map_or(0, |window| (first + t + 1).saturating_sub(window));
        let (passed, seen) = seen.split_at_mut(passed);
        passed.fill(0.0);
        let most = largest(seen);
        for value in &mut *seen {
            *value = exp(*value - most);
        }
        let scale = 1.0 / sum_of(seen, |value| value);
        for value in seen {
            *value *= scale;
        }
    }
}

/// Like [`causal_softmax`], but its logarithm; later keys get negative infinity.
pub fn causal_log_softmax(mut scores_st: MatMut<'_, f32>, first: usize) {
    for t in 0..scores_st.ncols() {
        let (seen, ahead) = slice(scores_st.as_mut(), t).split_at_mut(first + t + 1);
        ahead.fill(f32::NEG_INFINITY);
        let most = largest(seen);
        let norm = most + sum_of(seen, |value| exp(value - most)).ln();
        for value in seen {
            *value -= norm;
        }
    }
}

/// Column `t` of a matrix whose columns are contiguous.
pub fn slice(matrix: MatMut<'_, f32>, t: usize) -> &mut [f32] {
    let column = matrix.col_mut(t).try_as_col_major_mut();
    column.expect("columns are contiguous").as_slice_mut()
}

/// `out += Σ_parts keysᵀ queries` for the queries `first..end` and the keys before `end`; every part
/// is a pair of keys and queries of equal width, all tokens of the window in each.
pub fn scores(parts: &[(MatRef<'_, f32>, MatRef<'_, f32>)], first: usize, end: usize) -> Mat<f32> {
    let mut out = Mat::zeros(end, end - first);
    for (k_ds, q_dt) in parts {
        let (k, q) = (k_ds.subcols(0, end), q_dt.subcols(first, end - first));
        let to = out.as_mut();
        faer::linalg::matmul::matmul(to, Accum::Add, k.transpose(), q, 1.0, Par::Seq);
    }
    out
}

/// The values mixed by the softmax of the scores of `parts`, into `out`, `[width, tokens]`; a query
/// sees the last `window` keys if there is a window.
pub fn mix(
    mut out: MatMut<'_, f32>,
    parts: &[(MatRef<'_, f32>, MatRef<'_, f32>)],
    v_ds: MatRef<'_, f32>,
    window: Option<usize>,
) {
    for (first, end) in query_blocks(v_ds.ncols()) {
        let mut a_st = scores(parts, first, end);
        causal_softmax(a_st.as_mut(), first, window);
        let to = out.as_mut().subcols_mut(first, end - first);
        super::linalg::set_mul(to, v_ds.subcols(0, end), a_st.as_ref());
    }
}

/// The attention weights of queries `q` on keys `k`, both `[width, tokens]`, the scale in `q`.
pub fn weights(q_dt: MatRef<'_, f32>, k_ds: MatRef<'_, f32>) -> Mat<f32> {
    table(q_dt, k_ds, |scores, first| {
        causal_softmax(scores, first, None);
    })
}

/// The logarithms of [`weights`].
pub fn log_weights(q_dt: MatRef<'_, f32>, k_ds: MatRef<'_, f32>) -> Mat<f32> {
    table(q_dt, k_ds, causal_log_softmax)
}

fn table(
    q_dt: MatRef<'_, f32>,
    k_ds: MatRef<'_, f32>,
    normalize: fn(MatMut<'_, f32>, usize),
) -> Mat<f32> {
    let tokens = q_dt.ncols();
    let mut out = Mat::zeros(tokens, tokens);
    for (first, end) in query_blocks(tokens) {
        let mut block = scores(&[(k_ds, q_dt)], first, end);
        normalize(block.as_mut(), first);
        let mut to = out.as_mut().submatrix_mut(0, first, end, end - first);
        to.copy_from(&block);
    }
    out
}

/// `exp`, as if numbers beyond -87 and 88 were these, to about one unit in the last place, in a form that
/// vectorizes: two to the nearest integer power times a polynomial (Cephes' coefficients).
pub fn exp(x: f32) -> f32 {
    // Adding 1.5 · 2²³ leaves the nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let k = shifted - ROUND;
    let r = x - k * 0.693_359_4 + k * 2.121_944_4e-4;
    let p = 1.987_569_1e-4 * r + 1.398_199_9e-3;
    let p = (p * r + 8.333_452e-3) * r + 4.166_579_6e-2;
    let p = (p * r + 1.666_666_5e-1) * r + 5.0e-1;
    let power = (shifted.to_bits() << 23).wrapping_add(0x3f80_0000);
    (p * r * r + r + 1.0) * f32::from_bits(power)
}

/// Partial sums side by side: fixed, so that a sum never depends on the machine.
const LANES: usize = 16;

/// The sum of `f` over `values`.
fn sum_of(values: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for chunk in chunks {
        (0..LANES).for_each(|i| lanes[i] += f(chunk[i]));
    }
    lanes.iter().sum::<f32>() + rest.iter().map(|&value| f(value)).sum::<f32>()
}

/// `Σ a b`.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut lanes = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        (0..LANES).for_each(|i| lanes[i] += a[i] * b[i]);
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    lanes.iter().sum::<f32>() + rest
}

fn largest(values: &[f32]) -> f32 {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        (0..LANES).for_each(|i| lanes[i] = lanes[i].max(chunk[i]));
    }
    lanes
        .iter()
        .chain(rest)
        .copied()
        .fold(f32::NEG_INFINITY, f32::max)
}
