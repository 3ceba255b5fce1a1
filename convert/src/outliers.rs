//! Columns whose inputs grow large on calibration text, to be kept apart in half precision.
//!
//! Owns the pass of the source that finds them, and what they change in a plan: how many there are
//! decides the layout of the file, so they are known before anything is written.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use neuroconv_format::writer::SafetensorsLayout;
use neuroconv_format::{Columns, CorrectionsPlan, DType, DenseTensor, PackedTensor, Tensor};
use neuroconv_quant::{FitStats, code_stats, dequantize, quantize, quantize_stored, relative_mse};
use neuroconv_recipes::{Apart, Role, TensorId};
use neuroconv_runtime::{OneLayer, Progress, WeightSource};
use rayon::prelude::*;

use crate::calibrated::STAGES;
use crate::passage::each_layer;
use crate::plan::{PackedPlan, Plan, Storage, entries};
use crate::{Error, dense};

/// The largest magnitude of each column of the inputs of matrices, `[columns]` each.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    largest: BTreeMap<TensorId, Arc<[f32]>>,
}

impl Survey {
    /// Takes `windows` of token ids through `source`, layer by layer.
    pub fn of(
        source: &dyn WeightSource,
        windows: &[Vec<u32>],
        progress: &dyn Progress,
        cancel: &AtomicBool,
    ) -> Result<Self, Error> {
        let mut found = Survey::default();
        let stage = "survey inputs";
        each_layer(
            source,
            windows,
            stage,
            progress,
            cancel,
            |index, layer, streams| {
                let mut stages = STAGES.into_iter();
                stages.try_for_each(|roles| found.look(layer, index, roles, streams))
            },
        )?;
        Ok(found)
    }

    /// Looks at the input that the matrices of `roles` share.
    fn look(
        &mut self,
        layer: &OneLayer,
        index: usize,
        roles: &[Role],
        streams: &[Vec<f32>],
    ) -> Result<(), Error> {
        let inputs = |role: Role| -> Option<Vec<Vec<f32>>> {
            let windows = streams.par_iter();
            windows.map(|x_td| layer.input(role, x_td)).collect()
        };
        let Some((&role, inputs)) = roles.iter().find_map(|r| Some((r, inputs(*r)?))) else {
            return Ok(());
        };
        let tokens: usize = streams.iter().map(Vec::len).sum::<usize>() / layer.spec().hidden;
        let columns = inputs.iter().map(Vec::len).sum::<usize>() / tokens.max(1);
        let mut largest = vec![0.0_f32; columns];
        for x in inputs.iter().flat_map(|x| x.chunks(columns)) {
            for (largest, x) in largest.iter_mut().zip(x) {
                // NaN stays, and is told below.
                *largest = if x.is_nan() { *x } else { largest.max(x.abs()) };
            }
        }
        if !largest.iter().all(|x| x.is_finite()) {
            let tensor = TensorId::layer(index, role);
            return Err(Error::NonFiniteInputs { tensor });
        }
        let largest: Arc<[f32]> = largest.into();
        let each = roles.iter().map(|&role| TensorId::layer(index, role));
        self.largest.extend(each.map(|id| (id, largest.clone())));
        Ok(())
    }

    /// The columns of a matrix that reach `threshold`, ascending.
    fn columns(&self, id: TensorId, threshold: f64) -> Vec<u32> {
        let largest = self.largest.get(&id).into_iter().flat_map(|l| l.iter());
        let reached = (0..)
            .zip(largest)
            .filter(|(_, x)| f64::from(**x) >= threshold);
        reached.map(|(column, _)| column).collect()
    }
}

impl Plan {
    /// Whether columns are still to be found by [`Plan::split`].
    pub fn wants_survey(&self) -> bool {
        let asks =
            |p: &PackedPlan| matches!(p.how.apart, Apart::Outliers(_)) && p.outliers.is_none();
        self.tensors.iter().filter_map(|t| t.packed()).any(asks)
    }

    /// Plans the columns whose inputs reach the threshold of their recipe apart. Matrices that a
    /// conversion makes and tables have none.
    pub fn split(&mut self, survey: &Survey) -> Result<(), Error> {
        for tensor in &mut self.tensors {
            let (id, converted) = (tensor.id, tensor.converted);
            let Storage::Packed(packed) = &mut tensor.storage else {
                continue;
            };
            let Apart::Outliers(threshold) = packed.how.apart else {
                continue;
            };
            let columns = if converted {
                Vec::new()
            } else {
                survey.columns(id, threshold)
            };
            let (rows, cols) = (packed.layout.rows(), packed.layout.cols());
            packed.corrections = CorrectionsPlan {
                columns: columns.len(),
                ..CorrectionsPlan::default()
            };
            let parts = packed.corrections.parts(rows, cols);
            packed.parts = parts.map_err(|source| Error::Layout { tensor: id, source })?;
            if !columns.is_empty() {
                let _ = write!(tensor.reason, "; {} of {cols} columns apart", columns.len());
            }
            packed.outliers = Some(columns.into());
            tensor.bytes = packed.stored_bytes() as u64;
            tensor.bits_per_weight = tensor.bytes as f64 * 8.0 / (rows * cols) as f64;
        }
        self.layout = SafetensorsLayout::new(self.tensors.iter().flat_map(entries).collect())?;
        let before = std::mem::replace(&mut self.weights_bytes, self.layout.file_size());
        self.disk_bytes = self.disk_bytes - before + self.weights_bytes;
        self.bits_per_weight = self.weights_bytes as f64 * 8.0 / self.source.params as f64;
        Ok(())
    }
}

/// Rounds a matrix `[rows, cols]` group by group, and keeps apart what the plan says.
pub(crate) fn round(
    id: TensorId,
    w_nk: &DenseTensor,
    packed: &PackedPlan,
) -> Result<(PackedTensor, FitStats), Error> {
    let apart = packed.outliers.as_deref().unwrap_or(&[]);
    let (mut tensor, stats) = if apart.is_empty() {
        quantize_stored(w_nk, &packed.spec, packed.importance.as_deref())
            .map_err(|source| Error::Quantize { tensor: id, source })?
    } else {
        round_apart(id, &w_nk.to_f32(), packed, apart)?
    };
    tensor.activations = packed.activations;
    Ok((tensor, stats))
}

/// Rounds a matrix but for the columns `apart`, which stay what they are in half precision.
fn round_apart(
    id: TensorId,
    w_nk: &[f32],
    packed: &PackedPlan,
    apart: &[u32],
) -> Result<(PackedTensor, FitStats), Error> {
    let (rows, cols) = (packed.layout.rows(), packed.layout.cols());
    let mut codes = w_nk.to_vec();
    let mut values = Vec::with_capacity(4 * rows * apart.len());
    for row in codes.chunks_mut(cols) {
        for &column in apart {
            let w = std::mem::take(&mut row[column as usize]);
            values.extend(w.to_le_bytes());
        }
    }
    let exact = DenseTensor {
        dtype: DType::F32,
        shape: vec![rows, apart.len()],
        bytes: values.into(),
    };
    let (bytes, _) = dense::convert(id, &exact, DType::F16)?;
    let half = DenseTensor {
        dtype: DType::F16,
        bytes,
        ..exact
    };
    let importance = packed.importance.as_deref();
    let (mut tensor, _) = quantize(&codes, rows, cols, &packed.spec, importance)
        .map_err(|source| Error::Quantize { tensor: id, source })?;
    tensor.corrections.columns = Some(Columns::dense(apart.to_vec(), half));
    let stats = FitStats {
        rel_mse: relative_mse(w_nk, &dequantize(&Tensor::Packed(tensor.clone()))),
        ..code_stats(&tensor)
    };
    Ok((tensor, stats))
}
