//! The whole of a verification: parity, comparison with the original, verdict.

use std::time::Instant;

use neuroconv_recipes::Limits;
use neuroconv_runtime::{KvCodec, Progress, WeightSource};

use crate::Error;
use crate::compare::Comparison;
use crate::gate::{Judgement, judge};
use crate::metrics::Metrics;
use crate::parity::{Parity, ParityLimits};
use crate::protocol::{EvalText, MIN_SCORED_TOKENS, Protocol, Window, windows};
use crate::report::{CorpusRecord, StageRecord};
use crate::scorer::{ReferenceScorer, RuntimeScorer};

/// How an artifact is verified.
#[derive(Clone, Debug, PartialEq)]
pub struct VerifyOptions {
    /// How texts are cut.
    pub protocol: Protocol,
    /// Tokens per window.
    pub ctx: usize,
    /// Tokens to use of each text, counting whole windows; `None` is all of it.
    pub max_tokens: Option<usize>,
    /// The user's budget.
    pub limits: Limits,
    /// Whether quality checks may be waived.
    pub allow_quality_loss: bool,
    /// Windows that parity is measured on, spread over all; at least one is taken.
    pub parity_windows: usize,
    /// Number format of the cache while quality is measured. Parity is measured in single precision,
    /// since it is the weights' arithmetic that must agree.
    pub kv: KvCodec,
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
    /// Where the time went.
    pub stages: Vec<StageRecord>,
    /// Number format of the cache that quality was measured with.
    pub kv: KvCodec,
}

/// Verifies `artifact` against `base` on `texts`.
///
/// The original runs through the reference forward, layer by layer, so it may be larger than
/// memory; the artifact runs through the runtime, as users will run it. Parity compares the
/// runtime with the reference forward of the artifact's own weights. Fewer than 512 scored
/// tokens in all are [`Error::TooLittleText`].
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
    let (cut, corpora) = cut_all(texts, options)?;
    let mut stages = Vec::new();
    let mut stage = |name: &str, wall_s| {
        stages.push(StageRecord {
            name: name.to_owned(),
            wall_s,
        });
    };

    let start = Instant::now();
    let runtime = RuntimeScorer::new(artifact)?;
    stage("verify: load", start.elapsed().as_secs_f64());
    let start = Instant::now();
    let reference = ReferenceScorer::new(artifact)?;
    let sample = spread(&cut, options.parity_windows.max(1));
    let limits = ParityLimits::of(artifact)?;
    let parity = Parity::measure(&reference, &runtime, &sample, limits, progress)?;
    drop(reference);
    stage("verify: parity", start.elapsed().as_secs_f64());

    let runtime = runtime.with_kv(options.kv);
    let original = ReferenceScorer::new(base)?;
    let comparison = Comparison::run(&original, &runtime, &cut, progress)?;
    stage("verify: original", comparison.base_s);
    stage("verify: artifact", comparison.artifact_s);
    stage("verify: scores", comparison.score_s);
    let metrics = Metrics::of(&comparison)?;
    let judgement = judge(
        &metrics,
        &parity,
        &options.limits,
        options.allow_quality_loss,
    )?;
    Ok(Verification {
        metrics,
        parity,
        judgement,
        corpora,
        stages,
        kv: options.kv,
    })
}

/// The windows of all texts, one text after the other, and what was taken of each.
fn cut_all(
    texts: &[EvalText],
    options: &VerifyOptions,
) -> Result<(Vec<Window>, Vec<CorpusRecord>), Error> {
    let mut all = Vec::new();
    let mut corpora = Vec::new();
    for text in texts {
        let cut = windows(text, options.protocol, options.ctx, options.max_tokens)?;
        corpora.push(CorpusRecord {
            name: text.name.clone(),
            sha256: text.sha256.clone(),
            protocol: options.protocol.name().to_owned(),
            ctx: options.ctx,
            tokens: scored(&cut) as u64,
            windows: cut.len() as u64,
        });
        all.extend(cut);
    }
    match scored(&all) {
        enough if enough >= MIN_SCORED_TOKENS => Ok((all, corpora)),
        scored => Err(Error::TooLittleText {
            scored,
            needed: MIN_SCORED_TOKENS,
        }),
    }
}

fn scored(windows: &[Window]) -> usize {
    windows.iter().map(|w| w.scored.len()).sum()
}

/// `count` windows at even distances, or all where there are no more.
fn spread(windows: &[Window], count: usize) -> Vec<Window> {
    let count = count.min(windows.len());
    (0..count)
        .map(|i| windows[i * windows.len() / count].clone())
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
            limits: Limits {
                max_ppl_ratio: None,
                max_kld: None,
                min_top1: None,
                max_p99_kld: None,
            },
            allow_quality_loss: false,
            parity_windows: 2,
            kv: KvCodec::F32,
        }
    }

    #[test]
    fn texts_are_cut_one_by_one_and_counted_together() {
        let text = |name: &str, n: u32| EvalText::new(name, name, (0..n).collect(), None);
        let (cut, corpora) = cut_all(&[text("a", 300), text("b", 400)], &options()).unwrap();
        assert_eq!(
            (cut.len(), corpora[0].windows, corpora[1].tokens),
            (5, 2, 384)
        );
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

    #[test]
    fn parity_windows_are_spread() {
        let windows: Vec<Window> = (0..10)
            .map(|i| Window {
                tokens: vec![i],
                scored: 1..1,
            })
            .collect();
        let first = |n| {
            spread(&windows, n)
                .iter()
                .map(|w| w.tokens[0])
                .collect::<Vec<_>>()
        };
        assert_eq!(first(3), [0, 3, 6]);
        assert_eq!(first(99).len(), 10);
    }
}
