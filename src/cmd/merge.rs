//! `neuroconv merge`: the units of a conversion to one verified artifact.

use neuroconv_convert::unit::{recipe_of, units_beside};
use neuroconv_runtime::WeightSource as _;

use super::convert::{Conversion, limits};
use super::plan;
use crate::args::MergeArgs;
use crate::calibration::CalibrationText;
use crate::corpus;
use crate::exit::Exit;
use crate::failure::Misuse;
use crate::hub::{self, Need};
use crate::interrupt;
use crate::ui::Ui;

pub(crate) fn run(args: &MergeArgs, ui: Ui) -> anyhow::Result<Exit> {
    if args.convert.unit.is_some() {
        return Err(Misuse::new(
            "a merge makes the whole artifact",
            "drop --unit, or name the conversion that the unit is of instead of `merge`",
        )
        .into());
    }
    let Some(output) = &args.convert.output.output else {
        return Err(Misuse::new(
            "the output has no name",
            "say with -o what the units are units of",
        )
        .into());
    };
    let units = if args.units.is_empty() {
        units_beside(output)?
    } else {
        args.units.clone()
    };
    let mut recipe = recipe_of(&units[0])?;
    recipe.set_limits(limits(&args.convert.limits))?;
    let model = hub::resolve(&args.model, &args.convert.hub, Need::Weights, ui)?;
    let source = plan::checkpoint(&model)?;
    let convert = &args.convert;
    let measurement = corpus::measurement(&convert.measure, source.spec(), source.tokenizer()?)?;
    interrupt::watch_resumable();
    let progress = ui.progress();
    let conversion = Conversion {
        source: &source,
        args: convert,
        size: None,
        save_imatrix: None,
        imatrix: None,
        survey: None,
        units: &units,
        output,
        measurement: &measurement,
        calibration: &CalibrationText::default(),
        progress: progress.as_ref(),
        ui,
    };
    let plan = conversion.planned(&recipe)?;
    if convert.output.dry_run {
        plan::show(&plan, ui)?;
        return Ok(Exit::Done);
    }
    conversion.announce(&model.name, &plan)?;
    conversion.first_that_passes(&[recipe], None)
}
