//! The conversion of attention as a step of a job: which layers, with what, and where the results
//! lie until they are stored for good.
//!
//! Owns the order of the step and what a resumed run takes over. The arithmetic is that of
//! [`crate::mla`]; how the results are quantized and packed is decided by the plan as for any other
//! tensor.

mod layers;
mod tensors;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use neuroconv_format::{DenseTensor, Tensor};
use neuroconv_recipes::{Mixer, MlaMode, MlaRecipe, ModelSpec, TensorId};
use neuroconv_runtime::{Checkpoint, Progress, WeightSource};

use crate::Error;
use crate::mla::{self, Converted, Diagnostics, Mode, Options, Table};
pub use layers::{ConvertedLayers, LayerReport};

/// Converts the attention of `source` into that of `spec`, which [`MlaRecipe::converted`] made of
/// it, and keeps every finished layer in the folder `dir`. Layers found there are taken over.
///
/// `windows` are token ids of calibration text, equally long; without any, only the weights
/// themselves are looked at.
pub fn convert_attention(
    source: &Checkpoint,
    spec: &ModelSpec,
    recipe: &MlaRecipe,
    windows: &[Vec<u32>],
    dir: &Path,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<ConvertedLayers, Error> {
    let wanted: Vec<usize> = changed_layers(source.spec(), spec).collect();
    let mut layers = ConvertedLayers::open(dir, spec, &wanted)?;
    let full_spec = recipe.at_full_rank().converted(source.spec())?.0;
    let mut full = ConvertedLayers::open(&dir.join("full-rank"), &full_spec, &wanted)?;
    progress.start("convert attention", spec.layers.len() as u64, "layers");
    let taken_over = layers.count();
    if taken_over < wanted.len() {
        let options = options(spec, recipe, &wanted);
        let known = layers.converted(spec)?;
        let mut failure = None;
        let done = |index: usize, found: Converted, mut d: Diagnostics| {
            let partial = d.partial.take();
            let kept = match partial {
                Some(partial) => full.keep(&full_spec, index, &Converted::Mla(*partial), &d),
                None => Ok(()),
            };
            // Last, because a layer that is there is not done again.
            let kept = kept.and_then(|()| layers.keep(spec, index, &found, &d));
            progress.advance(1);
            if let Err(error) = kept {
                failure = Some(error);
                return Err(mla::Error::Stopped);
            }
            if cancel.load(Ordering::Relaxed) {
                return Err(mla::Error::Stopped);
            }
            Ok(())
        };
        let result = mla::convert_model(source, windows, &options, &known, done);
        match (result, failure) {
            (_, Some(error)) => return Err(error),
            (Err(mla::Error::Stopped), None) => {
                return Err(Error::Interrupted {
                    staging: dir.parent().map(Path::to_owned),
                    done: layers.count(),
                    total: wanted.len(),
                    unit: "layers",
                });
            }
            (result, None) => result?,
        }
    }
    progress.finish();
    layers.set_full_rank(full_spec, full);
    Ok(layers)
}

/// The layers whose mixer is another one afterwards.
pub(crate) fn changed_layers<'a>(
    before: &'a ModelSpec,
    after: &'a ModelSpec,
) -> impl Iterator<Item = usize> + 'a {
    let pairs = before.layers.iter().zip(&after.layers).enumerate();
    pairs.filter_map(|(index, (a, b))| (a != b).then_some(index))
}

fn options(spec: &ModelSpec, recipe: &MlaRecipe, wanted: &[usize]) -> Options {
    let first = wanted.first().map(|&index| &spec.layers[index].mixer);
    let (rank, rope) = match first {
        Some(Mixer::Mla(a)) => (a.rank, a.rope_dim),
        Some(Mixer::Latent(a)) => (a.rank, 0),
        Some(Mixer::Attention(_)) | None => (0, 0),
    };
    Options {
        mode: match recipe.mode {
            MlaMode::Mla => Mode::Mla,
            MlaMode::Latent => Mode::Latent,
        },
        table: if recipe.stock_rope {
            Table::Stock
        } else {
            Table::Own
        },
        keep: (0..spec.layers.len())
            .filter(|layer| !wanted.contains(layer))
            .collect(),
        partial_rope: recipe.mode == MlaMode::Mla,
        ..Options::new(rank, rope)
    }
}

/// A checkpoint with some layers converted: a model to be measured before anything is packed.
#[derive(Clone, Copy, Debug)]
pub struct ConvertedModel<'a> {
    base: &'a Checkpoint,
    spec: &'a ModelSpec,
    layers: &'a ConvertedLayers,
}

impl<'a> ConvertedModel<'a> {
    /// `spec` may have any of the converted layers, and those of `base` elsewhere.
    pub fn new(base: &'a Checkpoint, spec: &'a ModelSpec, layers: &'a ConvertedLayers) -> Self {
        ConvertedModel { base, spec, layers }
    }
}

impl WeightSource for ConvertedModel<'_> {
    fn spec(&self) -> &ModelSpec {
        self.spec
    }

    fn tensor(&self, id: TensorId) -> Result<Tensor, neuroconv_runtime::Error> {
        let changed = |layer: usize| self.spec.layers[layer] != self.base.spec().layers[layer];
        match id.layer {
            Some(layer) if id.role.is_mixer() && changed(layer) => self
                .layers
                .read(id)
                .map(Tensor::Dense)
                .map_err(|_| neuroconv_runtime::Error::NoTensor(id)),
            _ => self.base.tensor(id),
        }
    }
}

impl ConvertedLayers {
    /// The finished layers as the arithmetic knows them.
    fn converted(&self, spec: &ModelSpec) -> Result<BTreeMap<usize, Converted>, Error> {
        let one = |report: &LayerReport| {
            let values = |role| {
                let tensor = self.read(TensorId::layer(report.layer, role))?;
                Ok::<_, Error>(tensor.to_f32())
            };
            let found = tensors::read(spec, report.layer, values)?;
            Ok((report.layer, found))
        };
        self.reports().map(one).collect()
    }

    /// The tensor `id` of a converted layer, in single precision.
    pub(crate) fn read(&self, id: TensorId) -> Result<DenseTensor, Error> {
        let no_tensor = || Error::Runtime(neuroconv_runtime::Error::NoTensor(id));
        let file = id.layer.and_then(|layer| self.file(layer));
        let file = file.ok_or_else(no_tensor)?;
        let name = id.to_string();
        let info = file.tensors().iter().find(|info| info.name == name);
        Ok(file.read_dense(info.ok_or_else(no_tensor)?)?)
    }
}

#[cfg(test)]
mod tests;
