//! Each check: what was observed against its limit.

use super::{Bar, Check, CheckClass, CheckStatus, Evidence};
use crate::metrics::Metrics;
use crate::stats::Interval;

fn check(id: &str, class: CheckClass, observed: f64, limit: f64, status: CheckStatus) -> Check {
    Check {
        id: id.to_owned(),
        class,
        status,
        limit,
        observed,
        waived: false,
        detail: None,
    }
}

pub(super) fn parity_checks(metrics: &Metrics, evidence: &Evidence<'_>) -> Vec<Check> {
    let parity = evidence.parity;
    let limits = &parity.limits;
    let at_most = |id: &str, observed: f64, limit: f64| {
        check(
            id,
            CheckClass::Parity,
            observed,
            limit,
            at_most(observed, limit),
        )
    };
    let mut checks = vec![
        at_most(
            "parity.max_abs_logit",
            parity.max_abs_logit,
            limits.max_abs_logit,
        ),
        at_most("parity.rel_l2", parity.rel_l2, limits.rel_l2),
        at_most("parity.kld_mean", parity.kld_mean, limits.kld_mean),
        at_most("parity.not_finite", metrics.not_finite as f64, 0.0),
    ];
    if !parity.steps.is_empty() {
        let (rel_l2, channel) = parity.worst_step();
        let steps = [
            at_most("parity.step_rel_l2", rel_l2, limits.step_rel_l2),
            at_most("parity.step_channel", channel, limits.step_channel),
        ];
        checks.extend(steps.map(|c| Check {
            detail: parity.first_bad.clone(),
            ..c
        }));
    }
    if let Some(audit) = evidence.audit {
        let differences = audit.differences.len() as f64;
        checks.push(Check {
            detail: (!audit.differences.is_empty()).then(|| audit.differences.join(", ")),
            ..at_most("parity.description", differences, 0.0)
        });
    }
    // What the parity run refused for another reason is refused here too.
    if !parity.pass && checks.iter().all(|c| c.status == CheckStatus::Pass) {
        checks.push(at_most("parity.run", 1.0, 0.0));
    }
    checks
}

pub(super) fn quality_checks(metrics: &Metrics, evidence: &Evidence<'_>) -> Vec<Check> {
    let limits = evidence.limits;
    let quality = |id: &str, observed: f64, limit: f64, status| {
        check(id, CheckClass::Quality, observed, limit, status)
    };
    let interval = |id: &str, observed: Interval, limit: f64| {
        quality(id, observed.value, limit, interval_at_most(observed, limit))
    };
    let mut checks = Vec::new();
    if let Some(limit) = limits.max_ppl_ratio {
        checks.push(interval("quality.ppl_ratio", metrics.ppl_ratio, limit));
    }
    if let Some(limit) = limits.max_kld {
        checks.push(interval("quality.kld_mean", metrics.kld_mean, limit));
    }
    if let Some(limit) = limits.min_top1 {
        let Interval { value, lo, hi } = metrics.top1;
        let less = Interval {
            value: -value,
            lo: hi.map(|x| -x),
            hi: lo.map(|x| -x),
        };
        let status = interval_at_most(less, -limit);
        checks.push(quality("quality.top1", value, limit, status));
    }
    if let Some(limit) = limits.max_p99_kld {
        // A percentile has no jackknife interval: its jackknife does not converge.
        let status = at_most(metrics.kld_p99, limit);
        checks.push(quality("quality.kld_p99", metrics.kld_p99, limit, status));
    }
    for bar in &evidence.bars {
        match *bar {
            Bar::Yardstick(limit) => {
                let ratio = metrics.detail.as_ref().and_then(|d| d.yardstick_kld_ratio);
                checks.push(match ratio {
                    Some(ratio) => interval("quality.yardstick", ratio, limit),
                    // The yardstick lost nothing at all: the artifact may not either.
                    None => quality(
                        "quality.yardstick",
                        metrics.kld_mean.value,
                        0.0,
                        at_most(metrics.kld_mean.value, 0.0),
                    ),
                });
            }
        }
    }
    if checks.is_empty() {
        checks.push(quality(
            "quality.limits",
            0.0,
            1.0,
            CheckStatus::Inconclusive,
        ));
    }
    if let Some(audit) = evidence.audit.filter(|a| a.compared > 0) {
        checks.push(Check {
            detail: Some(audit.place.clone()),
            ..quality(
                "quality.tensors",
                audit.worst,
                1.0,
                at_most(audit.worst, 1.0),
            )
        });
    }
    checks
}

/// A value without an interval: passes if it is a number no larger than a finite limit.
fn at_most(value: f64, limit: f64) -> CheckStatus {
    if value.is_finite() && limit.is_finite() && value <= limit {
        CheckStatus::Pass
    } else {
        CheckStatus::Fail
    }
}

/// A value with an interval.
pub(super) fn interval_at_most(interval: Interval, limit: f64) -> CheckStatus {
    let Interval { value, lo, hi } = interval;
    let numbers = [Some(value), lo, hi, Some(limit)];
    if numbers.iter().flatten().any(|x| !x.is_finite()) {
        return CheckStatus::Fail;
    }
    match (lo, hi) {
        (_, Some(hi)) if hi <= limit => CheckStatus::Pass,
        (Some(lo), _) if lo > limit => CheckStatus::Fail,
        _ => CheckStatus::Inconclusive,
    }
}
