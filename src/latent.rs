//! What a conversion of attention needs to be decided and told beyond one run of it: which rank,
//! which layers, and where the loss sits.
//!
//! Owns these measurements. They need both the conversion and the comparison of models, which know
//! nothing of each other.

use std::path::Path;

use neuroconv_convert::{ConvertedLayers, ConvertedModel, convert_attention};
use neuroconv_recipes::{Mixer, MlaRecipe, ModelSpec, Rank, Recipe};
use neuroconv_runtime::{Checkpoint, Progress, Quiet, WeightSource};
use neuroconv_verify::compare::mean_kld;
use neuroconv_verify::report::MlaRecord;
use neuroconv_verify::{EvalText, Protocol, RuntimeScorer, Window, evaluate, windows};

use crate::pipeline::INTERRUPTED;

/// Tokens on which the loss of each layer is measured, at most.
const LAYER_TOKENS: usize = 4096;

/// A conversion of attention that is about to be done.
pub(crate) struct Undecided<'a> {
    pub(crate) source: &'a Checkpoint,
    pub(crate) calibration: &'a [Vec<u32>],
    pub(crate) progress: &'a dyn Progress,
}

impl Undecided<'_> {
    /// The recipes to try one after the other until one passes: `recipe` with its rank and its
    /// kept layers found by measurement on the calibration text.
    pub(crate) fn candidates(&self, recipe: &Recipe) -> anyhow::Result<Vec<Recipe>> {
        let Some(mla) = &recipe.mla else {
            return Ok(vec![recipe.clone()]);
        };
        let mut mla = mla.clone();
        if let Some(budget) = mla.max_layers_kld.filter(|_| !self.calibration.is_empty()) {
            mla.keep_layers = self.layers_to_keep(&mla, budget)?;
        }
        let with = |mla: MlaRecipe| Recipe {
            mla: Some(mla),
            ..recipe.clone()
        };
        if !matches!(mla.rank, Some(Rank::Auto(_))) {
            return Ok(vec![with(mla)]);
        }
        let (spec, _) = mla.converted(self.source.spec())?;
        let ceiling = ranks(&spec).next().map_or(1, |(rank, _)| rank);
        let least = self.least_rank(&mla)?.min(ceiling);
        let ranks = MlaRecipe::auto_ranks(least, ceiling).into_iter();
        let fixed = ranks.map(|rank| {
            with(MlaRecipe {
                rank: Some(Rank::Fixed(rank)),
                rope_dim: rope_dim(&spec),
                kv_budget: None,
                ..mla.clone()
            })
        });
        Ok(fixed.collect())
    }

    /// The smallest rank that keeps the variance asked for in every layer.
    fn least_rank(&self, mla: &MlaRecipe) -> anyhow::Result<usize> {
        let folder = tempfile::tempdir()?;
        let (spec, _) = mla.converted(self.source.spec())?;
        let layers = self.convert(&spec, mla, folder.path())?;
        let share = mla.retain_variance;
        let enough = |report: &neuroconv_convert::LayerReport| {
            let full = full_rank(self.source.spec(), report.layer) - report.rope_dim;
            let place = report.spectrum.iter().position(|kept| *kept >= share);
            let places = report.spectrum.len().max(1);
            place.map_or(full, |at| ((at + 1) * full).div_ceil(places))
        };
        Ok(layers.reports().map(enough).max().unwrap_or(1))
    }

    /// The layers that cost most when converted alone, so that the costs of the others add up to
    /// at most `budget`.
    fn layers_to_keep(&self, mla: &MlaRecipe, budget: f64) -> anyhow::Result<Vec<usize>> {
        let folder = tempfile::tempdir()?;
        let (spec, _) = mla.converted(self.source.spec())?;
        let layers = self.convert(&spec, mla, folder.path())?;
        let sample = held_out(self.calibration);
        let mut losses = layer_losses(self.source, &spec, &layers, &sample, self.progress)?;
        losses.sort_by(|a, b| a.1.total_cmp(&b.1));
        let (mut spent, mut keep) = (0.0, mla.keep_layers.clone());
        for (layer, loss) in losses {
            spent += loss;
            if spent > budget {
                keep.push(layer);
            }
        }
        keep.sort_unstable();
        Ok(keep)
    }

    fn convert(
        &self,
        spec: &ModelSpec,
        mla: &MlaRecipe,
        folder: &Path,
    ) -> anyhow::Result<ConvertedLayers> {
        let Undecided {
            source,
            calibration,
            progress,
        } = *self;
        let found = convert_attention(
            source,
            spec,
            mla,
            calibration,
            folder,
            progress,
            &INTERRUPTED,
        )?;
        Ok(found)
    }
}

/// What a report says of a finished conversion of attention.
pub(crate) struct Finished<'a> {
    pub(crate) source: &'a Checkpoint,
    pub(crate) spec: &'a ModelSpec,
    pub(crate) recipe: &'a MlaRecipe,
    pub(crate) calibration: &'a [Vec<u32>],
    pub(crate) layers: &'a ConvertedLayers,
    /// Whether weights were quantized afterwards.
    pub(crate) packed: bool,
    pub(crate) text: &'a EvalText,
    pub(crate) protocol: Protocol,
    pub(crate) ctx: usize,
    /// What original and artifact were measured on.
    pub(crate) windows: &'a [Window],
    pub(crate) progress: &'a dyn Progress,
}

impl Finished<'_> {
    /// Measures what conversion alone, before any quantization, costs and where.
    pub(crate) fn record(&self) -> anyhow::Result<MlaRecord> {
        let mut record = MlaRecord {
            mode: self.recipe.mode.name().to_owned(),
            calibrated: !self.calibration.is_empty(),
            layers: self.layers.reports().map(|r| r.layer).collect(),
            rank: self.layers.reports().map(|r| r.rank).collect(),
            rope_dim: rope_dim(self.spec).unwrap_or(0),
            energy: self.layers.reports().map(|r| r.energy).collect(),
            spectrum: self.layers.reports().map(|r| r.spectrum.clone()).collect(),
            output_error: self.layers.reports().map(|r| r.output_error).collect(),
            kld: Vec::new(),
            loss_share: Vec::new(),
            ppl_partial_rope: None,
            ppl_converted: None,
        };
        let tokens = (LAYER_TOKENS / self.layers.count().max(1)).max(self.ctx);
        let sample = windows(self.text, self.protocol, self.ctx, Some(tokens))?;
        let losses = layer_losses(self.source, self.spec, self.layers, &sample, self.progress)?;
        let total: f64 = losses.iter().map(|(_, loss)| loss).sum();
        let share = |loss: f64| if total > 0.0 { loss / total } else { 0.0 };
        record.loss_share = losses.iter().map(|(_, loss)| share(*loss)).collect();
        record.kld = losses.into_iter().map(|(_, loss)| loss).collect();
        if self.packed {
            record.ppl_converted = Some(self.perplexity(self.spec, self.layers)?);
        }
        if let Some((spec, layers)) = self.layers.full_rank() {
            record.ppl_partial_rope = Some(self.perplexity(spec, layers)?);
        }
        Ok(record)
    }

    fn perplexity(&self, spec: &ModelSpec, layers: &ConvertedLayers) -> anyhow::Result<f64> {
        let model = ConvertedModel::new(self.source, spec, layers);
        let scorer = RuntimeScorer::new(&model)?;
        let found = evaluate(
            &scorer,
            self.windows,
            self.protocol,
            self.ctx,
            self.progress,
        )?;
        Ok(found.ppl)
    }
}

/// The divergence from the source with one converted layer at a time, by layer.
fn layer_losses(
    source: &Checkpoint,
    converted: &ModelSpec,
    layers: &ConvertedLayers,
    sample: &[Window],
    progress: &dyn Progress,
) -> anyhow::Result<Vec<(usize, f64)>> {
    let base = RuntimeScorer::new(source)?;
    progress.start("loss by layer", layers.count() as u64, "layers");
    let mut losses = Vec::new();
    for report in layers.reports() {
        let layer = report.layer;
        let mut spec = source.spec().clone();
        spec.layers[layer] = converted.layers[layer].clone();
        let model = ConvertedModel::new(source, &spec, layers);
        let kld = mean_kld(&base, &RuntimeScorer::new(&model)?, sample, &Quiet)?;
        losses.push((layer, kld));
        progress.advance(1);
    }
    progress.finish();
    Ok(losses)
}

/// The calibration windows that conversions hold out, as windows to be scored.
fn held_out(calibration: &[Vec<u32>]) -> Vec<Window> {
    let ctx = calibration.first().map_or(1, Vec::len);
    let every = calibration.iter().skip(7).step_by(8);
    let some: Vec<&Vec<u32>> = every.take((LAYER_TOKENS / ctx).max(1)).collect();
    let fallback = calibration.last().into_iter().collect();
    let chosen = if some.is_empty() { fallback } else { some };
    chosen
        .into_iter()
        .map(|tokens| Window {
            tokens: tokens.clone(),
            scored: 1..tokens.len(),
        })
        .collect()
}

/// Rank and rotated width of every converted layer.
fn ranks(spec: &ModelSpec) -> impl Iterator<Item = (usize, usize)> + '_ {
    spec.layers.iter().filter_map(|layer| match &layer.mixer {
        Mixer::Mla(a) => Some((a.rank, a.rope_dim)),
        Mixer::Latent(a) => Some((a.rank, 0)),
        Mixer::Attention(_) => None,
    })
}

/// Rotated width of the converted layers; `None` where there is no rotated key.
fn rope_dim(spec: &ModelSpec) -> Option<usize> {
    ranks(spec).map(|(_, rope)| rope).find(|rope| *rope > 0)
}

/// Numbers that keys and values of a source layer have.
fn full_rank(source: &ModelSpec, layer: usize) -> usize {
    source.layers[layer].mixer.cached_numbers()
}
