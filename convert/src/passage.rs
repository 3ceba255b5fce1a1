//! Calibration text on its way through a model, for whoever looks at what matrices read.
//!
//! Owns the order, and what is held at a time: the weights of one layer and the residual streams of all
//! windows. What is looked at is the caller's.

use std::sync::atomic::{AtomicBool, Ordering};

use neuroconv_runtime::{OneLayer, Progress, WeightSource, embed};
use rayon::prelude::*;

use crate::Error;

/// Takes `windows` of token ids through `source`, layer by layer. `look` sees the number of each layer,
/// the layer, and the residual streams `[t, hidden]` before it.
pub(crate) fn each_layer(
    source: &dyn WeightSource,
    windows: &[Vec<u32>],
    stage: &str,
    progress: &dyn Progress,
    cancel: &AtomicBool,
    mut look: impl FnMut(usize, &OneLayer, &[Vec<f32>]) -> Result<(), Error>,
) -> Result<(), Error> {
    let total = source.spec().layers.len();
    let mut streams = embed(source, windows)?;
    progress.start(stage, total as u64, "layers");
    for index in 0..total {
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Interrupted {
                staging: None,
                done: index,
                total,
                unit: "layers",
            });
        }
        let layer = OneLayer::load(source, index)?;
        look(index, &layer, &streams)?;
        streams.par_iter_mut().for_each(|x_td| layer.run(x_td));
        progress.advance(1);
    }
    progress.finish();
    Ok(())
}
