//! The pass over the source that measures.
//!
//! Matrices are rounded in the metric of what the source's own activations give them. Of a large
//! matrix evenly spread rows stand for all, and the rank of a correction shrinks with them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::atomic::{AtomicBool, Ordering};

use faer::Mat;
use neuroconv_format::Tensor;
use neuroconv_quant::gptq::InputMetric;
use neuroconv_quant::{dequantize, quantize};
use neuroconv_recipes::{Packed, Recipe, Role, Scheme, TensorId};
use neuroconv_runtime::{Checkpoint, Head, OneLayer, Progress, WeightSource, embed};
use rayon::prelude::*;

use super::options::Options;
use crate::Error;
use crate::calibrated::{Corrected, Partly, STAGES, moments};
use crate::plan::{PackedPlan, Plan, PlannedTensor, Storage, plan, storage};

/// Rows of a matrix that are looked at, at most.
const ROWS: usize = 512;
/// Tokens that probes run through the layers, at most.
const PROBE_TOKENS: usize = 2048;
/// Floats that the residual streams of all probes may take.
const PROBE_FLOATS: usize = 1 << 28;

/// What was measured.
pub struct Measured {
    /// Every matrix that is chosen for.
    pub matrices: Vec<MeasuredMatrix>,
    /// The residual streams of the source after its last layer, `[t, hidden]` for each window.
    pub streams: Vec<Vec<f32>>,
    /// The same where one matrix is rounded, for each of `matrices`.
    pub probes: Vec<Probe>,
    /// Tokens that each probe has run.
    pub probe_tokens: usize,
}

/// A model of which one matrix is rounded.
pub struct Probe {
    /// The matrix.
    pub id: TensorId,
    /// The rounded table, where it is one of the vocabulary.
    table: Option<Tensor>,
    /// The residual streams after the last layer; empty where they are those of the source.
    pub streams: Vec<Vec<f32>>,
}

impl Probe {
    /// The end of the model, with the table that is rounded; `None` where it is that of `source`.
    pub fn head(&self, source: &dyn WeightSource) -> Result<Option<Head>, Error> {
        let Some(table) = &self.table else {
            return Ok(None);
        };
        let mut model = Partly::new(source);
        model.insert(self.id, table.clone());
        Ok(Some(Head::load(&model)?))
    }
}

/// What each way to store a matrix does to it.
#[derive(Clone, Debug, PartialEq)]
pub struct MeasuredMatrix {
    /// The matrix.
    pub id: TensorId,
    /// The error of the probe, as that of the options.
    pub probe_error: f64,
    /// The ways.
    pub options: Vec<StorageOption>,
}

/// One way to store a matrix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StorageOption {
    /// The way.
    pub scheme: Scheme,
    /// Stored bytes.
    pub bytes: u64,
    /// Squared error over energy: of the outputs for calibration text, or of the weights of a table of
    /// the vocabulary.
    pub error: f64,
}

/// Measures every matrix that `recipe` packs. `windows` are token ids of calibration text, equally
/// long.
pub fn measure(
    source: &Checkpoint,
    recipe: &Recipe,
    options: &Options,
    windows: &[Vec<u32>],
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<Measured, Error> {
    let plan = plan(source, recipe)?;
    let rewritten = plan.rewritten(source);
    let task = Task {
        source: &rewritten,
        plan: &plan,
        options,
        progress,
        cancel,
    };
    progress.start("measure choices", plan.matrices() as u64, "matrices");
    let measured = task.run(windows)?;
    progress.finish();
    Ok(measured)
}

struct Task<'a> {
    source: &'a dyn WeightSource,
    plan: &'a Plan,
    options: &'a Options,
    progress: &'a dyn Progress,
    cancel: &'a AtomicBool,
}

impl Task<'_> {
    fn run(&self, windows: &[Vec<u32>]) -> Result<Measured, Error> {
        let (mut matrices, mut probes) = (Vec::new(), Vec::new());
        let probed = self.probed(windows);
        let mut streams = embed(self.source, windows)?;
        let tables = self.plan.tensors.iter().filter(|t| t.id.layer.is_none());
        for tensor in tables.filter(|t| t.packed().is_some()) {
            let (table, rounded) = self.table(tensor)?;
            matrices.push(table);
            let streams = if tensor.id.role == Role::Embed {
                let mut model = Partly::new(self.source);
                model.insert(tensor.id, rounded.clone());
                let windows: Vec<&Vec<u32>> = probed.iter().map(|&w| &windows[w]).collect();
                embed(&model, &windows)?
            } else {
                Vec::new()
            };
            probes.push(Probe {
                id: tensor.id,
                table: Some(rounded),
                streams,
            });
        }
        for index in 0..self.source.spec().layers.len() {
            let layer = OneLayer::load(self.source, index)?;
            let earlier = probes.par_iter_mut().flat_map(|probe| &mut probe.streams);
            earlier.for_each(|x_td| layer.run(x_td));
            let Some(found) = self.layer(index, &layer, &streams)? else {
                return Err(Error::Interrupted {
                    staging: None,
                    done: index,
                    total: self.source.spec().layers.len(),
                    unit: "layers",
                });
            };
            for (matrix, rounded) in found {
                let mut model = Partly::new(self.source);
                model.insert(matrix.id, rounded);
                let with_one = OneLayer::load(&model, index)?;
                let run = |&w: &usize| {
                    let mut x_td = streams[w].clone();
                    with_one.run(&mut x_td);
                    x_td
                };
                probes.push(Probe {
                    id: matrix.id,
                    table: None,
                    streams: probed.par_iter().map(run).collect(),
                });
                matrices.push(matrix);
            }
            streams.par_iter_mut().for_each(|x_td| layer.run(x_td));
        }
        let probe_tokens = probed.iter().map(|&w| windows[w].len()).sum();
        Ok(Measured {
            matrices,
            streams: probed.iter().map(|&w| streams[w].clone()).collect(),
            probes,
            probe_tokens,
        })
    }

    /// The windows that probes run, evenly spread.
    fn probed(&self, windows: &[Vec<u32>]) -> Vec<usize> {
        let length = windows.first().map_or(1, Vec::len).max(1);
        let matrices = self.plan.matrices().max(1);
        let floats = length * self.source.spec().hidden * matrices;
        let count = (PROBE_TOKENS / length).min(PROBE_FLOATS / floats.max(1));
        let count = count.clamp(1, windows.len());
        (0..count).map(|i| i * windows.len() / count).collect()
    }

    /// The options of a table of the vocabulary, and the table as the probe rounds it.
    fn table(&self, tensor: &PlannedTensor) -> Result<(MeasuredMatrix, Tensor), Error> {
        let w_nk = dequantize(&self.source.tensor(tensor.id)?);
        let round = |scheme: &Scheme| -> Result<(Tensor, f64, u64), Error> {
            let packed = packed_as(tensor, &tensor.shape, scheme)?;
            let (rows, cols) = (packed.layout.rows(), packed.layout.cols());
            let rounded = quantize(&w_nk, rows, cols, &packed.spec, None);
            let (codes, stats) = rounded.map_err(failed(tensor.id))?;
            Ok((
                Tensor::Packed(codes),
                stats.rel_mse,
                packed.stored_bytes() as u64,
            ))
        };
        let (rounded, probe_error, _) = round(&Options::probe(tensor.id.role))?;
        let mut options = vec![kept(tensor)?];
        for how in self.options.packed(tensor.id.role) {
            let scheme = Scheme::Packed(how);
            let (_, error, bytes) = round(&scheme)?;
            options.push(StorageOption {
                scheme,
                bytes,
                error,
            });
        }
        let matrix = MeasuredMatrix {
            id: tensor.id,
            probe_error,
            options,
        };
        Ok((matrix, rounded))
    }

    /// The matrices of a layer, each with what the probe makes of it; `None` when cancelled.
    fn layer(
        &self,
        index: usize,
        layer: &OneLayer,
        streams: &[Vec<f32>],
    ) -> Result<Option<Vec<(MeasuredMatrix, Tensor)>>, Error> {
        let mut out = Vec::new();
        for stage in STAGES {
            let planned = |&role: &Role| {
                let id = TensorId::layer(index, role);
                self.plan.packed(id).map(|(tensor, _)| tensor)
            };
            let tensors: Vec<&PlannedTensor> = stage.iter().filter_map(planned).collect();
            let Some(first) = tensors.first() else {
                continue;
            };
            let Some(moments) = moments(layer, first.id.role, streams) else {
                continue;
            };
            let mut metrics = BTreeMap::new();
            for tensor in tensors {
                if self.cancel.load(Ordering::Relaxed) {
                    return Ok(None);
                }
                out.push(self.matrix(tensor, &moments, &mut metrics)?);
                self.progress.advance(1);
            }
        }
        Ok(Some(out))
    }

    fn matrix(
        &self,
        tensor: &PlannedTensor,
        moments: &Mat<f64>,
        metrics: &mut BTreeMap<usize, InputMetric>,
    ) -> Result<(MeasuredMatrix, Tensor), Error> {
        let w_nk = dequantize(&self.source.tensor(tensor.id)?);
        let (rows, cols) = (tensor.shape[0], tensor.shape[1]);
        let some_nk = some_rows(&w_nk, rows, cols);
        let some = some_nk.len() / cols.max(1);
        let mut options = vec![kept(tensor)?];
        for how in self.options.packed(tensor.id.role) {
            let scheme = Scheme::Packed(how);
            let bytes = packed_as(tensor, &tensor.shape, &scheme)?.stored_bytes() as u64;
            let rank = (how.correct_rank * some).div_ceil(rows.max(1));
            let fewer = Scheme::Packed(Packed {
                correct_rank: rank,
                ..how
            });
            let packed = packed_as(tensor, &[some, cols], &fewer)?;
            let metric = metric_of(metrics, moments, packed.spec.group, tensor.id)?;
            let found = Corrected {
                packed: &packed,
                metric,
                w_nk: &some_nk,
                target_nk: &some_nk,
                turns: 0,
            };
            let found = found.fit().map_err(failed(tensor.id))?;
            options.push(StorageOption {
                scheme,
                bytes,
                error: found.output_error,
            });
        }
        let probe = packed_as(tensor, &tensor.shape, &Options::probe(tensor.id.role))?;
        let rounded = quantize(&w_nk, rows, cols, &probe.spec, None);
        let rounded = Tensor::Packed(rounded.map_err(failed(tensor.id))?.0);
        let off: Vec<f32> = dequantize(&rounded)
            .iter()
            .zip(&w_nk)
            .map(|(r, w)| r - w)
            .collect();
        let metric = metric_of(metrics, moments, probe.spec.group, tensor.id)?;
        let energy = metric.cost(&w_nk);
        let matrix = MeasuredMatrix {
            id: tensor.id,
            probe_error: if energy > 0.0 {
                metric.cost(&off) / energy
            } else {
                0.0
            },
            options,
        };
        Ok((matrix, rounded))
    }
}

/// Leaving a matrix as it is.
fn kept(tensor: &PlannedTensor) -> Result<StorageOption, Error> {
    let scheme = Scheme::Keep { dtype: None };
    let (kept, _) = storage(tensor.id, &tensor.shape, tensor.source_dtype, &scheme)?;
    Ok(StorageOption {
        scheme,
        bytes: kept.bytes(tensor.elements()),
        error: 0.0,
    })
}

/// How a matrix of this shape would be packed.
fn packed_as(
    tensor: &PlannedTensor,
    shape: &[usize],
    scheme: &Scheme,
) -> Result<PackedPlan, Error> {
    match storage(tensor.id, shape, tensor.source_dtype, scheme)? {
        (Storage::Packed(packed), _) => Ok(*packed),
        (Storage::Dense(_), _) => unreachable!("only packed schemes are asked for"),
    }
}

fn failed(tensor: TensorId) -> impl Fn(neuroconv_quant::Error) -> Error {
    move |source| Error::Quantize { tensor, source }
}

/// The metric of a group size, made when it is first asked for.
fn metric_of<'m>(
    metrics: &'m mut BTreeMap<usize, InputMetric>,
    moments: &Mat<f64>,
    group: usize,
    id: TensorId,
) -> Result<&'m InputMetric, Error> {
    match metrics.entry(group) {
        Entry::Occupied(place) => Ok(place.into_mut()),
        Entry::Vacant(place) => {
            let metric = InputMetric::new(moments.as_ref(), group).map_err(failed(id))?;
            Ok(place.insert(metric))
        }
    }
}

/// At most [`ROWS`] rows, evenly spread.
fn some_rows(w_nk: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let some = rows.min(ROWS);
    let row = |i: usize| &w_nk[i * rows / some * cols..][..cols];
    (0..some).flat_map(row).copied().collect()
}
