//! `JUnit` XML: each check is a test case, so build servers show what was refused.

use std::fmt::Write;

use super::{escape, limit, observed};
use crate::gate::{Check, CheckClass, CheckStatus};
use crate::report::Report;

/// The report as a `JUnit` test suite `neuroconv.gate`. A failed check is a failure, an
/// inconclusive one an error, a waived one skipped.
pub fn render_junit(report: &Report) -> String {
    write_junit(report).expect("writing to a string cannot fail")
}

fn write_junit(report: &Report) -> Result<String, std::fmt::Error> {
    let open = |status| {
        report
            .checks
            .iter()
            .filter(|c| c.status == status && !c.waived)
            .count()
    };
    let waived = report.checks.iter().filter(|c| c.waived).count();
    let counts = format!(
        r#"tests="{}" failures="{}" errors="{}" skipped="{waived}""#,
        report.checks.len(),
        open(CheckStatus::Fail),
        open(CheckStatus::Inconclusive),
    );
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    writeln!(
        out,
        "<testsuites {counts}>\n  <testsuite name=\"neuroconv.gate\" {counts}>"
    )?;
    writeln!(out, "    <properties>")?;
    let m = &report.metrics;
    for (name, value) in [
        ("source", report.source.id.clone()),
        ("artifact", report.artifact.path.clone()),
        (
            "bits_per_weight",
            report.artifact.bits_per_weight.to_string(),
        ),
        ("ppl_base", m.ppl_base.value.to_string()),
        ("ppl", m.ppl.value.to_string()),
        ("ppl_ratio", m.ppl_ratio.value.to_string()),
        ("kld_mean", m.kld_mean.value.to_string()),
        ("top1", m.top1.value.to_string()),
        ("eval_tokens", m.eval_tokens.to_string()),
    ] {
        writeln!(
            out,
            "      <property name=\"{name}\" value=\"{}\"/>",
            escape(&value)
        )?;
    }
    writeln!(out, "    </properties>")?;
    for check in &report.checks {
        write_case(&mut out, check, report)?;
    }
    writeln!(out, "  </testsuite>\n</testsuites>")?;
    Ok(out)
}

fn write_case(out: &mut String, check: &Check, report: &Report) -> std::fmt::Result {
    let class = match check.class {
        CheckClass::Parity => "parity",
        CheckClass::Quality => "quality",
    };
    let name = escape(&check.id);
    write!(
        out,
        "    <testcase classname=\"neuroconv.{class}\" name=\"{name}\""
    )?;
    let message = escape(&format!(
        "observed {}, limit {}",
        observed(check, report),
        limit(check)
    ));
    let element = match (check.waived, check.status) {
        (_, CheckStatus::Pass) => return writeln!(out, "/>"),
        (true, _) => format!("<skipped message=\"waived: {message}\"/>"),
        (_, CheckStatus::Fail) => format!("<failure type=\"threshold\" message=\"{message}\"/>"),
        (_, CheckStatus::Inconclusive) => {
            format!("<error type=\"inconclusive\" message=\"{message}\"/>")
        }
    };
    writeln!(out, ">\n      {element}\n    </testcase>")
}
