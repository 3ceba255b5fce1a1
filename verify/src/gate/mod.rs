//! Judges what was measured.
//!
//! Owns checks, the verdict and the advice to whoever is refused. A check passes only if the
//! *upper* end of its interval is within the limit, fails if the lower end is beyond it, and is
//! inconclusive between; whatever is not finite fails, on either side of the comparison. Parity
//! checks judge the implementation and cannot be waived; quality checks judge the user's budget
//! and can.

mod advice;
mod checks;

use checks::{interval_at_most, parity_checks, quality_checks};
use neuroconv_recipes::Limits;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::audit::Audit;
use crate::metrics::{Metrics, share_above};
use crate::parity::Parity;
use crate::protocol::MIN_SCORED_TOKENS;
use crate::report::finite;
use crate::stats::Level;
use crate::tally::Tally;

pub use advice::advice;

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

#[cfg(test)]
mod tests;
