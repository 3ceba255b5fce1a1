//! The matrices of one layer, in the order in which activations meet them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::atomic::{AtomicBool, Ordering};

use faer::{Mat, MatRef};
use neuroconv_format::Tensor;
use neuroconv_quant::gptq::InputMetric;
use neuroconv_quant::{FitStats, dequantize};
use neuroconv_recipes::{ModelSpec, Role, TensorId};
use neuroconv_runtime::{OneLayer, Progress, WeightSource};
use serde::{Deserialize, Serialize};

use super::corrected::{Corrected, TURNS};
use super::inputs::{Inputs, Observed, Streams};
use crate::Error;
use crate::mla::linalg::par_mul;
use crate::outliers;
use crate::plan::{PackedPlan, Plan, PlannedTensor};

/// The matrices of a layer by what they read, in order.
pub(crate) const STAGES: [&[Role]; 5] = [
    &[Role::Q, Role::K, Role::V, Role::KvA],
    &[Role::QRope, Role::KB, Role::VB],
    &[Role::O],
    &[Role::Gate, Role::Up],
    &[Role::Down],
];

/// What came of rounding one matrix.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MatrixRounding {
    /// The matrix.
    pub name: String,
    /// What it costs in weights.
    pub stats: FitStats,
    /// What it costs in outputs for calibration text, relative to their energy; `None` where only
    /// the weights were looked at.
    pub output_error: Option<f64>,
    /// The same where every group is rounded by itself.
    pub nearest_output_error: Option<f64>,
    /// Columns whose input is zero for all calibration text, so that nothing is known about them.
    pub idle_columns: usize,
}

/// Sums of squares of what the source gives to matrices, for all tokens of the calibration text.
pub(super) type Squares = BTreeMap<TensorId, Vec<f32>>;

/// What came of rounding one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerRounding {
    /// The layer.
    pub layer: usize,
    /// Its matrices.
    pub matrices: Vec<MatrixRounding>,
}

/// A model some of whose matrices are rounded.
pub(crate) struct Partly<'a> {
    base: &'a dyn WeightSource,
    rounded: BTreeMap<TensorId, Tensor>,
}

impl<'a> Partly<'a> {
    pub(crate) fn new(base: &'a dyn WeightSource) -> Self {
        Partly {
            base,
            rounded: BTreeMap::new(),
        }
    }

    pub(crate) fn insert(&mut self, id: TensorId, tensor: Tensor) {
        self.rounded.insert(id, tensor);
    }

    pub(super) fn get(&self, id: TensorId) -> Option<&Tensor> {
        self.rounded.get(&id)
    }
}

impl WeightSource for Partly<'_> {
    fn spec(&self) -> &ModelSpec {
        self.base.spec()
    }

    fn tensor(&self, id: TensorId) -> Result<Tensor, neuroconv_runtime::Error> {
        match self.rounded.get(&id) {
            Some(tensor) => Ok(tensor.clone()),
            None => self.base.tensor(id),
        }
    }
}

/// One layer to be rounded.
pub(super) struct LayerTask<'a> {
    pub(super) plan: &'a Plan,
    pub(super) index: usize,
    pub(super) source: &'a dyn WeightSource,
    pub(super) source_layer: &'a OneLayer,
    pub(super) streams: &'a Streams,
    pub(super) progress: &'a dyn Progress,
    pub(super) cancel: &'a AtomicBool,
}

impl LayerTask<'_> {
    /// Puts every matrix of the layer into `rounded`; what came of each and what it reads, or `None`
    /// when cancelled.
    pub(super) fn round(
        &self,
        rounded: &mut Partly<'_>,
    ) -> Result<Option<(LayerRounding, Squares)>, Error> {
        let mut matrices = Vec::new();
        let mut squares = Squares::new();
        for stage in STAGES {
            let planned: Vec<(&PlannedTensor, &PackedPlan)> = stage
                .iter()
                .filter_map(|&role| self.plan.packed(TensorId::layer(self.index, role)))
                .collect();
            let learns = planned.iter().any(|(_, packed)| packed.how.learns());
            let inputs = match planned.first() {
                Some((first, _)) if learns => self.inputs(first.id.role, rounded)?,
                _ => None,
            };
            if let Some(inputs) = &inputs {
                let own =
                    |(tensor, _): &(&PlannedTensor, _)| (tensor.id, inputs.source_squares.clone());
                squares.extend(planned.iter().map(own));
            }
            let mut metrics = BTreeMap::new();
            for (tensor, packed) in planned {
                if self.cancel.load(Ordering::Relaxed) {
                    return Ok(None);
                }
                matrices.push(self.matrix(
                    tensor,
                    packed,
                    inputs.as_ref(),
                    &mut metrics,
                    rounded,
                )?);
                self.progress.advance(1);
            }
        }
        let report = LayerRounding {
            layer: self.index,
            matrices,
        };
        Ok(Some((report, squares)))
    }

    fn inputs(&self, role: Role, rounded: &Partly<'_>) -> Result<Option<Inputs>, Error> {
        let rounded = OneLayer::load(rounded, self.index)?;
        let observed = Observed {
            streams: self.streams,
            source: self.source_layer,
            rounded: &rounded,
            role,
        };
        Ok(observed.inputs()?)
    }

    /// Rounds one matrix.
    fn matrix(
        &self,
        tensor: &PlannedTensor,
        packed: &PackedPlan,
        inputs: Option<&Inputs>,
        metrics: &mut BTreeMap<usize, InputMetric>,
        rounded: &mut Partly<'_>,
    ) -> Result<MatrixRounding, Error> {
        let id = tensor.id;
        let failed = |source| Error::Quantize { tensor: id, source };
        let stored = self.source.tensor(id)?;
        let rows = packed.layout.rows();
        let name = id.to_string();
        let Some(inputs) = inputs.filter(|_| packed.how.learns()) else {
            let Tensor::Dense(w_nk) = &stored else {
                let codec = stored.codec_name();
                return Err(neuroconv_runtime::Error::Codec { tensor: id, codec }.into());
            };
            let (tensor, stats) = outliers::round(id, w_nk, packed)?;
            rounded.insert(id, Tensor::Packed(tensor));
            return Ok(MatrixRounding {
                name,
                stats,
                output_error: None,
                nearest_output_error: None,
                idle_columns: 0,
            });
        };
        let w_nk = dequantize(&stored);
        let group = packed.spec.group;
        if let Entry::Vacant(place) = metrics.entry(group) {
            place.insert(InputMetric::new(inputs.moments.as_ref(), group).map_err(failed)?);
        }
        let target_nk = inputs
            .change
            .as_ref()
            .map(|change| moved(&w_nk, rows, change));
        let matrix = Corrected {
            packed,
            metric: &metrics[&group],
            w_nk: &w_nk,
            target_nk: target_nk.as_deref().unwrap_or(&w_nk),
            turns: TURNS,
        };
        let found = matrix.fit().map_err(failed)?;
        rounded.insert(id, Tensor::Packed(found.tensor));
        let nearest = found.nearest_output_error;
        Ok(MatrixRounding {
            name,
            stats: found.stats,
            output_error: Some(found.output_error),
            nearest_output_error: nearest.is_finite().then_some(nearest),
            idle_columns: inputs.idle_columns(),
        })
    }
}

/// `W (1 + change)`, row-major.
fn moved(w_nk: &[f32], rows: usize, change: &Mat<f32>) -> Vec<f32> {
    let cols = change.nrows();
    let w = MatRef::from_row_major_slice(w_nk, rows, cols);
    let more = par_mul(w, change.as_ref());
    let row = |i: usize| (0..cols).map(move |j| (i, j));
    let places = (0..rows).flat_map(row);
    places
        .map(|(i, j)| w_nk[i * cols + j] + more[(i, j)])
        .collect()
}
