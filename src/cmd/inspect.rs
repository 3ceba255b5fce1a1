//! `neuroconv inspect`: what a model, an architecture or a recipe is.

use std::fmt::Write as _;

use neuroconv_format::manifest::VerdictStatus;
use neuroconv_recipes::{Mixer, ModelSpec, QkNorm};
use neuroconv_runtime::{PackedModel, Source, WeightSource};
use serde::Serialize;

use crate::args::InspectArgs;
use crate::exit::Exit;
use crate::hub::{self, Model, Need};
use crate::present;
use crate::ui::Ui;

pub(crate) fn run(args: &InspectArgs, ui: Ui) -> anyhow::Result<Exit> {
    if let Some(name) = &args.arch {
        architecture(name, ui)?;
    } else if let Some(name) = &args.recipe {
        recipe(name, ui)?;
    } else if let Some(path) = &args.model {
        model(&hub::resolve(path, &args.hub, Need::Tokenizer, ui)?, ui)?;
    }
    Ok(Exit::Done)
}

#[derive(Serialize)]
struct ArchitectureLine<'a> {
    name: &'a str,
    classes: &'a [String],
}

fn architecture(name: &str, ui: Ui) -> anyhow::Result<()> {
    if name == "list" {
        let all: Vec<_> = neuroconv_recipes::architectures()
            .iter()
            .map(|a| ArchitectureLine {
                name: &a.name,
                classes: &a.classes,
            })
            .collect();
        for line in &all {
            ui.result(format!("{:10} {}", line.name, line.classes.join(", ")));
        }
        return ui.object(&all);
    }
    let arch = neuroconv_recipes::architecture(name)?;
    let text = neuroconv_recipes::pseudo_code(arch);
    ui.result(text.trim_end());
    ui.object(
        &serde_json::json!({ "name": arch.name, "classes": arch.classes, "pseudo_code": text }),
    )
}

fn recipe(name: &str, ui: Ui) -> anyhow::Result<()> {
    if name == "list" {
        let all = neuroconv_recipes::builtin_names()
            .iter()
            .map(|name| Ok((*name, neuroconv_recipes::builtin(name)?.summary)))
            .collect::<anyhow::Result<Vec<_>>>()?;
        for (name, summary) in &all {
            ui.result(format!("{name:16} {summary}"));
        }
        return ui.object(&all);
    }
    let recipe = super::plan::recipe(name)?;
    ui.result(recipe.to_toml().trim_end());
    ui.object(&serde_json::json!({ "name": recipe.name, "summary": recipe.summary, "toml": recipe.to_toml() }))
}

#[derive(Serialize)]
struct Inspected<'a> {
    kind: &'static str,
    path: String,
    arch: &'a str,
    parameters: u64,
    weights_bytes: u64,
    bits_per_weight: f64,
    kv_numbers_per_token: usize,
    tokenizer_vocab: usize,
    spec: &'a ModelSpec,
    warnings: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    manifest: Option<&'a neuroconv_format::Manifest>,
}

fn model(model: &Model, ui: Ui) -> anyhow::Result<()> {
    let source = super::open(model)?;
    let tokenizer = source.tokenizer()?;
    let spec = source.spec();
    let (kind, weights_bytes, warnings, manifest) = match &source {
        Source::Checkpoint(c) => {
            let bytes = c
                .files()
                .tensors()
                .map(|t| t.range.end - t.range.start)
                .sum();
            let rounded = c
                .files()
                .rounded()
                .map(|rounded| format!("the weights were rounded before ({})", rounded.how));
            let warnings = c.resolved().warnings.iter().cloned().chain(rounded);
            ("checkpoint", bytes, warnings.collect(), None)
        }
        Source::Artifact(a) => {
            let manifest = a.artifact().manifest();
            (
                "artifact",
                manifest.size.weights_bytes,
                Vec::new(),
                Some(manifest),
            )
        }
    };
    let parameters = spec.parameters();
    // An artifact is as small as its source's parameters make it, whatever it was turned into.
    let counted = manifest.map_or(parameters, |m| m.source.params);
    let inspected = Inspected {
        kind,
        path: model.name.clone(),
        arch: &spec.arch,
        parameters,
        weights_bytes,
        bits_per_weight: weights_bytes as f64 * 8.0 / counted as f64,
        kv_numbers_per_token: spec.layers.iter().map(|l| l.mixer.cached_numbers()).sum(),
        tokenizer_vocab: tokenizer.vocab_size(),
        spec,
        warnings,
        manifest,
    };
    show(&inspected, ui);
    if let Source::Artifact(a) = &source {
        show_artifact(a, ui);
    }
    ui.object(&inspected)
}

fn show(m: &Inspected<'_>, ui: Ui) {
    let spec = m.spec;
    ui.result(format!("{}: {} of architecture {}", m.path, m.kind, m.arch));
    let mut rows = vec![
        ("parameters", m.parameters.to_string()),
        (
            "weights",
            format!(
                "{} ({:.3} bits per weight)",
                present::bytes(m.weights_bytes),
                m.bits_per_weight
            ),
        ),
        ("layers", spec.layers.len().to_string()),
        ("hidden, ffn", format!("{}, {}", spec.hidden, spec.ffn)),
        (
            "vocabulary",
            format!("{} (tokenizer {})", spec.vocab, m.tokenizer_vocab),
        ),
        (
            "head",
            if spec.tied {
                "tied to the embedding"
            } else {
                "of its own"
            }
            .to_owned(),
        ),
        ("positions", spec.max_positions.to_string()),
        (
            "rope",
            format!(
                "theta {}, {:?}, scaling {:?}",
                spec.rope.theta, spec.rope.layout, spec.rope.scaling
            ),
        ),
        (
            "cache",
            format!("{} numbers per token", m.kv_numbers_per_token),
        ),
    ];
    rows.insert(3, ("attention", attention(spec)));
    for (key, value) in rows {
        ui.result(format!("  {key:12} {value}"));
    }
    for warning in &m.warnings {
        ui.warn(warning);
    }
}

/// The kinds of attention, each with the layers that have it when there are several.
fn attention(spec: &ModelSpec) -> String {
    let mut kinds: Vec<(&Mixer, Vec<usize>)> = Vec::new();
    for (index, layer) in spec.layers.iter().enumerate() {
        match kinds.iter_mut().find(|(mixer, _)| **mixer == layer.mixer) {
            Some((_, layers)) => layers.push(index),
            None => kinds.push((&layer.mixer, vec![index])),
        }
    }
    if let [(only, _)] = kinds.as_slice() {
        return mixer(only);
    }
    let named = kinds.iter().map(|(kind, layers)| {
        let layers: Vec<String> = layers.iter().map(ToString::to_string).collect();
        format!("{} (layers {})", mixer(kind), layers.join(", "))
    });
    named.collect::<Vec<_>>().join("; ")
}

fn mixer(mixer: &Mixer) -> String {
    match mixer {
        Mixer::Attention(a) => {
            let mut text = format!(
                "{} heads of {}, {} key/value heads",
                a.heads, a.head_dim, a.kv_heads
            );
            if a.bias.qkv {
                text.push_str(", biases");
            }
            if a.qk_norm != QkNorm::None {
                text.push_str(", query and key norms");
            }
            if let Some(window) = a.window {
                let _ = write!(text, ", window {window}");
            }
            text
        }
        Mixer::Mla(a) => format!(
            "{} heads of {}, latent of {}, rotated key of {}",
            a.heads, a.head_dim, a.rank, a.rope_dim
        ),
        Mixer::Latent(a) => format!(
            "{} heads of {}, {} key/value heads rebuilt from a latent of {}",
            a.heads, a.head_dim, a.kv_heads, a.rank
        ),
    }
}

fn status_word(status: VerdictStatus) -> &'static str {
    match status {
        VerdictStatus::Unverified => "none: it was not judged",
        VerdictStatus::Pass => "pass",
        VerdictStatus::Fail => "fail",
        VerdictStatus::Inconclusive => "inconclusive",
        VerdictStatus::Waived => "waived",
    }
}

fn show_artifact(model: &PackedModel, ui: Ui) {
    let manifest = model.artifact().manifest();
    let verdict = &manifest.verdict;
    ui.result(format!(
        "  {:12} {}",
        "verdict",
        status_word(verdict.status)
    ));
    if !verdict.waived.is_empty() {
        ui.result(format!("  {:12} {}", "waived", verdict.waived.join(", ")));
    }
    ui.result(format!(
        "  {:12} {}, recipe {}",
        "made from", manifest.source.id, manifest.recipe.name
    ));
    if ui.is_verbose() {
        let rows: Vec<Vec<String>> = manifest
            .tensors
            .iter()
            .map(|t| {
                vec![
                    t.name.clone(),
                    t.codec.name().to_owned(),
                    t.group.map_or_else(String::new, |g| g.to_string()),
                    format!("{:.3}", t.bits_per_weight),
                    t.rel_mse.map_or_else(String::new, |e| format!("{e:.2e}")),
                    t.reason.clone(),
                ]
            })
            .collect();
        let header = ["tensor", "codec", "group", "bits", "rel. mse", "why"];
        ui.result(present::table(&header, &rows, &[2, 3, 4]));
    }
}
