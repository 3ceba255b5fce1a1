//! Greedy continuations of fixed prompts by two models, and where they part.

use std::ops::ControlFlow;

use neuroconv_runtime::{Decoder, Progress, Sampler, SamplerConfig, generate};

use crate::Error;
use crate::protocol::Window;

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
    base: &Decoder,
    artifact: &Decoder,
    windows: &[Window],
    read: usize,
    progress: &dyn Progress,
) -> Result<Vec<Continuation>, Error> {
    let new = (read / READ_PER_NEW / PROMPTS).clamp(LEAST_TOKENS, NEW_TOKENS);
    let prompts: Vec<&[u32]> = prompts(windows).collect();
    let positions = base.spec().max_positions.min(artifact.spec().max_positions);
    progress.start("greedy", prompts.len() as u64, "prompts");
    let mut out = Vec::with_capacity(prompts.len());
    for prompt in prompts {
        let room = positions.saturating_sub(prompt.len()).min(new);
        if prompt.is_empty() || room == 0 {
            continue;
        }
        let write = |decoder: &Decoder| -> Result<Vec<u32>, Error> {
            let mut sampler = Sampler::new(SamplerConfig::default())?;
            let more = &mut |_| ControlFlow::Continue(());
            Ok(generate(decoder, prompt, room, &mut sampler, more)?.tokens)
        };
        out.push(Continuation {
            prompt: prompt.to_vec(),
            original: write(base)?,
            artifact: write(artifact)?,
        });
        progress.advance(1);
    }
    progress.finish();
    Ok(out)
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
