//! One page that needs nothing else: no script, no network, light and dark.

use std::fmt::Write;

use super::{count, escape, headline, limit, observed, outcome, rows, sections};
use crate::gate::Verdict;
use crate::report::Report;

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1c1c1c;--paper:#fff;--faint:#666;--line:#ddd;--bar:#3b6ea5;\
--second:#c58b3b;--good:#1a7f37;--bad:#c62828;--open:#8a6000;--mark:#ffe9a8}\
@media(prefers-color-scheme:dark){:root{--ink:#e6e6e6;--paper:#16181c;--faint:#a0a0a0;\
--line:#33363c;--bar:#7fb0e6;--second:#d9a860;--good:#57c46f;--bad:#ff7b72;--open:#e3b341;\
--mark:#5a4a12}}\
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:60rem;\
margin:2rem auto;padding:0 1rem;overflow-wrap:anywhere}\
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}h3{font-size:1rem;margin-bottom:.3rem}\
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;overflow-wrap:normal}\
td,th{text-align:left;padding:.25rem .6rem;border-bottom:1px solid var(--line);\
font-variant-numeric:tabular-nums}\
td+td,th+th{text-align:right}td:nth-child(n+6){white-space:nowrap}\
.pass{color:var(--good)}.fail{color:var(--bad);font-weight:600}.inconclusive,.waived{color:var(--open)}\
.faint{color:var(--faint)}mark{background:var(--mark);color:inherit}\
.box{border:1px solid;border-radius:.4rem;padding:.5rem 1rem}\
.two{display:grid;grid-template-columns:1fr 1fr;gap:1rem}.two p{white-space:pre-wrap;margin:.2rem 0}\
summary{cursor:pointer;color:var(--faint)}\
svg{display:block;width:100%;height:auto;margin:.5rem 0}svg rect,svg circle.mark{fill:var(--bar)}\
svg .second{fill:var(--second)}svg text{fill:var(--faint);font-size:13px}\
svg line{stroke:var(--line)}svg polyline{fill:none;stroke:var(--bar);stroke-width:1.5}svg line.reach{stroke:var(--second);stroke-width:2}\
.one{color:var(--bar)}.other{color:var(--second)}\
@media(max-width:38rem){.two{grid-template-columns:1fr}svg text{font-size:19px}\
table{font-size:13px}td code{overflow-wrap:anywhere}td,th{padding:.25rem .3rem}}\
@media print{body{margin:0;max-width:none}}";

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
    writeln!(
        out,
        "<h1 class=\"box {}\">{}</h1>",
        verdict_class(report.verdict),
        escape(&headline(report))
    )?;
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
    sections::size(&mut out, report)?;
    sections::texts(&mut out, report)?;
    sections::layers(&mut out, report)?;
    sections::tensors(&mut out, report)?;
    sections::allocation(&mut out, report)?;
    sections::latents(&mut out, report)?;
    sections::divergence(&mut out, report)?;
    sections::samples(&mut out, report)?;
    provenance(&mut out, report)?;
    writeln!(out, "</body>\n</html>")?;
    Ok(out)
}

fn verdict_class(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "pass",
        Verdict::Fail => "fail",
        Verdict::Inconclusive => "inconclusive",
        Verdict::Waived => "waived",
    }
}

fn summary(out: &mut String, report: &Report) -> std::fmt::Result {
    writeln!(out, "<h2>Summary</h2>")?;
    sections::table(out, &["", "original", "artifact"], &rows(report))
}

fn checks(out: &mut String, report: &Report) -> std::fmt::Result {
    writeln!(
        out,
        "<h2>Checks</h2>\n<div class=\"wide\"><table>\n\
         <tr><th>check</th><th>limit</th><th>observed (95 %)</th><th></th></tr>"
    )?;
    for check in &report.checks {
        let word = outcome(check);
        let place = match &check.detail {
            Some(place) if word != "pass" => format!("<br><span>{}</span>", escape(place)),
            _ => String::new(),
        };
        writeln!(
            out,
            "<tr><td><code>{}</code>{place}</td><td>{}</td><td>{}</td><td class=\"{word}\">{word}</td></tr>",
            escape(&check.id),
            escape(&limit(check)),
            escape(&observed(check, report)),
        )?;
    }
    writeln!(out, "</table></div>")
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
            "<li>{}: {:.2} s</li>",
            escape(&stage.name),
            stage.wall_s
        )?;
    }
    if let Some(times) = report.cost() {
        writeln!(
            out,
            "<li>verification: {times:.1} times the two passes over the text</li>"
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
