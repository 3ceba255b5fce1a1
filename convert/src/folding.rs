//! Which norm gains are better off in the matrices that read them.
//!
//! A norm gives every channel about the same size, then its gain scales them. With the gain in the
//! matrix, columns that matter more are larger, so that scales and thresholds of least error look
//! after them; but a group of columns of very different size shares one scale. Which of the two
//! weighs more depends on the weights, and is measured: the error of the outputs for channels of one
//! size, with the gain inside and outside.

use neuroconv_format::Tensor;
use neuroconv_quant::{QuantizeSpec, dequantize, quantize};
use neuroconv_recipes::{FoldNorms, Recipe, Rewrites, TensorId};
use neuroconv_runtime::{Checkpoint, WeightSource};

use crate::Error;
use crate::plan::{Plan, plan};

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
        let failed = |source| Error::Quantize {
            tensor: tensor.id,
            source,
        };
        let both = losses_of(&w_nk, &gain, &packed.spec).map_err(failed)?;
        inside += both.0;
        outside += both.1;
    }
    Ok((inside, outside))
}

/// The same of one matrix `[rows, gains]`.
fn losses_of(
    w_nk: &[f32],
    gain: &[f32],
    spec: &QuantizeSpec,
) -> Result<(f64, f64), neuroconv_quant::Error> {
    let scaled = |values: &[f32]| -> Vec<f32> {
        let rows = values.chunks(gain.len());
        rows.flat_map(|row| row.iter().zip(gain).map(|(w, g)| w * g))
            .collect()
    };
    let rounded = |values: &[f32]| -> Result<Vec<f32>, neuroconv_quant::Error> {
        let rows = values.len() / gain.len();
        let (codes, _) = quantize(values, rows, gain.len(), spec, None)?;
        Ok(dequantize(&Tensor::Packed(codes)))
    };
    let folded = scaled(w_nk);
    let inside = squares(&folded, &rounded(&folded)?);
    let outside = squares(&folded, &scaled(&rounded(w_nk)?));
    Ok((inside, outside))
}

fn squares(a: &[f32], b: &[f32]) -> f64 {
    let off = |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b)).powi(2);
    a.iter().zip(b).map(off).sum()
}

#[cfg(test)]
mod tests {
    use neuroconv_quant::Levels;

    use super::*;

    /// Values of one size, and gains that differ hundredfold.
    fn planted() -> (Vec<f32>, Vec<f32>) {
        let value = |i: u32| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0;
        let even_nk: Vec<f32> = (0..32 * 256).map(value).collect();
        let gain: Vec<f32> = (0..256)
            .map(|i| if i % 7 == 0 { 10.0 } else { 0.1 })
            .collect();
        (even_nk, gain)
    }

    #[test]
    fn a_gain_goes_inside_where_that_makes_columns_alike_and_only_there() {
        let (even_nk, gain) = planted();
        let undone_nk: Vec<f32> = even_nk
            .chunks(gain.len())
            .flat_map(|row| row.iter().zip(&gain).map(|(w, g)| w / g))
            .collect();
        for levels in [Levels::Ternary, Levels::Int4, Levels::Int8] {
            let spec = QuantizeSpec::new(levels, 128);
            let (inside, outside) = losses_of(&undone_nk, &gain, &spec).unwrap();
            assert!(inside < outside, "{levels:?}: {inside} {outside}");
        }
        // Of a gain that differs little, rounding only sees that columns are no longer alike.
        let gain: Vec<f32> = gain
            .iter()
            .map(|g| if *g > 1.0 { 1.5 } else { 0.75 })
            .collect();
        for levels in [Levels::Int4, Levels::Int8] {
            let spec = QuantizeSpec::new(levels, 128);
            let (inside, outside) = losses_of(&even_nk, &gain, &spec).unwrap();
            assert!(inside > outside, "{levels:?}: {inside} {outside}");
        }
    }
}
