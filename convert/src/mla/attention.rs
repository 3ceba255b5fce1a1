//! Causal softmax attention of one head over one window. A matrix of scores or weights is
//! `[keys, queries]`: a column belongs to one query.

use faer::{Mat, MatRef};

use super::linalg;

/// Softmax over the keys `s <= t` of each query `t`; later keys get zero.
pub fn causal_softmax(mut scores_st: Mat<f32>) -> Mat<f32> {
    for t in 0..scores_st.ncols() {
        let (seen, ahead) = scores_st.col_as_slice_mut(t).split_at_mut(t + 1);
        ahead.fill(0.0);
        let most = seen.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut sum = 0.0;
        for value in seen.iter_mut() {
            *value = (*value - most).exp();
            sum += *value;
        }
        for value in seen {
            *value /= sum;
        }
    }
    scores_st
}

/// The attention weights of queries `q` on keys `k`, both `[width, tokens]`, the scale in `q`.
pub fn weights(q_dt: MatRef<'_, f32>, k_ds: MatRef<'_, f32>) -> Mat<f32> {
    causal_softmax(linalg::mul(k_ds.transpose(), q_dt))
}
