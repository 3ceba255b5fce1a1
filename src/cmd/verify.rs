//! `neuroconv verify`: judges an artifact that is already there.

use neuroconv_format::Validate;
use neuroconv_recipes::Recipe;
use neuroconv_runtime::{PackedModel, TextTokenizer, WeightSource};

use super::{convert, plan};
use crate::args::VerifyArgs;
use crate::corpus;
use crate::exit::Exit;
use crate::pipeline;
use crate::reports::{self, Forms};
use crate::ui::Ui;

pub(crate) fn run(args: &VerifyArgs, ui: Ui) -> anyhow::Result<Exit> {
    let artifact = PackedModel::open(&args.artifact, Validate::Full)?;
    let base = plan::checkpoint(&args.against)?;
    let tokenizer = TextTokenizer::open(base.files().path())?;
    let measurement = corpus::measurement(&args.measure, base.spec(), &tokenizer)?;
    let recipe_path = args.artifact.join("neuroconv").join("recipe.toml");
    let mut recipe = Recipe::parse(
        &fs_err::read_to_string(&recipe_path)?,
        &recipe_path.display().to_string(),
    )?;
    recipe.set_limits(convert::limits(&args.limits))?;
    let mut options =
        pipeline::options(&measurement, &recipe.limits, args.limits.allow_quality_loss);
    options.kv = args.kv.into();
    let progress = ui.progress();
    let verification = neuroconv_verify::verify(
        &base,
        &artifact,
        &measurement.texts,
        &options,
        progress.as_ref(),
    )?;
    let advice = pipeline::advice(&verification, artifact.artifact().manifest());
    let report = pipeline::report(verification, &base, &artifact, &args.artifact);
    let forms = Forms::new(&args.report);
    if let Some(dir) = &args.report.report_dir {
        reports::write(dir, &forms, &report)?;
    }
    convert::show(&report, &advice, None, ui)?;
    Ok(pipeline::exit(&report))
}
