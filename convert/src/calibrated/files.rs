//! Rounded layers on disk, until they are stored for good.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use neuroconv_format::gguf::imatrix::Importance;
use neuroconv_format::writer;
use neuroconv_format::{DType, PackedTensor, SafetensorsFile, SharedBytes, Tensor};
use neuroconv_recipes::TensorId;

use super::corrected::corrections;
use super::layer::{LayerRounding, Partly, Squares};
use crate::Error;
use crate::journal::Stats;
use crate::layer_file::{self, LayerTensor};
use crate::plan::{Plan, PlannedTensor, entries};

/// The rounded layers of one model.
#[derive(Debug)]
pub(crate) struct RoundedLayers {
    dir: PathBuf,
    files: BTreeMap<usize, SafetensorsFile>,
    reports: BTreeMap<usize, LayerRounding>,
    /// Tokens of the calibration text.
    tokens: usize,
}

impl RoundedLayers {
    /// Finds which layers lie finished in `dir`, which is made if need be. One that does not have
    /// the matrices of `plan` counts as missing.
    pub(super) fn open(
        dir: &Path,
        plan: &Plan,
        layers: usize,
        tokens: usize,
    ) -> Result<Self, Error> {
        fs_err::create_dir_all(dir)?;
        let mut found = RoundedLayers {
            dir: dir.to_owned(),
            files: BTreeMap::new(),
            reports: BTreeMap::new(),
            tokens,
        };
        for layer in 0..layers {
            if layer_file::weights_path(dir, layer).is_file() {
                found.take(plan, layer)?;
            }
        }
        Ok(found)
    }

    /// Number of finished layers.
    pub(super) fn count(&self) -> usize {
        self.files.len()
    }

    pub(super) fn has(&self, layer: usize) -> bool {
        self.files.contains_key(&layer)
    }

    /// Writes a layer and takes it in.
    pub(super) fn keep(
        &mut self,
        layer: usize,
        plan: &Plan,
        rounded: &Partly<'_>,
        report: &LayerRounding,
        squares: &Squares,
    ) -> Result<(), Error> {
        let mut packed: Vec<LayerTensor> = squares.iter().map(stored_squares).collect();
        for (tensor, _) in plan.of_layer(layer) {
            if let Some(Tensor::Packed(matrix)) = rounded.get(tensor.id) {
                let parts = matrix.corrections.parts();
                let parts = parts.map_err(|source| Error::Layout {
                    tensor: tensor.id,
                    source,
                })?;
                let parts = parts.into_iter().map(|(_, bytes)| bytes);
                let all = [matrix.bytes.clone()].into_iter().chain(parts);
                packed.extend(entries(tensor).into_iter().zip(all).map(stored));
            }
        }
        layer_file::keep(&self.dir, layer, &packed, report)?;
        self.take(plan, layer)
    }

    /// Puts the matrices of a finished layer into a model.
    pub(super) fn put_into(
        &self,
        layer: usize,
        plan: &Plan,
        model: &mut Partly<'_>,
    ) -> Result<(), Error> {
        for (tensor, packed) in plan.of_layer(layer) {
            let stored = self.read(tensor)?;
            let parts = packed.parts.iter().zip(stored.parts);
            let stored = PackedTensor {
                activations: packed.activations,
                corrections: corrections(parts),
                ..PackedTensor::new(packed.layout, stored.bytes)
            };
            model.insert(tensor.id, Tensor::Packed(stored));
        }
        Ok(())
    }

    /// What the source gives to the matrices whose inputs were summed, by their names in GGUF files.
    pub(crate) fn importance(&self) -> Result<BTreeMap<String, Importance>, Error> {
        let mut entries = BTreeMap::new();
        for file in self.files.values() {
            for info in file.tensors() {
                let id = info
                    .name
                    .strip_suffix(SQUARES)
                    .and_then(|id| id.parse().ok());
                if let Some(name) = id.and_then(TensorId::gguf_name) {
                    let bytes = file.read(info)?;
                    let sums = bytes.as_chunks().0.iter();
                    let entry = Importance {
                        sums: sums.map(|bytes| f32::from_le_bytes(*bytes)).collect(),
                        counts: vec![self.tokens as f32],
                    };
                    entries.insert(name, entry);
                }
            }
        }
        Ok(entries)
    }

    /// What the user should know: matrices of which the calibration text uses only a part.
    pub(crate) fn notes(&self) -> Option<String> {
        let matrices = self.reports.values().flat_map(|report| &report.matrices);
        let idle = matrices.filter(|matrix| matrix.idle_columns > 0);
        let count = idle.clone().count();
        let most = idle.max_by_key(|matrix| matrix.idle_columns)?;
        Some(format!(
            "{count} matrices have columns that the calibration text never uses, most {} with {}: these \
             are rounded to the nearest; text of more kinds may reach them",
            most.name, most.idle_columns
        ))
    }

    /// A finished matrix.
    pub(crate) fn read(&self, tensor: &PlannedTensor) -> Result<RoundedMatrix, Error> {
        let (id, name) = (tensor.id, tensor.id.to_string());
        let no_tensor = || Error::Runtime(neuroconv_runtime::Error::NoTensor(id));
        let report = id.layer.and_then(|layer| self.reports.get(&layer));
        let mut matrices = report.into_iter().flat_map(|report| &report.matrices);
        let matrix = matrices.find(|matrix| matrix.name == name);
        let matrix = matrix.ok_or_else(no_tensor)?;
        let stats = matrix.stats;
        let stats = Stats::new(stats.rel_mse, Some(stats.zeros), Some(stats.entropy_bits));
        let parts = tensor.packed().map_or(&[][..], |packed| &packed.parts);
        let parts = parts.iter().map(|part| self.bytes(id, &part.name(&name)));
        Ok(RoundedMatrix {
            bytes: self.bytes(id, &name)?,
            parts: parts.collect::<Result<_, _>>()?,
            stats: stats.with_output_error(matrix.output_error),
        })
    }

    fn bytes(&self, id: TensorId, name: &str) -> Result<SharedBytes, Error> {
        let no_tensor = || Error::Runtime(neuroconv_runtime::Error::NoTensor(id));
        let file = id.layer.and_then(|layer| self.files.get(&layer));
        let file = file.ok_or_else(no_tensor)?;
        let info = file.tensors().iter().find(|info| info.name == name);
        Ok(file.read(info.ok_or_else(no_tensor)?)?.into())
    }

    fn take(&mut self, plan: &Plan, layer: usize) -> Result<(), Error> {
        let file = SafetensorsFile::open(layer_file::weights_path(&self.dir, layer))?;
        let report = fs_err::read(layer_file::report_path(&self.dir, layer))?;
        let report: Option<LayerRounding> = serde_json::from_slice(&report).ok();
        let has = |entry: writer::PlannedTensor| {
            let mut tensors = file.tensors().iter();
            tensors.any(|info| info.name == entry.name && info.shape == entry.shape)
        };
        let fits = |report: &LayerRounding| {
            plan.of_layer(layer).all(|(tensor, _)| {
                let name = tensor.id.to_string();
                let known = report.matrices.iter().any(|matrix| matrix.name == name);
                known && entries(tensor).into_iter().all(has)
            })
        };
        if let Some(report) = report.filter(fits) {
            self.files.insert(layer, file);
            self.reports.insert(layer, report);
        }
        Ok(())
    }
}

/// A matrix in its final bytes.
pub(crate) struct RoundedMatrix {
    pub(crate) bytes: SharedBytes,
    /// In the order of its plan.
    pub(crate) parts: Vec<SharedBytes>,
    pub(crate) stats: Stats,
}

/// What follows the name of a matrix in the name of the sums of what it reads.
const SQUARES: &str = ".squares";

fn stored_squares((id, squares): (&TensorId, &Vec<f32>)) -> LayerTensor {
    let bytes: Vec<u8> = squares.iter().flat_map(|sum| sum.to_le_bytes()).collect();
    LayerTensor {
        name: format!("{id}{SQUARES}"),
        dtype: DType::F32,
        shape: vec![squares.len()],
        bytes: bytes.into(),
    }
}

/// Bytes as a tensor of a layer's file.
fn stored((entry, bytes): (writer::PlannedTensor, SharedBytes)) -> LayerTensor {
    LayerTensor {
        name: entry.name,
        dtype: entry.dtype,
        shape: entry.shape,
        bytes,
    }
}
