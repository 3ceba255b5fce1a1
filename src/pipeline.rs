//! Conversion and verification joined: stage, measure, judge, then emit or refuse.
//!
//! Owns the order of these steps and the report made of them. `convert` knows no quality and
//! `verify` no files; this is the only place that sees both.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::Context;
use neuroconv_convert::card::FrontMatter;
use neuroconv_convert::{Emission, Plan, StagedArtifact, Staging};
use neuroconv_format::Manifest;
use neuroconv_format::manifest::VerdictStatus;
use neuroconv_recipes::{FoldNorms, Limits, Recipe, Rewrites, TensorId};
use neuroconv_runtime::{
    Checkpoint, KvCache, KvCodec, PackedModel, Progress, TextTokenizer, WeightSource,
};
use neuroconv_verify::drift::worst_layer;
use neuroconv_verify::report::{
    ArtifactRecord, MlaRecord, Report, SCHEMA_VERSION, SampleRecord, StageRecord, TensorLine,
    YardstickRecord,
};
use neuroconv_verify::{
    Check, CheckClass, CheckStatus, Judgement, Verdict, Verification, VerifyOptions, Window,
    Yardstick, zeros_warning,
};

use crate::args::{JudgeArgs, YardstickArg};
use crate::calibration::CalibrationText;
use crate::corpus::Measurement;
use crate::exit::Exit;
use crate::importance;
use crate::latent::Finished;
use crate::machine;
use crate::reports;

/// Set by ctrl-C; conversion stops at the next tensor.
pub(crate) static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Windows that implementation parity is measured on.
const PARITY_WINDOWS: usize = 4;

/// One conversion to be done.
pub(crate) struct Job<'a> {
    pub(crate) source: &'a Checkpoint,
    pub(crate) recipe: &'a Recipe,
    pub(crate) plan: &'a Plan,
    /// Folders of units that are merged, if any.
    pub(crate) units: &'a [PathBuf],
    pub(crate) output: &'a Path,
    pub(crate) overwrite: bool,
    pub(crate) calibration: &'a CalibrationText,
    /// Where the importance matrix of the calibration text goes.
    pub(crate) save_imatrix: Option<&'a Path>,
    pub(crate) measurement: &'a Measurement,
    pub(crate) judge: &'a JudgeArgs,
    pub(crate) allow_quality_loss: bool,
}

/// A conversion that was done, measured and judged, but not emitted.
pub(crate) struct Judged {
    pub(crate) staged: StagedArtifact,
    pub(crate) report: Report,
    pub(crate) advice: Vec<String>,
}

/// How the quality of an artifact is measured and judged.
pub(crate) fn options(
    measurement: &Measurement,
    limits: &Limits,
    judge: &JudgeArgs,
    allow_quality_loss: bool,
) -> VerifyOptions {
    let yardstick = judge.yardstick.map(|how| match how {
        YardstickArg::Q8 => Yardstick::Q8,
        YardstickArg::Q4 => Yardstick::Q4,
    });
    VerifyOptions {
        protocol: measurement.protocol,
        ctx: measurement.ctx,
        max_tokens: Some(measurement.max_tokens),
        stop_early: !judge.all_tokens,
        limits: *limits,
        yardstick: yardstick.map(|how| (how, judge.max_yardstick.unwrap_or(1.25))),
        allow_quality_loss,
        parity_windows: PARITY_WINDOWS,
        kv: KvCodec::default(),
        feedback: BTreeSet::new(),
        rewrites: Rewrites::default(),
        logit_cache: judge.logit_cache.clone(),
        thorough: true,
    }
}

/// A folder beside `output` for what is only tried, removed when dropped.
pub(crate) fn scratch(output: &Path) -> anyhow::Result<tempfile::TempDir> {
    let parent = output.parent().filter(|p| !p.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    fs_err::create_dir_all(parent)?;
    let prefix = ".neuroconv-trial-";
    Ok(tempfile::Builder::new().prefix(prefix).tempdir_in(parent)?)
}

/// Converts into a staging folder, opens the staged bytes as a user would, and judges them.
pub(crate) fn convert_and_judge(job: &Job<'_>, progress: &dyn Progress) -> anyhow::Result<Judged> {
    let start = Instant::now();
    let options = options(
        job.measurement,
        &job.recipe.limits,
        job.judge,
        job.allow_quality_loss,
    );
    // Before hours of work rather than after them.
    neuroconv_verify::check_texts(&job.measurement.texts, &options)?;
    let staging = Staging::open(job.output, job.overwrite)?;
    let (plan, source, cancel) = (job.plan, job.source, &INTERRUPTED);
    let staged = if job.units.is_empty() {
        let text = &job.calibration.windows;
        neuroconv_convert::execute(plan, source, text, staging, progress, cancel)?
    } else {
        neuroconv_convert::merge(plan, source, job.units, staging, progress, cancel)?
    };
    if let Some(path) = job.save_imatrix {
        importance::save(path, &staged, job.calibration)?;
    }
    let convert_s = start.elapsed().as_secs_f64();
    let model = PackedModel::open_unmapped(&staged.path())?;
    let examined = Examined {
        base: job.source,
        artifact: &model,
        folder: &staged.path(),
        shown: job.output,
    };
    let Examination {
        mut report,
        advice,
        windows,
    } = examine(&examined, job.measurement, &options, progress)?;
    report.stages.insert(
        0,
        StageRecord {
            name: "convert".to_owned(),
            wall_s: convert_s,
        },
    );
    report.mla = latent_record(job, &staged, &windows, progress)?;
    let learning = &job.calibration.warnings;
    let warnings = job
        .plan
        .warnings
        .iter()
        .chain(learning)
        .chain(staged.notes());
    report.warnings.extend(warnings.cloned());
    Ok(Judged {
        staged,
        report,
        advice,
    })
}

/// What the report says of converted attention.
fn latent_record(
    job: &Job<'_>,
    staged: &StagedArtifact,
    windows: &[Window],
    progress: &dyn Progress,
) -> anyhow::Result<Option<MlaRecord>> {
    let (Some(layers), Some(recipe)) = (staged.converted(), &job.recipe.mla) else {
        return Ok(None);
    };
    let Some(text) = job.measurement.texts.first() else {
        return Ok(None);
    };
    let finished = Finished {
        source: job.source,
        spec: job.plan.spec(),
        recipe,
        calibration: &job.calibration.windows,
        layers,
        packed: job.plan.tensors.iter().any(|t| t.group.is_some()),
        text,
        protocol: job.measurement.protocol,
        ctx: job.measurement.ctx,
        windows,
        progress,
    };
    finished.record().map(Some)
}

/// What is judged, and against what.
pub(crate) struct Examined<'a> {
    pub(crate) base: &'a Checkpoint,
    pub(crate) artifact: &'a PackedModel,
    /// Where the artifact lies now.
    pub(crate) folder: &'a Path,
    /// Where reports say it lies.
    pub(crate) shown: &'a Path,
}

/// What was found.
pub(crate) struct Examination {
    pub(crate) report: Report,
    /// What would help where it is not passed.
    pub(crate) advice: Vec<String>,
    /// What the metrics were measured on.
    pub(crate) windows: Vec<Window>,
}

/// Measures and judges.
pub(crate) fn examine(
    what: &Examined<'_>,
    measurement: &Measurement,
    options: &VerifyOptions,
    progress: &dyn Progress,
) -> anyhow::Result<Examination> {
    let Measurement {
        texts, tokenizer, ..
    } = measurement;
    let options = &VerifyOptions {
        feedback: rounded_with_feedback(what.artifact.artifact().manifest()),
        rewrites: rewrites(what.artifact.artifact().manifest())?,
        ..options.clone()
    };
    let mut verification =
        neuroconv_verify::verify(what.base, what.artifact, texts, options, progress)?;
    let mut checks = verification.judgement.checks;
    checks.push(side_files(what)?);
    checks.sort_by_key(|c| c.class == CheckClass::Quality);
    verification.judgement = Judgement::of(checks, options.allow_quality_loss);
    let manifest = what.artifact.artifact().manifest();
    let advice = neuroconv_verify::advice(
        &verification.judgement,
        &verification.metrics,
        body_codec(manifest),
    );
    let samples = samples(&verification, tokenizer)?;
    let windows = std::mem::take(&mut verification.windows);
    let mut report = report(verification, what);
    report.samples = samples;
    report.yardstick = yardstick(&report, options);
    Ok(Examination {
        report,
        advice,
        windows,
    })
}

/// The matrices whose outputs, not weights, were to be kept.
fn rounded_with_feedback(manifest: &Manifest) -> BTreeSet<String> {
    let records = manifest.tensors.iter();
    let rounded = records.filter(|record| record.output_error.is_some());
    rounded.map(|record| record.name.clone()).collect()
}

/// The exact changes of the graph that the artifact was made with.
fn rewrites(manifest: &Manifest) -> anyhow::Result<Rewrites> {
    let folded = manifest.rewrites.folded.iter();
    let folded: Result<Vec<TensorId>, _> = folded.map(|name| name.parse()).collect();
    Ok(Rewrites {
        fold_norms: FoldNorms::These(folded.context("the manifest's folded norms")?),
        rotate: manifest.rewrites.rotated,
    })
}

/// Tokenizer, templates and licence are to be those of the source, byte for byte.
fn side_files(what: &Examined<'_>) -> anyhow::Result<Check> {
    let mut different = Vec::new();
    for file in what.base.files().side_files()? {
        let copy = what.folder.join(&file.name);
        if !copy.is_file() || file.read()? != fs_err::read(&copy)? {
            different.push(file.name.display().to_string());
        }
    }
    Ok(Check {
        id: "parity.side_files".to_owned(),
        class: CheckClass::Parity,
        status: if different.is_empty() {
            CheckStatus::Pass
        } else {
            CheckStatus::Fail
        },
        limit: 0.0,
        observed: different.len() as f64,
        waived: false,
        detail: (!different.is_empty()).then(|| different.join(", ")),
    })
}

/// What both models wrote, as text.
fn samples(
    verification: &Verification,
    tokenizer: &TextTokenizer,
) -> anyhow::Result<Vec<SampleRecord>> {
    let mut out = Vec::new();
    for c in &verification.continuations {
        // Decoded with the prompt, for a tokenizer may join what stands at the seam.
        let prompt = tokenizer.decode(&c.prompt)?;
        let after = |tokens: &[u32]| -> anyhow::Result<String> {
            let all: Vec<u32> = c.prompt.iter().chain(tokens).copied().collect();
            let text = tokenizer.decode(&all)?;
            Ok(text.strip_prefix(&prompt).unwrap_or(&text).to_owned())
        };
        out.push(SampleRecord {
            original: after(&c.original)?,
            artifact: after(&c.artifact)?,
            divergence: c.divergence(),
            tokens: c.original.len(),
            prompt,
        });
    }
    Ok(out)
}

fn yardstick(report: &Report, options: &VerifyOptions) -> Option<YardstickRecord> {
    let (how, _) = options.yardstick?;
    let detail = report.metrics.detail.as_ref()?;
    let [ppl, kld_mean] = detail.yardstick?;
    Some(YardstickRecord {
        name: how.name().to_owned(),
        bits_per_weight: how.bits_per_weight(),
        ppl,
        kld_mean,
        kld_ratio: detail.yardstick_kld_ratio,
    })
}

/// The codec that most bytes of the blocks' matrices are stored in.
fn body_codec(manifest: &Manifest) -> &'static str {
    let mut bytes = std::collections::BTreeMap::new();
    for tensor in manifest
        .tensors
        .iter()
        .filter(|t| t.name.starts_with("blk."))
    {
        *bytes.entry(tensor.codec.name()).or_insert(0) += tensor.size;
    }
    bytes
        .into_iter()
        .max_by_key(|(_, bytes)| *bytes)
        .map_or("", |(codec, _)| codec)
}

/// The report on an artifact, from what was measured and what its manifest says.
fn report(verification: Verification, what: &Examined<'_>) -> Report {
    let (base, artifact) = (what.base, what.artifact);
    let manifest = artifact.artifact().manifest();
    let exit_code = verification.judgement.exit_code();
    let tensors: Vec<TensorLine> = manifest.tensors.iter().map(TensorLine::from).collect();
    let warnings = zeros_warning(&tensors).into_iter().collect();
    let Verification {
        metrics,
        parity,
        judgement,
        corpora,
        texts,
        long,
        layers,
        continuations: _,
        engine,
        windows: _,
        tokens_saved,
        stages,
        kv,
    } = verification;
    Report {
        schema_version: SCHEMA_VERSION,
        verdict: judgement.verdict,
        exit_code,
        source: manifest.source.clone(),
        artifact: ArtifactRecord {
            path: what.shown.display().to_string(),
            size_bytes: manifest.size.weights_bytes,
            bits_per_weight: manifest.size.bits_per_weight,
            kv_bytes_per_token: KvCache::bytes_per_token(artifact.spec(), kv) as u64,
            kv_bytes_per_token_source: KvCache::bytes_per_token(base.spec(), KvCodec::default())
                as u64,
        },
        corpora,
        metrics,
        parity,
        mla: None,
        allocation: None,
        texts,
        long,
        worst_layer: worst_layer(&layers),
        layers,
        samples: Vec::new(),
        engine: engine.to_owned(),
        tokens_saved,
        yardstick: None,
        tensors,
        checks: judgement.checks,
        stages,
        peak_rss_bytes: machine::peak_rss_bytes(),
        threads: rayon::current_num_threads(),
        cpu: machine::cpu(),
        warnings,
    }
}

/// The exit code of a report.
pub(crate) fn exit(report: &Report) -> Exit {
    match report.exit_code {
        0 => Exit::Done,
        4 => Exit::Parity,
        8 => Exit::Inconclusive,
        _ => Exit::Refused,
    }
}

/// Emits what passed or was waived, and removes what was not. Returns the artifact's path.
pub(crate) fn settle(
    judged: Judged,
    job: &Job<'_>,
    forms: &reports::Forms,
    progress: &dyn Progress,
) -> anyhow::Result<(Report, Option<PathBuf>)> {
    let Judged { staged, report, .. } = judged;
    let verdict = match report.verdict {
        Verdict::Pass => VerdictStatus::Pass,
        Verdict::Waived => VerdictStatus::Waived,
        Verdict::Fail | Verdict::Inconclusive => {
            staged
                .reject()
                .context("cannot remove the staging folder")?;
            return Ok((report, None));
        }
    };
    let waived = report
        .checks
        .iter()
        .filter(|c| c.waived)
        .map(|c| c.id.clone())
        .collect();
    let rendered = forms.render(&report)?;
    let carried = FrontMatter::read(job.source.files().path());
    let card = reports::card(
        &report,
        job.recipe,
        staged.manifest(),
        staged.target(),
        carried,
        &job.plan.engines,
    );
    let emission = Emission {
        verdict,
        waived,
        report_json: rendered.json,
        report_md: rendered.md,
        report_html: rendered.html,
        junit_xml: rendered.junit,
        card: card.render(),
    };
    let path = staged.emit(&emission, progress)?;
    Ok((report, Some(path)))
}
