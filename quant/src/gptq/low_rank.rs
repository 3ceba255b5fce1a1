//! The low-rank correction of least output error.
//!
//! What rounding leaves of a matrix, `e = t - q`, costs `tr(e H eᵀ)` in outputs. Of all corrections
//! `B A` of a rank the one that leaves least is `B = U`, `A = Uᵀ e`, where `U` holds the leading
//! eigenvectors of `e H eᵀ`: in the metric of the inputs this is the truncated singular value
//! decomposition (Eckart and Young), and no inverse of `H` is needed.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};
use half::f16;
use ndarray::Array2;

use super::metric::InputMetric;
use crate::error::Error;
use crate::linalg::symmetric_eigen;

/// The factors of a correction, rounded to f16.
#[derive(Clone, Debug, PartialEq)]
pub struct LowRankFit {
    /// Columns of `b`, rows of `a`.
    pub rank: usize,
    /// `[rank, cols]`, row-major.
    pub a_rk: Vec<f16>,
    /// `[rows, rank]`, row-major.
    pub b_nr: Vec<f16>,
}

/// The correction of rank `rank`, or of `rows` if that is less, for what is left over,
/// `left_nk` (`[rows, cols]`, row-major).
///
/// Panics when the lengths differ.
pub fn low_rank(
    left_nk: &[f32],
    rows: usize,
    metric: &InputMetric,
    rank: usize,
) -> Result<LowRankFit, Error> {
    let cols = metric.cols();
    assert_eq!(left_nk.len(), rows * cols, "what is left of every weight");
    let rank = rank.min(rows).min(cols);
    // By place, as the metric is.
    let order = metric.order();
    let left = Mat::<f32>::from_fn(rows, cols, |i, place| left_nk[i * cols + order[place]]);
    let mut weighed = Mat::<f32>::zeros(rows, cols);
    matmul(
        weighed.as_mut(),
        Accum::Replace,
        left.as_ref(),
        metric.all(),
        1.0,
        Par::Seq,
    );
    let mut gram = Mat::<f32>::zeros(rows, rows);
    matmul(
        gram.as_mut(),
        Accum::Replace,
        weighed.as_ref(),
        left.transpose(),
        1.0,
        Par::Seq,
    );
    let symmetric = Array2::from_shape_fn((rows, rows), |(i, j)| {
        f64::midpoint(f64::from(gram[(i, j)]), f64::from(gram[(j, i)]))
    });
    let eigen = symmetric_eigen(symmetric.view())?;
    let vectors = &|i: usize, r: usize| eigen.vectors[(i, r)] as f32;
    let b_nr: Vec<f16> = (0..rows)
        .flat_map(|i| (0..rank).map(move |r| f16::from_f32(vectors(i, r))))
        .collect();
    let b = Mat::<f32>::from_fn(rows, rank, vectors);
    let original = MatRef::from_row_major_slice(left_nk, rows, cols);
    let mut a = Mat::<f32>::zeros(rank, cols);
    matmul(
        a.as_mut(),
        Accum::Replace,
        b.transpose(),
        original,
        1.0,
        Par::Seq,
    );
    let a_rk = (0..rank)
        .flat_map(|r| (0..cols).map(move |k| (r, k)))
        .map(|(r, k)| f16::from_f32(a[(r, k)]))
        .collect();
    Ok(LowRankFit { rank, a_rk, b_nr })
}

impl LowRankFit {
    /// `B A`, `[rows, cols]`, row-major.
    pub fn product(&self, cols: usize) -> Vec<f32> {
        let rank = self.rank.max(1);
        let mut product = Vec::with_capacity(self.b_nr.len() / rank * cols);
        for b_r in self.b_nr.chunks(rank) {
            let mut row = vec![0.0_f32; cols];
            for (b, a_k) in b_r.iter().zip(self.a_rk.chunks(cols)) {
                let b = b.to_f32();
                row.iter_mut()
                    .zip(a_k)
                    .for_each(|(y, a)| *y += b * a.to_f32());
            }
            product.extend(row);
        }
        product
    }
}
