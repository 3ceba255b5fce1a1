//! Converted layers on disk: one safetensors file and one report each.
//!
//! Owns the promise that a layer's file is whole when it stands under its name: it is written
//! beside it, synced and renamed, after the report.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use neuroconv_format::writer::{PlannedTensor, SafetensorsLayout};
use neuroconv_format::{DType, SafetensorsFile};
use neuroconv_recipes::{ModelSpec, TensorId};
use serde::{Deserialize, Serialize};

use super::tensors::{self, RoleTensor};
use crate::Error;
use crate::folder;
use crate::mla::{Converted, Diagnostics};
use crate::staging::sync_dir;

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
            if found.weights_path(layer).is_file() {
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
        let report = report(layer, diagnostics);
        let json = serde_json::to_vec_pretty(&report).expect("a report has finite numbers");
        folder::write(&self.report_path(layer), &json)?;
        let partial = self.dir.join(format!("layer-{layer}.partial"));
        folder::write(&partial, &bytes(layer, &tensors)?)?;
        fs_err::File::open(&partial)?.sync_all()?;
        fs_err::rename(&partial, self.weights_path(layer))?;
        sync_dir(&self.dir)?;
        self.take(spec, layer)
    }

    fn weights_path(&self, layer: usize) -> PathBuf {
        self.dir.join(format!("layer-{layer}.safetensors"))
    }

    fn report_path(&self, layer: usize) -> PathBuf {
        self.dir.join(format!("layer-{layer}.json"))
    }

    fn take(&mut self, spec: &ModelSpec, layer: usize) -> Result<(), Error> {
        let file = SafetensorsFile::open(self.weights_path(layer))?;
        let report = fs_err::read(self.report_path(layer))?;
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

/// A whole safetensors file.
fn bytes(layer: usize, tensors: &[RoleTensor]) -> Result<Vec<u8>, Error> {
    let name = |t: &RoleTensor| TensorId::layer(layer, t.role).to_string();
    let planned = tensors.iter().map(|t| PlannedTensor {
        name: name(t),
        dtype: DType::F32,
        shape: t.shape.clone(),
    });
    let layout = SafetensorsLayout::new(planned.collect())?;
    let mut file = layout.header_bytes();
    file.resize(layout.file_size() as usize, 0);
    for tensor in tensors {
        let range = layout.range(&name(tensor)).expect("it was laid out for it");
        let place = &mut file[range.start as usize..range.end as usize];
        for (to, value) in place.as_chunks_mut().0.iter_mut().zip(&tensor.values) {
            *to = value.to_le_bytes();
        }
    }
    Ok(file)
}
