//! A model as verification sees it: residual streams of windows from layer to layer, and logits.

use std::sync::{Arc, Mutex};

use neuroconv_recipes::ModelSpec;
use neuroconv_runtime::{Head, KvCache, KvCodec, OneLayer, Progress, WeightSource, embed};

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

/// A model run by the runtime, with the arithmetic that users will run it with and one layer in
/// memory at a time.
pub struct RuntimeScorer<'a> {
    source: &'a dyn WeightSource,
    /// Between the last layer and the next.
    head: Mutex<Option<Arc<Head>>>,
    kv: KvCodec,
}

impl<'a> RuntimeScorer<'a> {
    /// Loads the head of a model, to see that it is there; everything is read again when a batch
    /// passes it.
    pub fn new(source: &'a dyn WeightSource) -> Result<Self, Error> {
        Ok(RuntimeScorer {
            source,
            head: Mutex::new(Some(Arc::new(Head::load(source)?))),
            kv: KvCodec::default(),
        })
    }

    /// The head; it is as large as several layers, so it is not held beside them.
    fn head(&self) -> Result<Arc<Head>, Error> {
        let mut kept = self.head.lock().expect("nothing panics while it is held");
        if let Some(head) = &*kept {
            return Ok(Arc::clone(head));
        }
        let head = Arc::new(Head::load(self.source)?);
        Ok(Arc::clone(kept.insert(head)))
    }

    fn load_layer(&self, index: usize) -> Result<OneLayer, Error> {
        *self.head.lock().expect("nothing panics while it is held") = None;
        Ok(OneLayer::load(self.source, index)?)
    }

    /// The same model with a cache in another number format.
    #[must_use]
    pub fn with_kv(self, kv: KvCodec) -> Self {
        RuntimeScorer { kv, ..self }
    }

    /// An empty cache for one sequence.
    pub(crate) fn new_cache(&self) -> KvCache {
        KvCache::new(self.source.spec(), self.kv)
    }

    /// The logits `[vocab]` after the last of some tokens of each sequence. The tokens follow those in
    /// the sequence's cache, which takes them in.
    pub(crate) fn next(
        &self,
        tokens: &[&[u32]],
        caches: &mut [KvCache],
    ) -> Result<Vec<Vec<f32>>, Error> {
        let mut states = embed(self.source, tokens)?;
        for index in 0..self.spec().layers.len() {
            let layer = self.load_layer(index)?;
            for (x_td, cache) in states.iter_mut().zip(&mut *caches) {
                layer.extend(x_td, cache);
            }
        }
        let head = self.head()?;
        let last = |x_td: Vec<f32>| head.logits(&x_td[x_td.len() - self.hidden_size()..]);
        Ok(states.into_iter().map(last).collect())
    }
}

impl Scorer for RuntimeScorer<'_> {
    fn spec(&self) -> &ModelSpec {
        self.source.spec()
    }

    fn embed(&self, windows: &[&[u32]]) -> Result<Vec<Vec<f32>>, Error> {
        Ok(embed(self.source, windows)?)
    }

    fn layer(&self, index: usize, states: Vec<Vec<f32>>) -> Result<Vec<Vec<f32>>, Error> {
        let layer = self.load_layer(index)?;
        each_window(states.len(), |i| {
            let mut x_td = states[i].clone();
            layer.extend(&mut x_td, &mut self.new_cache());
            Ok(x_td)
        })
    }

    fn finish(&self, mut states: Vec<Vec<f32>>) -> Result<Vec<Vec<f32>>, Error> {
        let head = self.head()?;
        for x_td in &mut states {
            head.norm(x_td);
        }
        Ok(states)
    }

    fn logits(&self, hidden_td: &[f32]) -> Result<Vec<f32>, Error> {
        Ok(self.head()?.project(hidden_td))
    }

    fn name(&self) -> &'static str {
        "runtime"
    }
}
