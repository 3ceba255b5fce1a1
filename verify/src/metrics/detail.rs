//! The statistics beside the headline ones.

use serde::{Deserialize, Serialize};

use super::Sample;
use crate::report::finite;
use crate::stats::Interval;
use crate::tally::{Bucket, CONFIDENCE_ENDS, POSITION_BUCKETS, Sums, Tally};

/// The shares at which percentiles are stated, the least and the largest value included.
pub const SHARES: [f64; 13] = [
    0.0, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0,
];

/// The statistics beside the headline ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Detail {
    /// `ppl - ppl_base`.
    pub ppl_difference: Interval,
    /// Pearson's correlation of the two models' `-ln p(token)` over tokens.
    pub correlation: Interval,
    /// Mean divergence of the original from the artifact.
    pub kld_reverse_mean: Interval,
    /// Mean change of `p(token)`.
    pub mean_dp: Interval,
    /// Root mean square of the same.
    pub rms_dp: Interval,
    /// Percentiles of the divergence.
    pub kld: Percentiles,
    /// Percentiles of the divergence the other way.
    pub kld_reverse: Percentiles,
    /// Percentiles of the change of `p(token)`.
    pub dp: Percentiles,
    /// Mean divergence by the original's confidence, the probability of its likeliest token.
    pub by_confidence: Vec<BucketRow>,
    /// Mean divergence by the share of the window before the token.
    pub by_position: Vec<BucketRow>,
    /// Standard errors as if tokens were independent, which they are not: too small, but those
    /// that llama.cpp prints.
    pub token_errors: TokenErrors,
    /// Mean divergence over that of the yardstick, where one ran along.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub yardstick_kld_ratio: Option<Interval>,
    /// The yardstick's own perplexity and mean divergence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub yardstick: Option<[Interval; 2]>,
}

/// Values at the shares of [`SHARES`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "named by the share of tokens below")]
pub struct Percentiles {
    #[serde(serialize_with = "finite")]
    pub min: f64,
    #[serde(serialize_with = "finite")]
    pub p001: f64,
    #[serde(serialize_with = "finite")]
    pub p01: f64,
    #[serde(serialize_with = "finite")]
    pub p05: f64,
    #[serde(serialize_with = "finite")]
    pub p10: f64,
    #[serde(serialize_with = "finite")]
    pub p25: f64,
    #[serde(serialize_with = "finite")]
    pub p50: f64,
    #[serde(serialize_with = "finite")]
    pub p75: f64,
    #[serde(serialize_with = "finite")]
    pub p90: f64,
    #[serde(serialize_with = "finite")]
    pub p95: f64,
    #[serde(serialize_with = "finite")]
    pub p99: f64,
    #[serde(serialize_with = "finite")]
    pub p999: f64,
    #[serde(serialize_with = "finite")]
    pub max: f64,
}

impl Percentiles {
    fn of(values: &crate::quantiles::Quantiles) -> Self {
        let found = values.at(&SHARES);
        Percentiles {
            min: found[0],
            p001: found[1],
            p01: found[2],
            p05: found[3],
            p10: found[4],
            p25: found[5],
            p50: found[6],
            p75: found[7],
            p90: found[8],
            p95: found[9],
            p99: found[10],
            p999: found[11],
            max: found[12],
        }
    }
}

/// The tokens of one bucket.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BucketRow {
    /// Lower end of the bucket, excluded but for 0.
    #[serde(serialize_with = "finite")]
    pub from: f64,
    /// Upper end, included.
    #[serde(serialize_with = "finite")]
    pub to: f64,
    /// Tokens in it.
    pub tokens: u64,
    /// Their mean divergence; `null` without tokens.
    #[serde(serialize_with = "finite")]
    pub kld_mean: Option<f64>,
}

/// Standard errors over tokens, formulas as in llama.cpp's `perplexity`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[expect(
    missing_docs,
    reason = "each is the error of the metric it is called after"
)]
pub struct TokenErrors {
    #[serde(serialize_with = "finite")]
    pub ppl_base: f64,
    #[serde(serialize_with = "finite")]
    pub ppl: f64,
    #[serde(serialize_with = "finite")]
    pub ln_ppl_ratio: f64,
    #[serde(serialize_with = "finite")]
    pub ppl_ratio: f64,
    #[serde(serialize_with = "finite")]
    pub ppl_difference: f64,
    #[serde(serialize_with = "finite")]
    pub kld_mean: f64,
    #[serde(serialize_with = "finite")]
    pub mean_dp: f64,
    #[serde(serialize_with = "finite")]
    pub rms_dp: f64,
    #[serde(serialize_with = "finite")]
    pub top1: f64,
}

pub(super) fn detail(tally: &Tally, sample: &Sample) -> Detail {
    let confidence = [0.0].iter().chain(&CONFIDENCE_ENDS).zip(&CONFIDENCE_ENDS);
    let by_confidence = confidence.zip(&tally.by_confidence);
    let yardstick = tally.has_yardstick.then(|| {
        [
            sample.mean(|s| s.yardstick_nll).exp(),
            sample.mean(|s| s.yardstick_kld),
        ]
    });
    Detail {
        ppl_difference: sample.of_sums(|s| (s.nll / s.count).exp() - (s.nll_base / s.count).exp()),
        correlation: sample.of_sums(correlation).within(-1.0, 1.0),
        kld_reverse_mean: sample.mean(|s| s.kld_reverse).within(0.0, f64::INFINITY),
        mean_dp: sample.mean(|s| s.dp),
        rms_dp: sample
            .of_sums(|s| (s.dp_squared / s.count).max(0.0).sqrt())
            .within(0.0, f64::INFINITY),
        kld: Percentiles::of(&tally.kld),
        kld_reverse: Percentiles::of(&tally.kld_reverse),
        dp: Percentiles::of(&tally.dp),
        by_confidence: by_confidence
            .map(|((&from, &to), bucket)| bucket_row(from, to, bucket))
            .collect(),
        by_position: positions(&tally.by_position),
        token_errors: token_errors(&sample.total),
        // Nothing lost against a yardstick that lost nothing is no number; it is left out.
        yardstick_kld_ratio: (tally.has_yardstick && sample.total.yardstick_kld > 0.0)
            .then(|| sample.of_sums(|s| s.kld / s.yardstick_kld)),
        yardstick,
    }
}

pub(super) fn positions(buckets: &[Bucket; POSITION_BUCKETS]) -> Vec<BucketRow> {
    let end = |i: usize| i as f64 / POSITION_BUCKETS as f64;
    let rows = buckets.iter().enumerate();
    rows.map(|(i, bucket)| bucket_row(end(i), end(i + 1), bucket))
        .collect()
}

fn bucket_row(from: f64, to: f64, bucket: &Bucket) -> BucketRow {
    BucketRow {
        from,
        to,
        tokens: bucket.tokens,
        kld_mean: (bucket.tokens > 0).then(|| bucket.kld / bucket.tokens as f64),
    }
}

/// Pearson's correlation of the two `-ln p(token)`. Models without any spread are equal in this
/// respect, which counts as 1.
fn correlation(s: &Sums) -> f64 {
    let covariance = s.nll_product / s.count - s.nll * s.nll_base / s.count.powi(2);
    let variance = |squared: f64, sum: f64| (squared / s.count - (sum / s.count).powi(2)).max(0.0);
    let spread = (variance(s.nll_squared, s.nll) * variance(s.nll_base_squared, s.nll_base)).sqrt();
    if spread > 0.0 {
        (covariance / spread).clamp(-1.0, 1.0)
    } else {
        1.0
    }
}

/// Errors of means over tokens: `sqrt((E[x²] - E[x]²) / (n - 1))`, and what follows from them to
/// first order.
fn token_errors(s: &Sums) -> TokenErrors {
    let n = s.count;
    let error =
        |squared: f64, sum: f64| ((squared / n - (sum / n).powi(2)) / (n - 1.0).max(1.0)).max(0.0);
    let (base, artifact) = (
        error(s.nll_base_squared, s.nll_base),
        error(s.nll_squared, s.nll),
    );
    let covariance = (s.nll_product / n - s.nll * s.nll_base / (n * n)) / (n - 1.0).max(1.0);
    let (ppl_base, ppl) = ((s.nll_base / n).exp(), (s.nll / n).exp());
    let ln_ratio = (artifact + base - 2.0 * covariance).max(0.0).sqrt();
    let difference =
        ppl.powi(2) * artifact + ppl_base.powi(2) * base - 2.0 * ppl * ppl_base * covariance;
    let rms = (s.dp_squared / n).max(0.0).sqrt();
    let share = s.top1 / n;
    TokenErrors {
        ppl_base: ppl_base * base.sqrt(),
        ppl: ppl * artifact.sqrt(),
        ln_ppl_ratio: ln_ratio,
        ppl_ratio: ppl / ppl_base * ln_ratio,
        ppl_difference: difference.max(0.0).sqrt(),
        kld_mean: error(s.kld_squared, s.kld).sqrt(),
        mean_dp: error(s.dp_squared, s.dp).sqrt(),
        rms_dp: if rms > 0.0 {
            0.5 / rms * error(s.dp_fourth, s.dp_squared).sqrt()
        } else {
            0.0
        },
        top1: (share * (1.0 - share) / (n - 1.0).max(1.0)).sqrt(),
    }
}
