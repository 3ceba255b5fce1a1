//! A model as verification sees it: residual streams of windows from layer to layer, and logits.

use neuroconv_recipes::ModelSpec;
use neuroconv_runtime::{Decoder, Head, KvCodec, OneLayer, Progress, WeightSource, embed};

use crate::Error;
use crate::parallel::each_window;
use crate::reference::{Activations, Reference};

/// A model that can be scored.
pub trait Scorer: Sync {
    /// The description of the model.
    fn spec(&self) -> &ModelSpec;

    /// The embedded rows `[t, hidden]` of each window, row by row.
    fn embed(&self, windows: &[&[u32]]) -> Result<Vec<Vec<f32>>, Error>;

    /// The residual streams of windows that begin at position 0 after layer `index`, from those
    /// before it.
    fn layer(&self, index: usize, states: Vec<Vec<f32>>) -> Result<Vec<Vec<f32>>, Error>;

    /// The hidden states after the final norm, from the residual streams after the last layer.
    fn finish(&self, states: Vec<Vec<f32>>) -> Result<Vec<Vec<f32>>, Error>;

    /// The logits `[t, vocab]` of hidden states `[t, hidden]`, row by row.
    fn logits(&self, hidden_td: &[f32]) -> Result<Vec<f32>, Error>;

    /// What progress calls it.
    fn name(&self) -> &'static str;

    /// The hidden states after the final norm, `[t, hidden]` row by row, of each window. Every
    /// layer is read once, so a model larger than memory runs at the speed of its disk.
    fn hidden(&self, windows: &[&[u32]], progress: &dyn Progress) -> Result<Vec<Vec<f32>>, Error> {
        let layers = self.spec().layers.len();
        progress.start(self.name(), layers as u64, "layers");
        let mut states = self.embed(windows)?;
        for index in 0..layers {
            states = self.layer(index, states)?;
            progress.advance(1);
        }
        let states = self.finish(states);
        progress.finish();
        states
    }

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
pub struct ReferenceScorer<'a>(pub(crate) Reference<'a>);

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

    fn embed(&self, windows: &[&[u32]]) -> Result<Vec<Vec<f32>>, Error> {
        self.0.embed(windows)
    }

    fn layer(&self, index: usize, states: Vec<Vec<f32>>) -> Result<Vec<Vec<f32>>, Error> {
        self.0.layer(index, &states, Activations::Full)
    }

    fn finish(&self, states: Vec<Vec<f32>>) -> Result<Vec<Vec<f32>>, Error> {
        self.0.finish(&states)
    }

    fn logits(&self, hidden_td: &[f32]) -> Result<Vec<f32>, Error> {
        self.0.logits(hidden_td, Activations::Full)
    }

    fn name(&self) -> &'static str {
        "reference"
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

    /// The model, for whoever wants to generate with it.
    pub fn decoder(&self) -> &Decoder {
        &self.0
    }
}

impl Scorer for RuntimeScorer {
    fn spec(&self) -> &ModelSpec {
        self.0.spec()
    }

    fn embed(&self, windows: &[&[u32]]) -> Result<Vec<Vec<f32>>, Error> {
        let embed = |w: &&[u32]| Ok(self.0.embed(w)?);
        windows.iter().map(embed).collect()
    }

    fn layer(&self, index: usize, states: Vec<Vec<f32>>) -> Result<Vec<Vec<f32>>, Error> {
        each_window(states.len(), |i| {
            let mut x_td = states[i].clone();
            self.0.layer(index, &mut x_td);
            Ok(x_td)
        })
    }

    fn finish(&self, mut states: Vec<Vec<f32>>) -> Result<Vec<Vec<f32>>, Error> {
        for x_td in &mut states {
            self.0.finish(x_td);
        }
        Ok(states)
    }

    fn logits(&self, hidden_td: &[f32]) -> Result<Vec<f32>, Error> {
        Ok(self.0.logits(hidden_td))
    }

    fn name(&self) -> &'static str {
        "runtime"
    }
}

/// A model run by the runtime with one layer in memory at a time.
pub struct LayerScorer<'a> {
    source: &'a dyn WeightSource,
    head: Head,
}

impl<'a> LayerScorer<'a> {
    /// Loads the head of a model.
    pub fn new(source: &'a dyn WeightSource) -> Result<Self, Error> {
        let head = Head::load(source)?;
        Ok(LayerScorer { source, head })
    }
}

impl Scorer for LayerScorer<'_> {
    fn spec(&self) -> &ModelSpec {
        self.source.spec()
    }

    fn embed(&self, windows: &[&[u32]]) -> Result<Vec<Vec<f32>>, Error> {
        Ok(embed(self.source, windows)?)
    }

    fn layer(&self, index: usize, states: Vec<Vec<f32>>) -> Result<Vec<Vec<f32>>, Error> {
        let layer = OneLayer::load(self.source, index)?;
        each_window(states.len(), |i| {
            let mut x_td = states[i].clone();
            layer.run(&mut x_td);
            Ok(x_td)
        })
    }

    /// The head norms what it reads.
    fn finish(&self, states: Vec<Vec<f32>>) -> Result<Vec<Vec<f32>>, Error> {
        Ok(states)
    }

    fn logits(&self, hidden_td: &[f32]) -> Result<Vec<f32>, Error> {
        Ok(self.head.logits(hidden_td))
    }

    fn name(&self) -> &'static str {
        "runtime, by layer"
    }
}
