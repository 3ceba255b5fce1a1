//! What one token says about two models.
//!
//! Owns the arithmetic on two rows of logits. Nothing is rounded or clamped on the way: sums are
//! in double precision over the single precision that the models gave.

/// Two models at one token of a text; divergences in nats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenScore {
    /// `-ln p(token)` under the base.
    pub nll_base: f64,
    /// `-ln p(token)` under the artifact.
    pub nll: f64,
    /// `Σ p_base (ln p_base - ln p_artifact)` over the vocabulary.
    pub kld: f64,
    /// `Σ p_artifact (ln p_artifact - ln p_base)` over the vocabulary.
    pub kld_reverse: f64,
    /// Probability of the base's most likely token under the base.
    pub confidence: f64,
    /// Place of the base's most likely token in the artifact's order, 0 for the first; of equal
    /// logits the lower id comes first.
    pub rank: u32,
}

impl TokenScore {
    /// `p_artifact(token) - p_base(token)`.
    pub fn dp(&self) -> f64 {
        (-self.nll).exp() - (-self.nll_base).exp()
    }
}

/// How two rows of logits differ as numbers, whatever their probabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowDifference {
    /// Largest difference of two logits.
    pub max_abs: f64,
    /// Sum of squared differences of logits.
    pub square_difference: f64,
    /// Sum of squared logits of the base.
    pub square_base: f64,
}

/// Scores the token `target` by one row of finite logits of each model.
pub fn score(base: &[f32], artifact: &[f32], target: u32) -> (TokenScore, RowDifference) {
    let (b, a) = (largest(base), largest(artifact));
    let (mut sum_b, mut sum_a) = (0.0, 0.0);
    let (mut expected_b, mut expected_a) = (0.0, 0.0);
    let mut row = RowDifference::default();
    for (&x, &y) in base.iter().zip(artifact) {
        let (x, y) = (f64::from(x), f64::from(y));
        let difference = x - y;
        let (p, q) = ((x - b).exp(), (y - a).exp());
        sum_b += p;
        sum_a += q;
        expected_b += p * difference;
        expected_a -= q * difference;
        row.max_abs = row.max_abs.max(difference.abs());
        row.square_difference += difference * difference;
        row.square_base += x * x;
    }
    let (log_b, log_a) = (b + sum_b.ln(), a + sum_a.ln());
    let token = TokenScore {
        nll_base: log_b - f64::from(base[target as usize]),
        nll: log_a - f64::from(artifact[target as usize]),
        // Σ p_b (ln p_b - ln p_a) = Σ p_b (x - y) - (ln Z_b - ln Z_a); rounding may leave -0.
        kld: not_below_zero(expected_b / sum_b - (log_b - log_a)),
        kld_reverse: not_below_zero(expected_a / sum_a - (log_a - log_b)),
        confidence: 1.0 / sum_b,
        rank: rank_of(artifact, first_largest(base)),
    };
    (token, row)
}

/// `ln Σ exp(x)` of one row.
pub fn log_sum(row: &[f32]) -> f64 {
    let max = largest(row);
    let sum: f64 = row.iter().map(|&x| (f64::from(x) - max).exp()).sum();
    max + sum.ln()
}

fn largest(row: &[f32]) -> f64 {
    f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max))
}

/// Keeps NaN.
fn not_below_zero(x: f64) -> f64 {
    if x < 0.0 { 0.0 } else { x }
}

/// The index of the largest entry, the first of equal ones.
pub fn first_largest(row: &[f32]) -> usize {
    let mut best = 0;
    for (i, x) in row.iter().enumerate() {
        if *x > row[best] {
            best = i;
        }
    }
    best
}

/// How many entries come before entry `index` in descending order, equal ones by index.
fn rank_of(row: &[f32], index: usize) -> u32 {
    let own = row[index];
    let before = |(i, x): (usize, &f32)| if i < index { *x >= own } else { *x > own };
    row.iter().enumerate().filter(|&e| before(e)).count() as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against probabilities written out without any rearrangement.
        #[test]
        fn scores_agree_with_naive_probabilities(
            rows in prop::collection::vec((-30f32..30., -30f32..30.), 2..40), pick in 0usize..1000
        ) {
            let (b, a): (Vec<f32>, Vec<f32>) = rows.into_iter().unzip();
            let target = pick % b.len();
            let softmax = |row: &[f32]| -> Vec<f64> {
                let e: Vec<f64> = row.iter().map(|&x| f64::from(x).exp()).collect();
                let z: f64 = e.iter().sum();
                e.into_iter().map(|x| x / z).collect()
            };
            let (p, q) = (softmax(&b), softmax(&a));
            let kld = |p: &[f64], q: &[f64]| -> f64 {
                p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum::<f64>().max(0.0)
            };
            let (token, _) = score(&b, &a, target as u32);
            prop_assert!((token.kld - kld(&p, &q)).abs() < 1e-9);
            prop_assert!((token.kld_reverse - kld(&q, &p)).abs() < 1e-9);
            prop_assert!((token.nll_base + p[target].ln()).abs() < 1e-9);
            prop_assert!((token.nll + q[target].ln()).abs() < 1e-9);
            prop_assert!((token.dp() - (q[target] - p[target])).abs() < 1e-9);
            let mut order: Vec<usize> = (0..a.len()).collect();
            order.sort_by(|&i, &j| a[j].total_cmp(&a[i]));
            let top = (0..b.len()).rev().max_by(|&i, &j| b[i].total_cmp(&b[j])).unwrap();
            prop_assert!((token.confidence - p[top]).abs() < 1e-9);
            prop_assert_eq!(order.iter().position(|&i| i == top).unwrap() as u32, token.rank);
        }
    }

    #[test]
    fn equal_logits_diverge_by_exactly_nothing() {
        let logits = [3.25f32, -1.0, 0.7, 19.0];
        let (token, row) = score(&logits, &logits, 2);
        assert_eq!((token.kld, token.kld_reverse), (0.0, 0.0));
        assert_eq!((token.nll, token.rank), (token.nll_base, 0));
        assert_eq!((row.max_abs, row.square_difference), (0.0, 0.0));
    }

    #[test]
    fn ties_go_to_the_lowest_id() {
        let rank = |b: &[f32], a: &[f32]| score(b, a, 0).0.rank;
        assert_eq!(rank(&[1.0, 1.0], &[0.0, 5.0]), 1);
        assert_eq!(rank(&[0.0, 1.0, 0.0], &[2.0, 2.0, 2.0]), 1);
        assert_eq!(rank(&[1.0, 0.0, 0.0], &[2.0, 2.0, 2.0]), 0);
    }
}
