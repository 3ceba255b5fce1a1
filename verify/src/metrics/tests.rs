//! Tests of the metrics.

use proptest::prelude::*;

use super::*;
use crate::score::TokenScore;
use crate::tally::WindowScores;

fn token(nll_base: f64, nll: f64, kld: f64, rank: u32) -> TokenScore {
    TokenScore {
        nll_base,
        nll,
        kld,
        kld_reverse: 2.0 * kld,
        confidence: 0.5,
        rank,
    }
}

fn tally(windows: &[Vec<TokenScore>]) -> Tally {
    let mut tally = Tally::new(Some(0.15));
    for (i, tokens) in windows.iter().enumerate() {
        let scores = WindowScores {
            tokens: tokens.iter().map(|&t| (t, 0.5)).collect(),
            ..WindowScores::default()
        };
        tally.add(i, i % 2, &scores);
    }
    tally
}

fn metrics(windows: &[Vec<TokenScore>]) -> Metrics {
    Metrics::of(&tally(windows), Level::Final).unwrap()
}

#[test]
fn metrics_are_the_written_out_means() {
    let ln2 = std::f64::consts::LN_2;
    let windows = [
        vec![token(ln2, 2.0 * ln2, 0.1, 0), token(ln2, ln2, 0.0, 4)],
        vec![
            token(3.0 * ln2, 2.0 * ln2, 0.5, 5),
            token(ln2, 3.0 * ln2, 0.2, 10),
        ],
    ];
    let m = metrics(&windows);
    let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
    near(m.ppl_base.value, 2f64.powf(1.5));
    near(m.ppl.value, 4.0);
    near(m.ppl_ratio.value, 2f64.powf(0.5));
    near(m.kld_mean.value, 0.2);
    near(m.kld_median, 0.15);
    near(m.kld_p90, 0.41);
    assert_eq!(
        (m.kld_max, m.top1.value, m.top5, m.top10),
        (0.5, 0.25, 0.5, 0.75)
    );
    // p: .25-.5, .5-.5, .25-.125, .125-.5
    near(m.mean_dp, -0.5 / 4.0);
    near(m.rms_dp, ((0.0625 + 0.015_625 + 0.140_625) / 4f64).sqrt());
    assert_eq!((m.eval_tokens, m.not_finite), (4, 0));
    assert_eq!(m.kld_histogram.unwrap().counts.iter().sum::<u64>(), 4);
    let d = m.detail.unwrap();
    near(d.ppl_difference.value, 4.0 - 2f64.powf(1.5));
    near(d.kld_reverse_mean.value, 0.4);
    near(d.dp.min, -0.375);
    near(d.dp.p50, -0.125);
    assert_eq!(d.by_confidence[2].tokens + d.by_position[4].tokens, 8);
    let above = share_above(&tally(&windows), Level::Final);
    near(above.value, 0.5);
    let row = Row::of(&tally(&windows), Some(1), "b", 3).unwrap();
    near(row.kld_mean.value, 0.35);
    assert_eq!((row.tokens, row.kld_mean.lo), (2, None));
    assert_eq!(Row::of(&tally(&windows), Some(2), "c", 3), None);
}

/// What is hard for both models widens both perplexities, not their ratio.
#[test]
fn the_ratio_is_paired() {
    let window = |hard: f64| vec![token(hard, hard + 0.1, 0.0, 0)];
    let m = metrics(&[window(1.0), window(3.0), window(5.0)]);
    let width = |i: Interval| i.hi.unwrap() - i.lo.unwrap();
    assert!(width(m.ppl) > 100.0);
    assert!(width(m.ppl_ratio) < 1e-9);
    assert!((m.ppl_ratio.value - 0.1f64.exp()).abs() < 1e-12);
    let d = m.detail.unwrap();
    assert!((d.correlation.value - 1.0).abs() < 1e-12);
    assert!(d.token_errors.ln_ppl_ratio < 1e-7 && d.token_errors.ppl > 1.0);
}

/// A ratio of sums leaves out whole windows, however many tokens each has.
#[test]
fn windows_are_left_out_whole() {
    let of = |klds: &[f64]| klds.iter().map(|&k| token(1.0, 1.0, k, 0)).collect();
    let m = metrics(&[of(&[2.0]), of(&[1.0, 1.0, 1.0]), of(&[4.0, 6.0])]);
    let without = [13.0 / 5.0, 12.0 / 3.0, 5.0 / 4.0];
    let reach = 4.302_653 * crate::stats::jackknife_error(&without);
    assert!((m.kld_mean.value - 2.5).abs() < 1e-12);
    assert!((m.kld_mean.hi.unwrap() - 2.5 - reach).abs() < 1e-9);
}

#[test]
fn the_histogram_keeps_what_lies_outside() {
    let mut h = KldHistogram::default();
    for kld in [0.0, 1e-12, 1.1e-7, 0.9, 1e5] {
        h.add(kld);
    }
    assert_eq!(
        (h.counts[0], h.counts[27], h.counts[KldHistogram::BINS - 1]),
        (3, 1, 1)
    );
}

#[test]
fn models_that_are_not_finite_are_named() {
    let of = |tally: &Tally| Metrics::of(tally, Level::Final);
    let mut t = tally(&[vec![token(1.0, 1.0, 0.0, 0)], vec![]]);
    t.not_finite = 7;
    assert_eq!(of(&t).unwrap().not_finite, 7);
    t.base_not_finite = Some(1);
    assert!(matches!(of(&t), Err(Error::NotFinite { window: 1 })));
    let mut t = tally(&[vec![]]);
    assert!(matches!(of(&t), Err(Error::TooLittleText { .. })));
    t.not_finite = 1;
    assert!(matches!(of(&t), Err(Error::NothingFinite { .. })));
}

proptest! {
    /// Correlation and token errors against formulas written out over tokens.
    #[test]
    fn token_statistics_agree_with_naive_sums(
        tokens in prop::collection::vec((0.1f64..6.0, 0.1f64..6.0), 3..60)
    ) {
        let n = tokens.len() as f64;
        let scores = tokens.iter().map(|&(b, a)| token(b, a, 0.1, 0)).collect();
        let d = metrics(&[scores]).detail.unwrap();
        let mean = |f: &dyn Fn(&(f64, f64)) -> f64| tokens.iter().map(f).sum::<f64>() / n;
        let (b, a) = (mean(&|t| t.0), mean(&|t| t.1));
        let var_b = mean(&|t| (t.0 - b).powi(2));
        let var_a = mean(&|t| (t.1 - a).powi(2));
        let covariance = mean(&|t| (t.0 - b) * (t.1 - a));
        let var_difference = mean(&|t| (t.1 - t.0 - (a - b)).powi(2));
        let r = covariance / (var_a * var_b).sqrt();
        prop_assert!((d.correlation.value - r).abs() < 1e-6);
        let e = d.token_errors;
        prop_assert!((e.ln_ppl_ratio - (var_difference / (n - 1.0)).sqrt()).abs() < 1e-6);
        prop_assert!((e.ppl_base - b.exp() * (var_b / (n - 1.0)).sqrt()).abs() < 1e-5 * b.exp());
    }
}
