//! What a comparison amounts to: perplexities, divergence, agreement.

mod detail;
mod histogram;

use detail::{detail, positions};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::report::finite;
use crate::stats::{Interval, Level, jackknife};
use crate::tally::{Sums, Tally};

pub use detail::{BucketRow, Detail, Percentiles, SHARES, TokenErrors};
pub use histogram::KldHistogram;

/// How far an artifact is from its original on text. Divergences are in nats.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Perplexity of the original.
    pub ppl_base: Interval,
    /// Perplexity of the artifact.
    pub ppl: Interval,
    /// `ppl / ppl_base`; its interval is taken on the differences per token, so what makes a
    /// text hard for both models cancels.
    pub ppl_ratio: Interval,
    /// Mean Kullback-Leibler divergence of the artifact from the original.
    pub kld_mean: Interval,
    /// Median of the divergence over tokens.
    #[serde(serialize_with = "finite")]
    pub kld_median: f64,
    /// 90th percentile.
    #[serde(serialize_with = "finite")]
    pub kld_p90: f64,
    /// 99th percentile.
    #[serde(serialize_with = "finite")]
    pub kld_p99: f64,
    /// 99.9th percentile.
    #[serde(serialize_with = "finite")]
    pub kld_p999: f64,
    /// Largest divergence.
    #[serde(serialize_with = "finite")]
    pub kld_max: f64,
    /// Share of tokens where both models find the same token most likely; of equal logits the
    /// lower id counts as the more likely.
    pub top1: Interval,
    /// Share of tokens where the original's most likely token is among the artifact's first 5.
    #[serde(serialize_with = "finite")]
    pub top5: f64,
    /// The same among the first 10.
    #[serde(serialize_with = "finite")]
    pub top10: f64,
    /// Mean of `p_artifact(token) - p_original(token)` over the tokens of the text.
    #[serde(serialize_with = "finite")]
    pub mean_dp: f64,
    /// Root mean square of the same.
    #[serde(serialize_with = "finite")]
    pub rms_dp: f64,
    /// Tokens that everything above is taken over.
    pub eval_tokens: u64,
    /// Logits of the artifact that are NaN or infinite. Their tokens are left out above, and the
    /// gate fails if there is one.
    #[serde(default)]
    pub not_finite: u64,
    /// How the divergences are spread.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kld_histogram: Option<KldHistogram>,
    /// Everything else that was measured; absent in reports of earlier programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<Detail>,
}

/// The headline metrics of one text, or of one length of window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What it is of.
    pub name: String,
    /// Tokens per window.
    pub ctx: usize,
    /// Scored tokens.
    pub tokens: u64,
    /// Perplexity of the original.
    pub ppl_base: Interval,
    /// Perplexity of the artifact.
    pub ppl: Interval,
    /// The one over the other, paired.
    pub ppl_ratio: Interval,
    /// Mean divergence.
    pub kld_mean: Interval,
    /// Same best token.
    pub top1: Interval,
    /// Mean divergence by position in the window.
    pub by_position: Vec<BucketRow>,
}

impl Row {
    /// The row of text `text` of a tally, or of all its texts. None without scored tokens.
    pub fn of(tally: &Tally, text: Option<usize>, name: &str, ctx: usize) -> Option<Self> {
        let sample = Sample::of(tally, text, Level::Final);
        let by_position = match text {
            None => positions(&tally.by_position),
            Some(_) => Vec::new(),
        };
        (sample.total.count > 0.0).then(|| Row {
            name: name.to_owned(),
            ctx,
            tokens: sample.total.count as u64,
            ppl_base: sample.mean(|s| s.nll_base).exp(),
            ppl: sample.mean(|s| s.nll).exp(),
            ppl_ratio: sample.mean(|s| s.nll - s.nll_base).exp(),
            kld_mean: sample.mean(|s| s.kld).within(0.0, f64::INFINITY),
            top1: sample.mean(|s| s.top1).within(0.0, 1.0),
            by_position,
        })
    }
}

/// Windows as the independent units of a sample.
struct Sample {
    windows: Vec<Sums>,
    total: Sums,
    level: Level,
}

impl Sample {
    fn of(tally: &Tally, text: Option<usize>, level: Level) -> Self {
        let windows = tally.windows(text);
        let mut total = Sums::default();
        for window in &windows {
            total += window;
        }
        Sample {
            windows,
            total,
            level,
        }
    }

    /// Any statistic of the sums, with its jackknife interval.
    fn of_sums(&self, statistic: impl Fn(&Sums) -> f64) -> Interval {
        let without = |window: &Sums| statistic(&(self.total - window));
        let without: Vec<f64> = self.windows.iter().map(without).collect();
        jackknife(statistic(&self.total), &without, self.level)
    }

    /// A mean over tokens.
    fn mean(&self, of: impl Fn(&Sums) -> f64) -> Interval {
        self.of_sums(|s| of(s) / s.count)
    }
}

impl Metrics {
    /// Sums up a comparison, with intervals as sure as `level` says. Fails where the original is
    /// not finite anywhere, or where the artifact is finite nowhere.
    pub fn of(tally: &Tally, level: Level) -> Result<Self, Error> {
        if let Some(window) = tally.base_not_finite {
            return Err(Error::NotFinite { window });
        }
        let sample = Sample::of(tally, None, level);
        let total = &sample.total;
        if total.count <= 0.0 {
            return Err(if tally.not_finite == 0 {
                Error::TooLittleText {
                    scored: 0,
                    needed: 1,
                }
            } else {
                Error::NothingFinite {
                    windows: tally.lines.len(),
                }
            });
        }
        let detail = detail(tally, &sample);
        Ok(Metrics {
            ppl_base: sample.mean(|s| s.nll_base).exp(),
            ppl: sample.mean(|s| s.nll).exp(),
            ppl_ratio: sample.mean(|s| s.nll - s.nll_base).exp(),
            kld_mean: sample.mean(|s| s.kld).within(0.0, f64::INFINITY),
            kld_median: detail.kld.p50,
            kld_p90: detail.kld.p90,
            kld_p99: detail.kld.p99,
            kld_p999: detail.kld.p999,
            kld_max: detail.kld.max,
            top1: sample.mean(|s| s.top1).within(0.0, 1.0),
            top5: total.top5 / total.count,
            top10: total.top10 / total.count,
            mean_dp: detail.mean_dp.value,
            rms_dp: detail.rms_dp.value,
            eval_tokens: total.count as u64,
            not_finite: tally.not_finite,
            kld_histogram: Some(tally.histogram.clone()),
            detail: Some(detail),
        })
    }
}

/// The share of tokens above the limit on the 99th percentile: beyond 1 % the percentile is
/// above the limit.
pub fn share_above(tally: &Tally, level: Level) -> Interval {
    Sample::of(tally, None, level).mean(|s| s.above)
}

#[cfg(test)]
mod tests;
