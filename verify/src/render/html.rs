//! One page that needs nothing else: no script, no network, light and dark.

use std::fmt::Write;

use super::plots::{histogram, tensor_errors};
use super::{count, escape, headline, limit, number, observed, outcome, rows};
use crate::report::Report;

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1c1c1c;--paper:#fff;--faint:#777;--line:#ddd;--bar:#3b6ea5;\
--good:#1a7f37;--bad:#c62828;--open:#9a6700}\
@media(prefers-color-scheme:dark){:root{--ink:#e6e6e6;--paper:#16181c;--faint:#999;--line:#33363c;\
--bar:#7fb0e6;--good:#57c46f;--bad:#ff7b72;--open:#e3b341}}\
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:60rem;\
margin:2rem auto;padding:0 1rem}\
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}\
table{border-collapse:collapse;width:100%}\
td,th{text-align:left;padding:.25rem .6rem;border-bottom:1px solid var(--line);\
font-variant-numeric:tabular-nums}\
td+td,th+th{text-align:right}\
.pass{color:var(--good)}.fail{color:var(--bad);font-weight:600}.inconclusive,.waived{color:var(--open)}\
.faint{color:var(--faint)}svg{width:100%;height:auto}svg rect{fill:var(--bar)}\
svg text{fill:var(--faint);font-size:11px}svg line{stroke:var(--line)}";

/// The report as one self-contained HTML file.
pub fn render_html(report: &Report) -> String {
    write_html(report).expect("writing to a string cannot fail")
}

fn write_html(report: &Report) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    let (source, artifact) = (&report.source, &report.artifact);
    writeln!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" \
         content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
         <title>neuroconv: {}</title>\n<style>{STYLE}</style>\n</head>\n<body>",
        escape(&artifact.path)
    )?;
    writeln!(out, "<h1>{}</h1>", escape(&headline(report)))?;
    writeln!(
        out,
        "<p><code>{}</code> ({}, {} parameters, {}) → <code>{}</code></p>",
        escape(&source.id),
        escape(&source.arch),
        count(source.params),
        escape(&source.dtype),
        escape(&artifact.path),
    )?;
    summary(&mut out, report)?;
    checks(&mut out, report)?;
    writeln!(out, "<h2>Error of each tensor</h2>")?;
    tensor_errors(&mut out, &report.tensors)?;
    tensors(&mut out, report)?;
    if let Some(h) = &report.metrics.kld_histogram {
        writeln!(out, "<h2>Divergence per token</h2>")?;
        histogram(&mut out, h)?;
    }
    provenance(&mut out, report)?;
    writeln!(out, "</body>\n</html>")?;
    Ok(out)
}

fn summary(out: &mut String, report: &Report) -> std::fmt::Result {
    writeln!(
        out,
        "<h2>Summary</h2>\n<table>\n<tr><th></th><th>original</th><th>artifact</th></tr>"
    )?;
    for row in rows(report) {
        let [name, original, artifact] = row.map(|cell| escape(&cell));
        writeln!(
            out,
            "<tr><td>{name}</td><td>{original}</td><td>{artifact}</td></tr>"
        )?;
    }
    writeln!(out, "</table>")
}

fn checks(out: &mut String, report: &Report) -> std::fmt::Result {
    writeln!(
        out,
        "<h2>Checks</h2>\n<table>\n\
         <tr><th>check</th><th>limit</th><th>observed (95 %)</th><th></th></tr>"
    )?;
    for check in &report.checks {
        let word = outcome(check);
        writeln!(
            out,
            "<tr><td><code>{}</code></td><td>{}</td><td>{}</td><td class=\"{word}\">{word}</td></tr>",
            escape(&check.id),
            escape(&limit(check)),
            escape(&observed(check, report)),
        )?;
    }
    writeln!(out, "</table>")
}

/// The same numbers as the plot, for those who cannot see it.
fn tensors(out: &mut String, report: &Report) -> std::fmt::Result {
    writeln!(
        out,
        "<details><summary>{} tensors</summary>\n<table>\n<tr><th>tensor</th><th>codec</th>\
         <th>bits per weight</th><th>relative squared error</th><th>zeros</th>\
         <th>entropy, bits</th></tr>",
        report.tensors.len()
    )?;
    let maybe = |x: Option<f64>| x.map(number).unwrap_or_default();
    for t in &report.tensors {
        writeln!(
            out,
            "<tr><td><code>{}</code></td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(&t.name),
            escape(&t.codec),
            number(t.bits_per_weight),
            maybe(t.rel_mse),
            maybe(t.zeros),
            maybe(t.entropy_bits),
        )?;
    }
    writeln!(out, "</table></details>")
}

fn provenance(out: &mut String, report: &Report) -> std::fmt::Result {
    writeln!(out, "<h2>How it was measured</h2>\n<ul>")?;
    for c in &report.corpora {
        writeln!(
            out,
            "<li><code>{}</code>: {} tokens in {} windows of {}, protocol <code>{}</code> \
             <span class=\"faint\">sha256 {}</span></li>",
            escape(&c.name),
            count(c.tokens),
            count(c.windows),
            c.ctx,
            escape(&c.protocol),
            escape(&c.sha256),
        )?;
    }
    for stage in &report.stages {
        writeln!(
            out,
            "<li>{}: {} s</li>",
            escape(&stage.name),
            number(stage.wall_s)
        )?;
    }
    writeln!(
        out,
        "<li>{} threads on {}, at most {} of memory</li>",
        report.threads,
        escape(&report.cpu),
        super::bytes(report.peak_rss_bytes)
    )?;
    for warning in &report.warnings {
        writeln!(out, "<li class=\"inconclusive\">{}</li>", escape(warning))?;
    }
    writeln!(out, "</ul>")
}
