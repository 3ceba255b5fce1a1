//! Decompositions of double-precision matrices, by faer.
//!
//! They run on one thread, so that results do not depend on how many there are; callers decompose
//! several matrices in parallel. With the feature `lapack` the module `lapack` offers the same by
//! the system's LAPACK, as a cross-check.
#![expect(
    clippy::needless_pass_by_value,
    reason = "views are passed like references"
)]
#![expect(
    clippy::default_trait_access,
    reason = "parameters of faer that are left alone"
)]

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack, StackReq};
use faer::linalg::cholesky::llt::factor as llt;
use faer::linalg::triangular_solve::{
    solve_lower_triangular_in_place, solve_upper_triangular_in_place,
};
use faer::linalg::{evd, svd as faer_svd};
use faer::{Mat, MatMut, MatRef, Par};
use ndarray::{Array1, Array2, ArrayView2};

use crate::error::Error;

#[cfg(feature = "lapack")]
pub mod lapack;

/// A thin singular value decomposition `a = u diag(s) vt`; with `k = min(m, n)`:
#[derive(Clone, Debug)]
pub struct Svd {
    /// `[m, k]`, orthonormal columns.
    pub u: Array2<f64>,
    /// `[k]`, largest first.
    pub s: Array1<f64>,
    /// `[k, n]`, orthonormal rows.
    pub vt: Array2<f64>,
}

/// The decomposition `a = vectors diag(values) vectorsᵀ` of a symmetric matrix.
#[derive(Clone, Debug)]
pub struct SymmetricEigen {
    /// `[n]`, largest first.
    pub values: Array1<f64>,
    /// `[n, n]`: column `i` belongs to value `i`.
    pub vectors: Array2<f64>,
}

/// The decomposition `a = l lᵀ` of a symmetric positive definite matrix.
#[derive(Clone, Debug)]
pub struct Cholesky {
    lower: Array2<f64>,
}

/// Decomposes any finite matrix.
pub fn svd(a: ArrayView2<'_, f64>) -> Result<Svd, Error> {
    let operation = "a singular value decomposition";
    finite(operation, a)?;
    let (m, n) = a.dim();
    let k = m.min(n);
    let a = a.as_standard_layout();
    let a = row_major(&a);
    let (mut u, mut s, mut v) = (Mat::zeros(m, k), Diag::zeros(k), Mat::zeros(n, k));
    let thin = faer_svd::ComputeSvdVectors::Thin;
    let scratch = faer_svd::svd_scratch::<f64>(m, n, thin, thin, Par::Seq, Default::default());
    with_scratch(scratch, |stack| {
        let (u, v) = (Some(u.as_mut()), Some(v.as_mut()));
        faer_svd::svd(a, s.as_mut(), u, v, Par::Seq, stack, Default::default())
    })
    .map_err(|_| Error::NoConvergence { operation })?;
    Ok(Svd {
        u: Array2::from_shape_fn((m, k), |(i, j)| u[(i, j)]),
        s: Array1::from_shape_fn(k, |i| s[i]),
        vt: Array2::from_shape_fn((k, n), |(i, j)| v[(j, i)]),
    })
}

/// Decomposes a finite symmetric matrix; reads its lower triangle.
pub fn symmetric_eigen(a: ArrayView2<'_, f64>) -> Result<SymmetricEigen, Error> {
    let operation = "an eigendecomposition";
    let n = square(operation, a)?;
    let a = a.as_standard_layout();
    let a = row_major(&a);
    let (mut values, mut vectors) = (Diag::zeros(n), Mat::zeros(n, n));
    let yes = evd::ComputeEigenvectors::Yes;
    let scratch = evd::self_adjoint_evd_scratch::<f64>(n, yes, Par::Seq, Default::default());
    with_scratch(scratch, |stack| {
        let vectors = Some(vectors.as_mut());
        evd::self_adjoint_evd(
            a,
            values.as_mut(),
            vectors,
            Par::Seq,
            stack,
            Default::default(),
        )
    })
    .map_err(|_| Error::NoConvergence { operation })?;
    Ok(SymmetricEigen {
        values: Array1::from_shape_fn(n, |i| values[n - 1 - i]),
        vectors: Array2::from_shape_fn((n, n), |(i, j)| vectors[(i, n - 1 - j)]),
    })
}

impl Cholesky {
    /// Decomposes a finite symmetric positive definite matrix; reads its lower triangle.
    pub fn new(a: ArrayView2<'_, f64>) -> Result<Self, Error> {
        let n = square("a Cholesky decomposition", a)?;
        let mut lower = a.as_standard_layout().into_owned();
        let scratch = llt::cholesky_in_place_scratch::<f64>(n, Par::Seq, Default::default());
        with_scratch(scratch, |stack| {
            let lower = row_major_mut(&mut lower);
            llt::cholesky_in_place(
                lower,
                Default::default(),
                Par::Seq,
                stack,
                Default::default(),
            )
        })
        .map_err(|_| Error::NotPositiveDefinite)?;
        for ((i, j), value) in lower.indexed_iter_mut() {
            if j > i {
                *value = 0.0;
            }
        }
        Ok(Cholesky { lower })
    }

    /// The factor `l`, zero above its diagonal.
    pub fn lower(&self) -> ArrayView2<'_, f64> {
        self.lower.view()
    }

    /// The solution `x` of `a x = b` for each column of `b`, `[n, columns]`.
    pub fn solve(&self, b: ArrayView2<'_, f64>) -> Result<Array2<f64>, Error> {
        if b.nrows() != self.lower.nrows() {
            return Err(Error::SystemSize {
                expected: self.lower.nrows(),
                found: b.nrows(),
            });
        }
        let lower = row_major(&self.lower);
        let mut x = b.as_standard_layout().into_owned();
        solve_lower_triangular_in_place(lower, row_major_mut(&mut x), Par::Seq);
        solve_upper_triangular_in_place(lower.transpose(), row_major_mut(&mut x), Par::Seq);
        Ok(x)
    }
}

pub(crate) fn with_scratch<T>(size: StackReq, run: impl FnOnce(&mut MemStack) -> T) -> T {
    run(MemStack::new(&mut MemBuffer::new(size)))
}

fn finite(operation: &'static str, a: ArrayView2<'_, f64>) -> Result<(), Error> {
    if a.iter().all(|value| value.is_finite()) {
        Ok(())
    } else {
        Err(Error::NotFiniteMatrix { operation })
    }
}

/// The side of a finite square matrix.
fn square(operation: &'static str, a: ArrayView2<'_, f64>) -> Result<usize, Error> {
    let (rows, cols) = a.dim();
    if rows != cols {
        return Err(Error::NotSquare {
            operation,
            rows,
            cols,
        });
    }
    finite(operation, a)?;
    Ok(rows)
}

fn row_major<S: ndarray::Data<Elem = f64>>(
    a: &ndarray::ArrayBase<S, ndarray::Ix2>,
) -> MatRef<'_, f64> {
    let (rows, cols) = a.dim();
    MatRef::from_row_major_slice(
        a.as_slice().expect("an array in standard layout"),
        rows,
        cols,
    )
}

fn row_major_mut(a: &mut Array2<f64>) -> MatMut<'_, f64> {
    let (rows, cols) = a.dim();
    MatMut::from_row_major_slice_mut(
        a.as_slice_mut().expect("an array in standard layout"),
        rows,
        cols,
    )
}
