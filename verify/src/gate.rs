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
use crate::audit::Audit;
use crate::metrics::{Metrics, share_above};
use crate::parity::Parity;
use crate::protocol::MIN_SCORED_TOKENS;
use crate::report::finite;
use crate::stats::{Interval, Level};
use crate::tally::Tally;

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
    /// Where the observed value stands: a layer, a tensor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
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

/// What a verdict rests on beside the text.
#[derive(Clone, Debug)]
pub struct Evidence<'a> {
    /// Implementation.
    pub parity: &'a Parity,
    /// The stored tensors, where they were compared.
    pub audit: Option<&'a Audit>,
    /// The user's budget.
    pub limits: &'a Limits,
    /// What else is asked.
    pub bars: Vec<Bar>,
}

/// A limit that is not fixed in advance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bar {
    /// Mean divergence over that of the yardstick.
    Yardstick(f64),
}

/// Judges an artifact. Without any quality limit the check `quality.limits` is inconclusive:
/// nothing was promised, so nothing is passed.
pub fn judge(
    metrics: &Metrics,
    evidence: &Evidence<'_>,
    allow_quality_loss: bool,
) -> Result<Judgement, Error> {
    if metrics.eval_tokens < MIN_SCORED_TOKENS as u64 {
        let scored = metrics.eval_tokens as usize;
        return Err(Error::TooLittleText {
            scored,
            needed: MIN_SCORED_TOKENS,
        });
    }
    let mut checks = parity_checks(metrics, evidence);
    checks.extend(quality_checks(metrics, evidence));
    Ok(Judgement::of(checks, allow_quality_loss))
}

impl Judgement {
    /// The verdict that follows from some checks.
    pub fn of(mut checks: Vec<Check>, allow_quality_loss: bool) -> Self {
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
        Judgement { checks, verdict }
    }
}

/// Whether the verdict would be the same with more text: a check failed for good, or every one
/// passed, both by intervals made for a look before the end.
pub(crate) fn decided(tally: &Tally, evidence: &Evidence<'_>) -> Result<bool, Error> {
    if tally.tokens() < MIN_SCORED_TOKENS as u64 {
        return Ok(false);
    }
    let metrics = Metrics::of(tally, Level::Interim)?;
    let mut checks = judge(&metrics, evidence, false)?.checks;
    if let Some(check) = checks.iter_mut().find(|c| c.id == "quality.kld_p99") {
        // The percentile has no interval, but the share of tokens beyond its limit does.
        check.status = interval_at_most(share_above(tally, Level::Interim), 0.01);
    }
    let failed = checks.iter().any(|c| c.status == CheckStatus::Fail);
    Ok(failed || checks.iter().all(|c| c.status == CheckStatus::Pass))
}

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

fn parity_checks(metrics: &Metrics, evidence: &Evidence<'_>) -> Vec<Check> {
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

fn quality_checks(metrics: &Metrics, evidence: &Evidence<'_>) -> Vec<Check> {
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
