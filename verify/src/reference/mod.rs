//! The forward pass that verification compares with: f32, over dequantized weights.
//!
//! Owns a second, independent implementation of the model, built on candle. It shares no
//! arithmetic with the runtime: it reads stored bytes, rotates, masks, normalises and multiplies
//! on its own. A batch of windows is carried from layer to layer, and only one layer's weights
//! are held at a time beside the head, so models larger than memory can be measured.

mod attention;
mod decode;
mod layer;
mod mixer;
mod rope;
mod weights;

use crate::parallel::each_window;
use candle_core::{Device, Tensor};
use neuroconv_recipes::{ModelSpec, Role, TensorId};
use neuroconv_runtime::{Progress, WeightSource};

use crate::Error;
use layer::{Layer, rms_norm};
use weights::Weights;

/// A model run by candle in f32.
pub struct Reference<'a> {
    spec: &'a ModelSpec,
    weights: Weights<'a>,
    head_vd: Tensor,
}

impl<'a> Reference<'a> {
    /// Reads the head, which is kept; everything else is read when a batch passes it.
    pub fn new(source: &'a dyn WeightSource) -> Result<Self, Error> {
        let (spec, weights) = (source.spec(), Weights::new(source));
        let head = TensorId::model(if spec.tied { Role::Embed } else { Role::Head });
        let head_vd = weights.get(head, &[spec.vocab, spec.hidden])?;
        Ok(Reference {
            spec,
            weights,
            head_vd,
        })
    }

    /// The description of the model.
    pub fn spec(&self) -> &ModelSpec {
        self.spec
    }

    /// The hidden states after the final norm, `[t, hidden]` row by row, of each window. Windows
    /// start at position 0 and may differ in length. Memory: the activations of all windows, one
    /// layer's weights, and one window's intermediate values per thread.
    pub fn hidden(
        &self,
        windows: &[&[u32]],
        progress: &dyn Progress,
    ) -> Result<Vec<Vec<f32>>, Error> {
        let positions = windows.iter().map(|w| w.len()).max().unwrap_or(0);
        if positions == 0 {
            return Ok(vec![Vec::new(); windows.len()]);
        }
        progress.start("reference", self.spec.layers.len() as u64, "layers");
        let mut states = self.embed(windows)?;
        for index in 0..self.spec.layers.len() {
            let layer = Layer::load(self.weights, self.spec, index, positions)?;
            states = each(&states, &format!("layer {index}"), |x| layer.forward(x))?;
            progress.advance(1);
        }
        let gain = self
            .weights
            .get(TensorId::model(Role::FinalNorm), &[self.spec.hidden])?;
        states = each(&states, "the final norm", |x| {
            rms_norm(x, &gain, self.spec.norm_eps)
        })?;
        progress.finish();
        states
            .iter()
            .map(|x| {
                x.flatten_all()
                    .and_then(|x| x.to_vec1())
                    .map_err(at("the final norm"))
            })
            .collect()
    }

    /// The logits `[t, vocab]` of hidden states `[t, hidden]`, row by row.
    pub fn logits(&self, hidden_td: &[f32]) -> Result<Vec<f32>, Error> {
        let rows = hidden_td.len().checked_div(self.spec.hidden).unwrap_or(0);
        Tensor::from_slice(hidden_td, (rows, self.spec.hidden), &Device::Cpu)
            .and_then(|x| x.matmul(&self.head_vd.t()?)?.flatten_all()?.to_vec1())
            .map_err(at("the head"))
    }

    fn embed(&self, windows: &[&[u32]]) -> Result<Vec<Tensor>, Error> {
        let tokens = windows.concat();
        let table = [self.spec.vocab, self.spec.hidden];
        let all = self
            .weights
            .rows(TensorId::model(Role::Embed), table, &tokens)?;
        let mut start = 0;
        windows
            .iter()
            .map(|w| {
                // A view: `copy` would copy the rows of all windows for each of them.
                let x = all.narrow(0, start, w.len());
                start += w.len();
                x.map_err(at("the embedding"))
            })
            .collect()
    }
}

/// Applies one step to each window that is not empty, windows in parallel.
fn each(
    states: &[Tensor],
    place: &str,
    step: impl Fn(&Tensor) -> candle_core::Result<Tensor> + Sync,
) -> Result<Vec<Tensor>, Error> {
    let one = |x: &Tensor| {
        if x.elem_count() == 0 {
            Ok(x.clone())
        } else {
            step(x)
        }
    };
    each_window(states.len(), |i| one(&states[i]).map_err(at(place)))
}

fn at(place: &str) -> impl Fn(candle_core::Error) -> Error {
    move |source| Error::Reference {
        place: place.to_owned(),
        source,
    }
}
