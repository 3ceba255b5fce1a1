//! Products of dense matrices.

use half::{bf16, f16};
use neuroconv_kernels::{DenseSlice, Isa, matmul_dense, matmul_dense_on};

use crate::{Numbers, assert_same};

/// A matrix in each element type, with the values that are stored.
fn stored(w: &[f32]) -> [(Vec<u8>, Vec<f32>); 3] {
    let f16s: Vec<f16> = w.iter().map(|&w| f16::from_f32(w)).collect();
    let bf16s: Vec<bf16> = w.iter().map(|&w| bf16::from_f32(w)).collect();
    [
        (Vec::new(), w.to_vec()),
        (
            f16s.iter().flat_map(|w| w.to_le_bytes()).collect(),
            f16s.iter().map(|w| w.to_f32()).collect(),
        ),
        (
            bf16s.iter().flat_map(|w| w.to_le_bytes()).collect(),
            bf16s.iter().map(|w| w.to_f32()).collect(),
        ),
    ]
}

fn slice<'a>(kind: usize, bytes: &'a [u8], values: &'a [f32]) -> DenseSlice<'a> {
    match kind {
        0 => DenseSlice::F32(values),
        1 => DenseSlice::F16(bytes),
        _ => DenseSlice::Bf16(bytes),
    }
}

#[test]
fn every_isa_equals_scalar_bit_for_bit_and_the_bound_holds() {
    let mut numbers = Numbers::new(6);
    for case in 0..60 {
        let (rows, cols, t) = (1 + numbers.below(40), 1 + numbers.below(300), 1 + case % 9);
        let w = numbers.activations(rows * cols);
        let x = numbers.activations(t * cols);
        for (kind, (bytes, values)) in stored(&w).iter().enumerate() {
            let on = |isa| {
                let mut y = vec![f32::NAN; t * rows];
                matmul_dense_on(isa, slice(kind, bytes, values), rows, cols, &x, t, &mut y);
                y
            };
            let expected = on(Isa::SCALAR);
            for isa in Isa::available() {
                assert_same(
                    &on(isa),
                    &expected,
                    &format!("{} {kind} {rows}x{cols} t {t}", isa.name()),
                );
            }
            for (i, &y) in expected.iter().enumerate() {
                let (t, n) = (i / rows, i % rows);
                let terms =
                    (0..cols).map(|k| f64::from(values[n * cols + k]) * f64::from(x[t * cols + k]));
                let (exact, size) =
                    terms.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()));
                let bound = (cols as f64 / 16.0 + 6.0) * 2.0_f64.powi(-24) * size;
                assert!((f64::from(y) - exact).abs() <= bound, "{y} {exact}");
            }
        }
    }
}

#[test]
fn threads_and_cache_blocks_change_nothing() {
    let mut numbers = Numbers::new(7);
    let (rows, cols, t) = (150, 2000, 70);
    let w = numbers.activations(rows * cols);
    let x = numbers.activations(t * cols);
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        let mut y = vec![0.0; t * rows];
        pool.install(|| matmul_dense(DenseSlice::F32(&w), rows, cols, &x, t, &mut y));
        y
    };
    let one = on(1);
    assert_same(&on(3), &one, "three threads");
    let mut single = vec![0.0; rows];
    matmul_dense(
        DenseSlice::F32(&w),
        rows,
        cols,
        &x[7 * cols..8 * cols],
        1,
        &mut single,
    );
    assert_same(&single, &one[7 * rows..8 * rows], "a single row");
}

#[test]
fn what_is_not_finite_reaches_the_output() {
    for isa in Isa::available() {
        let mut x = vec![1.0; 5 * 40];
        x[2 * 40 + 39] = f32::NAN;
        let mut y = vec![0.0; 5 * 7];
        matmul_dense_on(isa, DenseSlice::F32(&[1.0; 7 * 40]), 7, 40, &x, 5, &mut y);
        for (t, y) in y.chunks(7).enumerate() {
            assert!(
                y.iter()
                    .all(|y| if t == 2 { y.is_nan() } else { *y == 40.0 })
            );
        }
    }
}
