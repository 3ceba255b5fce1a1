//! A short page: the verdict, the checks, what changed.

use std::fmt::Write;

use super::{
    FRONT_COLUMNS, LATENT_COLUMNS, count, front, headline, latent_layers, latent_steps, limit,
    observed, outcome, printable, rows, with_interval,
};
use crate::report::Report;

/// The report as GitHub-flavoured Markdown.
pub fn render_markdown(report: &Report) -> String {
    write_markdown(report).expect("writing to a string cannot fail")
}

fn write_markdown(report: &Report) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    let source = &report.source;
    writeln!(out, "## neuroconv: {}\n", headline(report))?;
    writeln!(
        out,
        "{} ({}, {} parameters, {}) → {}\n",
        code(&source.id),
        text(&source.arch),
        count(source.params),
        text(&source.dtype),
        code(&report.artifact.path),
    )?;
    writeln!(
        out,
        "| check | limit | observed (95 %) | |\n|:--|--:|--:|:--|"
    )?;
    for check in &report.checks {
        let (id, limit, seen) = (code(&check.id), limit(check), observed(check, report));
        let place = match &check.detail {
            Some(place) if outcome(check) != "pass" => format!(", {}", code(place)),
            _ => String::new(),
        };
        writeln!(
            out,
            "| {id} | {limit} | {seen} | {}{place} |",
            outcome(check)
        )?;
    }
    writeln!(out, "\n| | original | artifact |\n|:--|--:|--:|")?;
    for row in rows(report) {
        writeln!(out, "| {} |", row.join(" | "))?;
    }
    writeln!(out)?;
    for corpus in &report.corpora {
        writeln!(
            out,
            "Measured on {}: {} tokens in {} windows of {}, protocol {}.",
            code(&corpus.name),
            count(corpus.tokens),
            count(corpus.windows),
            corpus.ctx,
            code(&corpus.protocol),
        )?;
    }
    attention(&mut out, report)?;
    allocation(&mut out, report)?;
    if report.texts.len() + report.long.len() > 1 {
        writeln!(
            out,
            "\n| text | window | tokens | ratio | mean KL |\n|:--|--:|--:|--:|--:|"
        )?;
        for row in report.texts.iter().chain(&report.long) {
            writeln!(
                out,
                "| {} | {} | {} | {} | {} |",
                code(&row.name),
                row.ctx,
                count(row.tokens),
                with_interval(row.ppl_ratio),
                with_interval(row.kld_mean),
            )?;
        }
    }
    if let Some(layer) = report.worst_layer {
        writeln!(out, "\nLayer {layer} errs most on its own.")?;
    }
    for warning in &report.warnings {
        writeln!(out, "\n> {}", text(warning))?;
    }
    Ok(out)
}

/// How the size was spent.
fn allocation(out: &mut String, report: &Report) -> std::fmt::Result {
    let Some(allocation) = &report.allocation else {
        return Ok(());
    };
    let line = "--:|".repeat(FRONT_COLUMNS.len());
    writeln!(
        out,
        "\n### The best at each size\n\n| {} |\n|{line}",
        FRONT_COLUMNS.join(" | ")
    )?;
    for row in front(allocation) {
        writeln!(out, "| {} |", row.join(" | "))?;
    }
    Ok(())
}

/// What became of converted attention.
fn attention(out: &mut String, report: &Report) -> std::fmt::Result {
    let Some(mla) = &report.mla else {
        return Ok(());
    };
    writeln!(
        out,
        "\n### Latent attention\n\n| step | perplexity |\n|:--|--:|"
    )?;
    for [step, ppl] in latent_steps(report) {
        writeln!(out, "| {step} | {ppl} |")?;
    }
    let line = "--:|".repeat(LATENT_COLUMNS.len());
    writeln!(out, "\n| {} |\n|{line}", LATENT_COLUMNS.join(" | "))?;
    for row in latent_layers(mla) {
        writeln!(out, "| {} |", row.join(" | "))?;
    }
    if !mla.calibrated {
        writeln!(
            out,
            "\nConverted from the weights alone, without calibration text."
        )?;
    }
    Ok(())
}

/// Text in which nothing is markup.
fn text(raw: &str) -> String {
    let mut out = String::with_capacity(raw.len());
    for c in printable(raw).chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '&' => out.push_str("&amp;"),
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '~' | '#' => {
                out.push('\\');
                out.push(c);
            }
            c => out.push(c),
        }
    }
    out
}

/// Text as code, fit for a table too: there a bar ends a cell even in code.
fn code(raw: &str) -> String {
    format!("`{}`", printable(raw).replace('`', "'").replace('|', "\\|"))
}
