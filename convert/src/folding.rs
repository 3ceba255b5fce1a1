//! Which norm gains are better off in the matrices that read them.
//!
//! A norm gives every channel about the same size, then its gain scales them. With the gain in the
//! matrix, columns that matter more are larger, so that scales and thresholds of least error look
//! after them; but a group of columns of very different size shares one scale. Which of the two
//! weighs more depends on the weights, and is measured: the error of the outputs for channels of one
//! size, with the gain inside and outside.

use neuroconv_format::Tensor;
use neuroconv_quant::{dequantize, quantize};
use neuroconv_recipes::{FoldNorms, Recipe, Rewrites, TensorId};
use neuroconv_runtime::{Checkpoint, WeightSource};

use crate::Error;
use crate::plan::{PackedPlan, Plan, plan};

/// The norms of `source` whose gains `recipe` should fold into matrices, because these lose less
/// when they are packed and every group is rounded by itself.
pub fn norms_to_fold(source: &Checkpoint, recipe: &Recipe) -> Result<Vec<TensorId>, Error> {
    let plain = Recipe {
        rewrites: Rewrites {
            fold_norms: FoldNorms::default(),
            ..recipe.rewrites
        },
        ..recipe.clone()
    };
    let plan = plan(source, &plain)?;
    let mut found = Vec::new();
    for norm in Rewrites::foldable(source.spec()) {
        let (inside, outside) = losses(source, &plan, norm)?;
        if inside < outside {
            found.push(norm);
        }
    }
    Ok(found)
}

/// Squared errors of the matrices that read `norm`, with its gain inside them and outside.
fn losses(source: &Checkpoint, plan: &Plan, norm: TensorId) -> Result<(f64, f64), Error> {
    let gain = dequantize(&source.tensor(norm)?);
    let (mut inside, mut outside) = (0.0, 0.0);
    for tensor in &plan.tensors {
        let Some(packed) = tensor.packed().filter(|_| tensor.id.norm() == Some(norm)) else {
            continue;
        };
        let w_nk = dequantize(&source.tensor(tensor.id)?);
        let scaled = |values: &[f32]| -> Vec<f32> {
            let rows = values.chunks(gain.len());
            rows.flat_map(|row| row.iter().zip(&gain).map(|(w, g)| w * g))
                .collect()
        };
        let folded = scaled(&w_nk);
        inside += squares(&folded, &rounded(tensor.id, packed, &folded)?);
        outside += squares(&folded, &scaled(&rounded(tensor.id, packed, &w_nk)?));
    }
    Ok((inside, outside))
}

fn rounded(tensor: TensorId, packed: &PackedPlan, w_nk: &[f32]) -> Result<Vec<f32>, Error> {
    let (rows, cols) = (packed.layout.rows(), packed.layout.cols());
    let rounded = quantize(w_nk, rows, cols, &packed.spec, None);
    let (codes, _) = rounded.map_err(|source| Error::Quantize { tensor, source })?;
    Ok(dequantize(&Tensor::Packed(codes)))
}

fn squares(a: &[f32], b: &[f32]) -> f64 {
    let off = |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b)).powi(2);
    a.iter().zip(b).map(off).sum()
}
