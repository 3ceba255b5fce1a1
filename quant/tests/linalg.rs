//! Decompositions against their defining equations and, with `lapack`, against LAPACK.

use ndarray::{Array1, Array2};
use neuroconv_quant::Error;
use neuroconv_quant::linalg::{Cholesky, svd, symmetric_eigen};

use crate::gaussian;

fn matrix(rows: usize, cols: usize, seed: u64) -> Array2<f64> {
    let values = gaussian(rows * cols, seed)
        .into_iter()
        .map(f64::from)
        .collect();
    Array2::from_shape_vec((rows, cols), values).expect("as many values")
}

fn positive_definite(n: usize, seed: u64) -> Array2<f64> {
    let a = matrix(n + 3, n, seed);
    a.t().dot(&a) + 0.1 * Array2::<f64>::eye(n)
}

fn assert_close(a: &Array2<f64>, b: &Array2<f64>) {
    assert_eq!(a.dim(), b.dim());
    for (a, b) in a.iter().zip(b) {
        assert!((a - b).abs() < 1e-10, "{a} {b}");
    }
}

#[test]
fn singular_vectors_are_orthonormal_and_multiply_back() {
    for (m, n) in [(1, 1), (7, 3), (3, 7), (40, 40), (100, 30)] {
        let a = matrix(m, n, 1);
        let d = svd(a.view()).unwrap();
        let k = m.min(n);
        assert_eq!((d.u.dim(), d.s.len(), d.vt.dim()), ((m, k), k, (k, n)));
        assert_close(&(&d.u * &d.s).dot(&d.vt), &a);
        assert_close(&d.u.t().dot(&d.u), &Array2::eye(k));
        assert_close(&d.vt.dot(&d.vt.t()), &Array2::eye(k));
        assert!(d.s.windows(2).into_iter().all(|s| s[0] >= s[1]) && d.s[k - 1] >= 0.0);
    }
}

#[test]
fn views_in_any_memory_order_are_read_right() {
    let a = matrix(6, 9, 2);
    let d = svd(a.t()).unwrap();
    assert_close(&(&d.u * &d.s).dot(&d.vt), &a.t().to_owned());
    let spd = positive_definite(5, 3);
    let factor = Cholesky::new(spd.t()).unwrap();
    assert_close(&factor.lower().dot(&factor.lower().t()), &spd);
}

#[test]
fn eigenvectors_are_orthonormal_and_multiply_back() {
    for n in [1, 2, 30, 65] {
        let a = positive_definite(n, 4) - 5.0 * Array2::<f64>::eye(n);
        let d = symmetric_eigen(a.view()).unwrap();
        assert_close(&(&d.vectors * &d.values).dot(&d.vectors.t()), &a);
        assert_close(&d.vectors.t().dot(&d.vectors), &Array2::eye(n));
        assert!(d.values.windows(2).into_iter().all(|v| v[0] >= v[1]));
    }
}

#[test]
fn cholesky_factors_multiply_back_and_solve() {
    for n in [1, 2, 31, 100] {
        let a = positive_definite(n, 5);
        let factor = Cholesky::new(a.view()).unwrap();
        assert_close(&factor.lower().dot(&factor.lower().t()), &a);
        assert!(
            factor
                .lower()
                .indexed_iter()
                .all(|((i, j), &x)| j <= i || x == 0.0)
        );
        let x = matrix(n, 4, 6);
        assert_close(&factor.solve(a.dot(&x).view()).unwrap(), &x);
    }
}

#[test]
fn what_cannot_be_decomposed_is_refused() {
    let mut nan = Array2::eye(4);
    nan[(2, 1)] = f64::NAN;
    assert!(matches!(
        svd(nan.view()),
        Err(Error::NotFiniteMatrix { .. })
    ));
    assert!(matches!(
        symmetric_eigen(nan.view()),
        Err(Error::NotFiniteMatrix { .. })
    ));
    assert!(matches!(
        Cholesky::new(nan.view()),
        Err(Error::NotFiniteMatrix { .. })
    ));
    let flat = Array2::<f64>::zeros((2, 3));
    assert!(matches!(
        symmetric_eigen(flat.view()),
        Err(Error::NotSquare {
            rows: 2,
            cols: 3,
            ..
        })
    ));
    assert!(matches!(
        Cholesky::new(flat.view()),
        Err(Error::NotSquare {
            rows: 2,
            cols: 3,
            ..
        })
    ));
    let indefinite = Array2::from_diag(&Array1::from(vec![1.0, -1.0]));
    assert_eq!(
        Cholesky::new(indefinite.view()).unwrap_err(),
        Error::NotPositiveDefinite
    );
    let factor = Cholesky::new(Array2::eye(3).view()).unwrap();
    let wrong = factor.solve(Array2::zeros((2, 1)).view());
    assert_eq!(
        wrong.unwrap_err(),
        Error::SystemSize {
            expected: 3,
            found: 2
        }
    );
    assert_eq!(
        svd(Array2::zeros((3, 2)).view()).unwrap().s.to_vec(),
        [0.0, 0.0]
    );
}

#[cfg(feature = "lapack")]
mod against_lapack {
    use approx::assert_relative_eq;
    use neuroconv_quant::linalg::lapack;

    use super::*;

    /// Vectors are unique up to sign, so products that do not depend on it are compared.
    #[test]
    fn all_three_agree() {
        let a = matrix(60, 40, 8);
        let (ours, theirs) = (svd(a.view()).unwrap(), lapack::svd(a.view()).unwrap());
        assert_relative_eq!(ours.s, theirs.s, max_relative = 1e-10);
        let leading = |d: &neuroconv_quant::linalg::Svd| {
            let (u, s, vt) = (
                d.u.slice(ndarray::s![.., ..5]),
                &d.s,
                d.vt.slice(ndarray::s![..5, ..]),
            );
            (&u * &s.slice(ndarray::s![..5])).dot(&vt)
        };
        assert_relative_eq!(leading(&ours), leading(&theirs), epsilon = 1e-9);

        let spd = positive_definite(50, 9);
        let (ours, theirs) = (
            symmetric_eigen(spd.view()).unwrap(),
            lapack::symmetric_eigen(spd.view()).unwrap(),
        );
        assert_relative_eq!(ours.values, theirs.values, max_relative = 1e-9);
        for i in 0..50 {
            let cosine = ours.vectors.column(i).dot(&theirs.vectors.column(i));
            assert_relative_eq!(cosine.abs(), 1.0, epsilon = 1e-9);
        }

        let factor = Cholesky::new(spd.view()).unwrap();
        assert_relative_eq!(
            factor.lower().to_owned(),
            lapack::cholesky(spd.view()).unwrap(),
            epsilon = 1e-9
        );
        let b = Array1::from_iter((0..50).map(f64::from));
        let x = factor
            .solve(b.view().insert_axis(ndarray::Axis(1)))
            .unwrap();
        assert_relative_eq!(
            x.column(0).to_owned(),
            lapack::solve(spd.view(), &b).unwrap(),
            epsilon = 1e-8
        );
    }

    #[test]
    fn both_refuse_the_same() {
        let indefinite = Array2::from_diag(&Array1::from(vec![1.0, -1.0]));
        assert_eq!(
            lapack::cholesky(indefinite.view()).unwrap_err(),
            Error::NotPositiveDefinite
        );
        assert!(lapack::svd(Array2::from_elem((2, 2), f64::NAN).view()).is_err());
    }
}
