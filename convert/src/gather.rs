//! The importance matrix of a model: sums of squares of what its matrices read on calibration text.
//!
//! Owns what is summed, and under which names. Sums of parts of a text add up to those of the whole, so
//! parts can be summed anywhere; what the sums weigh is in [`crate::importance`].

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use neuroconv_format::gguf::imatrix::Importance;
use neuroconv_recipes::{ModelSpec, Role, TensorId};
use neuroconv_runtime::{OneLayer, Progress, WeightSource};
use rayon::prelude::*;

use crate::calibrated::STAGES;
use crate::passage::each_layer;
use crate::{Error, ImportanceError};

/// Takes `windows` of token ids through `source`, layer by layer, and sums the squares of what every
/// matrix of the layers reads, column by column. The sums have the names of the matrices in GGUF files,
/// and do not depend on the number of threads; without windows there are none.
pub fn gather_importance(
    source: &dyn WeightSource,
    windows: &[Vec<u32>],
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<BTreeMap<String, Importance>, Error> {
    let names = names(source.spec())?;
    let tokens: usize = windows.iter().map(Vec::len).sum();
    let mut entries = BTreeMap::new();
    if windows.is_empty() {
        return Ok(entries);
    }
    let stage = "sum squares of inputs";
    each_layer(
        source,
        windows,
        stage,
        progress,
        cancel,
        |index, layer, streams| {
            for roles in STAGES {
                let ids = roles.iter().map(|&role| TensorId::layer(index, role));
                let named: Vec<(TensorId, &String)> =
                    ids.filter_map(|id| Some((id, names.get(&id)?))).collect();
                let Some(&(tensor, _)) = named.first() else {
                    continue;
                };
                let sums = squares(layer, tensor.role, streams)
                    .ok_or(ImportanceError::NoPlace { tensor })?;
                if !sums.iter().all(|sum| sum.is_finite()) {
                    return Err(Error::NonFiniteInputs { tensor });
                }
                let entry = Importance {
                    sums,
                    counts: vec![tokens as f32],
                };
                entries.extend(
                    named
                        .iter()
                        .map(|(_, name)| ((*name).clone(), entry.clone())),
                );
            }
            Ok(())
        },
    )?;
    Ok(entries)
}

/// The matrices of the layers by their names in GGUF files. One without a name is an error before a
/// weight is read: a file that leaves it out would not say so.
fn names(spec: &ModelSpec) -> Result<BTreeMap<TensorId, String>, ImportanceError> {
    let tensors = spec.tensors().into_iter();
    let matrices = tensors.filter(|(id, shape)| id.layer.is_some() && shape.len() == 2);
    let named = matrices.map(|(tensor, _)| match tensor.gguf_name() {
        Some(name) => Ok((tensor, name)),
        None => Err(ImportanceError::NoPlace { tensor }),
    });
    named.collect()
}

/// Sums of squares of what the matrices of a role read, over all tokens: `[columns]`. `None` where they
/// do not read activations as they are.
fn squares(layer: &OneLayer, role: Role, streams: &[Vec<f32>]) -> Option<Vec<f32>> {
    let of_window = |x_td: &Vec<f32>| {
        let tokens = x_td.len() / layer.spec().hidden;
        let inputs = layer.input(role, x_td)?;
        let columns = inputs.len() / tokens.max(1);
        let mut sums = vec![0.0_f64; columns];
        for x in inputs.chunks(columns.max(1)) {
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum += f64::from(*x).powi(2);
            }
        }
        Some(sums)
    };
    let windows: Option<Vec<Vec<f64>>> = streams.par_iter().map(of_window).collect();
    // In the order of the windows, whichever thread was first.
    let sums = windows?.into_iter().reduce(|mut sums, more| {
        sums.iter_mut().zip(more).for_each(|(sum, x)| *sum += x);
        sums
    });
    let sums = sums.unwrap_or_default();
    Some(sums.into_iter().map(|sum| sum as f32).collect())
}
