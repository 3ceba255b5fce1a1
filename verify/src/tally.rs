//! Sums over tokens, from which every statistic is taken.
//!
//! Owns what is kept of a comparison: one line of sums per window, which is what intervals over
//! windows need, and bounded tables for percentiles, histograms and buckets. No score of a token
//! is kept, so memory does not grow with the vocabulary and hardly with the text.

use std::ops::{AddAssign, Sub};

use crate::metrics::KldHistogram;
use crate::quantiles::Quantiles;
use crate::score::{RowDifference, TokenScore, score};

/// Upper ends of the buckets of the base's confidence.
pub const CONFIDENCE_ENDS: [f64; 6] = [0.1, 0.25, 0.5, 0.75, 0.9, 1.0];
/// Buckets of positions in a window.
pub const POSITION_BUCKETS: usize = 8;

/// Sums over the scored tokens of one window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[expect(
    missing_docs,
    reason = "each is the sum of what it is called over tokens"
)]
pub struct Sums {
    pub count: f64,
    pub nll_base: f64,
    pub nll: f64,
    pub nll_base_squared: f64,
    pub nll_squared: f64,
    pub nll_product: f64,
    pub kld: f64,
    pub kld_squared: f64,
    pub kld_reverse: f64,
    pub dp: f64,
    pub dp_squared: f64,
    pub dp_fourth: f64,
    pub top1: f64,
    pub top5: f64,
    pub top10: f64,
    /// Tokens whose divergence is above the limit on its 99th percentile.
    pub above: f64,
    /// Of the yardstick, where there is one.
    pub yardstick_kld: f64,
    pub yardstick_nll: f64,
}

impl Sums {
    fn each(&mut self, other: &Sums, act: impl Fn(&mut f64, f64)) {
        for (own, other) in [
            (&mut self.count, other.count),
            (&mut self.nll_base, other.nll_base),
            (&mut self.nll, other.nll),
            (&mut self.nll_base_squared, other.nll_base_squared),
            (&mut self.nll_squared, other.nll_squared),
            (&mut self.nll_product, other.nll_product),
            (&mut self.kld, other.kld),
            (&mut self.kld_squared, other.kld_squared),
            (&mut self.kld_reverse, other.kld_reverse),
            (&mut self.dp, other.dp),
            (&mut self.dp_squared, other.dp_squared),
            (&mut self.dp_fourth, other.dp_fourth),
            (&mut self.top1, other.top1),
            (&mut self.top5, other.top5),
            (&mut self.top10, other.top10),
            (&mut self.above, other.above),
            (&mut self.yardstick_kld, other.yardstick_kld),
            (&mut self.yardstick_nll, other.yardstick_nll),
        ] {
            act(own, other);
        }
    }

    fn add(&mut self, token: &TokenScore, above: bool) {
        let dp = token.dp();
        let within = |k: u32| f64::from(u8::from(token.rank < k));
        *self += Sums {
            count: 1.0,
            nll_base: token.nll_base,
            nll: token.nll,
            nll_base_squared: token.nll_base.powi(2),
            nll_squared: token.nll.powi(2),
            nll_product: token.nll * token.nll_base,
            kld: token.kld,
            kld_squared: token.kld.powi(2),
            kld_reverse: token.kld_reverse,
            dp,
            dp_squared: dp.powi(2),
            dp_fourth: dp.powi(4),
            top1: within(1),
            top5: within(5),
            top10: within(10),
            above: f64::from(u8::from(above)),
            ..Sums::default()
        };
    }
}

impl AddAssign<&Sums> for Sums {
    fn add_assign(&mut self, other: &Sums) {
        self.each(other, |own, other| *own += other);
    }
}

impl AddAssign for Sums {
    fn add_assign(&mut self, other: Sums) {
        *self += &other;
    }
}

impl Sub<&Sums> for Sums {
    type Output = Sums;

    fn sub(mut self, other: &Sums) -> Sums {
        self.each(other, |own, other| *own -= other);
        self
    }
}

/// Tokens and their mean divergence.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bucket {
    /// Number of tokens.
    pub tokens: u64,
    /// Sum of their divergences.
    pub kld: f64,
}

impl Bucket {
    fn add(&mut self, kld: f64) {
        self.tokens += 1;
        self.kld += kld;
    }
}

/// The scored tokens of one window, before they are summed up.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WindowScores {
    /// The tokens at which both models gave finite logits, and where they stand, as a share of
    /// the window.
    pub tokens: Vec<(TokenScore, f64)>,
    /// Divergence and `-ln p(token)` of the yardstick at the same tokens.
    pub yardstick: Vec<(f64, f64)>,
    /// Logits of the base that are NaN or infinite.
    pub base_not_finite: u64,
    /// Logits of the artifact that are NaN or infinite.
    pub not_finite: u64,
    /// How the logits differ as numbers, summed over rows.
    pub rows: RowDifference,
}

impl WindowScores {
    /// Scores the token `target`, which stands at `place` of its window, by one row of logits of
    /// each model. A row that is not finite is counted and scores nothing.
    pub fn add(
        &mut self,
        base: &[f32],
        artifact: &[f32],
        yardstick: Option<&[f32]>,
        target: u32,
        place: f64,
    ) {
        let bad = |row: &[f32]| row.iter().filter(|x| !x.is_finite()).count() as u64;
        let (base_bad, bad) = (bad(base), bad(artifact));
        self.base_not_finite += base_bad;
        self.not_finite += bad;
        if base_bad + bad > 0 {
            return;
        }
        let (token, row) = score(base, artifact, target);
        self.rows.max_abs = self.rows.max_abs.max(row.max_abs);
        self.rows.square_difference += row.square_difference;
        self.rows.square_base += row.square_base;
        self.tokens.push((token, place));
        if let Some(yardstick) = yardstick {
            let (other, _) = score(base, yardstick, target);
            self.yardstick.push((other.kld, other.nll));
        }
    }
}

/// One window of a tally.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line {
    /// Its place in the order of the texts.
    pub window: usize,
    /// The text it is from.
    pub text: usize,
    /// Its sums.
    pub sums: Sums,
}

/// Everything that is kept of a comparison.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// One line per window.
    pub lines: Vec<Line>,
    /// Divergences.
    pub kld: Quantiles,
    /// Divergences the other way.
    pub kld_reverse: Quantiles,
    /// Changes of `p(token)`.
    pub dp: Quantiles,
    /// Divergences on a logarithmic scale.
    pub histogram: KldHistogram,
    /// By the base's confidence.
    pub by_confidence: [Bucket; CONFIDENCE_ENDS.len()],
    /// By position in the window, in equal parts.
    pub by_position: [Bucket; POSITION_BUCKETS],
    /// Logits of the artifact that are not finite.
    pub not_finite: u64,
    /// The first window in which the base is not finite.
    pub base_not_finite: Option<usize>,
    /// How the logits differ as numbers.
    pub rows: RowDifference,
    /// Whether a yardstick ran along.
    pub has_yardstick: bool,
    /// The limit on the 99th percentile of the divergence.
    pub p99_limit: Option<f64>,
}

impl Tally {
    /// An empty tally, which will count tokens above `p99_limit`.
    pub fn new(p99_limit: Option<f64>) -> Self {
        Tally {
            p99_limit,
            ..Tally::default()
        }
    }

    /// Takes in the scores of window `window` of text `text`.
    pub fn add(&mut self, window: usize, text: usize, scores: &WindowScores) {
        if scores.base_not_finite > 0 {
            let first = self.base_not_finite.unwrap_or(window);
            self.base_not_finite = Some(first.min(window));
        }
        self.not_finite += scores.not_finite;
        self.rows.max_abs = self.rows.max_abs.max(scores.rows.max_abs);
        self.rows.square_difference += scores.rows.square_difference;
        self.rows.square_base += scores.rows.square_base;
        self.has_yardstick |= !scores.yardstick.is_empty();
        let mut sums = Sums::default();
        for (token, place) in &scores.tokens {
            sums.add(token, self.p99_limit.is_some_and(|limit| token.kld > limit));
            self.kld.add(token.kld);
            self.kld_reverse.add(token.kld_reverse);
            self.dp.add(token.dp());
            self.histogram.add(token.kld);
            let confidence = CONFIDENCE_ENDS
                .iter()
                .position(|&end| token.confidence <= end);
            self.by_confidence[confidence.unwrap_or(CONFIDENCE_ENDS.len() - 1)].add(token.kld);
            let position = (place * POSITION_BUCKETS as f64) as usize;
            self.by_position[position.min(POSITION_BUCKETS - 1)].add(token.kld);
        }
        for (kld, nll) in &scores.yardstick {
            sums.yardstick_kld += kld;
            sums.yardstick_nll += nll;
        }
        self.lines.push(Line { window, text, sums });
    }

    /// The sums over all windows of one text, or of all, in the order of the texts.
    pub fn windows(&self, text: Option<usize>) -> Vec<Sums> {
        let mut lines: Vec<&Line> = self
            .lines
            .iter()
            .filter(|line| line.sums.count > 0.0 && text.is_none_or(|text| line.text == text))
            .collect();
        lines.sort_by_key(|line| line.window);
        lines.iter().map(|line| line.sums).collect()
    }

    /// Scored tokens.
    pub fn tokens(&self) -> u64 {
        self.lines.iter().map(|line| line.sums.count as u64).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_finite_is_counted_and_scores_nothing() {
        let counted = |base: &[f32], artifact: &[f32]| {
            let mut scores = WindowScores::default();
            scores.add(base, artifact, None, 0, 0.5);
            (
                scores.base_not_finite,
                scores.not_finite,
                scores.tokens.len(),
            )
        };
        assert_eq!(counted(&[1.0, f32::NAN], &[1.0, 2.0]), (1, 0, 0));
        assert_eq!(
            counted(&[1.0, 2.0], &[f32::INFINITY, f32::NEG_INFINITY]),
            (0, 2, 0)
        );
        assert_eq!(counted(&[1.0, 2.0], &[2.0, 2.0]), (0, 0, 1));
    }

    #[test]
    fn tokens_fall_into_their_buckets_and_windows_into_their_texts() {
        let mut scores = WindowScores::default();
        // The base is sure of the first token, then of none.
        scores.add(&[9.0, 0.0], &[0.0, 9.0], None, 0, 0.0);
        scores.add(&[0.0, 0.0], &[0.0, 0.0], Some(&[1.0, 0.0]), 0, 0.99);
        let mut tally = Tally::new(Some(1.0));
        tally.add(1, 1, &scores);
        tally.add(0, 0, &WindowScores::default());
        assert_eq!(
            (tally.by_confidence[5].tokens, tally.by_confidence[2].tokens),
            (1, 1)
        );
        assert_eq!(
            (tally.by_position[0].tokens, tally.by_position[7].tokens),
            (1, 1)
        );
        assert!(tally.by_position[0].kld > 8.0 && tally.by_position[7].kld <= 0.0);
        assert_eq!(
            (tally.windows(None).len(), tally.windows(Some(0)).len()),
            (1, 0)
        );
        let sums = tally.windows(Some(1))[0];
        assert_eq!(
            (sums.count, sums.above, sums.top1, sums.top5),
            (2.0, 1.0, 1.0, 2.0)
        );
        assert!(sums.yardstick_kld > 0.0 && tally.has_yardstick);
        assert_eq!((sums - &sums), Sums::default());
    }
}
