//! `neuroconv verify`: judges an artifact that is already there.

use neuroconv_recipes::Recipe;
use neuroconv_runtime::{Checkpoint, PackedModel, WeightSource};
use neuroconv_verify::report::Report;

use super::{convert, outcome, plan};
use crate::args::VerifyArgs;
use crate::corpus;
use crate::exit::Exit;
use crate::github;
use crate::hub::{self, Need};
use crate::pipeline::{self, Examination, Examined};
use crate::reports::{self, Forms};
use crate::ui::Ui;

pub(crate) fn run(args: &VerifyArgs, ui: Ui) -> anyhow::Result<Exit> {
    let opened = Opened::open(args, ui)?;
    let Examination { report, advice, .. } = opened.examine(args, ui)?;
    tell(args, &report, &advice, ui)?;
    Ok(pipeline::exit(&report))
}

/// An artifact and what it is judged against.
pub(crate) struct Opened {
    artifact: PackedModel,
    base: Checkpoint,
    recipe: Recipe,
}

impl Opened {
    pub(crate) fn open(args: &VerifyArgs, ui: Ui) -> anyhow::Result<Self> {
        let artifact = PackedModel::open_unmapped(&args.artifact)?;
        let against = hub::resolve(&args.against, &args.hub, Need::Weights, ui)?;
        let base = plan::checkpoint(&against)?;
        let recipe_path = args.artifact.join("neuroconv").join("recipe.toml");
        let mut recipe = Recipe::parse(
            &fs_err::read_to_string(&recipe_path)?,
            &recipe_path.display().to_string(),
        )?;
        recipe.set_limits(convert::limits(&args.limits))?;
        Ok(Opened {
            artifact,
            base,
            recipe,
        })
    }

    pub(crate) fn examine(&self, args: &VerifyArgs, ui: Ui) -> anyhow::Result<Examination> {
        let tokenizer = self.base.tokenizer()?;
        let measurement = corpus::measurement(&args.measure, self.base.spec(), tokenizer)?;
        let allow = args.limits.allow_quality_loss;
        let mut options = pipeline::options(&measurement, &self.recipe.limits, &args.judge, allow);
        options.kv = args.kv.into();
        let what = Examined {
            base: &self.base,
            artifact: &self.artifact,
            folder: &args.artifact,
            shown: &args.artifact,
        };
        pipeline::examine(&what, &measurement, &options, ui.progress().as_ref())
    }

    /// `SOURCE/RECIPE`: what a baseline calls this export.
    pub(crate) fn key(&self) -> String {
        let manifest = self.artifact.artifact().manifest();
        format!("{}/{}", manifest.source.id, manifest.recipe.name)
    }
}

/// Writes and prints a report.
pub(crate) fn tell(
    args: &VerifyArgs,
    report: &Report,
    advice: &[String],
    ui: Ui,
) -> anyhow::Result<()> {
    let dir = args.report.report_dir.as_deref();
    if let Some(dir) = dir {
        reports::write(dir, &Forms::new(&args.report), report)?;
    }
    let artifact = Some(args.artifact.as_path());
    github::tell(args.report.github, report, artifact, dir)?;
    outcome::show(report, advice, None, ui)
}
