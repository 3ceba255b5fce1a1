//! The forms of a report: JSON, Markdown, HTML, `JUnit`, and the model card.

use std::path::Path;

use neuroconv_convert::Card;
use neuroconv_convert::card::{FrontMatter, USE_OF_ARTIFACT};
use neuroconv_convert::export::EngineVerdict;
use neuroconv_format::Manifest;
use neuroconv_format::manifest::SourceRecord;
use neuroconv_recipes::Recipe;
use neuroconv_verify::render::{render_html, render_junit, render_lm_eval, render_markdown};
use neuroconv_verify::report::Report;
use neuroconv_verify::{Check, CheckClass, Verdict};

use crate::args::{ReportArgs, ReportForm};
use crate::present;

/// Which forms are wanted.
pub(crate) struct Forms(Vec<ReportForm>);

/// A report in its wanted forms.
pub(crate) struct Rendered {
    pub(crate) json: Vec<u8>,
    pub(crate) md: Option<Vec<u8>>,
    pub(crate) html: Option<Vec<u8>>,
    pub(crate) junit: Option<Vec<u8>>,
    pub(crate) lm_eval: Option<Vec<u8>>,
}

impl Forms {
    pub(crate) fn new(args: &ReportArgs) -> Self {
        Forms(args.report.clone())
    }

    /// Every form.
    pub(crate) fn all() -> Self {
        Forms(vec![
            ReportForm::Json,
            ReportForm::Md,
            ReportForm::Html,
            ReportForm::Junit,
        ])
    }

    /// The report in each wanted form; JSON always.
    pub(crate) fn render(&self, report: &Report) -> anyhow::Result<Rendered> {
        let form = |form, render: fn(&Report) -> String| {
            self.0.contains(&form).then(|| render(report).into_bytes())
        };
        Ok(Rendered {
            json: report.to_json()?.into_bytes(),
            md: form(ReportForm::Md, render_markdown),
            html: form(ReportForm::Html, render_html),
            junit: form(ReportForm::Junit, render_junit),
            lm_eval: form(ReportForm::LmEval, render_lm_eval),
        })
    }
}

/// Writes the wanted forms into a folder of their own, for a verdict that emits nothing.
pub(crate) fn write(dir: &Path, forms: &Forms, report: &Report) -> anyhow::Result<()> {
    let rendered = forms.render(report)?;
    fs_err::create_dir_all(dir)?;
    fs_err::write(dir.join("report.json"), &rendered.json)?;
    for (name, bytes) in [
        ("report.md", rendered.md),
        ("report.html", rendered.html),
        ("junit.xml", rendered.junit),
        ("results.json", rendered.lm_eval),
    ] {
        if let Some(bytes) = bytes {
            fs_err::write(dir.join(name), bytes)?;
        }
    }
    Ok(())
}

/// What the artifact's `README.md` says.
pub(crate) fn card(
    report: &Report,
    recipe: &Recipe,
    manifest: &Manifest,
    target: &Path,
    carried: FrontMatter,
    engines: &[EngineVerdict],
) -> Card {
    let title = target
        .file_name()
        .unwrap_or(target.as_os_str())
        .to_string_lossy()
        .into_owned();
    let waived = report.verdict == Verdict::Waived;
    Card {
        title,
        source: manifest.source.id.clone(),
        commit: manifest.source.commit.clone(),
        // Only a hub's name can be followed; a folder's means nothing elsewhere.
        base_model: manifest
            .source
            .id
            .contains('/')
            .then(|| manifest.source.id.clone()),
        quantized: manifest.tensors.iter().any(|t| t.group.is_some()),
        metrics: card_metrics(report),
        carried,
        tags: tags(recipe, manifest),
        verdict: verdict_word(report.verdict).to_owned(),
        summary: if waived {
            let missed: Vec<&str> = report
                .checks
                .iter()
                .filter(|c| c.waived)
                .map(|c| c.id.as_str())
                .collect();
            format!(
                "Quality is below the limits ({}); the user accepted that by name.",
                missed.join(", ")
            )
        } else {
            "Implementation parity and every quality limit hold.".to_owned()
        },
        comparison: comparison(report),
        checks: report.checks.iter().map(check_row).collect(),
        engines: engines.iter().map(EngineVerdict::row).collect(),
        library: "neuroconv".to_owned(),
        usage: USE_OF_ARTIFACT.to_owned(),
        command: command_line(),
        recipe_toml: recipe.to_toml(),
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        limits: card_limits(report),
    }
}

/// The recipe, and the codecs that it came to.
fn tags(recipe: &Recipe, manifest: &Manifest) -> Vec<String> {
    let packed = manifest.tensors.iter().filter(|t| t.group.is_some());
    let codecs: std::collections::BTreeSet<&str> = packed.map(|t| t.codec.name()).collect();
    let mut tags = vec![recipe.name.clone()];
    tags.extend(
        codecs
            .into_iter()
            .filter(|c| *c != recipe.name)
            .map(str::to_owned),
    );
    tags
}

/// Perplexity of each text, or of all where there is one.
fn card_metrics(report: &Report) -> Vec<[String; 4]> {
    let rows = report.texts.iter().chain(&report.long);
    let metric = |row: &neuroconv_verify::metrics::Row| {
        let protocol = report.corpora.first().map_or("", |c| c.protocol.as_str());
        [
            row.name.clone(),
            "perplexity".to_owned(),
            format!("token perplexity, {protocol} {}", row.ctx),
            format!("{:.4}", row.ppl.value),
        ]
    };
    rows.map(metric).collect()
}

/// What the figures do not say.
fn card_limits(report: &Report) -> Vec<String> {
    let names: Vec<&str> = report.corpora.iter().map(|c| c.name.as_str()).collect();
    let longest = report.long.iter().map(|r| r.ctx);
    let longest = longest.chain(report.corpora.iter().map(|c| c.ctx)).max();
    let mut limits = vec![
        format!(
            "Measured by next-token statistics on {} scored tokens of {}, nothing else.",
            report.metrics.eval_tokens,
            names.join(", ")
        ),
        "Behaviour that those texts do not exercise was not compared: other languages, code, \
         conversation through a chat template, safety."
            .to_owned(),
        format!(
            "Windows of up to {} tokens were compared; longer ones were not.",
            longest.unwrap_or(0)
        ),
        "No training was done; whatever the source does wrong, this does too.".to_owned(),
    ];
    limits.extend(report.warnings.iter().cloned());
    limits
}

/// Bytes of the weight files of a source.
pub(crate) fn weight_bytes(source: &SourceRecord) -> u64 {
    source
        .files
        .iter()
        .filter(|f| f.path.ends_with(".safetensors"))
        .map(|f| f.size)
        .sum()
}

fn comparison(report: &Report) -> Vec<[String; 3]> {
    let m = &report.metrics;
    let source_bytes = weight_bytes(&report.source);
    let artifact = &report.artifact;
    let row = |name: &str, a: String, b: String| [name.to_owned(), a, b];
    let interval = |i: &neuroconv_verify::Interval, digits: usize| match (i.lo, i.hi) {
        (Some(lo), Some(hi)) => format!("{:.digits$} ({lo:.digits$} – {hi:.digits$})", i.value),
        _ => format!("{:.digits$}", i.value),
    };
    let none = || "–".to_owned();
    vec![
        row(
            "weight files",
            present::bytes(source_bytes),
            present::bytes(artifact.size_bytes),
        ),
        row(
            "bits per weight",
            format!(
                "{:.3}",
                source_bytes as f64 * 8.0 / report.source.params as f64
            ),
            format!("{:.3}", artifact.bits_per_weight),
        ),
        row(
            "cache bytes per token",
            artifact.kv_bytes_per_token_source.to_string(),
            artifact.kv_bytes_per_token.to_string(),
        ),
        row(
            "perplexity (95 %)",
            interval(&m.ppl_base, 4),
            interval(&m.ppl, 4),
        ),
        row("perplexity ratio", none(), interval(&m.ppl_ratio, 4)),
        row("mean KL divergence, nats", none(), interval(&m.kld_mean, 5)),
        row("99th percentile of KL", none(), format!("{:.5}", m.kld_p99)),
        row(
            "same best token",
            none(),
            format!("{:.2} %", m.top1.value * 100.0),
        ),
    ]
}

fn check_row(check: &Check) -> [String; 4] {
    let status = if check.waived {
        "waived"
    } else {
        status_word(check)
    };
    [
        check.id.clone(),
        present::number(check.limit),
        present::number(check.observed),
        status.to_owned(),
    ]
}

/// How a check ended, in a word.
pub(crate) fn status_word(check: &Check) -> &'static str {
    use neuroconv_verify::CheckStatus;
    match (check.status, check.class) {
        (CheckStatus::Pass, _) => "pass",
        (CheckStatus::Fail, CheckClass::Parity) => "BUG",
        (CheckStatus::Fail, CheckClass::Quality) => "fail",
        (CheckStatus::Inconclusive, _) => "unclear",
    }
}

/// A verdict in a word.
pub(crate) fn verdict_word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "pass",
        Verdict::Fail => "fail",
        Verdict::Inconclusive => "inconclusive",
        Verdict::Waived => "waived",
    }
}

/// The command as it was typed, with folders cut to their names: a card is published.
pub(crate) fn command_line() -> String {
    let words = std::env::args().skip(1).map(|word| {
        let path = Path::new(&word);
        match path.file_name() {
            Some(name) if path.components().count() > 1 => name.to_string_lossy().into_owned(),
            _ => word,
        }
    });
    let quote = |word: String| {
        if word.contains(' ') {
            format!("'{word}'")
        } else {
            word
        }
    };
    std::iter::once("neuroconv".to_owned())
        .chain(words.map(quote))
        .collect::<Vec<_>>()
        .join(" ")
}
