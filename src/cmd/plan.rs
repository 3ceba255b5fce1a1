//! `neuroconv plan` and `--dry-run`: the fate of every tensor, no weight read.

use std::path::Path;

use neuroconv_convert::unit::Unit;
use neuroconv_convert::{Plan, PlannedTensor};
use neuroconv_recipes::{Recipe, RunSection};
use neuroconv_runtime::{Checkpoint, Source};
use serde::Serialize;

use crate::args::PlanArgs;
use crate::exit::Exit;
use crate::failure::Misuse;
use crate::hub::{self, Model, Need};
use crate::memory::Memory;
use crate::present;
use crate::ui::Ui;

pub(crate) fn run(args: &PlanArgs, ui: Ui) -> anyhow::Result<Exit> {
    let mut recipe = recipe(&args.recipe)?;
    if args.units.is_some() && recipe.learns() {
        recipe.without_learning()?;
        ui.note("the units are those of a conversion with `--calib none`");
    }
    let model = hub::resolve(&args.model, &args.hub, Need::Plan, ui)?;
    let source = checkpoint(&model)?;
    let plan = neuroconv_convert::plan(&source, &recipe)?;
    match args.units {
        None => show(&plan, ui)?,
        Some(units) => show_units(&plan, units as usize, ui)?,
    }
    Ok(Exit::Done)
}

/// One part of a split conversion.
#[derive(Serialize)]
struct UnitLine {
    unit: String,
    tensors: usize,
    first: String,
    last: String,
    weights: u64,
    bytes: u64,
}

/// Prints how a plan splits into parts.
fn show_units(plan: &Plan, units: usize, ui: Ui) -> anyhow::Result<()> {
    let line = |unit: Unit| -> anyhow::Result<UnitLine> {
        let part = plan.unit(unit)?;
        let name =
            |tensor: Option<&PlannedTensor>| tensor.map_or(String::new(), |t| t.id.to_string());
        Ok(UnitLine {
            unit: unit.to_string(),
            tensors: part.tensors.len(),
            first: name(part.tensors.first()),
            last: name(part.tensors.last()),
            weights: part.tensors.iter().map(PlannedTensor::elements).sum(),
            bytes: part.weights_bytes,
        })
    };
    let lines: Vec<UnitLine> = Unit::all(units).map(line).collect::<anyhow::Result<_>>()?;
    let cells = lines.iter().map(|l| {
        let numbers = [
            l.tensors.to_string(),
            l.weights.to_string(),
            present::bytes(l.bytes),
        ];
        let [tensors, weights, bytes] = numbers;
        vec![
            l.unit.clone(),
            tensors,
            l.first.clone(),
            l.last.clone(),
            weights,
            bytes,
        ]
    });
    let header = ["unit", "tensors", "first", "last", "weights", "to"];
    ui.result(present::table(
        &header,
        &cells.collect::<Vec<_>>(),
        &[1, 4, 5],
    ));
    ui.result(
        "run the conversion with `--unit I/N` for every unit, anywhere, then `neuroconv merge`",
    );
    ui.object(&lines)
}

/// A recipe by the name of a built-in one, or from a file; an existing file wins.
pub(crate) fn recipe(name: &str) -> anyhow::Result<Recipe> {
    recipe_with_run(name).map(|(recipe, _)| recipe)
}

/// The same with what a file says of model and output.
pub(crate) fn recipe_with_run(name: &str) -> anyhow::Result<(Recipe, RunSection)> {
    let path = Path::new(name);
    if path.is_file() {
        return Ok(Recipe::parse_with_run(
            &fs_err::read_to_string(path)?,
            name,
        )?);
    }
    let is_path = path.components().count() > 1 || path.extension().is_some_and(|e| e == "toml");
    if is_path {
        return Err(Misuse::new(
            format!("`{name}`: there is no such recipe file"),
            format!(
                "built-in recipes: {}",
                neuroconv_recipes::builtin_names().join(", ")
            ),
        )
        .into());
    }
    Ok((neuroconv_recipes::builtin(name)?, RunSection::default()))
}

/// Opens what is to be converted; an artifact is not.
pub(crate) fn checkpoint(model: &Model) -> anyhow::Result<Checkpoint> {
    match super::open(model)? {
        Source::Checkpoint(checkpoint) => Ok(checkpoint),
        Source::Artifact(_) => Err(Misuse::new(
            format!("`{}` is an artifact already", model.name),
            "name the checkpoint that it was made from",
        )
        .into()),
    }
}

/// Prints a plan: one line per kind of tensor, or every tensor with `-v`.
pub(crate) fn show(plan: &Plan, ui: Ui) -> anyhow::Result<()> {
    let lines = lines(&plan.tensors, ui.is_verbose());
    let header = [
        "tensor", "shape", "from", "to", "group", "bytes", "bits", "why",
    ];
    ui.result(present::table(&header, &lines, &[4, 5, 6]));
    for dropped in &plan.dropped {
        ui.result(format!("dropped {}: {}", dropped.source, dropped.reason));
    }
    for warning in &plan.warnings {
        ui.warn(warning);
    }
    if plan.wants_survey() {
        ui.warn("columns kept apart are found in the calibration text, and not counted here");
    }
    let s = &plan.source;
    ui.result(format!(
        "\n{}: {}, {} parameters in {}, {} -> {} ({:.3} bits per weight), recipe {}",
        s.id,
        s.arch,
        s.params,
        s.dtype,
        present::bytes(s.bytes),
        present::bytes(plan.weights_bytes),
        plan.bits_per_weight,
        plan.recipe,
    ));
    if plan.cached_numbers != plan.cached_numbers_source {
        ui.result(format!(
            "cache {} -> {} numbers per token ({:+.1} %)",
            plan.cached_numbers_source,
            plan.cached_numbers,
            100.0 * (plan.cached_numbers as f64 / plan.cached_numbers_source as f64 - 1.0),
        ));
    }
    let engines: Vec<Vec<String>> = plan.engines.iter().map(|e| e.row().to_vec()).collect();
    ui.result(present::table(
        &["exports to", "", "why", "tried"],
        &engines,
        &[],
    ));
    ui.result(format!(
        "needs about {} of disk, and about {}",
        present::bytes(plan.disk_bytes),
        Memory::of(plan),
    ));
    ui.object(plan)
}

/// Tensors that differ in their layer only share a line, unless `all` are wanted.
fn lines(tensors: &[PlannedTensor], all: bool) -> Vec<Vec<String>> {
    let mut kinds: Vec<(&PlannedTensor, Vec<usize>, u64)> = Vec::new();
    for tensor in tensors {
        let same = |first: &PlannedTensor| {
            first.id.layer.is_some()
                && first.id.role == tensor.id.role
                && first.shape == tensor.shape
                && first.codec == tensor.codec
                && first.group == tensor.group
                && first.source_dtype == tensor.source_dtype
                && first.reason == tensor.reason
        };
        let found = if all {
            None
        } else {
            kinds.iter_mut().find(|(first, ..)| same(first))
        };
        match found {
            Some((_, layers, bytes)) => {
                layers.extend(tensor.id.layer);
                *bytes += tensor.bytes;
            }
            None => kinds.push((tensor, tensor.id.layer.into_iter().collect(), tensor.bytes)),
        }
    }
    kinds
        .into_iter()
        .map(|(t, layers, bytes)| {
            let name = if layers.len() > 1 {
                format!("blk.{}.{}", ranges(&layers), t.id.role)
            } else {
                t.id.to_string()
            };
            vec![
                name,
                t.shape
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join("x"),
                t.source_dtype.to_string(),
                t.codec.name().to_owned(),
                t.group.map_or_else(String::new, |g| g.to_string()),
                present::bytes(bytes),
                format!("{:.3}", t.bits_per_weight),
                t.reason.clone(),
            ]
        })
        .collect()
}

/// `0-3,5` for `[0, 1, 2, 3, 5]`.
fn ranges(ascending: &[usize]) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for &n in ascending {
        match parts.last_mut() {
            Some((_, end)) if *end + 1 == n => *end = n,
            _ => parts.push((n, n)),
        }
    }
    let text = |(a, b): (usize, usize)| {
        if a == b {
            a.to_string()
        } else {
            format!("{a}-{b}")
        }
    };
    parts.into_iter().map(text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_told_in_ranges() {
        assert_eq!(ranges(&[0, 1, 2, 3, 5]), "0-3,5");
        assert_eq!(ranges(&[4]), "4");
        assert_eq!(ranges(&[0, 2, 3]), "0,2-3");
    }
}
