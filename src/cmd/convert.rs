//! `neuroconv int8|int4|ternary|run`: from a checkpoint to a verified artifact, or to a refusal.

use std::path::{Path, PathBuf};

use neuroconv_convert::{Plan, Survey};
use neuroconv_recipes::{Limits, Recipe};
use neuroconv_runtime::{Checkpoint, TextTokenizer, WeightSource};
use neuroconv_verify::report::Report;
use neuroconv_verify::{CheckStatus, Verdict, render};

use super::plan;
use crate::args::{CalibrationArgs, ConvertArgs, ImportanceArgs, LimitArgs, MlaArgs};
use crate::args::{QuantizeArgs, RunArgs, TernaryArgs};
use crate::calibration::{CalibrationText, ENGLISH, calibration};
use crate::corpus;
use crate::exit::Exit;
use crate::failure::Misuse;
use crate::github;
use crate::importance;
use crate::interrupt;
use crate::latent::Undecided;
use crate::pipeline::{self, Job};
use crate::present;
use crate::reports::{self, Forms};
use crate::smoke;
use crate::ui::Ui;

pub(crate) fn int8(args: &QuantizeArgs, ui: Ui) -> anyhow::Result<Exit> {
    quantize("int8", args, ui)
}

pub(crate) fn int4(args: &QuantizeArgs, ui: Ui) -> anyhow::Result<Exit> {
    quantize("int4", args, ui)
}

fn quantize(name: &str, args: &QuantizeArgs, ui: Ui) -> anyhow::Result<Exit> {
    let mut recipe = neuroconv_recipes::builtin(name)?;
    args.pack.apply(&mut recipe)?;
    let learning = Learning {
        text: &args.calibration,
        importance: &args.importance,
    };
    convert(&args.model, recipe, &args.convert, &learning, ui)
}

pub(crate) fn ternary(args: &TernaryArgs, ui: Ui) -> anyhow::Result<Exit> {
    let mut recipe = neuroconv_recipes::builtin("ternary")?;
    args.pack.apply(&mut recipe)?;
    if let Some(threshold) = args.threshold {
        recipe.set_threshold(threshold)?;
    }
    if let Some(planes) = args.planes {
        recipe.set_ternary("planes", |packed| packed.planes = planes)?;
    }
    let learning = Learning {
        text: &args.calibration,
        importance: &args.importance,
    };
    convert(&args.model, recipe, &args.convert, &learning, ui)
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
    let learning = Learning {
        text: &args.calibration,
        importance: &args.importance,
    };
    convert(&model, recipe, &args.convert, &learning, ui)
}

pub(crate) fn mla(args: &MlaArgs, ui: Ui) -> anyhow::Result<Exit> {
    let (weights, name) = args.weights.recipe();
    let mut recipe = neuroconv_recipes::builtin(weights)?;
    let section = args.section();
    section.check("command line")?;
    recipe.mla = Some(section);
    name.clone_into(&mut recipe.name);
    let learning = Learning {
        text: &args.calibration,
        importance: &ImportanceArgs::default(),
    };
    convert(&args.model, recipe, &args.convert, &learning, ui)
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

/// What the command line says a conversion learns from, where the recipe asks for it.
struct Learning<'a> {
    text: &'a CalibrationArgs,
    importance: &'a ImportanceArgs,
}

/// A conversion.
fn convert(
    model: &Path,
    mut recipe: Recipe,
    args: &ConvertArgs,
    learning: &Learning<'_>,
    ui: Ui,
) -> anyhow::Result<Exit> {
    recipe.set_limits(limits(&args.limits))?;
    if learning.text.is_none() {
        recipe.without_learning()?;
    }
    let imatrix = importance::read(learning.importance, &mut recipe)?;
    let planned = |source: &Checkpoint, recipe: &Recipe| {
        let mut plan = neuroconv_convert::plan(source, recipe)?;
        if let Some(imatrix) = &imatrix {
            plan.weigh(imatrix)?;
        }
        Ok::<Plan, neuroconv_convert::Error>(plan)
    };
    let source = plan::checkpoint(model)?;
    let plan = planned(&source, &recipe)?;
    importance::check_save(learning.importance, args.output.overwrite, plan.learns())?;
    if args.output.dry_run {
        plan::show(&plan, ui)?;
        return Ok(Exit::Done);
    }
    let output = match &args.output.output {
        Some(output) => output.clone(),
        None => default_output(model, &recipe.name)?,
    };
    let tokenizer = TextTokenizer::open(source.files().path())?;
    let measurement = corpus::measurement(&args.measure, source.spec(), tokenizer)?;
    let tokenizer = &measurement.tokenizer;
    let calibration = if recipe.learns() {
        calibration(
            learning.text,
            ENGLISH,
            source.spec(),
            tokenizer,
            &measurement,
            plan.widest_learned(),
        )?
    } else {
        CalibrationText::default()
    };
    recipe.calibration.clone_from(&calibration.record);
    // Now, before hours of work, and again with the report.
    calibration.warnings.iter().for_each(|w| ui.warn(w));
    interrupt::watch_resumable();
    let progress = ui.progress();
    let survey = plan.wants_survey().then(|| {
        let text = &calibration.windows;
        Survey::of(&source, text, progress.as_ref(), &pipeline::INTERRUPTED)
    });
    let survey = survey.transpose()?;
    let planned = |recipe: &Recipe| {
        let mut plan = planned(&source, recipe)?;
        survey.iter().try_for_each(|survey| plan.split(survey))?;
        Ok::<Plan, neuroconv_convert::Error>(plan)
    };
    announce(model, &output, &planned(&recipe)?, ui);
    let undecided = Undecided {
        source: &source,
        calibration: &calibration.windows,
        progress: progress.as_ref(),
    };
    let candidates = undecided.candidates(&recipe)?;
    let forms = Forms::new(&args.report);
    for (tried, recipe) in candidates.iter().enumerate() {
        let plan = planned(recipe)?;
        let job = Job {
            source: &source,
            recipe,
            plan: &plan,
            output: &output,
            overwrite: args.output.overwrite,
            calibration: &calibration,
            save_imatrix: learning.importance.save_imatrix.as_deref(),
            measurement: &measurement,
            judge: &args.judge,
            allow_quality_loss: args.limits.allow_quality_loss,
        };
        if tried == 0 && smoke::wanted(args.output.smoke, &plan) {
            smoke::run(&job, progress.as_ref())?;
        }
        let judged = pipeline::convert_and_judge(&job, progress.as_ref())?;
        let last = tried + 1 == candidates.len();
        if !last && judged.report.verdict != Verdict::Pass {
            ui.note(format!(
                "{}: refused, trying a larger rank",
                described(&plan)
            ));
            judged.staged.reject()?;
            continue;
        }
        if let Some(dir) = &args.report.report_dir {
            reports::write(dir, &forms, &judged.report)?;
        }
        let advice = judged.advice.clone();
        let (report, path) = pipeline::settle(judged, &job, &forms, progress.as_ref())?;
        let dir = args.report.report_dir.as_deref();
        github::tell(args.report.github, &report, path.as_deref(), dir)?;
        show(&report, &advice, path.as_deref(), ui)?;
        return Ok(pipeline::exit(&report));
    }
    unreachable!("there is at least one candidate, and the last is settled")
}

/// Says what is about to happen.
fn announce(model: &Path, output: &Path, plan: &Plan, ui: Ui) {
    ui.note(format!(
        "{} -> {}: {} parameters, {} -> {}",
        model.display(),
        output.display(),
        plan.source.params,
        present::bytes(plan.source.bytes),
        present::bytes(plan.weights_bytes),
    ));
    if plan.cached_numbers != plan.cached_numbers_source {
        ui.note(described(plan));
    }
}

/// The cache before and after.
fn described(plan: &Plan) -> String {
    format!(
        "cache {} -> {} numbers per token",
        plan.cached_numbers_source, plan.cached_numbers
    )
}

fn measured(report: &Report) -> String {
    let tokens = report.metrics.eval_tokens;
    match report.tokens_saved {
        0 => format!("{tokens} scored tokens"),
        saved => format!("{tokens} scored tokens; {saved} more were not needed"),
    }
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
