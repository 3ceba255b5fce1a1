//! A model as verification sees it: hidden states of windows, and logits of hidden states.

use crate::parallel::each_window;
use neuroconv_recipes::ModelSpec;
use neuroconv_runtime::{Decoder, KvCodec, Progress, WeightSource};

use crate::Error;
use crate::reference::Reference;

/// A model that can be scored.
pub trait Scorer: Sync {
    /// The description of the model.
    fn spec(&self) -> &ModelSpec;

    /// The hidden states after the final norm, `[t, hidden]` row by row, of each window; windows
    /// start at position 0.
    fn hidden(&self, windows: &[&[u32]], progress: &dyn Progress) -> Result<Vec<Vec<f32>>, Error>;

    /// The logits `[t, vocab]` of hidden states `[t, hidden]`, row by row.
    fn logits(&self, hidden_td: &[f32]) -> Result<Vec<f32>, Error>;

    /// Number of token ids.
    fn vocab(&self) -> usize {
        self.spec().vocab
    }

    /// Width of a hidden state.
    fn hidden_size(&self) -> usize {
        self.spec().hidden
    }
}

/// A model run by candle in f32, layer by layer.
pub struct ReferenceScorer<'a>(Reference<'a>);

impl<'a> ReferenceScorer<'a> {
    /// Prepares the reference forward of a model.
    pub fn new(source: &'a dyn WeightSource) -> Result<Self, Error> {
        Ok(ReferenceScorer(Reference::new(source)?))
    }
}

impl Scorer for ReferenceScorer<'_> {
    fn spec(&self) -> &ModelSpec {
        self.0.spec()
    }

    fn hidden(&self, windows: &[&[u32]], progress: &dyn Progress) -> Result<Vec<Vec<f32>>, Error> {
        self.0.hidden(windows, progress)
    }

    fn logits(&self, hidden_td: &[f32]) -> Result<Vec<f32>, Error> {
        self.0.logits(hidden_td)
    }
}

/// A model run by the runtime, as users will run it.
pub struct RuntimeScorer(Decoder);

impl RuntimeScorer {
    /// Loads a model into the runtime.
    pub fn new(source: &dyn WeightSource) -> Result<Self, Error> {
        Ok(RuntimeScorer(Decoder::load(source)?))
    }

    /// The same model with a cache in another number format.
    #[must_use]
    pub fn with_kv(self, kv: KvCodec) -> Self {
        RuntimeScorer(self.0.with_kv(kv))
    }
}

impl Scorer for RuntimeScorer {
    fn spec(&self) -> &ModelSpec {
        self.0.spec()
    }

    fn hidden(&self, windows: &[&[u32]], progress: &dyn Progress) -> Result<Vec<Vec<f32>>, Error> {
        progress.start("runtime", windows.len() as u64, "windows");
        let states = each_window(windows.len(), |i| {
            let states = self.0.hidden(windows[i], &mut self.0.new_cache())?;
            progress.advance(1);
            Ok(states)
        });
        progress.finish();
        states
    }

    fn logits(&self, hidden_td: &[f32]) -> Result<Vec<f32>, Error> {
        Ok(self.0.logits(hidden_td))
    }
}
