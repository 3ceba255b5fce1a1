//! What a comparison amounts to: perplexities, divergence, agreement.

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::compare::{Comparison, TokenScore, WindowScores};
use crate::report::finite;
use crate::stats::{Interval, Sum, percentile, pooled_mean};

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
}

/// Counts of divergences in bins of equal width on a logarithmic scale. What lies below or above
/// the scale is counted in the first or last bin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KldHistogram {
    /// Decimal logarithm at which the first bin begins.
    #[serde(serialize_with = "finite")]
    pub log10_min: f64,
    /// Width of a bin in decimal logarithms.
    #[serde(serialize_with = "finite")]
    pub log10_step: f64,
    /// Tokens per bin.
    pub counts: Vec<u64>,
}

impl KldHistogram {
    const BINS: usize = 36;

    fn of(klds: &[f64]) -> Self {
        let (log10_min, log10_step) = (-7.0, 0.25);
        let mut counts = vec![0; Self::BINS];
        for kld in klds {
            // The cast sends everything below the scale, zero's minus infinity too, to 0.
            let bin = ((kld.log10() - log10_min) / log10_step) as usize;
            counts[bin.min(Self::BINS - 1)] += 1;
        }
        KldHistogram {
            log10_min,
            log10_step,
            counts,
        }
    }
}

impl Metrics {
    /// Sums up a comparison. Fails where the original is not finite anywhere, or where the
    /// artifact is finite nowhere.
    pub fn of(comparison: &Comparison) -> Result<Self, Error> {
        let windows = &comparison.windows;
        if let Some(window) = windows.iter().position(|w| w.base_not_finite > 0) {
            return Err(Error::NotFinite { window });
        }
        let not_finite = windows.iter().map(|w| w.not_finite).sum();
        let tokens: Vec<TokenScore> = windows
            .iter()
            .flat_map(|w| w.tokens.iter().copied())
            .collect();
        if tokens.is_empty() {
            return Err(if not_finite == 0 {
                Error::TooLittleText {
                    scored: 0,
                    needed: 1,
                }
            } else {
                Error::NothingFinite {
                    windows: windows.len(),
                }
            });
        }
        let count = tokens.len() as f64;
        let mut klds: Vec<f64> = tokens.iter().map(|t| t.kld).collect();
        klds.sort_by(f64::total_cmp);
        let within = |k: u32| tokens.iter().filter(|t| t.rank < k).count() as f64 / count;
        let dp = |t: &TokenScore| (-t.nll).exp() - (-t.nll_base).exp();
        let mean = |of: fn(&TokenScore) -> f64| pooled(windows, of);
        Ok(Metrics {
            ppl_base: mean(|t| t.nll_base).exp(),
            ppl: mean(|t| t.nll).exp(),
            ppl_ratio: mean(|t| t.nll - t.nll_base).exp(),
            kld_mean: mean(|t| t.kld).within(0.0, f64::INFINITY),
            kld_median: percentile(&klds, 0.5),
            kld_p90: percentile(&klds, 0.9),
            kld_p99: percentile(&klds, 0.99),
            kld_p999: percentile(&klds, 0.999),
            kld_max: percentile(&klds, 1.0),
            top1: mean(|t| f64::from(u8::from(t.rank == 0))).within(0.0, 1.0),
            top5: within(5),
            top10: within(10),
            mean_dp: tokens.iter().map(dp).sum::<f64>() / count,
            rms_dp: (tokens.iter().map(|t| dp(t).powi(2)).sum::<f64>() / count).sqrt(),
            eval_tokens: tokens.len() as u64,
            not_finite,
            kld_histogram: Some(KldHistogram::of(&klds)),
        })
    }
}

fn pooled(windows: &[WindowScores], of: impl Fn(&TokenScore) -> f64) -> Interval {
    let sums: Vec<Sum> = windows
        .iter()
        .map(|w| Sum {
            total: w.tokens.iter().map(&of).sum(),
            count: w.tokens.len() as u64,
        })
        .collect();
    pooled_mean(&sums)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(nll_base: f64, nll: f64, kld: f64, rank: u32) -> TokenScore {
        TokenScore {
            nll_base,
            nll,
            kld,
            rank,
        }
    }

    fn comparison(windows: Vec<Vec<TokenScore>>) -> Comparison {
        let windows = windows
            .into_iter()
            .map(|tokens| WindowScores {
                tokens,
                ..WindowScores::default()
            })
            .collect();
        Comparison {
            windows,
            ..Comparison::default()
        }
    }

    #[test]
    fn metrics_are_the_written_out_means() {
        let ln2 = std::f64::consts::LN_2;
        let m = Metrics::of(&comparison(vec![
            vec![token(ln2, 2.0 * ln2, 0.1, 0), token(ln2, ln2, 0.0, 4)],
            vec![
                token(3.0 * ln2, 2.0 * ln2, 0.5, 5),
                token(ln2, 3.0 * ln2, 0.2, 10),
            ],
        ]))
        .unwrap();
        assert!((m.ppl_base.value - 2f64.powf(1.5)).abs() < 1e-12);
        assert!((m.ppl.value - 4.0).abs() < 1e-12);
        assert!((m.ppl_ratio.value - 2f64.powf(0.5)).abs() < 1e-12);
        assert!((m.kld_mean.value - 0.2).abs() < 1e-12);
        assert!((m.kld_median - 0.15).abs() < 1e-12);
        assert!((m.kld_p90 - 0.41).abs() < 1e-12);
        assert_eq!(
            (m.kld_max, m.top1.value, m.top5, m.top10),
            (0.5, 0.25, 0.5, 0.75)
        );
        // p: .25-.5, .5-.5, .25-.125, .125-.5
        assert!((m.mean_dp - (-0.5 / 4.0)).abs() < 1e-12);
        assert!((m.rms_dp - ((0.0625 + 0.015_625 + 0.140_625) / 4f64).sqrt()).abs() < 1e-12);
        assert_eq!((m.eval_tokens, m.not_finite), (4, 0));
        assert_eq!(m.kld_histogram.unwrap().counts.iter().sum::<u64>(), 4);
    }

    /// What is hard for both models widens both perplexities, not their ratio.
    #[test]
    fn the_ratio_is_paired() {
        let window = |hard: f64| vec![token(hard, hard + 0.1, 0.0, 0)];
        let m = Metrics::of(&comparison(vec![window(1.0), window(3.0), window(5.0)])).unwrap();
        let width = |i: Interval| i.hi.unwrap() - i.lo.unwrap();
        assert!(width(m.ppl) > 100.0);
        assert!(width(m.ppl_ratio) < 1e-9);
        assert!((m.ppl_ratio.value - 0.1f64.exp()).abs() < 1e-12);
    }

    #[test]
    fn the_histogram_keeps_what_lies_outside() {
        let h = KldHistogram::of(&[0.0, 1e-12, 1.1e-7, 0.9, 1e5]);
        assert_eq!(
            (h.counts[0], h.counts[27], h.counts[KldHistogram::BINS - 1]),
            (3, 1, 1)
        );
    }

    #[test]
    fn models_that_are_not_finite_are_named() {
        let mut c = comparison(vec![vec![token(1.0, 1.0, 0.0, 0)], vec![]]);
        c.windows[1].not_finite = 7;
        assert_eq!(Metrics::of(&c).unwrap().not_finite, 7);
        c.windows[1].base_not_finite = 1;
        assert!(matches!(
            Metrics::of(&c),
            Err(Error::NotFinite { window: 1 })
        ));
        let mut c = comparison(vec![vec![]]);
        assert!(matches!(Metrics::of(&c), Err(Error::TooLittleText { .. })));
        c.windows[0].not_finite = 1;
        assert!(matches!(Metrics::of(&c), Err(Error::NothingFinite { .. })));
    }
}
