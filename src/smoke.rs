//! Two layers all the way, before hours of work on the whole model.
//!
//! Owns the trial: a checkpoint of the first two layers is written, converted, opened, measured
//! and reported on like the real one, and removed. What would end the real run in its last minute
//! ends this one in its first.

use std::path::Path;

use anyhow::Context;
use neuroconv_convert::{Plan, Survey};
use neuroconv_recipes::Limits;
use neuroconv_runtime::{Checkpoint, Progress, TextTokenizer};

use crate::args::SmokeArg;
use crate::corpus::Measurement;
use crate::pipeline::{self, INTERRUPTED, Job};
use crate::reports::Forms;

/// Bytes of weights from which on a trial is worth its time.
const WORTHWHILE: u64 = 512 << 20;
/// Layers of the trial.
const LAYERS: usize = 2;
/// Tokens of each text.
const TOKENS: usize = 1024;
/// Tokens per window.
const CTX: usize = 128;

/// Whether the model is tried first.
pub(crate) fn wanted(when: SmokeArg, plan: &Plan) -> bool {
    match when {
        SmokeArg::On => true,
        SmokeArg::Off => false,
        SmokeArg::Auto => plan.source.bytes >= WORTHWHILE,
    }
}

/// Takes the first two layers of a job all the way. Its quality says nothing and is not judged;
/// parity is.
pub(crate) fn run(job: &Job<'_>, progress: &dyn Progress) -> anyhow::Result<()> {
    let scratch = pipeline::scratch(job.output)?;
    try_layers(job, scratch.path(), progress).context("the trial with two layers failed")
}

fn try_layers(job: &Job<'_>, scratch: &Path, progress: &dyn Progress) -> anyhow::Result<()> {
    let dir = scratch.join("model");
    neuroconv_convert::first_layers(job.source, LAYERS, &dir)?;
    let source = Checkpoint::open(&dir)?;
    let mut plan = match neuroconv_convert::plan(&source, job.recipe) {
        // A rule for a later layer finds nothing here, which says nothing about the whole.
        Err(neuroconv_convert::Error::Recipe(_)) => return Ok(()),
        plan => plan?,
    };
    if plan.wants_survey() {
        let text = &job.calibration.windows;
        plan.split(&Survey::of(&source, text, progress, &INTERRUPTED)?)?;
    }
    let mut recipe = job.recipe.clone();
    recipe.limits = Limits::default();
    let real = job.measurement;
    let measurement = Measurement {
        texts: real.texts.clone(),
        protocol: real.protocol,
        ctx: real.ctx.min(CTX),
        max_tokens: real.max_tokens.min(TOKENS),
        tokenizer: TextTokenizer::open(&dir)?,
    };
    let output = scratch.join("artifact");
    let trial = Job {
        source: &source,
        recipe: &recipe,
        plan: &plan,
        units: &[],
        output: &output,
        overwrite: false,
        calibration: job.calibration,
        save_imatrix: None,
        measurement: &measurement,
        judge: job.judge,
        allow_quality_loss: true,
    };
    let judged = pipeline::convert_and_judge(&trial, progress)?;
    let (report, path) = pipeline::settle(judged, &trial, &Forms::all(), progress)?;
    anyhow::ensure!(
        path.is_some(),
        "implementation parity does not hold: {}",
        failed(&report)
    );
    Ok(())
}

fn failed(report: &neuroconv_verify::report::Report) -> String {
    let failed = report.checks.iter();
    let failed = failed.filter(|c| c.status == neuroconv_verify::CheckStatus::Fail && !c.waived);
    let named = failed.map(|c| match &c.detail {
        Some(place) => format!("`{}` ({place})", c.id),
        None => format!("`{}`", c.id),
    });
    named.collect::<Vec<_>>().join(", ")
}
