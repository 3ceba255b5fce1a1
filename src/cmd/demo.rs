//! `neuroconv demo`: the main job, three ways, on a model that comes with the program.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use neuroconv_runtime::{
    Checkpoint, Decoder, PackedModel, Sampler, SamplerConfig, TextTokenizer, WeightSource,
};
use neuroconv_verify::report::Report;
use serde::Serialize;

use super::plan;
use crate::args::{DemoArgs, JudgeArgs};
use crate::calibration::{CalibrationText, ENGLISH, calibration};
use crate::corpus::{self, Measurement};
use crate::demo_model;
use crate::exit::Exit;
use crate::hub::{self, Need};
use crate::machine;
use crate::pipeline::{self, Job};
use crate::present;
use crate::reports;
use crate::ui::Ui;

/// The three ways, gentlest first.
const RECIPES: [&str; 3] = ["int8", "int4", "ternary"];
/// What each model is asked to continue.
const PROMPT_WORDS: usize = 6;
/// Tokens that each model writes.
const SAMPLE_TOKENS: usize = 80;
/// How each model writes: the same draws for all.
const SAMPLING: SamplerConfig = SamplerConfig {
    temperature: 0.7,
    top_k: None,
    top_p: 0.95,
    seed: 1,
};

/// One line of the table.
#[derive(Serialize)]
struct Row {
    recipe: &'static str,
    report: Report,
    convert_and_verify_s: f64,
    sample: String,
}

pub(crate) fn run(args: &DemoArgs, ui: Ui) -> anyhow::Result<Exit> {
    let scratch = tempfile::tempdir()?;
    let built_in = args.model.is_none();
    let model = if let Some(model) = &args.model {
        model.clone()
    } else {
        let dir = scratch.path().join(demo_model::NAME);
        demo_model::write(&dir)?;
        dir
    };
    let model = hub::resolve(&model, &args.hub, Need::Weights, ui)?;
    let source = plan::checkpoint(&model)?;
    let tokenizer = source.tokenizer()?;
    let measurement = measurement(args, built_in, &source, tokenizer)?;
    let tokenizer = &measurement.tokenizer;
    let out = args
        .keep
        .clone()
        .unwrap_or_else(|| scratch.path().to_owned());
    fs_err::create_dir_all(&out)?;
    let text = if built_in {
        demo_model::CALIBRATION
    } else {
        ENGLISH
    };
    let spec = source.spec();
    let calibration = calibration(&args.calibration, text, spec, tokenizer, &measurement, 0)?;
    let prompt = prompt(&measurement, tokenizer)?;
    let original = sample(&source, tokenizer, &prompt)?;
    let mut rows = Vec::new();
    for name in RECIPES {
        ui.note(format!("{name} …"));
        rows.push(one(
            name,
            &source,
            tokenizer,
            &measurement,
            &calibration,
            &out,
            args.keep.is_some(),
            &prompt,
            ui,
        )?);
    }
    show(&source, &rows, &prompt, &original, args.markdown, ui);
    ui.object(&rows)?;
    Ok(Exit::Done)
}

fn measurement(
    args: &DemoArgs,
    built_in: bool,
    source: &Checkpoint,
    tokenizer: TextTokenizer,
) -> anyhow::Result<Measurement> {
    let mut measure = args.measure.clone();
    if built_in && measure.ctx.is_none() {
        measure.ctx = Some(demo_model::CTX as u32);
    }
    let mut measurement = corpus::measurement(&measure, source.spec(), tokenizer)?;
    if built_in && args.measure.texts.is_empty() {
        measurement.texts = vec![corpus::tokenize(
            demo_model::TEXT_NAME,
            demo_model::TEXT,
            &measurement.tokenizer,
        )?];
    }
    Ok(measurement)
}

/// Converts and judges one way; a refused artifact is sampled before it is removed.
#[expect(
    clippy::too_many_arguments,
    reason = "one step of the demo's loop, called once"
)]
fn one(
    name: &'static str,
    source: &Checkpoint,
    tokenizer: &TextTokenizer,
    measurement: &Measurement,
    calibration: &CalibrationText,
    out: &Path,
    keep: bool,
    prompt: &[u32],
    ui: Ui,
) -> anyhow::Result<Row> {
    machine::reset_peak_rss();
    let start = Instant::now();
    let mut recipe = neuroconv_recipes::builtin(name)?;
    if calibration.windows.is_empty() {
        recipe.without_learning()?;
    }
    recipe.calibration.clone_from(&calibration.record);
    let plan = neuroconv_convert::plan(source, &recipe)?;
    let output: PathBuf = out.join(format!("{}-{name}", plan.source.id));
    let job = Job {
        units: &[],
        source,
        recipe: &recipe,
        plan: &plan,
        output: &output,
        overwrite: true,
        calibration,
        save_imatrix: None,
        measurement,
        // The rows of the table are compared with one another, on the same tokens.
        judge: &JudgeArgs {
            all_tokens: true,
            ..JudgeArgs::default()
        },
        allow_quality_loss: false,
    };
    let progress = ui.progress();
    let judged = pipeline::convert_and_judge(&job, progress.as_ref())?;
    let convert_and_verify_s = start.elapsed().as_secs_f64();
    let sample = sample_packed(&judged.staged.path(), tokenizer, prompt)?;
    let forms = reports::Forms::all();
    if keep {
        reports::write(&out.join(format!("{name}-report")), &forms, &judged.report)?;
    }
    let (report, _) = pipeline::settle(judged, &job, &forms, progress.as_ref())?;
    Ok(Row {
        recipe: name,
        report,
        convert_and_verify_s,
        sample,
    })
}

/// The first words of the evaluation text, as tokens.
fn prompt(measurement: &Measurement, tokenizer: &TextTokenizer) -> anyhow::Result<Vec<u32>> {
    let start = measurement
        .texts
        .first()
        .map(|t| &t.tokens[..t.tokens.len().min(64)]);
    let text = tokenizer.decode(start.unwrap_or_default())?;
    let words: Vec<&str> = text.split_whitespace().take(PROMPT_WORDS).collect();
    Ok(tokenizer.encode_prompt(&words.join(" "))?)
}

fn sample_packed(path: &Path, tokenizer: &TextTokenizer, prompt: &[u32]) -> anyhow::Result<String> {
    let model = PackedModel::open(path, neuroconv_format::Validate::Structure)?;
    sample(&model, tokenizer, prompt)
}

/// What a model writes after the prompt.
fn sample(
    model: &dyn WeightSource,
    tokenizer: &TextTokenizer,
    prompt: &[u32],
) -> anyhow::Result<String> {
    let decoder = Decoder::load(model)?;
    let out = neuroconv_runtime::generate(
        &decoder,
        prompt,
        SAMPLE_TOKENS,
        &mut Sampler::new(SAMPLING)?,
        &mut |_| ControlFlow::Continue(()),
    )?;
    let all: Vec<u32> = prompt.iter().chain(&out.tokens).copied().collect();
    Ok(tokenizer.decode(&all)?)
}

fn show(source: &Checkpoint, rows: &[Row], prompt: &[u32], original: &str, markdown: bool, ui: Ui) {
    let header = [
        "recipe",
        "weights",
        "bits/weight",
        "perplexity",
        "ratio",
        "mean KL",
        "same best",
        "time",
        "peak memory",
        "verdict",
    ];
    let mut cells = Vec::new();
    if let Some(first) = rows.first() {
        let s = &first.report.source;
        let bytes = reports::weight_bytes(s);
        let mut row = vec![
            format!("original ({})", s.dtype),
            present::bytes(bytes),
            format!("{:.3}", bytes as f64 * 8.0 / s.params as f64),
            format!("{:.4}", first.report.metrics.ppl_base.value),
        ];
        row.resize(header.len(), String::new());
        cells.push(row);
    }
    cells.extend(rows.iter().map(|row| {
        let (r, m) = (&row.report, &row.report.metrics);
        vec![
            row.recipe.to_owned(),
            present::bytes(r.artifact.size_bytes),
            format!("{:.3}", r.artifact.bits_per_weight),
            format!("{:.4}", m.ppl.value),
            format!("{:.4}", m.ppl_ratio.value),
            format!("{:.5}", m.kld_mean.value),
            format!("{:.2} %", m.top1.value * 100.0),
            present::seconds(row.convert_and_verify_s),
            present::bytes(r.peak_rss_bytes),
            verdict(r),
        ]
    }));
    let right = [1, 2, 3, 4, 5, 6, 7, 8];
    let table = if markdown {
        present::markdown_table
    } else {
        present::table
    };
    let spec = source.spec();
    ui.result(format!(
        "{}: {} parameters, measured on {}\n",
        spec.arch,
        spec.parameters(),
        measured(rows)
    ));
    ui.result(table(&header, &cells, &right));
    if markdown {
        return;
    }
    ui.result(format!(
        "\nEach model continues the same {} tokens with the same random draws:\n",
        prompt.len()
    ));
    let samples = std::iter::once(("original", original));
    for (name, text) in samples.chain(rows.iter().map(|r| (r.recipe, r.sample.as_str()))) {
        ui.result(format!(
            "{name}:\n  {}\n",
            text.trim().replace('\n', "\n  ")
        ));
    }
}

fn measured(rows: &[Row]) -> String {
    let corpus = |c: &neuroconv_verify::report::CorpusRecord| {
        format!(
            "{} ({} scored tokens, {} {})",
            c.name, c.tokens, c.protocol, c.ctx
        )
    };
    rows.first().map_or_else(String::new, |row| {
        row.report
            .corpora
            .iter()
            .map(corpus)
            .collect::<Vec<_>>()
            .join(", ")
    })
}

/// The verdict and the exit code that the conversion alone would have ended with.
fn verdict(report: &Report) -> String {
    let word = reports::verdict_word(report.verdict);
    match report.exit_code {
        0 => word.to_owned(),
        code => format!("{word} (exit {code})"),
    }
}
