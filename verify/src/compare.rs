//! Models on the same windows, in lock-step, one block of rows at a time.
//!
//! Logits exist for a block of rows only and scores for a window, so memory grows neither with
//! text nor with context; nothing is rounded on the way.

use std::ops::Range;
use std::time::Instant;

use crate::parallel::each_window;
use neuroconv_runtime::{Head, Progress};

use crate::Error;
use crate::logit_cache::{LogitCache, Recorder};
use crate::metrics::Metrics;
use crate::protocol::Window;
use crate::score::score;
use crate::scorer::Scorer;
use crate::stats::Level;
use crate::tally::{Tally, WindowScores};

/// Floats of logits that one model may hold per thread.
const LOGIT_FLOATS: usize = 1 << 22;
/// Floats of hidden states that one model may hold for a batch of windows. Every batch reads the
/// model once more, which is little beside what so many tokens take to compute.
const STATE_FLOATS: usize = 1 << 24;

/// A window, where it stands in the order of the texts, and its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Its place among all windows.
    pub index: usize,
    /// Its text.
    pub text: usize,
    /// The window.
    pub window: Window,
}

/// The models that run in lock-step, and where the time went.
pub struct Lockstep<'a> {
    /// The original.
    pub base: &'a dyn Scorer,
    /// The artifact.
    pub artifact: &'a dyn Scorer,
    /// A third model that is compared with the original too.
    pub yardstick: Option<&'a dyn Scorer>,
    /// The original's logits of earlier runs.
    pub cache: Option<&'a LogitCache>,
    /// Seconds in the base's layers.
    pub base_s: f64,
    /// Seconds in the artifact's layers.
    pub artifact_s: f64,
    /// Seconds in the yardstick's layers.
    pub yardstick_s: f64,
    /// Seconds in all heads and the statistics.
    pub score_s: f64,
}

impl<'a> Lockstep<'a> {
    /// Two models, which must have the same vocabulary.
    pub fn new(base: &'a dyn Scorer, artifact: &'a dyn Scorer) -> Result<Self, Error> {
        let (vocab, other) = (base.vocab(), artifact.vocab());
        if vocab != other {
            return Err(Error::Vocabulary {
                base: vocab,
                artifact: other,
            });
        }
        Ok(Lockstep {
            base,
            artifact,
            yardstick: None,
            cache: None,
            base_s: 0.0,
            artifact_s: 0.0,
            yardstick_s: 0.0,
            score_s: 0.0,
        })
    }

    /// Runs the models over `windows` and scores what each window says is scored.
    pub fn run(
        &mut self,
        windows: &[Placed],
        tally: &mut Tally,
        progress: &dyn Progress,
    ) -> Result<(), Error> {
        check_tokens(windows.iter().map(|w| &w.window), self.base.vocab())?;
        let width = self.base.hidden_size().max(self.artifact.hidden_size());
        for batch in windows.chunks(batch_size(windows.iter().map(|w| &w.window), width)) {
            for (placed, scores) in batch.iter().zip(self.batch(batch, progress)?) {
                tally.add(placed.index, placed.text, &scores);
            }
        }
        Ok(())
    }

    fn batch(
        &mut self,
        batch: &[Placed],
        progress: &dyn Progress,
    ) -> Result<Vec<WindowScores>, Error> {
        let tokens: Vec<&[u32]> = batch.iter().map(|p| p.window.tokens.as_slice()).collect();
        let start = Instant::now();
        let base_states = self.base_states(batch, progress)?;
        let base_end = Instant::now();
        let states = self.artifact.hidden(&tokens, progress)?;
        let artifact_end = Instant::now();
        let yardstick = self
            .yardstick
            .map(|y| Ok::<_, Error>((y, y.hidden(&tokens, progress)?)));
        let yardstick = yardstick.transpose()?;
        let end = Instant::now();
        progress.start("scores", batch.len() as u64, "windows");
        let scores = each_window(batch.len(), |i| {
            let window = &batch[i].window;
            let mut base = BaseRows::of(self.base, self.cache, window, base_states[i].as_deref())?;
            let third = yardstick
                .as_ref()
                .map(|(y, states)| (*y, states[i].as_slice()));
            let scores = window_scores(window, &mut base, (self.artifact, &states[i]), third)?;
            base.keep()?;
            progress.advance(1);
            Ok(scores)
        });
        let scores = scores?;
        progress.finish();
        self.base_s += (base_end - start).as_secs_f64();
        self.artifact_s += (artifact_end - base_end).as_secs_f64();
        self.yardstick_s += (end - artifact_end).as_secs_f64();
        self.score_s += end.elapsed().as_secs_f64();
        Ok(scores)
    }

    /// The base's hidden states of the windows whose logits are not cached.
    fn base_states(
        &self,
        batch: &[Placed],
        progress: &dyn Progress,
    ) -> Result<Vec<Option<Vec<f32>>>, Error> {
        let cached = |p: &Placed| self.cache.is_some_and(|c| c.has(&p.window));
        let known: Vec<bool> = batch.iter().map(cached).collect();
        let unknown = batch.iter().zip(&known).filter(|(_, known)| !**known);
        let tokens: Vec<&[u32]> = unknown.map(|(p, _)| p.window.tokens.as_slice()).collect();
        let mut states = match tokens.as_slice() {
            [] => Vec::new(),
            tokens => self.base.hidden(tokens, progress)?,
        }
        .into_iter();
        Ok(known
            .iter()
            .map(|&known| if known { None } else { states.next() })
            .collect())
    }
}

/// How `artifact` compares with `base` over the scored tokens of `windows`.
pub fn metrics(
    base: &dyn Scorer,
    artifact: &dyn Scorer,
    windows: &[Window],
    progress: &dyn Progress,
) -> Result<Metrics, Error> {
    let place = |(index, window): (usize, &Window)| Placed {
        index,
        text: 0,
        window: window.clone(),
    };
    let windows: Vec<Placed> = windows.iter().enumerate().map(place).collect();
    let mut tally = Tally::default();
    Lockstep::new(base, artifact)?.run(&windows, &mut tally, progress)?;
    Metrics::of(&tally, Level::Final)
}

/// The mean divergence of `artifact` from `base` over the scored tokens of `windows`, in nats.
pub fn mean_kld(
    base: &dyn Scorer,
    artifact: &dyn Scorer,
    windows: &[Window],
    progress: &dyn Progress,
) -> Result<f64, Error> {
    Ok(metrics(base, artifact, windows, progress)?.kld_mean.value)
}

/// The mean divergence over all tokens of a model from another, in nats, from their heads and the
/// residual streams `[t, hidden]` of the same windows after their last layers.
///
/// Panics where they do not have the same vocabulary and windows.
pub fn mean_kld_of_streams(
    (base, base_streams): (&Head, &[Vec<f32>]),
    (other, other_streams): (&Head, &[Vec<f32>]),
) -> Result<f64, Error> {
    let vocab = base.vocab();
    assert_eq!(vocab, other.vocab(), "one vocabulary");
    assert_eq!(base_streams.len(), other_streams.len(), "the same windows");
    let rows = (LOGIT_FLOATS / vocab.max(1)).clamp(1, 256);
    let sums = each_window(base_streams.len(), |window| {
        let base_blocks = base_streams[window].chunks(rows * base.hidden_size());
        let other_blocks = other_streams[window].chunks(rows * other.hidden_size());
        let (mut sum, mut tokens) = (0.0, 0);
        for (b, o) in base_blocks.zip(other_blocks) {
            let (b, o) = (base.logits(b), other.logits(o));
            for (b, o) in b.chunks_exact(vocab).zip(o.chunks_exact(vocab)) {
                // The divergence is the same whatever token follows.
                sum += score(b, o, 0).0.kld;
                tokens += 1;
            }
        }
        if f64::is_finite(sum) {
            Ok((sum, tokens))
        } else {
            Err(Error::NotFinite { window })
        }
    })?;
    let tokens: usize = sums.iter().map(|(_, tokens)| tokens).sum();
    Ok(sums.iter().map(|(sum, _)| sum).sum::<f64>() / tokens.max(1) as f64)
}

/// The base's logits of one window, block by block: computed and recorded, or read.
enum BaseRows<'a> {
    Computed(&'a dyn Scorer, &'a [f32], Option<Recorder>),
    Read(crate::logit_cache::Reader),
}

impl<'a> BaseRows<'a> {
    fn of(
        scorer: &'a dyn Scorer,
        cache: Option<&LogitCache>,
        window: &Window,
        states: Option<&'a [f32]>,
    ) -> Result<Self, Error> {
        match (states, cache) {
            (Some(states), None) => Ok(BaseRows::Computed(scorer, states, None)),
            (Some(states), Some(cache)) => Ok(BaseRows::Computed(
                scorer,
                states,
                Some(cache.record(window)?),
            )),
            (None, Some(cache)) => Ok(BaseRows::Read(cache.read(window)?)),
            (None, None) => Ok(BaseRows::Computed(scorer, &[], None)),
        }
    }

    fn next(&mut self, rows: Range<usize>) -> Result<Vec<f32>, Error> {
        match self {
            BaseRows::Computed(scorer, states, recorder) => {
                let logits = block(*scorer, states, rows)?;
                if let Some(recorder) = recorder {
                    recorder.write(&logits)?;
                }
                Ok(logits)
            }
            BaseRows::Read(reader) => reader.next(rows.len()),
        }
    }

    /// Keeps what was recorded, now that the window is complete.
    fn keep(self) -> Result<(), Error> {
        match self {
            BaseRows::Computed(_, _, Some(recorder)) => recorder.finish(),
            _ => Ok(()),
        }
    }
}

fn block(scorer: &dyn Scorer, states: &[f32], rows: Range<usize>) -> Result<Vec<f32>, Error> {
    let width = scorer.hidden_size();
    scorer.logits(&states[rows.start * width..rows.end * width])
}

/// Every id must be one that the model has an embedding for.
pub(crate) fn check_tokens<'w>(
    windows: impl Iterator<Item = &'w Window>,
    vocab: usize,
) -> Result<(), Error> {
    let bad = windows
        .flat_map(|w| &w.tokens)
        .find(|&&t| t as usize >= vocab);
    bad.map_or(Ok(()), |&token| Err(Error::Token { token, vocab }))
}

/// How many windows may run at once so that their hidden states stay within a fixed amount of
/// memory.
pub(crate) fn batch_size<'w>(windows: impl Iterator<Item = &'w Window>, hidden: usize) -> usize {
    let longest = windows.map(|w| w.tokens.len()).max().unwrap_or(1).max(1);
    (STATE_FLOATS / longest.saturating_mul(hidden).max(1)).max(1)
}

/// The rows whose logits predict the scored tokens of a window, in blocks of bounded size.
pub(crate) fn row_blocks(
    window: &Window,
    vocab: usize,
) -> impl Iterator<Item = Range<usize>> + use<> {
    let scored = &window.scored;
    let first = scored.start.saturating_sub(1);
    let end = scored.end.min(window.tokens.len()).saturating_sub(1);
    let step = (LOGIT_FLOATS / vocab.max(1)).clamp(1, 256);
    (first..end)
        .step_by(step)
        .map(move |row| row..(row + step).min(end))
}

fn window_scores(
    window: &Window,
    base: &mut BaseRows<'_>,
    (artifact, states): (&dyn Scorer, &[f32]),
    yardstick: Option<(&dyn Scorer, &[f32])>,
) -> Result<WindowScores, Error> {
    let vocab = artifact.vocab();
    let mut scores = WindowScores::default();
    for rows in row_blocks(window, vocab) {
        let b = base.next(rows.clone())?;
        let a = block(artifact, states, rows.clone())?;
        let y = yardstick.map(|(scorer, states)| block(scorer, states, rows.clone()));
        let y = y.transpose()?;
        let pairs = b.chunks_exact(vocab).zip(a.chunks_exact(vocab));
        for (i, (b, a)) in pairs.enumerate() {
            let place = rows.start + i + 1;
            let share = place as f64 / window.tokens.len() as f64;
            let y = y.as_ref().map(|y| &y[i * vocab..(i + 1) * vocab]);
            scores.add(b, a, y, window.tokens[place], share);
        }
    }
    Ok(scores)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_the_predicting_rows() {
        let window = Window {
            tokens: vec![0; 600],
            scored: 1..600,
        };
        let blocks: Vec<_> = row_blocks(&window, 4096).collect();
        assert_eq!(blocks, [0..256, 256..512, 512..599]);
        let half = Window {
            tokens: vec![0; 8],
            scored: 5..8,
        };
        assert!(row_blocks(&half, 10).eq(std::iter::once(4..7)));
        assert_eq!(row_blocks(&half, usize::MAX).count(), 3);
    }

    #[test]
    fn batches_bound_the_states() {
        let window = Window {
            tokens: vec![0; 256],
            scored: 1..256,
        };
        let size = |hidden| batch_size(std::iter::once(&window), hidden);
        assert_eq!(
            (size(384), size(4096), size(usize::MAX / 256)),
            (170, 16, 1)
        );
    }
}
