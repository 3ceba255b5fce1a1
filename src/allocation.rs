//! How many bits each matrix gets, where a size is asked for: from measured losses to a recipe.
//!
//! Owns the way from the streams that `convert` makes to the losses that `verify` tells, the size
//! of a whole file, and the search for the smallest that passes.

use std::collections::BTreeMap;
use std::path::Path;

use neuroconv_convert::allocate::{Allocation, Allocator, Measured, Options, measure};
use neuroconv_recipes::{ModelSpec, Packed, PackedKind, Recipe, TensorId};
use neuroconv_runtime::{Checkpoint, Head, Progress, WeightSource};
use neuroconv_verify::Verdict;
use neuroconv_verify::compare::mean_kld_of_streams;
use neuroconv_verify::report::{AllocatedMatrix, AllocationRecord, FrontPoint};

use crate::args::{JudgeArgs, TargetSize};
use crate::calibration::CalibrationText;
use crate::corpus::Measurement;
use crate::failure::Misuse;
use crate::pipeline::{self, INTERRUPTED, Job};

/// Sizes of the front that are told apart: steps of so large a share.
const FRONT_STEP: f64 = 0.04;
/// Sizes between which the smallest that passes is not looked for further.
const CLOSE: f64 = 0.02;
/// Times that a choice is made smaller because its file has a larger header than was reckoned with.
const TRIALS: usize = 8;

/// A size that is asked for, and what may be chosen to reach it.
pub(crate) struct Sizing {
    target: TargetSize,
    options: Options,
}

impl Sizing {
    /// `recipe` and `others` say how each kind of levels is packed; of a kind that none of them has,
    /// the defaults are taken.
    pub(crate) fn new(target: TargetSize, recipe: &Recipe, others: &[Recipe]) -> Self {
        let mut kinds: Vec<Packed> = recipe.body().collect();
        let more = others.iter().flat_map(Recipe::body);
        let defaults = [PackedKind::Ternary, PackedKind::Int4, PackedKind::Int8];
        for packed in more.chain(defaults.map(Packed::new)) {
            if kinds.iter().all(|known| known.kind != packed.kind) {
                kinds.push(packed);
            }
        }
        Sizing {
            target,
            options: Options::of(&kinds),
        }
    }
}

/// A model whose bits are to be divided.
pub(crate) struct Undivided<'a> {
    pub(crate) source: &'a Checkpoint,
    pub(crate) calibration: &'a CalibrationText,
    pub(crate) measurement: &'a Measurement,
    pub(crate) judge: &'a JudgeArgs,
    /// Where the artifact will lie; what is tried first lies beside it.
    pub(crate) output: &'a Path,
    pub(crate) progress: &'a dyn Progress,
}

impl Undivided<'_> {
    /// The recipe of the best model at the size asked for, and how it was found.
    pub(crate) fn divide(
        &self,
        base: &Recipe,
        sizing: &Sizing,
    ) -> anyhow::Result<(Recipe, AllocationRecord)> {
        let front = self.front(base, &sizing.options)?;
        let (recipe, allocation) = match sizing.target {
            TargetSize::BitsPerWeight(bits) => front.at_most(bits)?,
            TargetSize::Smallest => self.smallest(&front)?,
        };
        let record = front.record(&allocation)?;
        Ok((recipe, record))
    }

    fn front<'b>(&'b self, base: &'b Recipe, options: &Options) -> anyhow::Result<Front<'b>> {
        if base.mla.is_some() {
            return Err(Misuse::new(
                format!(
                    "recipe `{}` converts attention, whose losses cannot be told beforehand",
                    base.name
                ),
                "drop --target-bpw, or the recipe's section `mla`",
            )
            .into());
        }
        if self.calibration.windows.is_empty() {
            return Err(Misuse::new(
                "a size can only be divided among matrices with calibration text",
                "name a text with --calib, or drop --target-bpw",
            )
            .into());
        }
        let windows = &self.calibration.windows;
        let measured = measure(
            self.source,
            base,
            options,
            windows,
            self.progress,
            &INTERRUPTED,
        )?;
        let plan = neuroconv_convert::plan(self.source, base)?;
        let divergence = self.divergences(&plan.rewritten(self.source), &measured)?;
        let allocator = Allocator::new(&measured, |id| divergence[&id]);
        let is_chosen_for = |id: &TensorId| divergence.contains_key(id);
        let chosen = plan.tensors.iter().filter(|t| is_chosen_for(&t.id));
        let chosen_bytes: u64 = chosen.map(|t| t.bytes).sum();
        Ok(Front {
            source: self.source,
            base,
            points: allocator.front(),
            spec: plan.spec().clone(),
            allocator,
            other_bytes: plan.weights_bytes - chosen_bytes,
            divergence,
            tokens: measured.probe_tokens as u64,
        })
    }

    /// The loss of the source when one matrix alone is rounded, for every matrix that was probed.
    fn divergences(
        &self,
        source: &dyn WeightSource,
        measured: &Measured,
    ) -> anyhow::Result<BTreeMap<TensorId, f64>> {
        let head = Head::load(source)?;
        let count = measured.probes.len() as u64;
        self.progress.start("loss by matrix", count, "matrices");
        let mut found = BTreeMap::new();
        for probe in &measured.probes {
            let own = probe.head(source)?;
            let streams = if probe.streams.is_empty() {
                &measured.streams
            } else {
                &probe.streams
            };
            let base = (&head, measured.streams.as_slice());
            let kld = mean_kld_of_streams(base, (own.as_ref().unwrap_or(&head), streams))?;
            found.insert(probe.id, kld);
            self.progress.advance(1);
        }
        self.progress.finish();
        Ok(found)
    }

    /// The smallest choice that the gate lets pass, found by halving between one that is refused and
    /// one that passes. What is tried on the way is thrown away.
    fn smallest(&self, front: &Front<'_>) -> anyhow::Result<(Recipe, Allocation)> {
        let points = front.apart(CLOSE);
        let scratch = pipeline::scratch(self.output)?;
        // Indices: everything up to `refused` fails, `passing` passes.
        let (mut refused, mut passing) = (None::<usize>, points.len() - 1);
        let mut next = front.guess(&points);
        loop {
            let recipe = front.recipe(points[next]);
            if self.passes(&recipe, &scratch.path().join(format!("trial-{next}")))? {
                passing = next;
            } else if next + 1 == points.len() {
                // Not even the largest passes; the gate will say why.
                break;
            } else {
                refused = Some(next);
            }
            let least = refused.map_or(0, |at| at + 1);
            if least >= passing {
                break;
            }
            next = usize::midpoint(least, passing - 1);
        }
        Ok((front.recipe(points[passing]), points[passing].clone()))
    }

    fn passes(&self, recipe: &Recipe, output: &Path) -> anyhow::Result<bool> {
        let plan = neuroconv_convert::plan(self.source, recipe)?;
        let job = Job {
            units: &[],
            source: self.source,
            recipe,
            plan: &plan,
            output,
            overwrite: false,
            calibration: self.calibration,
            save_imatrix: None,
            measurement: self.measurement,
            judge: self.judge,
            allow_quality_loss: false,
        };
        let judged = pipeline::convert_and_judge(&job, self.progress)?;
        let passes = judged.report.verdict == Verdict::Pass;
        judged.staged.reject()?;
        Ok(passes)
    }
}

/// The best choices of every size.
struct Front<'a> {
    source: &'a Checkpoint,
    base: &'a Recipe,
    /// The description of what is stored.
    spec: ModelSpec,
    allocator: Allocator,
    /// The smallest first.
    points: Vec<Allocation>,
    /// Bytes of the file that are not chosen for.
    other_bytes: u64,
    divergence: BTreeMap<TensorId, f64>,
    tokens: u64,
}

impl Front<'_> {
    /// The best choice whose whole file has at most so many bits per parameter.
    fn at_most(&self, bits: f64) -> anyhow::Result<(Recipe, Allocation)> {
        let most = (bits * self.source.spec().parameters() as f64 / 8.0) as u64;
        let mut rest = most.checked_sub(self.other_bytes);
        for _ in 0..TRIALS {
            let Some(found) = rest.and_then(|rest| self.allocator.within(rest)) else {
                break;
            };
            let recipe = self.recipe(&found);
            let file = neuroconv_convert::plan(self.source, &recipe)?.weights_bytes;
            if file <= most {
                return Ok((recipe, found));
            }
            rest = rest.and_then(|rest| rest.checked_sub(file - most));
        }
        let least = self.recipe(&self.points[0]);
        let least = neuroconv_convert::plan(self.source, &least)?;
        Err(Misuse::new(
            format!("no choice comes down to {bits} bits per weight"),
            format!("the smallest has {:.3}", least.bits_per_weight),
        )
        .into())
    }

    fn recipe(&self, allocation: &Allocation) -> Recipe {
        allocation.recipe(self.base)
    }

    /// The choices whose files differ by at least such a share, with the smallest and the largest.
    fn apart(&self, share: f64) -> Vec<&Allocation> {
        let mut kept: Vec<&Allocation> = Vec::new();
        let last = self.points.len() - 1;
        for (i, point) in self.points.iter().enumerate() {
            let far = |before: &&Allocation| {
                let grown = self.bytes(point) - self.bytes(before);
                grown as f64 >= share * self.bytes(before) as f64
            };
            if i == last || kept.last().is_none_or(far) {
                kept.push(point);
            }
        }
        kept
    }

    /// Where the smallest that passes may lie, by the losses that are expected.
    fn guess(&self, points: &[&Allocation]) -> usize {
        let limits = &self.base.limits;
        // A divergence costs about as much perplexity as it has nats.
        let by_ratio = limits.max_ppl_ratio.map(f64::ln);
        let limit = [by_ratio, limits.max_kld].into_iter().flatten();
        let limit = limit.fold(f64::INFINITY, f64::min);
        let place = points.iter().position(|point| point.loss <= limit);
        place.unwrap_or(points.len() - 1)
    }

    fn bytes(&self, allocation: &Allocation) -> u64 {
        self.other_bytes + allocation.bytes
    }

    fn record(&self, chosen: &Allocation) -> anyhow::Result<AllocationRecord> {
        let plan = neuroconv_convert::plan(self.source, &self.recipe(chosen))?;
        let front = self.apart(FRONT_STEP);
        Ok(AllocationRecord {
            tokens: self.tokens,
            front: front.into_iter().map(|p| self.point(p)).collect(),
            chosen: FrontPoint {
                bytes: plan.weights_bytes,
                bits_per_weight: plan.bits_per_weight,
                ..self.point(chosen)
            },
            matrices: chosen
                .schemes
                .iter()
                .map(|(id, scheme)| AllocatedMatrix {
                    name: id.to_string(),
                    kld_alone: self.divergence[id],
                    packing: scheme.label(),
                })
                .collect(),
        })
    }

    fn point(&self, allocation: &Allocation) -> FrontPoint {
        let bytes = self.bytes(allocation);
        let sizes: BTreeMap<TensorId, usize> = self
            .spec
            .tensors()
            .into_iter()
            .map(|(id, shape)| (id, shape.iter().product()))
            .collect();
        let mut packings: BTreeMap<String, f64> = BTreeMap::new();
        let all: usize = allocation.schemes.keys().map(|id| sizes[id]).sum();
        for (id, scheme) in &allocation.schemes {
            *packings.entry(scheme.label()).or_default() += sizes[id] as f64 / all as f64;
        }
        let mut packings: Vec<(String, f64)> = packings.into_iter().collect();
        packings.sort_by(|a, b| b.1.total_cmp(&a.1));
        FrontPoint {
            bytes,
            bits_per_weight: bytes as f64 * 8.0 / self.source.spec().parameters() as f64,
            expected_kld: allocation.loss,
            packings,
        }
    }
}
