//! Two models on the same windows, in lock-step, one row of logits at a time.
//!
//! Owns what is measured per token. Logits exist for a block of rows only, so memory does not
//! grow with text or context; nothing is rounded or stored on the way.

use std::ops::Range;
use std::time::Instant;

use crate::parallel::each_window;
use neuroconv_runtime::Progress;

use crate::Error;
use crate::protocol::Window;
use crate::scorer::Scorer;

/// Floats of logits that one model may hold per thread.
const LOGIT_FLOATS: usize = 1 << 22;
/// Floats of hidden states that one model may hold for a batch of windows.
const STATE_FLOATS: usize = 1 << 26;

/// What one scored token says about two models.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenScore {
    /// `-ln p(token)` under the base.
    pub nll_base: f64,
    /// `-ln p(token)` under the artifact.
    pub nll: f64,
    /// `Σ p_base (ln p_base - ln p_artifact)` over the vocabulary, in nats.
    pub kld: f64,
    /// Place of the base's most likely token in the artifact's order, 0 for the first; of equal
    /// logits the lower id comes first.
    pub rank: u32,
}

/// The scored tokens of one window.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WindowScores {
    /// The tokens at which both models gave finite logits.
    pub tokens: Vec<TokenScore>,
    /// Logits of the base that are NaN or infinite.
    pub base_not_finite: u64,
    /// Logits of the artifact that are NaN or infinite.
    pub not_finite: u64,
    /// Largest difference of two logits.
    pub max_abs_logit: f64,
    /// Sum of squared differences of logits.
    pub square_difference: f64,
    /// Sum of squared logits of the base.
    pub square_base: f64,
}

/// All windows, in order, and where the time went.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// One entry per window.
    pub windows: Vec<WindowScores>,
    /// Seconds in the base's layers.
    pub base_s: f64,
    /// Seconds in the artifact's layers.
    pub artifact_s: f64,
    /// Seconds in both heads and the statistics.
    pub score_s: f64,
}

impl Comparison {
    /// Runs both models over all windows and scores what each window says is scored.
    pub fn run(
        base: &dyn Scorer,
        artifact: &dyn Scorer,
        windows: &[Window],
        progress: &dyn Progress,
    ) -> Result<Self, Error> {
        let (vocab, other) = (base.vocab(), artifact.vocab());
        if vocab != other {
            return Err(Error::Vocabulary {
                base: vocab,
                artifact: other,
            });
        }
        check_tokens(windows, vocab)?;
        let mut all = Comparison::default();
        for batch in batches(windows, base.hidden_size().max(artifact.hidden_size())) {
            let tokens: Vec<&[u32]> = batch.iter().map(|w| w.tokens.as_slice()).collect();
            let start = Instant::now();
            let base_states = base.hidden(&tokens, progress)?;
            let middle = Instant::now();
            let states = artifact.hidden(&tokens, progress)?;
            let end = Instant::now();
            progress.start("scores", batch.len() as u64, "windows");
            let scores = each_window(batch.len(), |i| {
                let (b, a) = (&base_states[i], &states[i]);
                let scores = window_scores(&batch[i], (base, b), (artifact, a))?;
                progress.advance(1);
                Ok(scores)
            });
            all.windows.extend(scores?);
            progress.finish();
            all.base_s += (middle - start).as_secs_f64();
            all.artifact_s += (end - middle).as_secs_f64();
            all.score_s += end.elapsed().as_secs_f64();
        }
        Ok(all)
    }
}

/// Every id must be one that the model has an embedding for.
pub(crate) fn check_tokens(windows: &[Window], vocab: usize) -> Result<(), Error> {
    let bad = windows
        .iter()
        .flat_map(|w| &w.tokens)
        .find(|&&t| t as usize >= vocab);
    bad.map_or(Ok(()), |&token| Err(Error::Token { token, vocab }))
}

/// Cuts windows into batches whose hidden states stay within a fixed amount of memory.
pub(crate) fn batches(windows: &[Window], hidden: usize) -> impl Iterator<Item = &[Window]> {
    let longest = windows
        .iter()
        .map(|w| w.tokens.len())
        .max()
        .unwrap_or(1)
        .max(1);
    windows.chunks((STATE_FLOATS / (longest * hidden).max(1)).max(1))
}

/// The rows whose logits predict the scored tokens of a window, in blocks of bounded size.
pub(crate) fn row_blocks(window: &Window, vocab: usize) -> impl Iterator<Item = Range<usize>> {
    let scored = &window.scored;
    let first = scored.start.saturating_sub(1);
    let end = scored.end.min(window.tokens.len()).saturating_sub(1);
    let step = (LOGIT_FLOATS / vocab.max(1)).clamp(1, 256);
    (first..end)
        .step_by(step)
        .map(move |row| row..(row + step).min(end))
}

fn window_scores(
    window: &Window,
    (base, base_states): (&dyn Scorer, &[f32]),
    (artifact, states): (&dyn Scorer, &[f32]),
) -> Result<WindowScores, Error> {
    let vocab = base.vocab();
    let mut scores = WindowScores::default();
    for rows in row_blocks(window, vocab) {
        let of = |scorer: &dyn Scorer, states: &[f32]| {
            let width = scorer.hidden_size();
            scorer.logits(&states[rows.start * width..rows.end * width])
        };
        let (b, a) = (of(base, base_states)?, of(artifact, states)?);
        for (row, (b, a)) in rows.zip(b.chunks_exact(vocab).zip(a.chunks_exact(vocab))) {
            scores.add(b, a, window.tokens[row + 1]);
        }
    }
    Ok(scores)
}

impl WindowScores {
    /// Scores the token `target` by one row of logits of each model.
    pub fn add(&mut self, base: &[f32], artifact: &[f32], target: u32) {
        let bad = |row: &[f32]| row.iter().filter(|x| !x.is_finite()).count() as u64;
        let (base_bad, bad) = (bad(base), bad(artifact));
        self.base_not_finite += base_bad;
        self.not_finite += bad;
        if base_bad + bad > 0 {
            return;
        }
        let (b, a) = (LogSum::of(base), LogSum::of(artifact));
        let mut expected_difference = 0.0;
        for (&x, &y) in base.iter().zip(artifact) {
            let (x, y) = (f64::from(x), f64::from(y));
            let difference = x - y;
            expected_difference += (x - b.max).exp() * difference;
            self.max_abs_logit = self.max_abs_logit.max(difference.abs());
            self.square_difference += difference * difference;
            self.square_base += x * x;
        }
        // Σ p_b (ln p_b - ln p_a) = Σ p_b (x - y) - (ln Z_b - ln Z_a); rounding may leave -0.
        let kld = expected_difference / b.sum - (b.log() - a.log());
        let top = first_largest(base);
        self.tokens.push(TokenScore {
            nll_base: b.log() - f64::from(base[target as usize]),
            nll: a.log() - f64::from(artifact[target as usize]),
            kld: if kld < 0.0 { 0.0 } else { kld },
            rank: rank_of(artifact, top),
        });
    }
}

/// `ln Σ exp(x)` of one row, kept as largest entry and sum relative to it.
pub(crate) struct LogSum {
    max: f64,
    sum: f64,
}

impl LogSum {
    pub(crate) fn of(row: &[f32]) -> Self {
        let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        LogSum {
            max,
            sum: row.iter().map(|&x| (f64::from(x) - max).exp()).sum(),
        }
    }

    pub(crate) fn log(&self) -> f64 {
        self.max + self.sum.ln()
    }
}

/// The index of the largest entry, the first of equal ones.
fn first_largest(row: &[f32]) -> usize {
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

    fn score(base: &[f32], artifact: &[f32], target: u32) -> WindowScores {
        let mut scores = WindowScores::default();
        scores.add(base, artifact, target);
        scores
    }

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
            let kld: f64 = p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum();
            let token = score(&b, &a, target as u32).tokens[0];
            prop_assert!((token.kld - kld.max(0.0)).abs() < 1e-9, "{} {kld}", token.kld);
            prop_assert!((token.nll_base + p[target].ln()).abs() < 1e-9);
            prop_assert!((token.nll + q[target].ln()).abs() < 1e-9);
            let mut order: Vec<usize> = (0..a.len()).collect();
            order.sort_by(|&i, &j| a[j].total_cmp(&a[i]));
            let top = (0..b.len()).rev().max_by(|&i, &j| b[i].total_cmp(&b[j])).unwrap();
            prop_assert_eq!(order.iter().position(|&i| i == top).unwrap() as u32, token.rank);
        }
    }

    #[test]
    fn equal_logits_diverge_by_exactly_nothing() {
        let row = [3.25f32, -1.0, 0.7, 19.0];
        let scores = score(&row, &row, 2);
        let token = scores.tokens[0];
        assert_eq!((token.kld, token.nll, token.rank), (0.0, token.nll_base, 0));
        assert_eq!((scores.max_abs_logit, scores.square_difference), (0.0, 0.0));
    }

    #[test]
    fn ties_go_to_the_lowest_id() {
        assert_eq!(score(&[1.0, 1.0], &[0.0, 5.0], 0).tokens[0].rank, 1);
        assert_eq!(
            score(&[0.0, 1.0, 0.0], &[2.0, 2.0, 2.0], 0).tokens[0].rank,
            1
        );
        assert_eq!(
            score(&[1.0, 0.0, 0.0], &[2.0, 2.0, 2.0], 0).tokens[0].rank,
            0
        );
    }

    #[test]
    fn what_is_not_finite_is_counted_and_scores_nothing() {
        let scores = score(&[1.0, f32::NAN], &[1.0, 2.0], 0);
        assert_eq!(
            (
                scores.base_not_finite,
                scores.not_finite,
                scores.tokens.len()
            ),
            (1, 0, 0)
        );
        let scores = score(&[1.0, 2.0], &[f32::INFINITY, f32::NEG_INFINITY], 0);
        assert_eq!(
            (
                scores.base_not_finite,
                scores.not_finite,
                scores.tokens.len()
            ),
            (0, 2, 0)
        );
        assert!(scores.max_abs_logit <= 0.0);
    }

    #[test]
    fn blocks_cover_the_predicting_rows() {
        let window = Window {
            tokens: vec![0; 600],
            scored: 1..600,
        };
        let blocks: Vec<_> = row_blocks(&window, 4096).collect();
        assert_eq!(blocks, [0..256, 256..512, 512..599]);
        let half = Window {
            tokens: vec![0; 8],
            scored: 5..8,
        };
        assert!(row_blocks(&half, 10).eq(std::iter::once(4..7)));
        assert_eq!(row_blocks(&half, usize::MAX).count(), 3);
    }

    #[test]
    fn batches_bound_the_states() {
        let windows = vec![
            Window {
                tokens: vec![0; 256],
                scored: 1..256
            };
            160
        ];
        assert_eq!(batches(&windows, 384).count(), 1);
        assert_eq!(
            batches(&windows, 4096).map(<[_]>::len).collect::<Vec<_>>(),
            [64, 64, 32]
        );
        assert_eq!(batches(&windows, usize::MAX / 256).count(), 160);
    }
}
