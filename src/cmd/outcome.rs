//! A report as a terminal shows it: figures, checks, verdict.

use std::path::Path;

use neuroconv_verify::report::{AllocationRecord, Report};
use neuroconv_verify::{CheckStatus, Verdict, render};

use crate::present;
use crate::ui::Ui;

/// Prints a verdict with its reasons. The last line is the artifact's path, if there is one.
pub(crate) fn show(
    report: &Report,
    advice: &[String],
    path: Option<&Path>,
    ui: Ui,
) -> anyhow::Result<()> {
    let m = &report.metrics;
    let interval = |i: &neuroconv_verify::Interval| match (i.lo, i.hi) {
        (Some(lo), Some(hi)) => {
            format!(
                "{} ({} to {})",
                present::number(i.value),
                present::number(lo),
                present::number(hi)
            )
        }
        _ => present::number(i.value),
    };
    let rows = [
        (
            "weights",
            format!(
                "{}, {:.3} bits per weight",
                present::bytes(report.artifact.size_bytes),
                report.artifact.bits_per_weight
            ),
        ),
        (
            "memory",
            format!("{} at most", present::bytes(report.peak_rss_bytes)),
        ),
        (
            "perplexity",
            format!("{:.4} -> {:.4}", m.ppl_base.value, m.ppl.value),
        ),
        ("ratio", interval(&m.ppl_ratio)),
        ("mean KL", format!("{} nats", interval(&m.kld_mean))),
        ("same best", interval(&m.top1)),
        ("measured on", measured(report)),
    ];
    for (key, value) in rows {
        ui.result(format!("{key:12} {value}"));
    }
    show_latent(report, ui);
    let checks: Vec<Vec<String>> = report
        .checks
        .iter()
        .map(|c| {
            let status = match c.status {
                CheckStatus::Pass => "pass",
                CheckStatus::Fail => "fail",
                CheckStatus::Inconclusive => "inconclusive",
            };
            let status = if c.waived {
                format!("{status}, waived")
            } else {
                status.to_owned()
            };
            vec![
                c.id.clone(),
                present::number(c.observed),
                present::number(c.limit),
                status,
                match (&c.detail, c.status) {
                    (Some(place), CheckStatus::Fail) => place.clone(),
                    _ => String::new(),
                },
            ]
        })
        .collect();
    ui.result(format!(
        "\n{}\n",
        present::table(&["check", "observed", "limit", "", ""], &checks, &[1, 2])
    ));
    for warning in &report.warnings {
        ui.warn(warning);
    }
    let verdict = match report.verdict {
        Verdict::Pass => "verdict: pass",
        Verdict::Waived => "verdict: waived, the loss of quality was accepted by name",
        Verdict::Fail => "verdict: fail, nothing was emitted",
        Verdict::Inconclusive => "verdict: inconclusive, nothing was emitted",
    };
    ui.result(verdict);
    for line in advice {
        ui.note(format!("hint: {line}"));
    }
    if let Some(path) = path {
        ui.result(path.display());
    }
    ui.object(report)
}

/// The best choices of every size, and the one that was taken.
pub(super) fn show_allocation(allocation: &AllocationRecord, ui: Ui) {
    let rows: Vec<Vec<String>> = render::front(allocation)
        .into_iter()
        .map(Vec::from)
        .collect();
    ui.result(present::table(&render::FRONT_COLUMNS, &rows, &[1, 2, 3]));
}

/// What became of converted attention.
fn show_latent(report: &Report, ui: Ui) {
    let Some(mla) = &report.mla else { return };
    let a = &report.artifact;
    ui.result(format!(
        "{:12} {} -> {} bytes per token ({:+.1} %)",
        "cache",
        a.kv_bytes_per_token_source,
        a.kv_bytes_per_token,
        100.0 * (a.kv_bytes_per_token as f64 / a.kv_bytes_per_token_source as f64 - 1.0),
    ));
    for [step, ppl] in render::latent_steps(report) {
        ui.result(format!("{:12} {ppl} {step}", ""));
    }
    let rows: Vec<Vec<String>> = render::latent_layers(mla)
        .into_iter()
        .map(Vec::from)
        .collect();
    let numbers: Vec<usize> = (0..render::LATENT_COLUMNS.len()).collect();
    let table = present::table(&render::LATENT_COLUMNS, &rows, &numbers);
    ui.result(format!("\n{table}"));
}

fn measured(report: &Report) -> String {
    let tokens = report.metrics.eval_tokens;
    match report.tokens_saved {
        0 => format!("{tokens} scored tokens"),
        saved => format!("{tokens} scored tokens; {saved} more were not needed"),
    }
}
