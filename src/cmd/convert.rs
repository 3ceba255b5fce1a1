//! `neuroconv int8|int4|ternary|run`: from a checkpoint to a verified artifact, or to a refusal.

use std::path::{Path, PathBuf};

use neuroconv_convert::unit::{Unit, convert_unit};
use neuroconv_convert::{Plan, Survey};
use neuroconv_format::gguf::Imatrix;
use neuroconv_recipes::{Auto, FoldNorms, Limits, Recipe};
use neuroconv_runtime::{Checkpoint, Progress, WeightSource};
use neuroconv_verify::Verdict;
use neuroconv_verify::report::{AllocationRecord, Report};

use super::outcome::{show, show_allocation};
use super::plan;
use crate::allocation::{Sizing, Undivided};
use crate::args::{CalibrationArgs, ConvertArgs, ImportanceArgs, LimitArgs, MlaArgs};
use crate::args::{QuantizeArgs, RunArgs, TernaryArgs};
use crate::calibration::{CalibrationText, ENGLISH, calibration};
use crate::corpus::{self, Measurement};
use crate::exit::Exit;
use crate::failure::Misuse;
use crate::github;
use crate::hub::{self, Need};
use crate::importance;
use crate::interrupt;
use crate::latent::Undecided;
use crate::memory::Memory;
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
    quantize_by(recipe, args, ui)
}

/// Flags that say how matrices are packed hold for every kind of levels that is chosen from, as far
/// as the kind knows them.
fn quantize_by(recipe: Recipe, args: &QuantizeArgs, ui: Ui) -> anyhow::Result<Exit> {
    let mut others = Vec::new();
    for name in ["ternary", "int4", "int8"] {
        let mut other = neuroconv_recipes::builtin(name)?;
        if args.pack.apply(&mut other).is_ok() {
            others.push(other);
        }
    }
    let target = args.size.target_bpw;
    let size = target.map(|target| Sizing::new(target, &recipe, &others));
    let learning = Learning {
        text: &args.calibration,
        importance: &args.importance,
        size,
    };
    convert(&args.model, recipe, &args.convert, &learning, ui)
}

pub(crate) fn ternary(args: &TernaryArgs, ui: Ui) -> anyhow::Result<Exit> {
    let mut recipe = neuroconv_recipes::builtin("ternary")?;
    args.quantize.pack.apply(&mut recipe)?;
    if let Some(threshold) = args.threshold {
        recipe.set_threshold(threshold)?;
    }
    if let Some(planes) = args.planes {
        recipe.set_ternary("planes", |packed| packed.planes = planes)?;
    }
    quantize_by(recipe, &args.quantize, ui)
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
    let target = args.size.target_bpw;
    let size = target.map(|target| Sizing::new(target, &recipe, &[]));
    let learning = Learning {
        text: &args.calibration,
        importance: &args.importance,
        size,
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
        size: None,
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
    size: Option<Sizing>,
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
    if imatrix.is_some() && learning.size.is_some() {
        return Err(Misuse::new(
            "--imatrix and --target-bpw do not go together",
            "a size is divided by what calibration text says; drop one of them",
        )
        .into());
    }
    let needs_weights = !args.output.dry_run || learning.size.is_some() || measures_norms(&recipe);
    let need = if needs_weights {
        Need::Weights
    } else {
        Need::Plan
    };
    let model = hub::resolve(model, &args.hub, need, ui)?;
    let source = plan::checkpoint(&model)?;
    fold_where_it_gains(&source, &mut recipe, ui)?;
    let plan = planned(&source, &recipe, imatrix.as_ref())?;
    neuroconv_convert::check_rounded(&source, &plan, args.allow_requantize)?;
    if plan.wants_survey() && learning.size.is_some() {
        return Err(Misuse::new(
            "--outliers and --target-bpw do not go together",
            "how many columns lie apart is not known when a size is divided; drop one of them",
        )
        .into());
    }
    importance::check_save(learning.importance, args.output.overwrite, plan.learns())?;
    if args.output.dry_run && learning.size.is_none() {
        plan::show(&plan, ui)?;
        return Ok(Exit::Done);
    }
    let output = match &args.output.output {
        Some(output) => output.clone(),
        None => default_output(&plan.source.id, &recipe.name),
    };
    if let Some(unit) = args.unit {
        return one_unit(&source, &plan, unit, &output, args, ui);
    }
    let tokenizer = source.tokenizer()?;
    let measurement = corpus::measurement(&args.measure, source.spec(), tokenizer)?;
    let tokenizer = &measurement.tokenizer;
    let calibration = if recipe.learns() || learning.size.is_some() {
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
        let model = plan.rewritten(&source);
        Survey::of(&model, text, progress.as_ref(), &pipeline::INTERRUPTED)
    });
    let survey = survey.transpose()?;
    let conversion = Conversion {
        source: &source,
        args,
        size: learning.size.as_ref(),
        save_imatrix: learning.importance.save_imatrix.as_deref(),
        imatrix: imatrix.as_ref(),
        survey: survey.as_ref(),
        units: &[],
        output: &output,
        measurement: &measurement,
        calibration: &calibration,
        progress: progress.as_ref(),
        ui,
    };
    let (recipe, allocation) = conversion.divided(recipe)?;
    let plan = conversion.planned(&recipe)?;
    if args.output.dry_run {
        plan::show(&plan, ui)?;
        return Ok(Exit::Done);
    }
    conversion.announce(&model.name, &plan)?;
    let undecided = Undecided {
        source: &source,
        calibration: &calibration.windows,
        progress: progress.as_ref(),
    };
    let candidates = undecided.candidates(&recipe)?;
    conversion.first_that_passes(&candidates, allocation.as_ref())
}

/// Whether weights decide which norms go into matrices.
fn measures_norms(recipe: &Recipe) -> bool {
    recipe.rewrites.fold_norms == FoldNorms::WhereItGains(Auto::Auto)
}

/// Decides which norms go into matrices, where the recipe leaves it to measurement.
fn fold_where_it_gains(source: &Checkpoint, recipe: &mut Recipe, ui: Ui) -> anyhow::Result<()> {
    if measures_norms(recipe) {
        let norms = neuroconv_convert::norms_to_fold(source, recipe)?;
        let count = norms.len();
        ui.note(format!("{count} norms gain by being folded into matrices"));
        recipe.rewrites.fold_norms = FoldNorms::These(norms);
    }
    Ok(())
}

fn planned(
    source: &Checkpoint,
    recipe: &Recipe,
    imatrix: Option<&Imatrix>,
) -> Result<Plan, neuroconv_convert::Error> {
    let mut plan = neuroconv_convert::plan(source, recipe)?;
    if let Some(imatrix) = imatrix {
        plan.weigh(imatrix)?;
    }
    Ok(plan)
}

/// One part of a conversion, for a merge.
fn one_unit(
    source: &Checkpoint,
    plan: &Plan,
    unit: Unit,
    output: &Path,
    args: &ConvertArgs,
    ui: Ui,
) -> anyhow::Result<Exit> {
    interrupt::watch_resumable();
    let (overwrite, progress) = (args.output.overwrite, ui.progress());
    let cancel = &pipeline::INTERRUPTED;
    let path = convert_unit(
        plan,
        source,
        unit,
        output,
        overwrite,
        progress.as_ref(),
        cancel,
    )?;
    ui.result(path.display());
    ui.object(&path)?;
    Ok(Exit::Done)
}

/// What all candidates of a conversion share.
pub(super) struct Conversion<'a> {
    pub(super) source: &'a Checkpoint,
    pub(super) args: &'a ConvertArgs,
    pub(super) size: Option<&'a Sizing>,
    /// Where the importance matrix of the calibration text goes.
    pub(super) save_imatrix: Option<&'a Path>,
    pub(super) imatrix: Option<&'a Imatrix>,
    pub(super) survey: Option<&'a Survey>,
    /// Folders of units that are merged, if any.
    pub(super) units: &'a [PathBuf],
    pub(super) output: &'a Path,
    pub(super) measurement: &'a Measurement,
    pub(super) calibration: &'a CalibrationText,
    pub(super) progress: &'a dyn Progress,
    pub(super) ui: Ui,
}

impl Conversion<'_> {
    pub(super) fn planned(&self, recipe: &Recipe) -> Result<Plan, neuroconv_convert::Error> {
        let mut plan = planned(self.source, recipe, self.imatrix)?;
        if let Some(survey) = self.survey {
            plan.split(survey)?;
        }
        Ok(plan)
    }

    /// Warns where more memory was used than was allowed.
    fn tell_memory(&self, report: &mut Report) {
        let Some(allowed) = self
            .args
            .output
            .max_memory
            .filter(|m| report.peak_rss_bytes > m.0)
        else {
            return;
        };
        report.warnings.push(format!(
            "{} of memory were used, and --max-memory allows {}",
            present::bytes(report.peak_rss_bytes),
            present::bytes(allowed.0)
        ));
    }

    /// The recipe of the size that is asked for, or `recipe` where none is.
    fn divided(&self, recipe: Recipe) -> anyhow::Result<(Recipe, Option<AllocationRecord>)> {
        let Some(size) = self.size else {
            return Ok((recipe, None));
        };
        let undivided = Undivided {
            source: self.source,
            calibration: self.calibration,
            measurement: self.measurement,
            judge: &self.args.judge,
            output: self.output,
            progress: self.progress,
        };
        let (recipe, allocation) = undivided.divide(&recipe, size)?;
        show_allocation(&allocation, self.ui);
        Ok((recipe, Some(allocation)))
    }

    /// Says what is about to happen, and refuses what needs more memory than is allowed.
    pub(super) fn announce(&self, model: &str, plan: &Plan) -> anyhow::Result<()> {
        let ui = self.ui;
        ui.note(format!(
            "{} -> {}: {} parameters, {} -> {}",
            model,
            self.output.display(),
            plan.source.params,
            present::bytes(plan.source.bytes),
            present::bytes(plan.weights_bytes),
        ));
        if plan.cached_numbers != plan.cached_numbers_source {
            ui.note(described(plan));
        }
        let need = Memory::of(plan);
        ui.note(format!("needs about {need}"));
        Ok(need.check(self.args.output.max_memory)?)
    }

    /// Converts by one recipe after the other until one passes, and emits or refuses what came last.
    pub(super) fn first_that_passes(
        &self,
        candidates: &[Recipe],
        allocation: Option<&AllocationRecord>,
    ) -> anyhow::Result<Exit> {
        let args = self.args;
        let forms = Forms::new(&args.report);
        for (tried, recipe) in candidates.iter().enumerate() {
            let plan = self.planned(recipe)?;
            let job = Job {
                source: self.source,
                recipe,
                plan: &plan,
                units: self.units,
                output: self.output,
                overwrite: args.output.overwrite,
                calibration: self.calibration,
                save_imatrix: self.save_imatrix,
                measurement: self.measurement,
                judge: &args.judge,
                allow_quality_loss: args.limits.allow_quality_loss,
            };
            if tried == 0 && smoke::wanted(args.output.smoke, &plan) {
                smoke::run(&job, self.progress)?;
            }
            let mut judged = pipeline::convert_and_judge(&job, self.progress)?;
            judged.report.allocation = allocation.cloned();
            let last = tried + 1 == candidates.len();
            if !last && judged.report.verdict != Verdict::Pass {
                let what = described(&plan);
                self.ui
                    .note(format!("{what}: refused, trying a larger rank"));
                judged.staged.reject()?;
                continue;
            }
            if let Some(dir) = &args.report.report_dir {
                reports::write(dir, &forms, &judged.report)?;
            }
            let advice = judged.advice.clone();
            self.tell_memory(&mut judged.report);
            let (report, path) = pipeline::settle(judged, &job, &forms, self.progress)?;
            let dir = args.report.report_dir.as_deref();
            github::tell(args.report.github, &report, path.as_deref(), dir)?;
            show(&report, &advice, path.as_deref(), self.ui)?;
            return Ok(pipeline::exit(&report));
        }
        unreachable!("there is at least one candidate, and the last is settled")
    }
}

/// The cache before and after.
fn described(plan: &Plan) -> String {
    format!(
        "cache {} -> {} numbers per token",
        plan.cached_numbers_source, plan.cached_numbers
    )
}

/// `MODEL-RECIPE` in the current folder; of `org/name` the name.
fn default_output(model: &str, recipe: &str) -> PathBuf {
    let name = model.rsplit('/').next().unwrap_or(model);
    PathBuf::from(format!("{name}-{recipe}"))
}
