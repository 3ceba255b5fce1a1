//! Greedy continuations of fixed prompts by two models, and where they part.

use neuroconv_runtime::{KvCache, Progress};

use crate::Error;
use crate::protocol::Window;
use crate::score::first_largest;
use crate::scorer::{RuntimeScorer, Scorer as _};

/// Prompts that are continued.
const PROMPTS: usize = 4;
/// Tokens of a prompt.
const PROMPT_TOKENS: usize = 24;
/// Tokens that each model writes at most.
const NEW_TOKENS: usize = 64;
/// Tokens that each model writes at least.
const LEAST_TOKENS: usize = 16;
/// Tokens of text for each token that is written: written one at a time, a token costs as much as
/// about ten that are read.
const READ_PER_NEW: usize = 64;

/// Both models' continuations of one prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Continuation {
    /// The prompt.
    pub prompt: Vec<u32>,
    /// What the original writes.
    pub original: Vec<u32>,
    /// What the artifact writes.
    pub artifact: Vec<u32>,
}

impl Continuation {
    /// The first token that differs, counted from 0; none where all are the same.
    pub fn divergence(&self) -> Option<usize> {
        let same = self
            .original
            .iter()
            .zip(&self.artifact)
            .take_while(|(a, b)| a == b)
            .count();
        let longest = self.original.len().max(self.artifact.len());
        (same < longest).then_some(same)
    }
}

/// The prompts: beginnings of windows at even distances, the same for any artifact.
fn prompts(windows: &[Window]) -> impl Iterator<Item = &[u32]> {
    let count = PROMPTS.min(windows.len());
    let tokens = (0..count).map(move |i| windows[i * windows.len() / count].tokens.as_slice());
    tokens.map(|tokens| &tokens[..tokens.len().min(PROMPT_TOKENS)])
}

/// Lets both models continue the same prompts with the likeliest token each time, for as long as that
/// is little beside the `read` tokens of text that both have read.
pub fn continuations(
    base: &RuntimeScorer<'_>,
    artifact: &RuntimeScorer<'_>,
    windows: &[Window],
    read: usize,
    progress: &dyn Progress,
) -> Result<Vec<Continuation>, Error> {
    let new = (read / READ_PER_NEW / PROMPTS).clamp(LEAST_TOKENS, NEW_TOKENS);
    let positions = base.spec().max_positions.min(artifact.spec().max_positions);
    let fits = |prompt: &&[u32]| !prompt.is_empty() && prompt.len() < positions;
    let prompts: Vec<&[u32]> = prompts(windows).filter(fits).collect();
    let longest = prompts.iter().map(|prompt| prompt.len()).max().unwrap_or(0);
    let new = new.min(positions - longest);
    progress.start("greedy", 2 * new as u64, "tokens");
    let (original, artifact) = (
        continued(base, &prompts, new, progress)?,
        continued(artifact, &prompts, new, progress)?,
    );
    progress.finish();
    let both = original.into_iter().zip(artifact);
    Ok(prompts
        .into_iter()
        .zip(both)
        .map(|(prompt, (original, artifact))| Continuation {
            prompt: prompt.to_vec(),
            original,
            artifact,
        })
        .collect())
}

/// What the model writes after each prompt, up to `new` tokens. All prompts go through a layer before
/// the next is read.
fn continued(
    model: &RuntimeScorer<'_>,
    prompts: &[&[u32]],
    new: usize,
    progress: &dyn Progress,
) -> Result<Vec<Vec<u32>>, Error> {
    let eos = &model.spec().special.eos;
    let mut written: Vec<Vec<u32>> = vec![Vec::new(); prompts.len()];
    let mut ended = vec![false; prompts.len()];
    let mut caches: Vec<KvCache> = prompts.iter().map(|_| model.new_cache()).collect();
    let mut read: Vec<Vec<u32>> = prompts.iter().map(|prompt| prompt.to_vec()).collect();
    for _ in 0..new {
        if !ended.iter().all(|&ended| ended) {
            let tokens: Vec<&[u32]> = read.iter().map(Vec::as_slice).collect();
            let logits = model.next(&tokens, &mut caches)?;
            for (i, logits) in logits.iter().enumerate() {
                let token = first_largest(logits) as u32;
                ended[i] |= eos.contains(&token);
                if !ended[i] {
                    written[i].push(token);
                }
                read[i] = vec![token];
            }
        }
        progress.advance(1);
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continuations_part_where_they_first_differ() {
        let of = |a: &[u32], b: &[u32]| {
            let c = Continuation {
                prompt: vec![1],
                original: a.to_vec(),
                artifact: b.to_vec(),
            };
            c.divergence()
        };
        assert_eq!(of(&[1, 2, 3], &[1, 2, 3]), None);
        assert_eq!(of(&[1, 2, 3], &[1, 5, 3]), Some(1));
        assert_eq!(of(&[1, 2, 3], &[1, 2]), Some(2));
    }
}
