//! Products and decompositions of dense matrices.
//!
//! Results never depend on the number of threads: what is parallel here is cut the same way whatever
//! there are, and the rest runs on one, callers working on independent matrices in parallel. Matrices
//! of activations hold one token per column.

use faer::Spec;
use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd;
use faer::linalg::matmul::matmul;
use faer::traits::ComplexField;
use faer::{Accum, Mat, MatMut, MatRef, Par, c64};
use ndarray::Array2;
use neuroconv_quant::linalg::{Cholesky, symmetric_eigen};
use rayon::prelude::*;

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

/// Columns of a product that one task owns: fixed, so that results never depend on the threads.
const PANEL: usize = 256;

/// `a b`, panels of its columns in parallel: for large matrices outside of parallel loops.
pub fn par_mul<T: ComplexField + Send + Sync>(a: MatRef<'_, T>, b: MatRef<'_, T>) -> Mat<T> {
    let mut out = Mat::zeros(a.nrows(), b.ncols());
    let panels = out.as_mut().par_col_chunks_mut(PANEL).enumerate();
    panels.for_each(|(panel, out)| {
        let b = b.subcols(panel * PANEL, out.ncols());
        set_mul(out, a, b);
    });
    out
}

/// `w x + bias`, the bias added to every column.
pub fn affine(w: MatRef<'_, f32>, bias: &[f32], x_it: MatRef<'_, f32>) -> Mat<f32> {
    let mut y_ot = mul(w, x_it);
    add_bias(&mut y_ot, bias);
    y_ot
}

fn add_bias(y_ot: &mut Mat<f32>, bias: &[f32]) {
    for t in 0..y_ot.ncols() {
        for (y, b) in y_ot.col_as_slice_mut(t).iter_mut().zip(bias) {
            *y += b;
        }
    }
}

/// [`affine`] with panels of the tokens in parallel.
pub fn par_affine(w: MatRef<'_, f32>, bias: &[f32], x_it: MatRef<'_, f32>) -> Mat<f32> {
    let mut y_ot = par_mul(w, x_it);
    add_bias(&mut y_ot, bias);
    y_ot
}

/// `values` as one column.
pub fn column(values: &[f32]) -> MatRef<'_, f32> {
    MatRef::from_column_major_slice(values, values.len(), 1)
}

/// `a` in double precision.
pub fn wide(a: MatRef<'_, f32>) -> Mat<f64> {
    each(a, f64::from)
}

/// `a` in single precision.
pub fn narrow(a: MatRef<'_, f64>) -> Mat<f32> {
    each(a, |value| value as f32)
}

fn each<T: ComplexField + Copy, U: ComplexField>(a: MatRef<'_, T>, f: impl Fn(T) -> U) -> Mat<U> {
    let mut out = Mat::zeros(a.nrows(), a.ncols());
    for j in 0..a.ncols() {
        let to = out.col_as_slice_mut(j);
        match a.col(j).try_as_col_major() {
            Some(from) => to
                .iter_mut()
                .zip(from.as_slice())
                .for_each(|(to, &from)| *to = f(from)),
            None => to
                .iter_mut()
                .enumerate()
                .for_each(|(i, to)| *to = f(a[(i, j)])),
        }
    }
    out
}

/// Eigenvalues of a symmetric matrix, largest first, and their vectors as columns.
pub fn eigen(a: MatRef<'_, f64>) -> Result<(Vec<f64>, Mat<f64>), Error> {
    let found = symmetric_eigen(array(a).view())?;
    Ok((found.values.to_vec(), matrix(&found.vectors)))
}

/// The same of a Hermitian matrix.
pub fn hermitian_eigen(a: MatRef<'_, c64>) -> Result<(Vec<f64>, Mat<c64>), Error> {
    let n = a.nrows();
    let (mut values, mut vectors) = (Diag::<c64>::zeros(n), Mat::<c64>::zeros(n, n));
    let yes = evd::ComputeEigenvectors::Yes;
    let scratch = evd::self_adjoint_evd_scratch::<c64>(n, yes, Par::Seq, Spec::default());
    let mut memory = MemBuffer::new(scratch);
    let (stack, to) = (MemStack::new(&mut memory), Some(vectors.as_mut()));
    evd::self_adjoint_evd(a, values.as_mut(), to, Par::Seq, stack, Spec::default())
        .map_err(|_| Error::NoConvergence)?;
    let vectors = Mat::from_fn(n, n, |i, j| vectors[(i, n - 1 - j)]);
    Ok(((0..n).rev().map(|i| values[i].re).collect(), vectors))
}

/// The symmetric square root of a positive semidefinite matrix; negative eigenvalues, which only
/// rounding makes, count as zero.
pub fn sqrt_psd(a: MatRef<'_, f64>) -> Result<Mat<f64>, Error> {
    let (values, vectors) = eigen(a)?;
    let scaled = Mat::from_fn(a.nrows(), a.nrows(), |i, j| {
        vectors[(i, j)] * values[j].max(0.0).sqrt()
    });
    Ok(mul(scaled.as_ref(), vectors.transpose()))
}

/// The solution `x` of `a x = b` for a symmetric positive definite `a`, panels of the columns of `b`
/// in parallel.
pub fn solve_spd(a: MatRef<'_, f64>, b: MatRef<'_, f64>) -> Result<Mat<f64>, Error> {
    let factor = Cholesky::new(array(a).view())?;
    let mut out = Mat::zeros(b.nrows(), b.ncols());
    let panels = out.as_mut().par_col_chunks_mut(PANEL).enumerate();
    panels.try_for_each(|(panel, mut out)| {
        let b = b.subcols(panel * PANEL, out.ncols());
        out.copy_from(matrix(&factor.solve(array(b).view())?));
        Ok::<_, Error>(())
    })?;
    Ok(out)
}

/// `a + share · mean(diagonal) · I`: keeps a solve stable whatever the scale of `a`.
pub fn damped(a: MatRef<'_, f64>, share: f64) -> Mat<f64> {
    let add = share * trace(a) / a.nrows().max(1) as f64;
    // A matrix of zeros has nothing to invert; the unit makes its solve return zeros.
    let add = if add > 0.0 { add } else { 1.0 };
    Mat::from_fn(a.nrows(), a.nrows(), |i, j| {
        a[(i, j)] + if i == j { add } else { 0.0 }
    })
}

/// The inverse of `damped(a, share)`.
pub fn damped_inverse(a: MatRef<'_, f64>, share: f64) -> Result<Mat<f64>, Error> {
    solve_spd(
        damped(a, share).as_ref(),
        Mat::identity(a.nrows(), a.nrows()).as_ref(),
    )
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

fn array(a: MatRef<'_, f64>) -> Array2<f64> {
    Array2::from_shape_fn((a.nrows(), a.ncols()), |(i, j)| a[(i, j)])
}

fn matrix(a: &Array2<f64>) -> Mat<f64> {
    Mat::from_fn(a.nrows(), a.ncols(), |i, j| a[(i, j)])
}
