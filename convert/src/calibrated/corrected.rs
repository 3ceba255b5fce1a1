//! Matrices with what they carry beside their codes: fitted to what rounding leaves, and put
//! together again from stored bytes.

use half::f16;
use neuroconv_format::{
    Codec, Columns, Corrections, DType, DenseTensor, LowRank, PackedLayout, PackedTensor, PartKind,
    PartLayout, SharedBytes, Tensor,
};
use neuroconv_quant::gptq::{InputMetric, LowRankFit, Rounding, low_rank};
use neuroconv_quant::{Error, FitStats, QuantizeSpec, dequantize, quantize, relative_mse};
use neuroconv_recipes::Method;

use crate::plan::PackedPlan;

/// Turns of rounding what a correction leaves, and correcting what rounding leaves.
pub(super) const TURNS: usize = 3;

/// A matrix `[rows, cols]` to be rounded with what its inputs weigh.
pub(crate) struct Corrected<'a> {
    pub(crate) packed: &'a PackedPlan,
    pub(crate) metric: &'a InputMetric,
    pub(crate) w_nk: &'a [f32],
    /// The weights that would be best if nothing had to be rounded.
    pub(crate) target_nk: &'a [f32],
    /// Turns of rounding what a correction leaves: none leaves the codes as they are beside it.
    pub(crate) turns: usize,
}

/// What came of it.
pub(crate) struct Fitted {
    pub(crate) tensor: PackedTensor,
    pub(crate) stats: FitStats,
    pub(crate) output_error: f64,
    pub(crate) nearest_output_error: f64,
}

impl Corrected<'_> {
    fn rows(&self) -> usize {
        self.packed.layout.rows()
    }

    fn cols(&self) -> usize {
        self.packed.layout.cols()
    }

    /// Rounds, and corrects as the plan says.
    pub(crate) fn fit(&self) -> Result<Fitted, Error> {
        let apart = self.salient();
        let mut best = self.rounded(self.target_nk, &apart, None)?;
        if self.packed.corrections.rank == 0 {
            return Ok(best);
        }
        // The correction of what is there already, before anything is rounded anew.
        let mut correction = self.correction(&best.tensor)?;
        let mut corrected = best.tensor.clone();
        corrected.corrections.low_rank = Some(self.stored(&correction));
        best = self.judged(corrected, best.nearest_output_error);
        for turn in 0..self.turns {
            if turn > 0 {
                correction = self.correction(&best.tensor)?;
            }
            let product = correction.product(self.cols());
            let rest: Vec<f32> = self
                .target_nk
                .iter()
                .zip(&product)
                .map(|(t, p)| t - p)
                .collect();
            let next = self.rounded(&rest, &apart, Some(self.stored(&correction)))?;
            if next.output_error < best.output_error {
                best = next;
            }
        }
        Ok(best)
    }

    /// The correction of what the codes of a matrix leave of the target.
    fn correction(&self, tensor: &PackedTensor) -> Result<LowRankFit, Error> {
        let mut codes = tensor.clone();
        codes.corrections.low_rank = None;
        let values = dequantize(&Tensor::Packed(codes));
        let left: Vec<f32> = self
            .target_nk
            .iter()
            .zip(values)
            .map(|(t, v)| t - v)
            .collect();
        let rank = self.packed.corrections.rank;
        low_rank(&left, self.rows(), self.metric, rank)
    }

    fn stored(&self, fit: &LowRankFit) -> LowRank {
        LowRank {
            a: half_precision([fit.rank, self.cols()], &fit.a_rk),
            b: half_precision([self.rows(), fit.rank], &fit.b_nr),
        }
    }

    /// Rounds `goal_nk`, and puts a correction beside it.
    fn rounded(
        &self,
        goal_nk: &[f32],
        apart: &[u32],
        correction: Option<LowRank>,
    ) -> Result<Fitted, Error> {
        let (rows, cols) = (self.rows(), self.cols());
        let (mut tensor, apart_nc, nearest) = match self.packed.how.method {
            Method::Gptq => {
                let rounding = Rounding {
                    spec: &self.packed.spec,
                    metric: self.metric,
                    target_nk: Some(goal_nk),
                    apart,
                };
                let found = rounding.round(self.w_nk, rows, cols)?;
                (found.tensor, found.apart_nc, found.nearest_output_error)
            }
            Method::Rtn => {
                let mut codes = goal_nk.to_vec();
                let columns = |row: &[f32]| apart.iter().map(|&c| row[c as usize]).collect();
                let apart_nc: Vec<Vec<f32>> = goal_nk.chunks(cols).map(columns).collect();
                for row in codes.chunks_mut(cols) {
                    for &column in apart {
                        row[column as usize] = 0.0;
                    }
                }
                let (tensor, _) = {
                    let importance = self.packed.importance.as_deref();
                    quantize(&codes, rows, cols, &self.packed.spec, importance)?
                };
                (tensor, apart_nc.concat(), f64::INFINITY)
            }
        };
        tensor.activations = self.packed.activations;
        tensor.corrections = Corrections {
            low_rank: correction,
            columns: self.columns(apart, &apart_nc)?,
        };
        Ok(self.judged(tensor, nearest))
    }

    fn columns(&self, apart: &[u32], values_nc: &[f32]) -> Result<Option<Columns>, Error> {
        let Some(group) = self.packed.corrections.column_group else {
            return Ok(None);
        };
        let spec = QuantizeSpec::new(Codec::Int8, group);
        let (values, _) = quantize(values_nc, self.rows(), apart.len(), &spec, None)?;
        Ok(Some(Columns::packed(apart.to_vec(), values)))
    }

    fn judged(&self, tensor: PackedTensor, nearest_output_error: f64) -> Fitted {
        let values = dequantize(&Tensor::Packed(tensor.clone()));
        let off: Vec<f32> = self
            .target_nk
            .iter()
            .zip(&values)
            .map(|(t, v)| t - v)
            .collect();
        let (cost, energy) = (self.metric.cost(&off), self.metric.cost(self.target_nk));
        let mut stats = neuroconv_quant::code_stats(&tensor);
        stats.rel_mse = relative_mse(self.w_nk, &values);
        Fitted {
            stats,
            output_error: if energy > 0.0 { cost / energy } else { 0.0 },
            nearest_output_error,
            tensor,
        }
    }

    /// The columns that matter most, ascending: by how large inputs and weights are together.
    fn salient(&self) -> Vec<u32> {
        let count = self.packed.corrections.columns;
        let weights = self.metric.weights();
        let score = |column: usize| -> f64 {
            let rows = self.w_nk.chunks(self.cols());
            let square: f64 = rows.map(|row| f64::from(row[column]).powi(2)).sum();
            square * f64::from(weights[column])
        };
        let scores: Vec<f64> = if count > 0 {
            (0..self.cols()).map(score).collect()
        } else {
            Vec::new()
        };
        let mut columns: Vec<u32> = (0..scores.len() as u32).collect();
        columns.sort_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]));
        columns.truncate(count);
        columns.sort_unstable();
        columns
    }
}

fn half_precision(shape: [usize; 2], values: &[f16]) -> DenseTensor {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    DenseTensor {
        dtype: DType::F16,
        shape: shape.to_vec(),
        bytes: bytes.into(),
    }
}

/// The corrections that these parts are.
pub(super) fn corrections<'p>(
    parts: impl Iterator<Item = (&'p PartLayout, SharedBytes)>,
) -> Corrections {
    let (mut a, mut b, mut indexes) = (None, None, None);
    let (mut exact, mut values) = (None, None);
    for (part, bytes) in parts {
        let dense = |bytes| DenseTensor {
            dtype: DType::F16,
            shape: part.shape().to_vec(),
            bytes,
        };
        match part.kind() {
            PartKind::LowRankA => a = Some(dense(bytes)),
            PartKind::LowRankB => b = Some(dense(bytes)),
            PartKind::Columns if part.group().is_none() => exact = Some(dense(bytes)),
            PartKind::Columns => values = packed_columns(part, bytes),
            PartKind::ColumnIndex => {
                let count = part.shape().iter().product();
                let words = bytes.as_chunks::<4>().0.iter().take(count);
                indexes = Some(words.map(|word| u32::from_le_bytes(*word)).collect());
            }
        }
    }
    Corrections {
        low_rank: a.zip(b).map(|(a, b)| LowRank { a, b }),
        columns: indexes.and_then(|indexes| match exact {
            Some(exact) => Some(Columns::dense(indexes, exact)),
            None => values.map(|values| Columns::packed(indexes, values)),
        }),
    }
}

fn packed_columns(part: &PartLayout, bytes: SharedBytes) -> Option<PackedTensor> {
    let (&[rows, cols], Some(group)) = (part.shape(), part.group()) else {
        return None;
    };
    let layout = PackedLayout::new(Codec::Int8, rows, cols, group, false).ok()?;
    Some(PackedTensor::new(layout, bytes))
}
