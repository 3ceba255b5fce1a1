//! The forward pass that verification compares with: f32, over dequantized weights.
//!
//! Owns a second, independent implementation of the model, built on candle. It shares no
//! arithmetic with the runtime: it reads stored bytes, rotates, masks, normalises and multiplies
//! on its own. A batch of windows is carried from layer to layer, and only one layer's weights
//! are held at a time, or the head, so models larger than memory can be measured.

mod attention;
mod decode;
mod layer;
mod linear;
mod mixer;
mod rope;
mod weights;

use std::sync::Mutex;

use crate::parallel::each_window;
use candle_core::{Device, Tensor};
use neuroconv_recipes::{ModelSpec, Role, TensorId};
use neuroconv_runtime::WeightSource;

use crate::Error;
pub(crate) use decode::PackedRows;
use layer::{Layer, rms_norm};
pub use linear::Activations;
use linear::Linear;
use weights::Weights;

/// A model run by candle in f32.
pub struct Reference<'a> {
    spec: &'a ModelSpec,
    weights: Weights<'a>,
    /// Between [`Reference::logits`] and the next layer.
    head: Mutex<Option<Heads>>,
}

/// The head with activations in full, and rounded where the head is packed. They share the weights.
#[derive(Clone)]
struct Heads {
    full: Linear,
    rounded: Linear,
}

impl<'a> Reference<'a> {
    /// Everything is read when a batch passes it.
    pub fn new(source: &'a dyn WeightSource) -> Result<Self, Error> {
        let (spec, weights) = (source.spec(), Weights::new(source));
        Ok(Reference {
            spec,
            weights,
            head: Mutex::new(None),
        })
    }

    /// The head; in single precision it is as large as several layers, so it is not held beside them.
    fn head(&self) -> Result<Heads, Error> {
        let mut kept = self.head.lock().expect("nothing panics while it is held");
        if let Some(heads) = &*kept {
            return Ok(heads.clone());
        }
        let Reference { spec, weights, .. } = self;
        let id = TensorId::model(if spec.tied { Role::Embed } else { Role::Head });
        let rounded = weights.with(Activations::Rounded);
        let rounded = Linear::plain(rounded, id, [spec.vocab, spec.hidden])?;
        let heads = Heads {
            full: rounded.clone().exact(),
            rounded,
        };
        Ok(kept.insert(heads).clone())
    }

    /// The description of the model.
    pub fn spec(&self) -> &ModelSpec {
        self.spec
    }

    /// The embedded rows `[t, hidden]` of each window, row by row.
    pub fn embed(&self, windows: &[&[u32]]) -> Result<Vec<Vec<f32>>, Error> {
        let table = [self.spec.vocab, self.spec.hidden];
        let id = TensorId::model(Role::Embed);
        let rows = |w: &&[u32]| {
            let rows = self.weights.rows(id, table, w)?;
            rows.flatten_all()
                .and_then(|x| x.to_vec1())
                .map_err(at("the embedding"))
        };
        windows.iter().map(rows).collect()
    }

    /// Takes the residual streams `[t, hidden]` of windows that begin at position 0 and may differ
    /// in length through layer `index`. Memory: that layer's weights, and one window's
    /// intermediate values per thread.
    pub fn layer(
        &self,
        index: usize,
        states: &[Vec<f32>],
        activations: Activations,
    ) -> Result<Vec<Vec<f32>>, Error> {
        let positions = states.iter().map(Vec::len).max().unwrap_or(0) / self.spec.hidden.max(1);
        if positions == 0 {
            return Ok(states.to_vec());
        }
        *self.head.lock().expect("nothing panics while it is held") = None;
        let weights = self.weights.with(activations);
        let layer = Layer::load(weights, self.spec, index, positions)?;
        self.each(states, &format!("layer {index}"), |x| layer.forward(x))
    }

    /// Takes residual streams after the last layer through the final norm.
    pub fn finish(&self, states: &[Vec<f32>]) -> Result<Vec<Vec<f32>>, Error> {
        let gain = self
            .weights
            .get(TensorId::model(Role::FinalNorm), &[self.spec.hidden])?;
        self.each(states, "the final norm", |x| {
            rms_norm(x, &gain, self.spec.norm_eps)
        })
    }

    /// The logits `[t, vocab]` of hidden states `[t, hidden]`, row by row.
    pub fn logits(&self, hidden_td: &[f32], activations: Activations) -> Result<Vec<f32>, Error> {
        let rows = hidden_td.len().checked_div(self.spec.hidden).unwrap_or(0);
        let heads = self.head()?;
        let head = match activations {
            Activations::Full => &heads.full,
            Activations::Rounded => &heads.rounded,
        };
        Tensor::from_slice(hidden_td, (rows, self.spec.hidden), &Device::Cpu)
            .and_then(|x| head.forward(&x)?.flatten_all()?.to_vec1())
            .map_err(at("the head"))
    }

    /// Applies one step to each window that is not empty, windows in parallel.
    fn each(
        &self,
        states: &[Vec<f32>],
        place: &str,
        step: impl Fn(&Tensor) -> candle_core::Result<Tensor> + Sync,
    ) -> Result<Vec<Vec<f32>>, Error> {
        let hidden = self.spec.hidden;
        let one = |x_td: &[f32]| {
            if x_td.is_empty() {
                return Ok(Vec::new());
            }
            let x_td = Tensor::from_slice(x_td, (x_td.len() / hidden, hidden), &Device::Cpu)?;
            step(&x_td)?.flatten_all()?.to_vec1()
        };
        each_window(states.len(), |i| one(&states[i]).map_err(at(place)))
    }
}

fn at(place: &str) -> impl Fn(candle_core::Error) -> Error {
    move |source| Error::Reference {
        place: place.to_owned(),
        source,
    }
}
