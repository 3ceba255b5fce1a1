//! Judges what was measured.
//!
//! Owns checks, the verdict and the advice to whoever is refused. A check passes only if the
//! *upper* end of its interval is within the limit, fails if the lower end is beyond it, and is
//! inconclusive between; whatever is not finite fails, on either side of the comparison. Parity
//! checks judge the implementation and cannot be waived; quality checks judge the user's budget
//! and can.

use neuroconv_recipes::Limits;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::metrics::Metrics;
use crate::parity::Parity;
use crate::protocol::MIN_SCORED_TOKENS;
use crate::report::finite;
use crate::stats::Interval;

/// What a check is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckClass {
    /// What is executed equals what is stored. A miss is a bug.
    Parity,
    /// The artifact is as good as the user asks.
    Quality,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckStatus {
    /// Within the limit.
    Pass,
    /// Beyond the limit, or not a number.
    Fail,
    /// The interval holds the limit, or there is no interval.
    Inconclusive,
}

/// One limit and what was observed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// What is checked, `class.quantity`. Stable.
    pub id: String,
    /// What the check is about.
    pub class: CheckClass,
    /// How it ended.
    pub status: CheckStatus,
    /// The largest value allowed; for `quality.top1` and `quality.limits` the smallest.
    #[serde(serialize_with = "finite")]
    pub limit: f64,
    /// The measured value; its interval stands among the metrics.
    #[serde(serialize_with = "finite")]
    pub observed: f64,
    /// Whether the user accepted that it did not pass.
    pub waived: bool,
}

/// The verdict on an artifact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Every check passed.
    Pass,
    /// A check failed.
    Fail,
    /// None failed, but one could not be decided.
    Inconclusive,
    /// Only quality checks did not pass, and the user accepted that.
    Waived,
}

/// All checks of an artifact and what follows from them.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    /// Parity checks first.
    pub checks: Vec<Check>,
    /// The verdict.
    pub verdict: Verdict,
}

impl Judgement {
    /// The exit code: 0 pass or waived, 4 parity failed, 3 quality failed, 8 inconclusive.
    pub fn exit_code(&self) -> u8 {
        exit_code(self.verdict, &self.checks)
    }
}

/// The exit code of a verdict: 0 pass or waived, 4 if a parity check failed, else 3 if one
/// failed, 8 inconclusive.
pub fn exit_code(verdict: Verdict, checks: &[Check]) -> u8 {
    let parity = |c: &Check| c.class == CheckClass::Parity && c.status == CheckStatus::Fail;
    match verdict {
        Verdict::Pass | Verdict::Waived => 0,
        Verdict::Fail if checks.iter().any(parity) => 4,
        Verdict::Fail => 3,
        Verdict::Inconclusive => 8,
    }
}

/// Judges an artifact. Without any quality limit the check `quality.limits` is inconclusive:
/// nothing was promised, so nothing is passed.
pub fn judge(
    metrics: &Metrics,
    parity: &Parity,
    limits: &Limits,
    allow_quality_loss: bool,
) -> Result<Judgement, Error> {
    if metrics.eval_tokens < MIN_SCORED_TOKENS as u64 {
        let scored = metrics.eval_tokens as usize;
        return Err(Error::TooLittleText {
            scored,
            needed: MIN_SCORED_TOKENS,
        });
    }
    let mut checks = parity_checks(metrics, parity);
    checks.extend(quality_checks(metrics, limits));
    for check in &mut checks {
        check.waived = allow_quality_loss
            && check.class == CheckClass::Quality
            && check.status != CheckStatus::Pass;
    }
    let open = |status| checks.iter().any(|c| c.status == status && !c.waived);
    let verdict = if open(CheckStatus::Fail) {
        Verdict::Fail
    } else if open(CheckStatus::Inconclusive) {
        Verdict::Inconclusive
    } else if checks.iter().any(|c| c.waived) {
        Verdict::Waived
    } else {
        Verdict::Pass
    };
    Ok(Judgement { checks, verdict })
}

fn parity_checks(metrics: &Metrics, parity: &Parity) -> Vec<Check> {
    let check = |id: &str, observed: f64, limit: f64| Check {
        id: id.to_owned(),
        class: CheckClass::Parity,
        status: at_most(observed, limit),
        limit,
        observed,
        waived: false,
    };
    let mut checks = vec![
        check(
            "parity.max_abs_logit",
            parity.max_abs_logit,
            parity.limits.max_abs_logit,
        ),
        check("parity.rel_l2", parity.rel_l2, parity.limits.rel_l2),
        check("parity.kld_mean", parity.kld_mean, parity.limits.kld_mean),
        check("parity.not_finite", metrics.not_finite as f64, 0.0),
    ];
    // What the parity run refused for another reason is refused here too.
    if !parity.pass && checks.iter().all(|c| c.status == CheckStatus::Pass) {
        checks.push(check("parity.run", 1.0, 0.0));
    }
    checks
}

fn quality_checks(metrics: &Metrics, limits: &Limits) -> Vec<Check> {
    let check = |id: &str, observed: f64, limit: f64, status| Check {
        id: id.to_owned(),
        class: CheckClass::Quality,
        status,
        limit,
        observed,
        waived: false,
    };
    let mut checks = Vec::new();
    if let Some(limit) = limits.max_ppl_ratio {
        let status = interval_at_most(metrics.ppl_ratio, limit);
        checks.push(check(
            "quality.ppl_ratio",
            metrics.ppl_ratio.value,
            limit,
            status,
        ));
    }
    if let Some(limit) = limits.max_kld {
        let status = interval_at_most(metrics.kld_mean, limit);
        checks.push(check(
            "quality.kld_mean",
            metrics.kld_mean.value,
            limit,
            status,
        ));
    }
    if let Some(limit) = limits.min_top1 {
        let Interval { value, lo, hi } = metrics.top1;
        let less = Interval {
            value: -value,
            lo: hi.map(|x| -x),
            hi: lo.map(|x| -x),
        };
        checks.push(check(
            "quality.top1",
            value,
            limit,
            interval_at_most(less, -limit),
        ));
    }
    if let Some(limit) = limits.max_p99_kld {
        // A percentile has no jackknife interval: its jackknife does not converge.
        checks.push(check(
            "quality.kld_p99",
            metrics.kld_p99,
            limit,
            at_most(metrics.kld_p99, limit),
        ));
    }
    if checks.is_empty() {
        checks.push(check("quality.limits", 0.0, 1.0, CheckStatus::Inconclusive));
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
fn interval_at_most(interval: Interval, limit: f64) -> CheckStatus {
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

/// What would help an artifact that was not passed, one sentence each; empty if it was.
/// `codec` is the body's codec as manifests spell it.
pub fn advice(judgement: &Judgement, metrics: &Metrics, codec: &str) -> Vec<String> {
    let open = |class, status| {
        judgement
            .checks
            .iter()
            .any(|c| c.class == class && c.status == status && !c.waived)
    };
    if open(CheckClass::Parity, CheckStatus::Fail) {
        return vec![
            "the runtime does not compute what is stored: this is a bug, not a matter of quality, \
             and no limit or waiver changes it"
                .into(),
        ];
    }
    let mut out = Vec::new();
    if open(CheckClass::Quality, CheckStatus::Fail) {
        match codec {
            "ternary" => out.push(
                "more bits help most: `int4` or `int8`, or the built-in recipe `ternary-mixed`, \
                 which keeps what suffers most in int8; one ternary plane without retraining costs \
                 most models much of their quality"
                    .into(),
            ),
            "int4" => out.push(
                "more bits help: `int8`, a smaller `--group-size`, or a recipe that keeps the \
                 first and last layers in int8"
                    .into(),
            ),
            _ => out.push("keep the worst tensors of the report in their source precision".into()),
        }
        out.push(format!(
            "or accept it by name: {}",
            limits_met(judgement, metrics)
        ));
        out.push("or emit it all the same with `--allow-quality-loss`, which is recorded".into());
    } else if open(CheckClass::Quality, CheckStatus::Inconclusive) {
        if judgement.checks.iter().any(|c| c.id == "quality.limits") {
            out.push("set a limit: `--max-ppl-ratio`, `--max-kld` or `--min-top1`".into());
        } else {
            out.push(
                "the interval holds the limit: more text decides it, by `--max-eval-tokens` or a \
                 further `--text`, or a smaller `--ctx` for more windows"
                    .into(),
            );
        }
    }
    out
}

/// The tightest options under which the checks that did not pass would have passed.
fn limits_met(judgement: &Judgement, metrics: &Metrics) -> String {
    let up = |x: f64| format!("{:.3}", (x * 1000.0).ceil() / 1000.0);
    let down = |x: f64| format!("{:.3}", (x * 1000.0).floor() / 1000.0);
    let option = |c: &Check| match c.id.as_str() {
        "quality.ppl_ratio" => Some(format!(
            "`--max-ppl-ratio {}`",
            up(metrics.ppl_ratio.hi.unwrap_or(c.observed))
        )),
        "quality.kld_mean" => Some(format!(
            "`--max-kld {}`",
            up(metrics.kld_mean.hi.unwrap_or(c.observed))
        )),
        "quality.top1" => Some(format!(
            "`--min-top1 {}`",
            down(metrics.top1.lo.unwrap_or(c.observed))
        )),
        "quality.kld_p99" => Some(format!(
            "`max_p99_kld = {}` in a recipe",
            up(metrics.kld_p99)
        )),
        _ => None,
    };
    let missed = judgement
        .checks
        .iter()
        .filter(|c| c.status != CheckStatus::Pass);
    missed.filter_map(option).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
