//! `neuroconv imatrix|imatrix-merge`: what a text gives to the matrices of a model, summed in parts and
//! added up.

use std::path::Path;

use neuroconv_convert::gather_importance;
use neuroconv_convert::unit::Unit;
use neuroconv_format::gguf::Imatrix;
use neuroconv_runtime::WeightSource as _;
use serde::Serialize;

use super::plan;
use crate::args::{ImatrixArgs, ImatrixMergeArgs};
use crate::calibration::{CutText, ENGLISH, cut};
use crate::corpus;
use crate::exit::Exit;
use crate::failure::Misuse;
use crate::hub::{self, Need};
use crate::importance;
use crate::interrupt;
use crate::pipeline::INTERRUPTED;
use crate::ui::Ui;

/// What was written.
#[derive(Serialize)]
struct Written<'a> {
    path: &'a Path,
    /// Of which part of the text, where it is not all of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    part: Option<String>,
    texts: &'a [String],
    windows: u32,
    ctx: u32,
    matrices: usize,
}

pub(crate) fn run(args: &ImatrixArgs, ui: Ui) -> anyhow::Result<Exit> {
    importance::check_place(&args.place)?;
    if args.calibration.is_none() {
        return Err(Misuse::new(
            "`--calib none`: importance is what a text gives to columns",
            "name a text with --calib, or drop it for a short built-in one",
        )
        .into());
    }
    let model = hub::resolve(&args.model, &args.hub, Need::Weights, ui)?;
    let source = plan::checkpoint(&model)?;
    let (spec, tokenizer) = (source.spec(), source.tokenizer()?);
    let ctx = corpus::window_tokens(args.ctx, spec)?;
    let text = cut(&args.calibration, ENGLISH, spec, &tokenizer, ctx)?;
    let windows = windows_of(&text, args.part)?;
    let part = args.part.map(|part| part.to_string());
    interrupt::watch();
    ui.note(format!(
        "{}: {} windows of {} tokens of `{}`{}",
        model.name,
        windows.len(),
        text.ctx,
        text.text.name,
        part.as_ref().map_or(String::new(), |part| format!(
            ", part {part} of {} windows",
            text.windows.len()
        )),
    ));
    let progress = ui.progress();
    let imatrix = Imatrix {
        datasets: vec![text.text.name.clone()],
        chunks: importance::size(windows.len()),
        chunk_tokens: importance::size(text.ctx),
        entries: gather_importance(&source, windows, progress.as_ref(), &INTERRUPTED)?,
        ignored: Vec::new(),
    };
    importance::write(&args.place.output, &imatrix, args.place.overwrite)?;
    tell(&args.place.output, &imatrix, part, ui)
}

/// The windows of a part of the text, or of all of it.
fn windows_of(text: &CutText, part: Option<Unit>) -> anyhow::Result<&[Vec<u32>]> {
    let CutText { text, ctx, windows } = text;
    if windows.is_empty() {
        return Err(Misuse::new(
            format!(
                "`{}` has {} tokens and --calib-tokens allows no window of {ctx} of them",
                text.name,
                text.tokens.len()
            ),
            "name a longer text with --calib, shorter windows with --ctx, or more --calib-tokens",
        )
        .into());
    }
    match part {
        None => Ok(windows),
        Some(part) => {
            let part = part.windows(windows.len());
            Ok(&windows[part.map_err(neuroconv_convert::Error::from)?])
        }
    }
}

pub(crate) fn merge(args: &ImatrixMergeArgs, ui: Ui) -> anyhow::Result<Exit> {
    importance::check_place(&args.place)?;
    let imatrix = importance::sum_of_parts(&args.parts)?;
    for name in &imatrix.ignored {
        ui.warn(format!("`{name}` is neither sums nor counts, left out"));
    }
    ui.note(format!(
        "{} files: {} windows of {} tokens",
        args.parts.len(),
        imatrix.chunks,
        imatrix.chunk_tokens
    ));
    importance::write(&args.place.output, &imatrix, args.place.overwrite)?;
    tell(&args.place.output, &imatrix, None, ui)
}

/// Prints where the sums are.
fn tell(path: &Path, imatrix: &Imatrix, part: Option<String>, ui: Ui) -> anyhow::Result<Exit> {
    ui.result(path.display());
    ui.object(&Written {
        path,
        part,
        texts: &imatrix.datasets,
        windows: imatrix.chunks,
        ctx: imatrix.chunk_tokens,
        matrices: imatrix.entries.len(),
    })?;
    Ok(Exit::Done)
}
