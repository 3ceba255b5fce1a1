//! Rounding with calibration text, layer by layer.
//!
//! Two models go through the text together: the source, and the one whose matrices are rounded
//! already. Each matrix is rounded so that, from what the rounded model really gives it, it makes
//! what the source made as nearly as can be. Owns the order of the layers and matrices, and what a
//! resumed run takes over; the arithmetic is that of [`neuroconv_quant::gptq`].

mod corrected;
mod files;
mod inputs;
mod layer;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use neuroconv_format::Tensor;
use neuroconv_runtime::{OneLayer, Progress, WeightSource, embed};

pub(crate) use corrected::Corrected;
pub(crate) use files::{RoundedLayers, RoundedMatrix};
pub(crate) use inputs::moments;
pub use layer::{LayerRounding, MatrixRounding};
pub(crate) use layer::{Partly, STAGES};

use crate::Error;
use crate::dense;
use crate::plan::Plan;
use inputs::Streams;
use layer::LayerTask;

/// Rounds the matrices of every layer of `source` as `plan` says, and keeps every finished layer in
/// the folder `dir`. Layers found there are taken over. `windows` are token ids of calibration text.
pub(crate) fn round_layers(
    source: &dyn WeightSource,
    plan: &Plan,
    windows: &[Vec<u32>],
    dir: &Path,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<RoundedLayers, Error> {
    let layers = source.spec().layers.len();
    let tokens = windows.iter().map(Vec::len).sum();
    let mut found = RoundedLayers::open(dir, plan, layers, tokens)?;
    check_finite(source, plan, progress)?;
    progress.start("round layers", plan.matrices() as u64, "matrices");
    let embedded = embed(source, windows)?;
    let mut streams = Streams {
        source: embedded.clone(),
        rounded: embedded,
    };
    for index in 0..layers {
        let source_layer = OneLayer::load(source, index)?;
        let mut rounded = Partly::new(source);
        if found.has(index) {
            found.put_into(index, plan, &mut rounded)?;
            progress.advance(plan.of_layer(index).count() as u64);
        } else {
            let task = LayerTask {
                plan,
                index,
                source,
                source_layer: &source_layer,
                streams: &streams,
                progress,
                cancel,
            };
            let Some((report, squares)) = task.round(&mut rounded)? else {
                return Err(Error::Interrupted {
                    staging: dir.parent().map(Path::to_owned),
                    done: found.count(),
                    total: layers,
                    unit: "layers",
                });
            };
            found.keep(index, plan, &rounded, &report, &squares)?;
        }
        streams.run(&source_layer, &OneLayer::load(&rounded, index)?);
        if cancel.load(Ordering::Relaxed) && index + 1 < layers {
            return Err(Error::Interrupted {
                staging: dir.parent().map(Path::to_owned),
                done: found.count(),
                total: layers,
                unit: "layers",
            });
        }
    }
    progress.finish();
    Ok(found)
}

/// Refuses weights that are not finite, those of the last layer too, before hours of work.
fn check_finite(
    source: &dyn WeightSource,
    plan: &Plan,
    progress: &dyn Progress,
) -> Result<(), Error> {
    progress.start("check weights", plan.tensors.len() as u64, "tensors");
    for tensor in &plan.tensors {
        if let Tensor::Dense(values) = source.tensor(tensor.id)? {
            dense::check_finite(tensor.id, &tensor.source, &values)?;
        }
        progress.advance(1);
    }
    progress.finish();
    Ok(())
}
