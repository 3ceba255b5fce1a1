//! Converted layers on disk: one safetensors file and one report each.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use neuroconv_format::{DType, SafetensorsFile};
use neuroconv_recipes::{ModelSpec, TensorId};
use serde::{Deserialize, Serialize};

use super::tensors::{self, RoleTensor};
use crate::Error;
use crate::layer_file::{self, LayerTensor};
use crate::mla::{Converted, Diagnostics};

/// What the conversion of one layer found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerReport {
    /// The layer.
    pub layer: usize,
    /// Width of its latent.
    pub rank: usize,
    /// Width of its rotated key.
    pub rope_dim: usize,
    /// Share of the weighted variance of keys and values that the rank keeps.
    pub energy: f64,
    /// That share for growing ranks, evenly spread up to the full rank.
    pub spectrum: Vec<f64>,
    /// Error of the layer's output on held-out calibration windows, relative to its energy;
    /// `None` where only weights were looked at.
    pub output_error: Option<f64>,
    /// Share of the loss of taking all rotations away that the rotated key does not win back.
    pub rotation_loss_left: f64,
    /// Source pair of each rotated slot.
    pub slots: Vec<usize>,
    /// Distance of the converted model's residual stream from the source's after the layer,
    /// relative to the source's energy; `None` where only weights were looked at.
    pub drift: Option<f64>,
}

/// The converted layers of one model.
#[derive(Debug)]
pub struct ConvertedLayers {
    dir: PathBuf,
    files: BTreeMap<usize, SafetensorsFile>,
    reports: BTreeMap<usize, LayerReport>,
    full_rank: Option<(ModelSpec, Box<ConvertedLayers>)>,
}

impl ConvertedLayers {
    /// Finds which of the layers `wanted` lie finished in `dir`, which is made if need be. One
    /// that does not have the tensors of `spec` counts as missing.
    pub(super) fn open(dir: &Path, spec: &ModelSpec, wanted: &[usize]) -> Result<Self, Error> {
        fs_err::create_dir_all(dir)?;
        let mut found = ConvertedLayers {
            dir: dir.to_owned(),
            files: BTreeMap::new(),
            reports: BTreeMap::new(),
            full_rank: None,
        };
        for &layer in wanted {
            if layer_file::weights_path(dir, layer).is_file() {
                found.take(spec, layer)?;
            }
        }
        Ok(found)
    }

    /// Number of finished layers.
    pub fn count(&self) -> usize {
        self.files.len()
    }

    /// The same layers with the same rotated key and a latent of full rank, and the description of
    /// the model with them; `None` where none were made.
    pub fn full_rank(&self) -> Option<(&ModelSpec, &ConvertedLayers)> {
        let (spec, layers) = self.full_rank.as_ref()?;
        Some((spec, layers.as_ref()))
    }

    pub(super) fn set_full_rank(&mut self, spec: ModelSpec, layers: ConvertedLayers) {
        let complete = layers.count() == self.count();
        self.full_rank = complete.then(|| (spec, Box::new(layers)));
    }

    /// What each conversion found, by layer.
    pub fn reports(&self) -> impl Iterator<Item = &LayerReport> {
        self.reports.values()
    }

    pub(super) fn file(&self, layer: usize) -> Option<&SafetensorsFile> {
        self.files.get(&layer)
    }

    /// Writes a layer and takes it in.
    pub(super) fn keep(
        &mut self,
        spec: &ModelSpec,
        layer: usize,
        found: &Converted,
        diagnostics: &Diagnostics,
    ) -> Result<(), Error> {
        let Some(tensors) = tensors::of(found) else {
            return Ok(());
        };
        let tensors: Vec<LayerTensor> = tensors
            .into_iter()
            .map(|tensor| layer_tensor(layer, tensor))
            .collect();
        layer_file::keep(&self.dir, layer, &tensors, &report(layer, diagnostics))?;
        self.take(spec, layer)
    }

    fn take(&mut self, spec: &ModelSpec, layer: usize) -> Result<(), Error> {
        let file = SafetensorsFile::open(layer_file::weights_path(&self.dir, layer))?;
        let report = fs_err::read(layer_file::report_path(&self.dir, layer))?;
        let fits = spec.tensors().iter().all(|(id, shape)| {
            let name = id.to_string();
            let of_layer = id.layer == Some(layer) && id.role.is_mixer();
            !of_layer
                || file
                    .tensors()
                    .iter()
                    .any(|t| t.name == name && t.shape == *shape)
        });
        if let Some(report) = serde_json::from_slice(&report).ok().filter(|_| fits) {
            self.files.insert(layer, file);
            self.reports.insert(layer, report);
        }
        Ok(())
    }
}

/// Points of a spectrum that a report keeps.
const SPECTRUM_POINTS: usize = 128;

fn report(layer: usize, d: &Diagnostics) -> LayerReport {
    let full = d.energy.len();
    let points = full.min(SPECTRUM_POINTS);
    LayerReport {
        layer,
        rank: d.rank,
        rope_dim: d.rope,
        energy: d.energy_kept(),
        spectrum: (1..=points)
            .map(|i| d.energy[i * full / points - 1])
            .collect(),
        output_error: (!d.weight_only).then_some(d.output_error),
        rotation_loss_left: d.rotation_loss_left,
        slots: d.slots.clone(),
        drift: (!d.weight_only).then_some(d.drift),
    }
}

fn layer_tensor(layer: usize, tensor: RoleTensor) -> LayerTensor {
    let bytes: Vec<u8> = tensor.values.iter().flat_map(|v| v.to_le_bytes()).collect();
    LayerTensor {
        name: TensorId::layer(layer, tensor.role).to_string(),
        dtype: DType::F32,
        shape: tensor.shape,
        bytes: bytes.into(),
    }
}
