//! The whole of a verification: parity, stored tensors, comparison with the original, verdict.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Instant;

use neuroconv_recipes::{Limits, Rewrites};
use neuroconv_runtime::{KvCodec, Progress, Rewritten, WeightSource};

use crate::Error;
use crate::audit::{Audit, audit};
use crate::compare::{Lockstep, Placed};
use crate::drift::{LayerDrift, layer_drift};
use crate::gate::{Bar, Evidence, Judgement, decided, judge};
use crate::greedy::{Continuation, continuations as continue_both};
use crate::logit_cache::LogitCache;
use crate::metrics::{Metrics, Row};
use crate::parity::{Parity, ParityLimits};
use crate::protocol::{EvalText, Protocol, Window, windows};
use crate::report::{CorpusRecord, StageRecord};
use crate::schedule::{cut_all, few_of, looks, scattered, spread};
use crate::scorer::{ReferenceScorer, RuntimeScorer, Scorer};
use crate::stats::Level;
use crate::tally::Tally;
use crate::yardstick::{Rounded, Yardstick};

/// Tokens whose outputs are compared, matrix by matrix.
const AUDIT_TOKENS: usize = 128;
/// Tokens per window of the long rows, at most.
const LONG_CTX: usize = 2048;
/// Tokens that the original's parity is measured on, where a quarter of a window is less.
const BASE_PARITY_TOKENS: usize = 128;

/// How an artifact is verified.
#[derive(Clone, Debug, PartialEq)]
pub struct VerifyOptions {
    /// How texts are cut.
    pub protocol: Protocol,
    /// Tokens per window.
    pub ctx: usize,
    /// Tokens to use of each text at most, counting whole windows; `None` is all of it.
    pub max_tokens: Option<usize>,
    /// Whether to stop as soon as every check is decided.
    pub stop_early: bool,
    /// The user's budget.
    pub limits: Limits,
    /// A third model to judge against, and the largest ratio of mean divergences allowed.
    pub yardstick: Option<(Yardstick, f64)>,
    /// Whether quality checks may be waived.
    pub allow_quality_loss: bool,
    /// Windows that parity and layers are measured on at most, spread over all. One is always taken,
    /// more where there are sixteen windows of text for each.
    pub parity_windows: usize,
    /// Number format of the cache while quality is measured. Parity is measured in single precision,
    /// since it is the weights' arithmetic that must agree.
    pub kv: KvCodec,
    /// Matrices of the artifact that were rounded so that their outputs are right rather than their
    /// weights; they are compared by their outputs.
    pub feedback: BTreeSet<String>,
    /// Exact changes of the original's graph that the artifact was made with: its weights and hidden
    /// states are compared with those of the changed original, its logits with the original's.
    pub rewrites: Rewrites,
    /// Where the original's logits are kept between runs.
    pub logit_cache: Option<PathBuf>,
    /// Whether to measure what no check rests on too: layers, long windows, continuations.
    pub thorough: bool,
}

/// What a verification found.
#[derive(Clone, Debug, PartialEq)]
pub struct Verification {
    /// Quality.
    pub metrics: Metrics,
    /// Implementation.
    pub parity: Parity,
    /// The checks and the verdict.
    pub judgement: Judgement,
    /// The texts as they were used.
    pub corpora: Vec<CorpusRecord>,
    /// The headline metrics of each text.
    pub texts: Vec<Row>,
    /// The same in longer windows, where model and texts allow.
    pub long: Vec<Row>,
    /// Hidden states, layer by layer.
    pub layers: Vec<LayerDrift>,
    /// What both models write.
    pub continuations: Vec<Continuation>,
    /// What the original was run by.
    pub engine: &'static str,
    /// The windows that the metrics were taken on.
    pub windows: Vec<Window>,
    /// Scored tokens that were not needed.
    pub tokens_saved: u64,
    /// Where the time went.
    pub stages: Vec<StageRecord>,
    /// Number format of the cache that quality was measured with.
    pub kv: KvCodec,
}

/// Verifies `artifact` against `base` on `texts`.
///
/// Both run through the runtime, layer by layer and window by window in lock-step. That it
/// computes what the weights mean is asked first, of both models, on a sample of windows: parity
/// with an independent forward. Where the runtime does not reproduce that forward for the
/// original, the original runs through the forward itself. Fewer than 512 scored tokens in all
/// are [`Error::TooLittleText`].
pub fn verify(
    base: &dyn WeightSource,
    artifact: &dyn WeightSource,
    texts: &[EvalText],
    options: &VerifyOptions,
    progress: &dyn Progress,
) -> Result<Verification, Error> {
    let max = base.spec().max_positions.min(artifact.spec().max_positions);
    if options.ctx > max {
        return Err(Error::ContextTooLong {
            ctx: options.ctx,
            max,
        });
    }
    let cut = cut_all(texts, options)?;
    let mut clock = Clock::default();
    let run = Run::prepare(base, artifact, options, &cut, &mut clock, progress)?;
    let mut tally = Tally::new(options.limits.max_p99_kld);
    let windows = run.compare(&cut, &mut tally, &mut clock, progress)?;
    let metrics = Metrics::of(&tally, Level::Final)?;
    let judgement = judge(&metrics, &run.evidence(), options.allow_quality_loss)?;
    let details = run.details(texts, &cut, &tally, &mut clock, progress)?;
    let planned: u64 = cut.iter().map(|p| p.window.scored.len() as u64).sum();
    let text_rows = texts.iter().enumerate();
    Ok(Verification {
        corpora: corpora(texts, options, &tally),
        texts: text_rows
            .filter_map(|(i, t)| Row::of(&tally, Some(i), &t.name, options.ctx))
            .collect(),
        long: details.long,
        layers: details.layers,
        continuations: details.continuations,
        engine: run.original().name(),
        windows,
        tokens_saved: planned.saturating_sub(tally.tokens()),
        stages: clock.stages,
        kv: options.kv,
        parity: run.parity,
        metrics,
        judgement,
    })
}

/// What no check rests on.
#[derive(Default)]
struct Details {
    long: Vec<Row>,
    layers: Vec<LayerDrift>,
    continuations: Vec<Continuation>,
}

/// Times of stages.
#[derive(Default)]
struct Clock {
    stages: Vec<StageRecord>,
}

impl Clock {
    fn add(&mut self, name: &str, wall_s: f64) {
        self.stages.push(StageRecord {
            name: format!("verify: {name}"),
            wall_s,
        });
    }

    fn time<T>(&mut self, name: &str, act: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        let start = Instant::now();
        let done = act();
        self.add(name, start.elapsed().as_secs_f64());
        done
    }
}

/// Both models, ready and found to be what they should be.
struct Run<'a> {
    base: &'a dyn WeightSource,
    options: &'a VerifyOptions,
    runtime: RuntimeScorer<'a>,
    base_runtime: RuntimeScorer<'a>,
    /// Where the runtime does not reproduce the reference for the original.
    base_reference: Option<ReferenceScorer<'a>>,
    parity: Parity,
    audit: Audit,
}

impl<'a> Run<'a> {
    fn prepare(
        base: &'a dyn WeightSource,
        artifact: &'a dyn WeightSource,
        options: &'a VerifyOptions,
        cut: &[Placed],
        clock: &mut Clock,
        progress: &dyn Progress,
    ) -> Result<Self, Error> {
        let runtime = clock.time("load", || RuntimeScorer::new(artifact))?;
        let first = looks(cut.len(), options.stop_early)[0];
        let sample = spread(cut, few_of(first, options.parity_windows));
        let parity = clock.time("parity", || {
            let reference = ReferenceScorer::new(artifact)?;
            let limits = ParityLimits::of(artifact)?;
            Parity::measure(&reference, &runtime, &sample, limits, progress)
        })?;
        let runtime = runtime.with_kv(options.kv);
        let audit = clock.time("stored tensors", || {
            let tokens = sample.iter().flat_map(|placed| &placed.tokens).copied();
            let tokens: Vec<u32> = tokens.take(AUDIT_TOKENS).collect();
            let rewritten = Rewritten::new(base, &options.rewrites);
            audit(&rewritten, artifact, &options.feedback, &tokens, progress)
        })?;
        let base_runtime = RuntimeScorer::new(base)?;
        let base_reference = ReferenceScorer::new(base)?;
        let agrees = clock.time("parity of the original", || {
            let limits = ParityLimits::of(base)?;
            let few: Vec<Window> = sample.iter().take(1).map(beginning).collect();
            match Parity::measure(&base_reference, &base_runtime, &few, limits, progress) {
                Ok(parity) => Ok(parity.pass),
                // The comparison will say so, and name the window.
                Err(Error::NothingFinite { .. }) => Ok(false),
                Err(error) => Err(error),
            }
        })?;
        Ok(Run {
            base,
            options,
            runtime,
            base_runtime,
            base_reference: (!agrees).then_some(base_reference),
            parity,
            audit,
        })
    }

    /// What computes the original.
    fn original(&self) -> &dyn Scorer {
        match &self.base_reference {
            Some(reference) => reference,
            None => &self.base_runtime,
        }
    }

    /// What the verdict rests on beside the text.
    fn evidence(&self) -> Evidence<'_> {
        Evidence {
            parity: &self.parity,
            audit: Some(&self.audit),
            limits: &self.options.limits,
            bars: match self.options.yardstick {
                Some((_, ratio)) => vec![Bar::Yardstick(ratio)],
                None => Vec::new(),
            },
        }
    }

    /// Runs the models in lock-step over as many windows as the checks need; returns these.
    fn compare(
        &self,
        cut: &[Placed],
        tally: &mut Tally,
        clock: &mut Clock,
        progress: &dyn Progress,
    ) -> Result<Vec<Window>, Error> {
        let yardstick = self
            .options
            .yardstick
            .map(|(how, _)| Rounded::new(self.base, how));
        let yardstick = yardstick
            .as_ref()
            .map(|y| RuntimeScorer::new(y))
            .transpose()?;
        let cache = self.options.logit_cache.as_ref();
        let name = self.original().name();
        let cache = cache
            .map(|dir| LogitCache::open(dir, self.base, name))
            .transpose()?;
        let mut models = Lockstep::new(self.original(), &self.runtime)?;
        models.yardstick = yardstick.as_ref().map(|y| y as &dyn Scorer);
        models.cache = cache.as_ref();
        let order = scattered(cut);
        let mut done = 0;
        for end in looks(order.len(), self.options.stop_early) {
            models.run(&order[done..end], tally, progress)?;
            done = end;
            if done < order.len() && decided(tally, &self.evidence())? {
                break;
            }
        }
        clock.add("original", models.base_s);
        clock.add("artifact", models.artifact_s);
        if models.yardstick.is_some() {
            clock.add("yardstick", models.yardstick_s);
        }
        clock.add("scores", models.score_s);
        Ok(order[..done].iter().map(|p| p.window.clone()).collect())
    }

    /// What no check rests on, on a part of what was scored.
    fn details(
        &self,
        texts: &[EvalText],
        cut: &[Placed],
        tally: &Tally,
        clock: &mut Clock,
        progress: &dyn Progress,
    ) -> Result<Details, Error> {
        if !self.options.thorough {
            return Ok(Details::default());
        }
        let read = tally.lines.len() * self.options.ctx;
        let long = clock.time("long windows", || self.long_rows(texts, read, progress))?;
        let sample = spread(cut, few_of(tally.lines.len(), self.options.parity_windows));
        let layers = clock.time("layers", || {
            let layers = if self.options.rewrites.rotate {
                let rewritten = Rewritten::new(self.base, &self.options.rewrites);
                let original = RuntimeScorer::new(&rewritten)?;
                layer_drift(&original, &self.runtime, &sample, progress)?
            } else {
                layer_drift(self.original(), &self.runtime, &sample, progress)?
            };
            // A model that is not finite was refused already; its drift has no numbers.
            let finite = |l: &LayerDrift| l.cosine.is_finite();
            Ok(layers
                .unwrap_or_default()
                .into_iter()
                .filter(finite)
                .collect())
        })?;
        let windows: Vec<Window> = cut.iter().map(|p| p.window.clone()).collect();
        let continuations = clock.time("continuations", || {
            continue_both(&self.base_runtime, &self.runtime, &windows, read, progress)
        })?;
        Ok(Details {
            long,
            layers,
            continuations,
        })
    }

    /// One row per text that has a window as long as the model takes, up to 2048 tokens. Of `read`,
    /// the tokens that the verdict took, an eighth is read again in long windows, or one window of
    /// each text while that is no more than half.
    fn long_rows(
        &self,
        texts: &[EvalText],
        read: usize,
        progress: &dyn Progress,
    ) -> Result<Vec<Row>, Error> {
        let (original, artifact) = (self.original(), &self.runtime);
        let ctx = original
            .spec()
            .max_positions
            .min(artifact.spec().max_positions);
        let ctx = ctx.min(LONG_CTX);
        if ctx <= self.options.ctx {
            return Ok(Vec::new());
        }
        let share = (read / 8 / texts.len().max(1)).max(ctx);
        let mut left = read / 2;
        let mut rows = Vec::new();
        for (text, source) in texts.iter().enumerate() {
            let cut = windows(source, self.options.protocol, ctx, Some(share.min(left)))?;
            left -= cut.len() * ctx;
            let place = |(index, window)| Placed {
                index,
                text,
                window,
            };
            let cut: Vec<Placed> = cut.into_iter().enumerate().map(place).collect();
            let mut tally = Tally::new(None);
            Lockstep::new(original, artifact)?.run(&cut, &mut tally, progress)?;
            rows.extend(Row::of(&tally, None, &source.name, ctx));
        }
        Ok(rows)
    }
}

/// The first quarter of a window, and so much that it says something.
fn beginning(window: &Window) -> Window {
    let whole = window.tokens.len();
    let end = (whole / 4).max(BASE_PARITY_TOKENS).min(whole);
    Window {
        tokens: window.tokens[..end].to_vec(),
        scored: 1..end,
    }
}

/// What was taken of each text.
fn corpora(texts: &[EvalText], options: &VerifyOptions, tally: &Tally) -> Vec<CorpusRecord> {
    let record = |(i, text): (usize, &EvalText)| {
        let lines = || tally.lines.iter().filter(|line| line.text == i);
        CorpusRecord {
            name: text.name.clone(),
            sha256: text.sha256.clone(),
            protocol: options.protocol.name().to_owned(),
            ctx: options.ctx,
            tokens: lines().map(|line| line.sums.count as u64).sum(),
            windows: lines().count() as u64,
        }
    };
    texts.iter().enumerate().map(record).collect()
}
