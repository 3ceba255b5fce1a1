//! What a GitHub workflow is told: annotations, the step summary, outputs.
//!
//! Owns the syntax of workflow commands and its escapes. Text of models and files never begins a
//! line here, and every message is escaped, so nothing in a checkpoint can give a command.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use neuroconv_verify::render::{limit, observed, render_markdown};
use neuroconv_verify::report::Report;
use neuroconv_verify::{Check, CheckStatus};

use crate::args::GithubArg;
use crate::reports;
use crate::ui::Ui;

/// Annotations of one kind that GitHub shows of a step.
const MOST: usize = 10;
/// Bytes of a summary, well below what GitHub takes.
const SUMMARY_BYTES: usize = 64 << 10;

/// Tells the workflow about a report, where there is one and it is wanted.
pub(crate) fn tell(
    when: GithubArg,
    report: &Report,
    artifact: Option<&Path>,
    report_dir: Option<&Path>,
) -> anyhow::Result<()> {
    let there = std::env::var_os("GITHUB_ACTIONS").is_some_and(|v| v == "true");
    if when == GithubArg::Off || (when == GithubArg::Auto && !there) {
        return Ok(());
    }
    for line in annotations(report) {
        Ui::workflow_command(&line);
    }
    append("GITHUB_STEP_SUMMARY", &summary(report))?;
    append("GITHUB_OUTPUT", &outputs(report, artifact, report_dir))
}

/// Adds text to the file that the variable names, if it does.
fn append(variable: &str, text: &str) -> anyhow::Result<()> {
    let Some(path) = std::env::var_os(variable).filter(|p| !p.is_empty()) else {
        return Ok(());
    };
    let mut file = fs_err::OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)?;
    Ok(file.write_all(text.as_bytes())?)
}

/// One command per check that did not pass, failures first.
fn annotations(report: &Report) -> Vec<String> {
    let kind_of = |check: &Check| match (check.waived, check.status) {
        (true, _) => Some("notice"),
        (_, CheckStatus::Fail) => Some("error"),
        (_, CheckStatus::Inconclusive) => Some("warning"),
        (_, CheckStatus::Pass) => None,
    };
    let mut out = Vec::new();
    for kind in ["error", "warning", "notice"] {
        let checks = report.checks.iter();
        let checks = checks.filter(|c| kind_of(c) == Some(kind)).take(MOST);
        out.extend(checks.map(|check| {
            let mut message = format!(
                "{}: observed {}, limit {}",
                check.id,
                observed(check, report),
                limit(check)
            );
            if let Some(detail) = &check.detail {
                let _ = write!(message, ", {detail}");
            }
            format!(
                "::{kind} title={}::{}",
                property("neuroconv gate"),
                data(&message)
            )
        }));
    }
    out
}

/// A value behind `::`.
fn data(text: &str) -> String {
    text.replace('%', "%25")
        .replace('\r', "%0D")
        .replace('\n', "%0A")
}

/// A value before it.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

fn summary(report: &Report) -> String {
    let mut text = render_markdown(report);
    if text.len() > SUMMARY_BYTES {
        let end = (0..=SUMMARY_BYTES)
            .rev()
            .find(|&i| text.is_char_boundary(i));
        text.truncate(end.unwrap_or(0));
        text.push_str("\n\n… the rest stands in report.md\n");
    }
    text
}

/// `name=value` lines; names of files go between delimiters that cannot occur in them.
fn outputs(report: &Report, artifact: Option<&Path>, report_dir: Option<&Path>) -> String {
    let m = &report.metrics;
    let mut out = String::new();
    for (name, value) in [
        ("verdict", reports::verdict_word(report.verdict).to_owned()),
        ("exit-code", report.exit_code.to_string()),
        ("ppl-ratio", m.ppl_ratio.value.to_string()),
        ("kld", m.kld_mean.value.to_string()),
        ("top1", m.top1.value.to_string()),
        ("size-bytes", report.artifact.size_bytes.to_string()),
    ] {
        let _ = writeln!(out, "{name}={value}");
    }
    let paths = [("artifact", artifact), ("report", report_dir)];
    for (name, path) in paths.into_iter().filter_map(|(n, p)| Some((n, p?))) {
        let path = path.display().to_string();
        let mut end = "END".to_owned();
        while path.contains(&end) {
            end.push('_');
        }
        let _ = writeln!(out, "{name}<<{end}\n{path}\n{end}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_breaks_out_of_a_command() {
        assert_eq!(data("100 %\n::error::x\r"), "100 %25%0A::error::x%0D");
        assert_eq!(property("a:b,c%"), "a%3Ab%2Cc%25");
    }
}
