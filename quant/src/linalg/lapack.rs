//! The same decompositions by the system's LAPACK.

use ndarray::{Array1, Array2, ArrayView2, s};
use ndarray_linalg::{Cholesky as _, Eigh, FactorizeC, JobSvd, SVDDC, SolveC, UPLO};

use super::{Svd, SymmetricEigen, finite, square};
use crate::error::Error;

/// See [`super::svd`].
pub fn svd(a: ArrayView2<'_, f64>) -> Result<Svd, Error> {
    let operation = "a singular value decomposition";
    finite(operation, a)?;
    match a.svddc(JobSvd::Some) {
        Ok((Some(u), s, Some(vt))) => Ok(Svd { u, s, vt }),
        _ => Err(Error::NoConvergence { operation }),
    }
}

/// See [`super::symmetric_eigen`].
pub fn symmetric_eigen(a: ArrayView2<'_, f64>) -> Result<SymmetricEigen, Error> {
    let operation = "an eigendecomposition";
    square(operation, a)?;
    let (values, vectors) = a
        .eigh(UPLO::Lower)
        .map_err(|_| Error::NoConvergence { operation })?;
    Ok(SymmetricEigen {
        values: values.slice(s![..;-1]).to_owned(),
        vectors: vectors.slice(s![.., ..;-1]).to_owned(),
    })
}

/// The factor of [`super::Cholesky`].
pub fn cholesky(a: ArrayView2<'_, f64>) -> Result<Array2<f64>, Error> {
    square("a Cholesky decomposition", a)?;
    a.cholesky(UPLO::Lower)
        .map_err(|_| Error::NotPositiveDefinite)
}

/// The solution of `a x = b` with a symmetric positive definite `a`, by its Cholesky factor.
pub fn solve(a: ArrayView2<'_, f64>, b: &Array1<f64>) -> Result<Array1<f64>, Error> {
    square("a Cholesky decomposition", a)?;
    let factor = a
        .to_owned()
        .factorizec(UPLO::Lower)
        .map_err(|_| Error::NotPositiveDefinite)?;
    factor.solvec(b).map_err(|_| Error::NotPositiveDefinite)
}
