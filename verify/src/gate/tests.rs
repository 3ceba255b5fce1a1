//! Tests of the gate.

use super::*;
use crate::stats::Interval;
use crate::testing::{interval, metrics, parity};

const NAN: f64 = f64::NAN;

/// Limits that the metrics of [`metrics`] meet.
fn wide() -> Limits {
    Limits {
        max_ppl_ratio: Some(1.25),
        max_kld: Some(0.25),
        min_top1: Some(0.5),
        max_p99_kld: Some(1.0),
    }
}

fn try_judge(
    metrics: &Metrics,
    parity: &Parity,
    limits: &Limits,
    allow: bool,
) -> Result<Judgement, Error> {
    let evidence = Evidence {
        parity,
        audit: None,
        limits,
        bars: Vec::new(),
    };
    judge(metrics, &evidence, allow)
}

fn judged(metrics: &Metrics, parity: &Parity, limits: &Limits, allow: bool) -> Judgement {
    try_judge(metrics, parity, limits, allow).unwrap()
}

fn status(judgement: &Judgement, id: &str) -> CheckStatus {
    judgement
        .checks
        .iter()
        .find(|c| c.id == id)
        .unwrap_or_else(|| panic!("no check {id}"))
        .status
}

#[test]
fn within_every_limit_passes() {
    let j = judged(&metrics(), &parity(), &wide(), false);
    assert_eq!(
        (j.verdict, j.exit_code(), j.checks.len()),
        (Verdict::Pass, 0, 8)
    );
    assert!(
        j.checks
            .iter()
            .all(|c| c.status == CheckStatus::Pass && !c.waived)
    );
    // A permission that is not needed changes nothing.
    assert_eq!(judged(&metrics(), &parity(), &wide(), true), j);
    assert!(advice(&j, &metrics(), "int4").is_empty());
}

#[test]
fn upper_ends_pass_and_lower_ends_fail() {
    for (limit, expected) in [
        (1.125 + 0.015_625, CheckStatus::Pass),
        (1.14, CheckStatus::Inconclusive),
        (1.125 - 0.015_625, CheckStatus::Inconclusive),
        (1.109, CheckStatus::Fail),
    ] {
        let limits = Limits {
            max_ppl_ratio: Some(limit),
            ..wide()
        };
        let j = judged(&metrics(), &parity(), &limits, false);
        assert_eq!(status(&j, "quality.ppl_ratio"), expected, "{limit}");
    }
    for (limit, expected) in [
        (0.875 - 0.015_625, CheckStatus::Pass),
        (0.875, CheckStatus::Inconclusive),
        (0.9, CheckStatus::Fail),
    ] {
        let limits = Limits {
            min_top1: Some(limit),
            ..wide()
        };
        let j = judged(&metrics(), &parity(), &limits, false);
        assert_eq!(status(&j, "quality.top1"), expected, "{limit}");
    }
}

#[test]
fn verdicts_have_their_exit_codes_and_parity_comes_first() {
    let bad_quality = Limits {
        max_kld: Some(0.01),
        ..wide()
    };
    let unsure = Limits {
        max_kld: Some(0.0625),
        ..wide()
    };
    let bad_parity = || Parity {
        rel_l2: 0.5,
        pass: false,
        ..parity()
    };
    for (parity, limits, allow, verdict, code) in [
        (parity(), wide(), false, Verdict::Pass, 0),
        (parity(), bad_quality, false, Verdict::Fail, 3),
        (parity(), unsure, false, Verdict::Inconclusive, 8),
        (parity(), bad_quality, true, Verdict::Waived, 0),
        (parity(), unsure, true, Verdict::Waived, 0),
        (bad_parity(), wide(), false, Verdict::Fail, 4),
        (bad_parity(), bad_quality, false, Verdict::Fail, 4),
        (bad_parity(), unsure, false, Verdict::Fail, 4),
        (bad_parity(), bad_quality, true, Verdict::Fail, 4),
    ] {
        let j = judged(&metrics(), &parity, &limits, allow);
        assert_eq!(
            (j.verdict, j.exit_code()),
            (verdict, code),
            "{limits:?} {allow}"
        );
        assert!(
            j.checks
                .iter()
                .all(|c| !c.waived || c.class == CheckClass::Quality)
        );
    }
}

#[test]
fn without_intervals_nothing_is_decided() {
    let alone = |value| Interval {
        value,
        lo: None,
        hi: None,
    };
    for value in [1.0, 99.0] {
        let m = Metrics {
            ppl_ratio: alone(value),
            ..metrics()
        };
        let j = judged(&m, &parity(), &wide(), false);
        assert_eq!((j.verdict, j.exit_code()), (Verdict::Inconclusive, 8));
    }
}

#[test]
fn without_limits_nothing_is_passed() {
    let none = Limits {
        max_ppl_ratio: None,
        max_kld: None,
        min_top1: None,
        max_p99_kld: None,
    };
    let j = judged(&metrics(), &parity(), &none, false);
    assert_eq!(
        (j.verdict, status(&j, "quality.limits")),
        (Verdict::Inconclusive, CheckStatus::Inconclusive)
    );
    assert!(advice(&j, &metrics(), "int8")[0].contains("--max-ppl-ratio"));
    assert_eq!(
        judged(&metrics(), &parity(), &none, true).verdict,
        Verdict::Waived
    );
}

/// Whatever is not a number, on whichever side, fails its check.
#[test]
fn nan_never_passes() {
    for bad in [NAN, f64::INFINITY, f64::NEG_INFINITY] {
        type Break = fn(&mut Metrics, &mut Parity, &mut Limits, f64);
        let cases: [(&str, Break); 19] = [
            ("quality.ppl_ratio", |m, _, _, x| {
                m.ppl_ratio = interval(x, 0.0);
            }),
            ("quality.ppl_ratio", |m, _, _, x| m.ppl_ratio.value = x),
            ("quality.ppl_ratio", |m, _, _, x| m.ppl_ratio.lo = Some(x)),
            ("quality.ppl_ratio", |m, _, _, x| m.ppl_ratio.hi = Some(x)),
            ("quality.ppl_ratio", |_, _, l, x| l.max_ppl_ratio = Some(x)),
            ("quality.kld_mean", |m, _, _, x| {
                m.kld_mean = interval(x, 0.0);
            }),
            ("quality.kld_mean", |m, _, _, x| m.kld_mean.hi = Some(x)),
            ("quality.kld_mean", |_, _, l, x| l.max_kld = Some(x)),
            ("quality.top1", |m, _, _, x| m.top1 = interval(x, 0.0)),
            ("quality.top1", |m, _, _, x| m.top1.lo = Some(x)),
            ("quality.top1", |_, _, l, x| l.min_top1 = Some(x)),
            ("quality.kld_p99", |m, _, _, x| m.kld_p99 = x),
            ("quality.kld_p99", |_, _, l, x| l.max_p99_kld = Some(x)),
            ("parity.max_abs_logit", |_, p, _, x| p.max_abs_logit = x),
            ("parity.max_abs_logit", |_, p, _, x| {
                p.limits.max_abs_logit = x;
            }),
            ("parity.rel_l2", |_, p, _, x| p.rel_l2 = x),
            ("parity.rel_l2", |_, p, _, x| p.limits.rel_l2 = x),
            ("parity.kld_mean", |_, p, _, x| p.kld_mean = x),
            ("parity.kld_mean", |_, p, _, x| p.limits.kld_mean = x),
        ];
        for (i, (id, set)) in cases.iter().enumerate() {
            let (mut m, mut p, mut l) = (metrics(), parity(), wide());
            set(&mut m, &mut p, &mut l, bad);
            let j = judged(&m, &p, &l, false);
            assert_eq!(status(&j, id), CheckStatus::Fail, "case {i} with {bad}");
            assert_eq!(j.verdict, Verdict::Fail, "case {i} with {bad}");
        }
    }
}

#[test]
fn values_that_are_not_finite_fail_and_cannot_be_waived() {
    let m = Metrics {
        not_finite: 1,
        ..metrics()
    };
    let j = judged(&m, &parity(), &wide(), true);
    assert_eq!((j.verdict, j.exit_code()), (Verdict::Fail, 4));
    let p = Parity {
        pass: false,
        ..parity()
    };
    assert_eq!(judged(&metrics(), &p, &wide(), true).exit_code(), 4);
}

#[test]
fn too_few_tokens_are_refused() {
    for tokens in [0, 511] {
        let m = Metrics {
            eval_tokens: tokens,
            ..metrics()
        };
        let refused = try_judge(&m, &parity(), &wide(), true);
        assert!(matches!(
            refused,
            Err(Error::TooLittleText { needed: 512, .. })
        ));
    }
}

#[test]
fn advice_names_limits_that_would_pass() {
    let limits = Limits {
        max_ppl_ratio: Some(1.01),
        max_kld: Some(0.01),
        ..wide()
    };
    let j = judged(&metrics(), &parity(), &limits, false);
    let text = advice(&j, &metrics(), "ternary").join("\n");
    assert!(
        text.contains("ternary-mixed") && text.contains("--allow-quality-loss"),
        "{text}"
    );
    assert!(
        text.contains("`--max-ppl-ratio 1.141`, `--max-kld 0.071`"),
        "{text}"
    );
    let met = Limits {
        max_ppl_ratio: Some(1.141),
        max_kld: Some(0.071),
        ..wide()
    };
    assert_eq!(
        judged(&metrics(), &parity(), &met, false).verdict,
        Verdict::Pass
    );
    let bug = Parity {
        rel_l2: 1.0,
        pass: false,
        ..parity()
    };
    let j = judged(&metrics(), &bug, &limits, false);
    assert_eq!(advice(&j, &metrics(), "ternary").len(), 1);
}

#[test]
fn advice_names_no_option_where_none_would_do() {
    let miss = |id: &str| Check {
        id: id.to_owned(),
        class: CheckClass::Quality,
        status: CheckStatus::Fail,
        limit: 1.25,
        observed: 1.378,
        waived: false,
        detail: None,
    };
    let text = |id| advice(&Judgement::of(vec![miss(id)], false), &metrics(), "int4").join("\n");
    assert!(!text("quality.tensors").contains("accept it by name"));
    let mut measured = metrics();
    let mut detail = crate::testing::full_report().metrics.detail.unwrap();
    detail.yardstick_kld_ratio = Some(Interval {
        value: 1.378,
        lo: Some(1.3),
        hi: Some(1.4501),
    });
    measured.detail = Some(detail);
    let yardstick = Judgement::of(vec![miss("quality.yardstick")], false);
    let text = advice(&yardstick, &measured, "int4").join("\n");
    assert!(text.contains("by name: `--max-yardstick 1.451`"), "{text}");
}
