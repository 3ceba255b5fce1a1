//! The few vector operations between matrix products. Every sum runs in one fixed order.

use std::ops::Range;

use rayon::prelude::*;

/// Elements that one task of an elementwise operation takes.
const CHUNK: usize = 8192;
/// Partial sums of [`dot`].
const LANES: usize = 16;

/// `Σ a·b`: sixteen interleaved partial sums, added pairwise at the end.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a_lanes, a_rest) = a.as_chunks::<LANES>();
    let (b_lanes, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0_f32; LANES];
    for (a, b) in a_lanes.iter().zip(b_lanes) {
        for i in 0..LANES {
            sums[i] += a[i] * b[i];
        }
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
        width /= 2;
    }
    a_rest
        .iter()
        .zip(b_rest)
        .fold(sums[0], |sum, (a, b)| sum + a * b)
}

/// `y += factor · x`.
pub(crate) fn add_scaled(y: &mut [f32], factor: f32, x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += factor * x;
    }
}

/// `y += x`.
pub(crate) fn add(y: &mut [f32], x: &[f32]) {
    y.par_chunks_mut(CHUNK)
        .zip(x.par_chunks(CHUNK))
        .for_each(|(y, x)| add_scaled(y, 1.0, x));
}

/// `exp(x)` to three units in the last place, by Cephes' polynomial, in operations that the
/// compiler makes vectors of. Beyond ±87 it stays at the value there; NaN stays NaN.
fn exp(x: f32) -> f32 {
    /// Adding it leaves the nearest integer to a small number in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 87.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let p = 1.987_569_1e-4_f32;
    let p = p * r + 1.398_2e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let power = f32::from_bits((shifted.to_bits().wrapping_add(127)) << 23);
    (p * r * r + r + 1.0) * power
}

/// `gate = silu(gate) · up` with `silu(x) = x / (1 + exp(-x))`.
pub(crate) fn silu_gate(gate: &mut [f32], up: &[f32]) {
    gate.par_chunks_mut(CHUNK)
        .zip(up.par_chunks(CHUNK))
        .for_each(|(gate, up)| {
            for (g, u) in gate.iter_mut().zip(up) {
                *g = *g / (1.0 + exp(-*g)) * u;
            }
        });
}

/// All of `x` joined: sixteen interleaved results, joined from the first to the last.
fn lanes(x: &[f32], start: f32, join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut results = [start; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for x in whole {
        for (result, &x) in results.iter_mut().zip(x) {
            *result = join(*result, x);
        }
    }
    for (result, &x) in results.iter_mut().zip(rest) {
        *result = join(*result, x);
    }
    results.into_iter().fold(start, join)
}

/// A softmax over scores that come piece by piece.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RunningSoftmax {
    max: f32,
    sum: f32,
}

impl RunningSoftmax {
    /// Over no scores.
    pub(crate) fn new() -> Self {
        RunningSoftmax {
            max: f32::NEG_INFINITY,
            sum: 0.0,
        }
    }

    /// Makes `exp(score - max)` of the scores in `seen`, for the largest score so far, and zero of the
    /// others. Gives the factor that makes up for a new largest score in what was summed before; it
    /// is one where nothing is seen. A NaN among the scores makes the sum NaN.
    pub(crate) fn take_in(&mut self, scores: &mut [f32], seen: Range<usize>) -> f32 {
        scores[..seen.start].fill(0.0);
        scores[seen.end..].fill(0.0);
        let scores = &mut scores[seen];
        if scores.is_empty() {
            return 1.0;
        }
        let max = lanes(scores, self.max, f32::max);
        let factor = exp(self.max - max);
        for score in scores.iter_mut() {
            *score = exp(*score - max);
        }
        self.max = max;
        self.sum = self.sum * factor + lanes(scores, 0.0, |sum, x| sum + x);
        factor
    }

    /// What the weighted sum is to be divided by.
    pub(crate) fn sum(self) -> f32 {
        self.sum
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "sums of small integers are exact")]
mod tests {
    use super::*;

    #[test]
    fn sums_and_products_are_right_at_every_length() {
        for n in 0..70_usize {
            let a: Vec<f32> = (0..n).map(|i| i as f32 - 11.0).collect();
            let b: Vec<f32> = (0..n).map(|i| (i % 7) as f32).collect();
            let exact: f32 = a.iter().zip(&b).map(|(a, b)| a * b).sum();
            assert_eq!(dot(&a, &b), exact);
            let mut y = a.clone();
            add(&mut y, &b);
            assert!(
                y.iter()
                    .zip(a.iter().zip(&b))
                    .all(|(y, (a, b))| *y == a + b)
            );
        }
    }

    #[test]
    fn exp_is_close_over_its_whole_range() {
        let mut worst = 0.0_f64;
        for i in -870_000..=870_000 {
            let x = i as f32 * 1e-4;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) / exact - 1.0).abs());
        }
        assert!(worst < 2e-7, "{worst}");
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(
            (exp(0.0), exp(-1e9), exp(f32::INFINITY)),
            (1.0, exp(-87.0), exp(87.0))
        );
    }

    #[test]
    fn pieces_of_a_softmax_sum_to_one_and_keep_nan() {
        let mut softmax = RunningSoftmax::new();
        let (mut low, mut high) = ([1e9, 999.0, -1000.0], [1000.0, 1e9]);
        assert_eq!(softmax.take_in(&mut low, 1..3) * 0.0, 0.0);
        assert_eq!(softmax.take_in(&mut [7.0], 1..1), 1.0);
        let factor = softmax.take_in(&mut high, 0..1);
        assert_eq!((low[0], high[1]), (0.0, 0.0));
        let weights = [low[1] * factor, low[2] * factor, high[0]].map(|w| w / softmax.sum());
        assert!((weights.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert!((weights[2] / weights[0] - 1.0_f32.exp()).abs() < 1e-5);
        softmax.take_in(&mut [1.0, f32::NAN], 0..2);
        assert!(softmax.sum().is_nan());
    }

    #[test]
    fn silu_is_smooth_from_zero_to_identity() {
        let mut gate = [-100.0, 0.0, 1.0, 100.0];
        silu_gate(&mut gate, &[1.0, 1.0, 2.0, 1.0]);
        assert_eq!(
            (gate[0].abs() < 1e-30, gate[1], gate[3]),
            (true, 0.0, 100.0)
        );
        assert!((gate[2] - 2.0 * 0.731_058_6).abs() < 1e-6);
    }
}
