//! What a conversion needs beside time: memory and room on the disk, before any of it is used.

use neuroconv_recipes::{ModelSpec, Recipe};

use super::PlannedTensor;
use crate::mla::Options;

/// Tokens of calibration text that estimates count with before it is known.
const CALIBRATION_TOKENS: usize = 32_768;
/// Bytes for every pair of inputs of the widest matrix while it is rounded: sums of two kinds in
/// double precision, the metric and its factor in single, and the factorization in double.
const BYTES_PER_MOMENT: u64 = 2 * 8 + 2 * 4 + 2 * 8;

/// Room for manifest, recipe, reports, card and journal.
pub(crate) const REPORTS_BYTES: u64 = 16 << 20;

/// The most memory that a step of the conversion of `source` to `tensors` takes.
pub(super) fn memory(recipe: &Recipe, source: &ModelSpec, tensors: &[PlannedTensor]) -> u64 {
    let mut steps = vec![quantizing(tensors)];
    let known = recipe.calibration.as_ref().map(|c| c.tokens);
    let tokens = known.unwrap_or(CALIBRATION_TOKENS) as u64;
    if recipe.mla.is_some() {
        steps.push(converting_attention(source, tokens));
    }
    if tensors.iter().any(learns) {
        steps.push(rounding(source, tensors, tokens));
    }
    steps.into_iter().max().unwrap_or(0)
}

/// Bytes in which converted tensors and rounded layers wait to be stored.
pub(super) fn waiting_bytes(tensors: &[PlannedTensor]) -> u64 {
    let converted = tensors.iter().filter(|t| t.converted);
    let converted: u64 = converted.map(|t| t.elements() * 4).sum();
    let rounds = tensors.iter().any(learns);
    let rounded = tensors.iter().filter(|t| rounds && t.id.layer.is_some());
    let rounded = rounded.filter(|t| t.packed().is_some());
    converted + rounded.map(|t| t.bytes).sum::<u64>()
}

fn learns(tensor: &PlannedTensor) -> bool {
    tensor.id.layer.is_some() && tensor.packed().is_some_and(|packed| packed.how.learns())
}

/// While tensor `i` is quantized (f32 in, codes out), `i + 1` has been read (source bytes and
/// f32) and `i - 1` is being written.
fn quantizing(tensors: &[PlannedTensor]) -> u64 {
    (0..tensors.len())
        .map(|i| {
            let before = i.checked_sub(1).map_or(0, |i| tensors[i].bytes);
            let after = tensors
                .get(i + 1)
                .map_or(0, |t| t.source_bytes() + t.elements() * 4);
            before + tensors[i].elements() * 4 + tensors[i].bytes + after
        })
        .max()
        .unwrap_or(0)
}

/// The residual streams of source and rounded model, one layer of each, and the moments of the
/// widest input.
fn rounding(source: &ModelSpec, tensors: &[PlannedTensor], tokens: u64) -> u64 {
    let streams = 2 * tokens * source.hidden as u64 * 4;
    let matrices = tensors
        .iter()
        .filter(|t| t.packed().is_some() && t.id.layer.is_some());
    let widest = matrices.filter_map(|t| t.shape.get(1)).max();
    let widest = widest.copied().unwrap_or(0) as u64;
    streams + 2 * layer_bytes(source) + widest * widest * BYTES_PER_MOMENT
}

/// The residual streams of source and converted model before and after a layer, and one layer's
/// weights with the sums that its conversion works on; the source's attention is bounded by what
/// the arithmetic is given for it.
fn converting_attention(source: &ModelSpec, tokens: u64) -> u64 {
    let hidden = source.hidden as u64;
    let sums = 4 * hidden * hidden * 8;
    let scores = (tokens * tokens.min(1024) * 4 * 32).min(Options::new(1, 0).score_bytes as u64);
    3 * tokens * hidden * 4 + 2 * layer_bytes(source) + sums + scores
}

/// Bytes of one layer in single precision.
fn layer_bytes(source: &ModelSpec) -> u64 {
    let tables = 2 * source.vocab as u64 * source.hidden as u64;
    let layers = source.layers.len().max(1) as u64;
    4 * source.parameters().saturating_sub(tables) / layers
}
