//! `neuroconv int8|int4|ternary|run`: from a checkpoint to a verified artifact, or to a refusal.

use std::path::{Path, PathBuf};

use neuroconv_recipes::{Limits, Recipe};
use neuroconv_runtime::{TextTokenizer, WeightSource};
use neuroconv_verify::report::Report;
use neuroconv_verify::{CheckStatus, Verdict};

use super::plan;
use crate::args::{ConvertArgs, LimitArgs, QuantizeArgs, RunArgs, TernaryArgs};
use crate::corpus;
use crate::exit::Exit;
use crate::failure::Misuse;
use crate::interrupt;
use crate::pipeline::{self, Job};
use crate::present;
use crate::reports::{self, Forms};
use crate::ui::Ui;

pub(crate) fn int8(args: &QuantizeArgs, ui: Ui) -> anyhow::Result<Exit> {
    quantize("int8", args, ui)
}

pub(crate) fn int4(args: &QuantizeArgs, ui: Ui) -> anyhow::Result<Exit> {
    quantize("int4", args, ui)
}

fn quantize(name: &str, args: &QuantizeArgs, ui: Ui) -> anyhow::Result<Exit> {
    let mut recipe = neuroconv_recipes::builtin(name)?;
    if let Some(group) = args.group_size {
        recipe.set_group_size(group)?;
    }
    convert(&args.model, recipe, &args.convert, ui)
}

pub(crate) fn ternary(args: &TernaryArgs, ui: Ui) -> anyhow::Result<Exit> {
    let mut recipe = neuroconv_recipes::builtin("ternary")?;
    if let Some(group) = args.group_size {
        recipe.set_group_size(group)?;
    }
    if let Some(threshold) = args.threshold {
        recipe.set_threshold(threshold)?;
    }
    convert(&args.model, recipe, &args.convert, ui)
}

pub(crate) fn recipe(mut args: RunArgs, ui: Ui) -> anyhow::Result<Exit> {
    let (recipe, run) = plan::recipe_with_run(&args.recipe)?;
    let model = args.model.or(run.model.map(PathBuf::from)).ok_or_else(|| {
        Misuse::new(
            "no model is named",
            "name one after the recipe, or in the recipe: [run] model = \"…\"",
        )
    })?;
    let output = &mut args.convert.output.output;
    *output = output.take().or(run.output.map(PathBuf::from));
    convert(&model, recipe, &args.convert, ui)
}

/// The limits that the command line sets.
pub(crate) fn limits(args: &LimitArgs) -> Limits {
    Limits {
        max_ppl_ratio: args.max_ppl_ratio,
        max_kld: args.max_kld,
        min_top1: args.min_top1,
        max_p99_kld: None,
    }
}

fn convert(model: &Path, mut recipe: Recipe, args: &ConvertArgs, ui: Ui) -> anyhow::Result<Exit> {
    recipe.set_limits(limits(&args.limits))?;
    let source = plan::checkpoint(model)?;
    let plan = neuroconv_convert::plan(&source, &recipe)?;
    if args.output.dry_run {
        plan::show(&plan, ui)?;
        return Ok(Exit::Done);
    }
    let output = match &args.output.output {
        Some(output) => output.clone(),
        None => default_output(model, &recipe.name)?,
    };
    let tokenizer = TextTokenizer::open(source.files().path())?;
    let measurement = corpus::measurement(&args.measure, source.spec(), &tokenizer)?;
    ui.note(format!(
        "{} -> {}: {} parameters, {} -> {}",
        model.display(),
        output.display(),
        plan.source.params,
        present::bytes(plan.source.bytes),
        present::bytes(plan.weights_bytes),
    ));
    interrupt::watch_resumable();
    let progress = ui.progress();
    let job = Job {
        source: &source,
        recipe: &recipe,
        plan: &plan,
        output: &output,
        overwrite: args.output.overwrite,
        measurement: &measurement,
        allow_quality_loss: args.limits.allow_quality_loss,
    };
    let judged = pipeline::convert_and_judge(&job, progress.as_ref())?;
    let forms = Forms::new(&args.report);
    if let Some(dir) = &args.report.report_dir {
        reports::write(dir, &forms, &judged.report)?;
    }
    let advice = judged.advice.clone();
    let (report, path) = pipeline::settle(judged, &job, &forms, progress.as_ref())?;
    show(&report, &advice, path.as_deref(), ui)?;
    Ok(pipeline::exit(&report))
}

/// `MODEL-RECIPE` in the current folder.
fn default_output(model: &Path, recipe: &str) -> anyhow::Result<PathBuf> {
    let model = fs_err::canonicalize(model)?;
    let name = model
        .file_name()
        .unwrap_or(model.as_os_str())
        .to_string_lossy()
        .into_owned();
    Ok(PathBuf::from(format!("{name}-{recipe}")))
}

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
            "perplexity",
            format!("{:.4} -> {:.4}", m.ppl_base.value, m.ppl.value),
        ),
        ("ratio", interval(&m.ppl_ratio)),
        ("mean KL", format!("{} nats", interval(&m.kld_mean))),
        ("same best", interval(&m.top1)),
        ("measured on", format!("{} scored tokens", m.eval_tokens)),
    ];
    for (key, value) in rows {
        ui.result(format!("{key:12} {value}"));
    }
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
            ]
        })
        .collect();
    ui.result(format!(
        "\n{}\n",
        present::table(&["check", "observed", "limit", ""], &checks, &[1, 2])
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
