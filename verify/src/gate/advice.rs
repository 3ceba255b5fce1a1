//! What would help an artifact that was not passed.

use super::{Check, CheckClass, CheckStatus, Judgement};
use crate::metrics::Metrics;

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
        let options = limits_met(judgement, metrics);
        if !options.is_empty() {
            out.push(format!("or accept it by name: {options}"));
        }
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
        "quality.yardstick" => {
            let ratio = metrics.detail.as_ref().and_then(|d| d.yardstick_kld_ratio);
            ratio.map(|r| format!("`--max-yardstick {}`", up(r.hi.unwrap_or(r.value))))
        }
        _ => None,
    };
    let missed = judgement
        .checks
        .iter()
        .filter(|c| c.status != CheckStatus::Pass);
    missed.filter_map(option).collect::<Vec<_>>().join(", ")
}
