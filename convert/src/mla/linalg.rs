//! Products and decompositions of dense matrices, by faer.
//!
//! Everything here runs on one thread, so that results do not depend on how many there are;
//! callers work on independent matrices in parallel. Matrices of activations hold one token per
//! column.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack, StackReq};
use faer::linalg::cholesky::llt::factor as llt;
use faer::linalg::evd;
use faer::linalg::matmul::matmul;
use faer::linalg::triangular_solve::{
    solve_lower_triangular_in_place, solve_upper_triangular_in_place,
};
use faer::traits::ComplexField;
use faer::{Accum, Mat, MatMut, MatRef, Par};

use super::error::Error;

/// `a b`.
pub fn mul<T: ComplexField>(a: MatRef<'_, T>, b: MatRef<'_, T>) -> Mat<T> {
    let mut out = Mat::zeros(a.nrows(), b.ncols());
    set_mul(out.as_mut(), a, b);
    out
}

/// `out = a b`.
pub fn set_mul<T: ComplexField>(out: MatMut<'_, T>, a: MatRef<'_, T>, b: MatRef<'_, T>) {
    matmul(out, Accum::Replace, a, b, T::one_impl(), Par::Seq);
}

/// `out += a b`.
pub fn add_mul<T: ComplexField>(out: MatMut<'_, T>, a: MatRef<'_, T>, b: MatRef<'_, T>) {
    matmul(out, Accum::Add, a, b, T::one_impl(), Par::Seq);
}

/// `w x + bias`, the bias added to every column.
pub fn affine(w: MatRef<'_, f32>, bias: &[f32], x_it: MatRef<'_, f32>) -> Mat<f32> {
    let mut y_ot = mul(w, x_it);
    for t in 0..y_ot.ncols() {
        for (y, b) in y_ot.col_as_slice_mut(t).iter_mut().zip(bias) {
            *y += b;
        }
    }
    y_ot
}

/// `a` in double precision.
pub fn wide(a: MatRef<'_, f32>) -> Mat<f64> {
    Mat::from_fn(a.nrows(), a.ncols(), |i, j| f64::from(a[(i, j)]))
}

/// `a` in single precision.
pub fn narrow(a: MatRef<'_, f64>) -> Mat<f32> {
    Mat::from_fn(a.nrows(), a.ncols(), |i, j| a[(i, j)] as f32)
}

/// Eigenvalues of a symmetric or Hermitian matrix, largest first, and their vectors as columns.
pub fn eigen<T: ComplexField>(a: MatRef<'_, T>) -> Result<(Vec<T>, Mat<T>), Error> {
    let n = a.nrows();
    let (mut values, mut vectors) = (Diag::<T>::zeros(n), Mat::<T>::zeros(n, n));
    let yes = evd::ComputeEigenvectors::Yes;
    let scratch = evd::self_adjoint_evd_scratch::<T>(n, yes, Par::Seq, Default::default());
    with_scratch(scratch, |stack| {
        let vectors = Some(vectors.as_mut());
        evd::self_adjoint_evd(a, values.as_mut(), vectors, Par::Seq, stack, Default::default())
    })
    .map_err(|_| Error::NoConvergence)?;
    let order = (0..n).rev();
    let vectors = Mat::from_fn(n, n, |i, j| vectors[(i, n - 1 - j)].clone());
    Ok((order.map(|i| values[i].clone()).collect(), vectors))
}

/// The symmetric square root of a positive semidefinite matrix; negative eigenvalues, which only
/// rounding makes, count as zero.
pub fn sqrt_psd(a: MatRef<'_, f64>) -> Result<Mat<f64>, Error> {
    let (values, vectors) = eigen(a)?;
    let scaled = Mat::from_fn(a.nrows(), a.nrows(), |i, j| vectors[(i, j)] * values[j].max(0.0).sqrt());
    Ok(mul(scaled.as_ref(), vectors.transpose()))
}

/// The solution `x` of `a x = b` for a symmetric positive definite `a`.
pub fn solve_spd(a: MatRef<'_, f64>, b: MatRef<'_, f64>) -> Result<Mat<f64>, Error> {
    let (mut lower, mut x) = (a.to_owned(), b.to_owned());
    let scratch = llt::cholesky_in_place_scratch::<f64>(a.nrows(), Par::Seq, Default::default());
    with_scratch(scratch, |stack| {
        llt::cholesky_in_place(lower.as_mut(), Default::default(), Par::Seq, stack, Default::default())
    })
    .map_err(|_| Error::NotPositiveDefinite)?;
    solve_lower_triangular_in_place(lower.as_ref(), x.as_mut(), Par::Seq);
    solve_upper_triangular_in_place(lower.transpose(), x.as_mut(), Par::Seq);
    Ok(x)
}

/// `a + share · mean(diagonal) · I`: keeps a solve stable whatever the scale of `a`.
pub fn damped(a: MatRef<'_, f64>, share: f64) -> Mat<f64> {
    let add = share * trace(a) / a.nrows().max(1) as f64;
    // A matrix of zeros has nothing to invert; the unit makes its solve return zeros.
    let add = if add > 0.0 { add } else { 1.0 };
    Mat::from_fn(a.nrows(), a.nrows(), |i, j| a[(i, j)] + if i == j { add } else { 0.0 })
}

/// The inverse of `damped(a, share)`.
pub fn damped_inverse(a: MatRef<'_, f64>, share: f64) -> Result<Mat<f64>, Error> {
    solve_spd(damped(a, share).as_ref(), Mat::identity(a.nrows(), a.nrows()).as_ref())
}

/// The sum of the diagonal.
pub fn trace(a: MatRef<'_, f64>) -> f64 {
    (0..a.nrows()).map(|i| a[(i, i)]).sum()
}

/// The sum over all elements of `a ∘ b`.
pub fn dot(a: MatRef<'_, f64>, b: MatRef<'_, f64>) -> f64 {
    let column = |j| (0..a.nrows()).map(|i| a[(i, j)] * b[(i, j)]).sum::<f64>();
    (0..a.ncols()).map(column).sum()
}

fn with_scratch<T>(size: StackReq, run: impl FnOnce(&mut MemStack) -> T) -> T {
    run(MemStack::new(&mut MemBuffer::new(size)))
}
