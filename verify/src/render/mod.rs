//! Reports for people and for build servers.
//!
//! Owns text made from a [`Report`]. Everything that came from outside is
//! escaped for the format at hand.

mod allocation;
mod html;
mod junit;
mod latent;
mod lm_eval;
mod markdown;
mod plots;
mod sections;

pub use allocation::{FRONT_COLUMNS, front};
pub use html::render_html;
pub use junit::render_junit;
pub use latent::{LATENT_COLUMNS, latent_layers, latent_steps};
pub use lm_eval::render_lm_eval;
pub use markdown::render_markdown;

use crate::gate::{Check, CheckStatus, Verdict};
use crate::report::Report;
use crate::stats::Interval;

/// A number with four significant digits.
fn number(x: f64) -> String {
    let size = x.abs();
    if x == 0.0 {
        "0".to_owned()
    } else if (1e-3..1e6).contains(&size) {
        let decimals = (3 - size.log10().floor() as i32).max(0) as usize;
        format!("{x:.decimals$}")
    } else {
        format!("{x:.2e}")
    }
}

/// A value with its interval in parentheses.
fn with_interval(interval: Interval) -> String {
    match (interval.lo, interval.hi) {
        (Some(lo), Some(hi)) => {
            format!(
                "{} ({} – {})",
                number(interval.value),
                number(lo),
                number(hi)
            )
        }
        _ => format!("{} (no interval)", number(interval.value)),
    }
}

/// A count with its thousands apart.
fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes in decimal units.
fn bytes(n: u64) -> String {
    let (unit, name) = match n {
        0..1_000 => return format!("{n} B"),
        1_000..1_000_000 => (1e3, "kB"),
        1_000_000..1_000_000_000 => (1e6, "MB"),
        _ => (1e9, "GB"),
    };
    format!("{} {name}", number(n as f64 / unit))
}

/// Bytes of the original's weight files.
fn source_bytes(report: &Report) -> u64 {
    let weights = report
        .source
        .files
        .iter()
        .filter(|f| f.path.ends_with(".safetensors"));
    weights.map(|f| f.size).sum()
}

/// The verdict in a few words.
fn headline(report: &Report) -> String {
    match (report.verdict, report.exit_code) {
        (Verdict::Pass, _) => "passed".into(),
        (Verdict::Waived, _) => "emitted below its quality limits, as permitted".into(),
        (Verdict::Inconclusive, code) => format!("inconclusive (exit {code})"),
        (Verdict::Fail, 4) => "implementation parity failed (exit 4)".into(),
        (Verdict::Fail, code) => format!("refused by its quality limits (exit {code})"),
    }
}

/// How a check ended, in a word.
fn outcome(check: &Check) -> &'static str {
    match (check.waived, check.status) {
        (true, _) => "waived",
        (_, CheckStatus::Pass) => "pass",
        (_, CheckStatus::Fail) => "fail",
        (_, CheckStatus::Inconclusive) => "inconclusive",
    }
}

/// The limit with its direction, every digit of it.
pub fn limit(check: &Check) -> String {
    let sign = if matches!(check.id.as_str(), "quality.top1" | "quality.limits") {
        "≥"
    } else {
        "≤"
    };
    format!("{sign} {}", check.limit)
}

/// What was observed, with the interval where the check is on one.
pub fn observed(check: &Check, report: &Report) -> String {
    let m = &report.metrics;
    match check.id.as_str() {
        "quality.ppl_ratio" => with_interval(m.ppl_ratio),
        "quality.kld_mean" => with_interval(m.kld_mean),
        "quality.top1" => with_interval(m.top1),
        _ => number(check.observed),
    }
}

/// What a table of the metrics shows: name, original, artifact.
fn rows(report: &Report) -> Vec<Vec<String>> {
    let (m, artifact) = (&report.metrics, &report.artifact);
    let percent = |x: f64| format!("{:.2} %", 100.0 * x);
    let row =
        |name: &str, original: String, artifact: String| vec![name.into(), original, artifact];
    let one = |name: &str, artifact: String| row(name, String::new(), artifact);
    let original_bits = source_bytes(report) as f64 * 8.0 / report.source.params.max(1) as f64;
    let mut rows = vec![
        row(
            "weight files",
            bytes(source_bytes(report)),
            bytes(artifact.size_bytes),
        ),
        row(
            "bits per weight",
            number(original_bits),
            number(artifact.bits_per_weight),
        ),
        row(
            "cache per token",
            bytes(artifact.kv_bytes_per_token_source),
            bytes(artifact.kv_bytes_per_token),
        ),
        row(
            "perplexity (95 %)",
            with_interval(m.ppl_base),
            with_interval(m.ppl),
        ),
        one("perplexity ratio", with_interval(m.ppl_ratio)),
    ];
    if let Some(d) = &m.detail {
        rows.extend([
            one("perplexity difference", with_interval(d.ppl_difference)),
            one("correlation of -ln p(token)", with_interval(d.correlation)),
        ]);
    }
    rows.extend([
        one("mean KL divergence", with_interval(m.kld_mean)),
        one(
            "KL median / 99 % / largest",
            [m.kld_median, m.kld_p99, m.kld_max].map(number).join(" / "),
        ),
        one("same token first", with_interval(m.top1)),
        one("in 5 / in 10", [m.top5, m.top10].map(percent).join(" / ")),
    ]);
    match &m.detail {
        None => rows.push(one("change of p(token), rms", number(m.rms_dp))),
        Some(d) => rows.extend([
            one("mean KL the other way", with_interval(d.kld_reverse_mean)),
            one("change of p(token), mean", with_interval(d.mean_dp)),
            one("change of p(token), rms", with_interval(d.rms_dp)),
        ]),
    }
    if let Some(y) = &report.yardstick {
        rows.push(row(
            &format!("yardstick, {}: perplexity, mean KL", y.name),
            String::new(),
            format!("{}, {}", number(y.ppl.value), number(y.kld_mean.value)),
        ));
    }
    rows
}

/// Text without control characters, in which no format has a use for them.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// Text for HTML and XML, in elements and quoted attributes.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in printable(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // XML has no word for these two.
            '\u{FFFE}' | '\u{FFFF}' => out.push('\u{FFFD}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn numbers_are_short() {
        for (x, text) in [
            (0.0, "0"),
            (1.0, "1.000"),
            (55.6819, "55.68"),
            (40_800.0, "40800"),
            (0.001_234_5, "0.001234"),
            (1e-7, "1.00e-7"),
            (-0.25, "-0.2500"),
            (2e9, "2.00e9"),
        ] {
            assert_eq!(number(x), text);
        }
        assert_eq!(
            (count(1_234_567), count(999), count(0)),
            ("1,234,567".into(), "999".into(), "0".into())
        );
        assert_eq!(
            (bytes(999), bytes(22_036_200)),
            ("999 B".into(), "22.04 MB".into())
        );
    }

    #[test]
    fn markdown_is_as_recorded() {
        insta::assert_snapshot!(render_markdown(&testing::full_report()));
    }

    #[test]
    fn html_is_as_recorded() {
        insta::assert_snapshot!(render_html(&testing::full_report()));
    }

    #[test]
    fn junit_is_as_recorded() {
        let mut report = testing::report();
        report.checks[1].waived = true;
        insta::assert_snapshot!(render_junit(&report));
    }

    #[test]
    fn lm_eval_results_are_as_recorded() {
        insta::assert_snapshot!(render_lm_eval(&testing::full_report()));
    }

    #[test]
    fn nothing_from_outside_reaches_a_page_as_markup() {
        let html = render_html(&testing::full_report());
        for bad in ["<script", "<b>|", "<b>u", "\"text\"", "http"] {
            assert!(!html.replace("http-equiv", "").contains(bad), "{bad}");
        }
        assert!(!render_junit(&testing::report()).contains("<b>"));
        assert!(!render_markdown(&testing::report()).contains("<script"));
    }

    /// Whatever the checks and tensors are, every format is made without a panic.
    #[test]
    fn sparse_reports_render() {
        let mut report = testing::report();
        report.tensors.clear();
        report.corpora.clear();
        report.checks.clear();
        report.warnings.clear();
        report.metrics.kld_histogram = None;
        report.metrics.ppl.lo = None;
        assert!(render_markdown(&report).contains("no interval"));
        assert!(render_html(&report).ends_with("</html>\n"));
        assert!(render_junit(&report).contains("tests=\"0\""));
    }
}
