//! Rounding in the metric of inputs, against brute force and against rounding by itself.

use faer::Mat;
use neuroconv_format::{PackedTensor, Tensor};
use neuroconv_quant::gptq::{InputMetric, Rounded, Rounding, low_rank};
use neuroconv_quant::{Error, Levels, QuantizeSpec, Threshold, dequantize, quantize};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use crate::gaussian;

const ALL: [Levels; 4] = [Levels::Ternary, Levels::Nine, Levels::Int4, Levels::Int8];

/// Moments of inputs that hang together: a few directions carry most of them.
fn moments(n: usize, seed: u64) -> Mat<f64> {
    let (tokens, directions) = (3 * n, n.div_ceil(4));
    let mixing = gaussian(directions * n, seed);
    let strength = gaussian(tokens * directions, seed + 1);
    let noise = gaussian(tokens * n, seed + 2);
    let x = Mat::<f64>::from_fn(tokens, n, |t, i| {
        let mixed: f64 = (0..directions)
            .map(|d| f64::from(strength[t * directions + d] * mixing[d * n + i]))
            .sum();
        mixed + 0.3 * f64::from(noise[t * n + i])
    });
    x.transpose() * &x * faer::Scale(1.0 / tokens as f64)
}

/// `Σ e H eᵀ` over the rows, in double precision.
fn cost(off: &[f32], n: usize, h: &Mat<f64>) -> f64 {
    let row = |e: &[f32]| {
        let term = |i: usize, j: usize| f64::from(e[i]) * h[(i, j)] * f64::from(e[j]);
        (0..n)
            .flat_map(|i| (0..n).map(move |j| (i, j)))
            .map(|(i, j)| term(i, j))
            .sum::<f64>()
    };
    off.chunks(n).map(row).sum()
}

fn left_over(w: &[f32], tensor: &PackedTensor) -> Vec<f32> {
    let values = dequantize(&Tensor::Packed(tensor.clone()));
    w.iter().zip(values).map(|(w, v)| w - v).collect()
}

fn rounded(w: &[f32], rows: usize, spec: &QuantizeSpec, h: &Mat<f64>) -> Rounded {
    let metric = InputMetric::new(h.as_ref(), spec.group).expect("moments of inputs");
    let rounding = Rounding {
        spec,
        metric: &metric,
        target_nk: None,
        apart: &[],
    };
    let rounded = rounding.round(w, rows, w.len() / rows);
    rounded.expect("a matrix to round")
}

/// With its damping, as [`InputMetric`] has it.
fn damped(h: &Mat<f64>) -> Mat<f64> {
    let n = h.nrows();
    let mean = (0..n).map(|i| h[(i, i)]).sum::<f64>() / n as f64;
    Mat::from_fn(n, n, |i, j| {
        h[(i, j)] + if i == j { 0.01 * mean } else { 0.0 }
    })
}

/// The least cost of one row over all ternary codes, each with its best scale.
fn best_ternary_cost(w: &[f32], h: &Mat<f64>) -> f64 {
    let n = w.len();
    let form = |a: &dyn Fn(usize) -> f64, b: &dyn Fn(usize) -> f64| -> f64 {
        (0..n)
            .map(|i| (0..n).map(|j| a(i) * h[(i, j)] * b(j)).sum::<f64>())
            .sum()
    };
    let w = |i: usize| f64::from(w[i]);
    let mut least = form(&w, &w);
    for code in 0..3_usize.pow(n as u32) {
        let t = |i: usize| (code / 3_usize.pow(i as u32) % 3) as f64 - 1.0;
        let (along, square) = (form(&t, &w), form(&t, &t));
        if square > 0.0 {
            least = least.min(form(&w, &w) - along * along / square);
        }
    }
    least
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, rng_seed: RngSeed::Fixed(7), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn outputs_are_never_worse_than_of_nearest_rounding(
        (rows, cols) in (1_usize..40, 33_usize..150),
        seed in 0_u64..1000,
        which in 0_usize..4,
        shift in any::<bool>(),
    ) {
        let levels = ALL[which];
        let spec = QuantizeSpec { shift: shift && levels != Levels::Int8, ..QuantizeSpec::new(levels, 32) };
        let (w, h) = (gaussian(rows * cols, seed), moments(cols, seed + 1));
        let found = rounded(&w, rows, &spec, &h);
        let (nearest, _) = quantize(&w, rows, cols, &spec, None).unwrap();
        let h = damped(&h);
        let ours = cost(&left_over(&w, &found.tensor), cols, &h);
        let theirs = cost(&left_over(&w, &nearest), cols, &h);
        prop_assert!(ours <= theirs * (1.0 + 1e-4), "{levels:?}: {ours} {theirs}");
        prop_assert!(found.output_error <= found.nearest_output_error * (1.0 + 1e-4));
        // What is reported is what the bytes cost.
        let reported = found.output_error * cost(&w, cols, &h);
        prop_assert!((reported - ours).abs() <= 1e-3 * ours + 1e-9, "{reported} {ours}");
    }
}

#[test]
fn small_problems_come_close_to_the_best_codes_there_are() {
    let (n, seeds) = (7, 60);
    let mut lost = 0.0;
    for seed in 0..seeds {
        let (w, h) = (gaussian(n, seed), moments(n, seed + 5));
        let best = best_ternary_cost(&w, &damped(&h));
        let found = rounded(&w, 1, &QuantizeSpec::new(Levels::Ternary, 32), &h);
        let ours = cost(&left_over(&w, &found.tensor), n, &damped(&h));
        assert!(
            ours >= best * 0.999 - 1e-9,
            "{ours} is better than the best, {best}"
        );
        lost += (ours - best) / cost(&w, n, &damped(&h)) / seeds as f64;
    }
    // A descent may end in a valley of its own, but seldom in a high one.
    assert!(lost < 0.05, "{lost}");
}

#[test]
fn feedback_and_sweeps_are_worth_it() {
    let (rows, cols) = (32, 128);
    let (w, h) = (gaussian(rows * cols, 3), moments(cols, 4));
    for levels in ALL {
        let found = rounded(&w, rows, &QuantizeSpec::new(levels, 64), &h);
        let gain = found.nearest_output_error / found.output_error;
        assert!(gain > 2.0, "{levels:?}: {gain}");
    }
}

#[test]
fn inputs_that_do_not_hang_together_leave_nearest_rounding_best() {
    let (rows, cols) = (8, 64);
    let w = gaussian(rows * cols, 11);
    let h = Mat::<f64>::identity(cols, cols);
    let spec = QuantizeSpec::new(Levels::Ternary, 64);
    let found = rounded(&w, rows, &spec, &h);
    let (nearest, stats) = quantize(&w, rows, cols, &spec, None).unwrap();
    // Rounding by itself is the exact optimum here.
    assert!((found.stats.rel_mse / stats.rel_mse - 1.0).abs() < 1e-3);
    let (a, b) = (left_over(&w, &found.tensor), left_over(&w, &nearest));
    let off = a
        .iter()
        .zip(&b)
        .filter(|(a, b)| (*a - *b).abs() > 0.05)
        .count();
    assert!(off < w.len() / 100, "{off} weights differ");
}

#[test]
fn bytes_do_not_depend_on_threads() {
    let (rows, cols) = (150, 96);
    let (w, h) = (gaussian(rows * cols, 21), moments(cols, 22));
    for levels in ALL {
        let spec = QuantizeSpec::new(levels, 32);
        let bytes = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| rounded(&w, rows, &spec, &h).tensor.bytes.to_vec())
        };
        let one = bytes(1);
        assert!(
            [2, 3, 4].into_iter().all(|threads| bytes(threads) == one),
            "{levels:?}"
        );
    }
}

#[test]
fn zeros_are_as_many_as_asked_for() {
    let (rows, cols) = (64, 256);
    let (w, h) = (gaussian(rows * cols, 31), moments(cols, 32));
    for (threshold, share) in [
        (Threshold::Sparsity(0.5), 0.5),
        (Threshold::Sparsity(0.7), 0.7),
        (Threshold::EntropyMax, 1.0 / 3.0),
    ] {
        let spec = QuantizeSpec {
            threshold,
            ..QuantizeSpec::new(Levels::Ternary, 64)
        };
        let found = rounded(&w, rows, &spec, &h);
        assert!(
            (found.stats.zeros - share).abs() < 0.015,
            "{threshold}: {}",
            found.stats.zeros
        );
    }
}

#[test]
fn columns_stored_apart_have_no_code_and_no_error() {
    let (rows, cols) = (20, 96);
    let (w, h) = (gaussian(rows * cols, 41), moments(cols, 42));
    let spec = QuantizeSpec::new(Levels::Ternary, 32);
    let metric = InputMetric::new(h.as_ref(), 32).unwrap();
    let round = |columns: &[u32]| {
        let rounding = Rounding {
            spec: &spec,
            metric: &metric,
            target_nk: None,
            apart: columns,
        };
        rounding.round(&w, rows, cols).unwrap()
    };
    let all: Vec<u32> = (0..cols as u32).collect();
    let everything = round(&all);
    assert_eq!(everything.output_error, 0.0);
    assert_eq!(everything.apart_nc, w);
    assert!(
        dequantize(&Tensor::Packed(everything.tensor))
            .iter()
            .all(|&v| v == 0.0)
    );
    let none = round(&[]);
    assert_eq!(
        none.tensor.bytes.to_vec(),
        rounded(&w, rows, &spec, &h).tensor.bytes.to_vec()
    );
    let some = round(&[3, 40, 41, 95]);
    let values = dequantize(&Tensor::Packed(some.tensor));
    for row in values.chunks(cols) {
        assert!([3, 40, 41, 95].into_iter().all(|c: usize| row[c] == 0.0));
    }
    assert!(some.output_error < none.output_error);
}

#[test]
fn a_target_pulls_the_codes() {
    let (rows, cols) = (16, 64);
    let (w, target, h) = (
        gaussian(rows * cols, 51),
        gaussian(rows * cols, 52),
        moments(cols, 53),
    );
    let spec = QuantizeSpec::new(Levels::Int4, 32);
    let metric = InputMetric::new(h.as_ref(), 32).unwrap();
    let rounding = Rounding {
        spec: &spec,
        metric: &metric,
        target_nk: Some(&target),
        apart: &[],
    };
    let found = rounding.round(&w, rows, cols).unwrap();
    assert!(found.output_error < 0.01);
    assert_eq!(
        found.tensor.bytes.to_vec(),
        rounded(&target, rows, &spec, &h).tensor.bytes.to_vec()
    );
}

#[test]
fn dead_columns_and_singular_moments_are_taken() {
    let cols = 64;
    let live = moments(cols, 61);
    let h = Mat::from_fn(
        cols,
        cols,
        |i, j| if i < 5 || j < 5 { 0.0 } else { live[(i, j)] },
    );
    let metric = InputMetric::new(h.as_ref(), 32).unwrap();
    assert_eq!((metric.dead(), metric.damping()), (5, 0.01));
    let nothing = InputMetric::new(Mat::<f64>::zeros(cols, cols).as_ref(), 32).unwrap();
    assert_eq!(nothing.dead(), cols);
    // Not positive semidefinite by more than the first damping: it is raised.
    let bent = Mat::from_fn(cols, cols, |i, j| {
        live[(i, j)]
            - if i == j && i == 0 {
                live[(0, 0)] * 1.3
            } else {
                0.0
            }
    });
    assert!(InputMetric::new(bent.as_ref(), 32).unwrap().damping() > 0.01);
    let bad = Mat::from_fn(cols, cols, |_, _| f64::NAN);
    assert!(matches!(
        InputMetric::new(bad.as_ref(), 32),
        Err(Error::NotFiniteMatrix { .. })
    ));
}

#[test]
fn a_correction_of_full_rank_recovers_what_is_left_and_a_small_one_the_most_it_can() {
    let (rows, cols) = (24, 96);
    let (w, h) = (gaussian(rows * cols, 71), moments(cols, 72));
    let found = rounded(&w, rows, &QuantizeSpec::new(Levels::Ternary, 32), &h);
    let left = left_over(&w, &found.tensor);
    let metric = InputMetric::new(h.as_ref(), 32).unwrap();
    let h = damped(&h);
    let after = |rank: usize| {
        let fit = low_rank(&left, rows, &metric, rank).unwrap();
        assert_eq!(fit.rank, rank);
        let off: Vec<f32> = left
            .iter()
            .zip(fit.product(cols))
            .map(|(l, p)| l - p)
            .collect();
        cost(&off, cols, &h)
    };
    let before = cost(&left, cols, &h);
    assert!(after(rows) < 1e-5 * before);
    // What a rank leaves are the smaller eigenvalues of `e H eᵀ`.
    let e = Mat::<f64>::from_fn(rows, cols, |i, j| f64::from(left[i * cols + j]));
    let gram = &e * &h * e.transpose();
    let mut values = gram.self_adjoint_eigenvalues(faer::Side::Lower).unwrap();
    values.sort_by(|a, b| b.total_cmp(a));
    for rank in [1, 4, 12] {
        let least: f64 = values[rank..].iter().sum();
        let found = after(rank);
        assert!(
            (found / least - 1.0).abs() < 0.01,
            "rank {rank}: {found} {least}"
        );
    }
}
