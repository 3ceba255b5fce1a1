//! The whole of a verification: parity, stored tensors, comparison with the original, verdict.

use std::path::PathBuf;
use std::time::Instant;

use neuroconv_recipes::Limits;
use neuroconv_runtime::{KvCodec, Progress, WeightSource};

use crate::Error;
use crate::audit::{Audit, audit};
use crate::compare::{Lockstep, Placed};
use crate::drift::{LayerDrift, layer_drift};
use crate::gate::{Bar, Evidence, Judgement, decided, judge};
use crate::greedy::{Continuation, continuations as continue_both};
use crate::logit_cache::LogitCache;
use crate::metrics::{Metrics, Row};
use crate::parity::{Parity, ParityLimits};
use crate::protocol::{EvalText, MIN_SCORED_TOKENS, Protocol, Window, windows};
use crate::report::{CorpusRecord, StageRecord};
use crate::scorer::{ReferenceScorer, RuntimeScorer, Scorer};
use crate::stats::Level;
use crate::tally::Tally;
use crate::yardstick::{Rounded, Yardstick};

/// Tokens per window of the long rows.
const LONG_CTX: usize = 2048;
/// Windows before the first look: with fewer, intervals mean little.
const FIRST_LOOK: usize = 16;
/// Looks before the end: after an eighth, a quarter and a half of the windows.
const LOOKS: [usize; 3] = [8, 4, 2];

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
    /// Windows that parity is measured on, spread over all; at least one is taken.
    pub parity_windows: usize,
    /// Number format of the cache while quality is measured. Parity is measured in single precision,
    /// since it is the weights' arithmetic that must agree.
    pub kv: KvCodec,
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
    run.compare(&cut, &mut tally, &mut clock, progress)?;
    let metrics = Metrics::of(&tally, Level::Final)?;
    let judgement = judge(&metrics, &run.evidence(), options.allow_quality_loss)?;
    let details = run.details(texts, &cut, &mut clock, progress)?;
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
    runtime: RuntimeScorer,
    base_runtime: RuntimeScorer,
    base_reference: ReferenceScorer<'a>,
    /// Whether the runtime reproduces the reference for the original.
    base_agrees: bool,
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
        let sample = spread(cut, options.parity_windows.max(1));
        let parity = clock.time("parity", || {
            let reference = ReferenceScorer::new(artifact)?;
            let limits = ParityLimits::of(artifact)?;
            Parity::measure(&reference, &runtime, &sample, limits, progress)
        })?;
        let runtime = runtime.with_kv(options.kv);
        let audit = clock.time("stored tensors", || audit(base, artifact, progress))?;
        let base_runtime = RuntimeScorer::new(base)?;
        let base_reference = ReferenceScorer::new(base)?;
        let base_agrees = clock.time("parity of the original", || {
            let limits = ParityLimits::of(base)?;
            let few = &sample[..sample.len().min(1)];
            match Parity::measure(&base_reference, &base_runtime, few, limits, progress) {
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
            base_reference,
            base_agrees,
            parity,
            audit,
        })
    }

    /// What computes the original.
    fn original(&self) -> &dyn Scorer {
        if self.base_agrees {
            &self.base_runtime
        } else {
            &self.base_reference
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

    /// Runs the models in lock-step over as many windows as the checks need.
    fn compare(
        &self,
        cut: &[Placed],
        tally: &mut Tally,
        clock: &mut Clock,
        progress: &dyn Progress,
    ) -> Result<(), Error> {
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
        Ok(())
    }

    /// What no check rests on.
    fn details(
        &self,
        texts: &[EvalText],
        cut: &[Placed],
        clock: &mut Clock,
        progress: &dyn Progress,
    ) -> Result<Details, Error> {
        if !self.options.thorough {
            return Ok(Details::default());
        }
        let long = clock.time("long windows", || self.long_rows(texts, progress))?;
        let sample = spread(cut, self.options.parity_windows.max(1));
        let layers = clock.time("layers", || {
            let layers = layer_drift(self.original(), &self.runtime, &sample, progress)?;
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
            let (base, artifact) = (self.base_runtime.decoder(), self.runtime.decoder());
            continue_both(base, artifact, &windows, progress)
        })?;
        Ok(Details {
            long,
            layers,
            continuations,
        })
    }

    /// One row per text that has a window as long as the model takes, up to 2048 tokens, on at
    /// most an eighth of the tokens.
    fn long_rows(&self, texts: &[EvalText], progress: &dyn Progress) -> Result<Vec<Row>, Error> {
        let (original, artifact) = (self.original(), &self.runtime);
        let ctx = original
            .spec()
            .max_positions
            .min(artifact.spec().max_positions);
        let ctx = ctx.min(LONG_CTX);
        if ctx <= self.options.ctx {
            return Ok(Vec::new());
        }
        let budget = self.options.max_tokens.unwrap_or(usize::MAX) / 8;
        let mut rows = Vec::new();
        for (text, source) in texts.iter().enumerate() {
            let cut = windows(source, self.options.protocol, ctx, Some(budget.max(ctx)))?;
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

/// After how many of `n` windows the checks are looked at, the last time after all.
fn looks(n: usize, early: bool) -> Vec<usize> {
    let before = LOOKS.iter().map(|part| n / part);
    let before = before.filter(|&k| early && k >= FIRST_LOOK);
    before.chain(std::iter::once(n)).collect()
}

/// The windows in an order in which every beginning is spread over all texts: steps of about the
/// golden section of their number.
fn scattered(cut: &[Placed]) -> Vec<Placed> {
    let n = cut.len();
    let mut step = (n * 618 / 1000).max(1);
    let divides = |a: usize, b: usize| {
        let (mut a, mut b) = (a, b);
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    while divides(step, n.max(1)) != 1 {
        step += 1;
    }
    (0..n).map(|i| cut[i * step % n].clone()).collect()
}

/// The windows of all texts, one text after the other.
fn cut_all(texts: &[EvalText], options: &VerifyOptions) -> Result<Vec<Placed>, Error> {
    let mut all: Vec<Placed> = Vec::new();
    for (text, source) in texts.iter().enumerate() {
        let cut = windows(source, options.protocol, options.ctx, options.max_tokens)?;
        let first = all.len();
        all.extend(cut.into_iter().enumerate().map(|(i, window)| Placed {
            index: first + i,
            text,
            window,
        }));
    }
    match all.iter().map(|p| p.window.scored.len()).sum() {
        enough if enough >= MIN_SCORED_TOKENS => Ok(all),
        scored => Err(Error::TooLittleText {
            scored,
            needed: MIN_SCORED_TOKENS,
        }),
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

/// `count` windows at even distances, or all where there are no more.
fn spread(cut: &[Placed], count: usize) -> Vec<Window> {
    let count = count.min(cut.len());
    (0..count)
        .map(|i| cut[i * cut.len() / count].window.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> VerifyOptions {
        VerifyOptions {
            protocol: Protocol::Windows,
            ctx: 129,
            max_tokens: None,
            stop_early: true,
            limits: Limits::default(),
            yardstick: None,
            allow_quality_loss: false,
            parity_windows: 2,
            kv: KvCodec::F32,
            logit_cache: None,
            thorough: true,
        }
    }

    #[test]
    fn texts_are_cut_one_by_one_and_counted_together() {
        let text = |name: &str, n: u32| EvalText::new(name, name, (0..n).collect(), None);
        let cut = cut_all(&[text("a", 300), text("b", 400)], &options()).unwrap();
        let places: Vec<_> = cut.iter().map(|p| (p.index, p.text)).collect();
        assert_eq!(places, [(0, 0), (1, 0), (2, 1), (3, 1), (4, 1)]);
        let few = cut_all(&[text("a", 300), text("b", 200)], &options());
        assert!(matches!(
            few,
            Err(Error::TooLittleText {
                scored: 384,
                needed: 512
            })
        ));
        assert!(matches!(
            cut_all(&[], &options()),
            Err(Error::TooLittleText { scored: 0, .. })
        ));
    }

    fn placed(n: usize) -> Vec<Placed> {
        let window = |i: usize| Window {
            tokens: vec![i as u32],
            scored: 1..1,
        };
        (0..n)
            .map(|index| Placed {
                index,
                text: 0,
                window: window(index),
            })
            .collect()
    }

    #[test]
    fn parity_windows_are_spread() {
        let first = |n| {
            spread(&placed(10), n)
                .iter()
                .map(|w| w.tokens[0])
                .collect::<Vec<_>>()
        };
        assert_eq!(first(3), [0, 3, 6]);
        assert_eq!(first(99).len(), 10);
    }

    #[test]
    fn every_beginning_of_the_order_covers_the_texts() {
        for n in [1, 2, 16, 80, 97, 160, 161] {
            let order = scattered(&placed(n));
            let mut seen: Vec<usize> = order.iter().map(|p| p.index).collect();
            let (early, quarter) = (seen[..n / 4].to_vec(), n / 4);
            for part in 0..4 {
                let range = part * n / 4..(part + 1) * n / 4;
                let count = early.iter().filter(|i| range.contains(i)).count();
                assert!(quarter < 8 || count > 0, "{n}: none of {quarter}");
            }
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..n), "{n}");
        }
    }

    #[test]
    fn looks_need_windows_and_permission() {
        assert_eq!(looks(160, true), [20, 40, 80, 160]);
        assert_eq!(looks(80, true), [20, 40, 80]);
        assert_eq!(looks(20, true), [20]);
        assert_eq!(looks(160, false), [160]);
    }
}
