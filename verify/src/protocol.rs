//! How a text becomes windows, and which of their tokens are scored.
//!
//! Owns the two evaluation protocols. Knows token ids only: a tokenizer made them.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::Error;

/// Fewest scored tokens that a verdict is given on.
pub const MIN_SCORED_TOKENS: usize = 512;

/// A text that models are measured on, tokenized once as a whole without special tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvalText {
    /// What reports call it.
    pub name: String,
    /// SHA-256 of the text's bytes, in hexadecimal.
    pub sha256: String,
    /// The token ids, no special token among them.
    pub tokens: Vec<u32>,
    /// The id that the tokenizer puts before a text when asked for special tokens, if it does.
    /// Only [`Protocol::LlamaCpp512`] uses it.
    pub bos: Option<u32>,
}

impl EvalText {
    /// A text and its tokens; takes the hash of `text`.
    pub fn new(name: impl Into<String>, text: &str, tokens: Vec<u32>, bos: Option<u32>) -> Self {
        let sha256 = format!("{:x}", Sha256::digest(text));
        EvalText {
            name: name.into(),
            sha256,
            tokens,
            bos,
        }
    }
}

/// How a text is cut into windows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    /// Consecutive windows of `ctx` tokens without special tokens; positions `1..ctx` are
    /// scored, so each window yields `ctx - 1` predictions. Mean over all of them.
    #[default]
    #[serde(rename = "windows")]
    Windows,
    /// What llama.cpp's `perplexity` does with a context of `ctx`, 512 by default there.
    ///
    /// If the tokenizer puts a token before a text, the stream begins with that token and it
    /// also *replaces* the first token of each window. Positions `ctx/2 + 1..ctx` are scored:
    /// `ctx - ctx/2 - 1` predictions per window, each with at least `ctx/2` tokens before it.
    #[serde(rename = "llamacpp-512")]
    LlamaCpp512,
}

impl Protocol {
    /// The name used on the command line and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Protocol::Windows => "windows",
            Protocol::LlamaCpp512 => "llamacpp-512",
        }
    }

    /// The positions of a window of `ctx` tokens whose token is predicted and scored.
    pub fn scored(self, ctx: usize) -> Range<usize> {
        let first = match self {
            Protocol::Windows => 0,
            Protocol::LlamaCpp512 => ctx / 2,
        };
        first + 1..ctx.max(first + 1)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Protocol {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        [Protocol::Windows, Protocol::LlamaCpp512]
            .into_iter()
            .find(|p| p.name() == s)
            .ok_or_else(|| Error::UnknownProtocol(s.to_owned()))
    }
}

/// Tokens that a model reads at once from position 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// What the model reads.
    pub tokens: Vec<u32>,
    /// Positions in `tokens` that are scored; position `p` is predicted by the logits of `p - 1`.
    pub scored: Range<usize>,
}

/// Cuts a text into windows of `ctx` tokens. What is left at the end and does not fill a window
/// is dropped; at most `max_tokens` tokens are used, counting whole windows (40,960 tokens at a
/// context of 256 are 160 windows).
pub fn windows(
    text: &EvalText,
    protocol: Protocol,
    ctx: usize,
    max_tokens: Option<usize>,
) -> Result<Vec<Window>, Error> {
    let scored = protocol.scored(ctx);
    if scored.is_empty() {
        return Err(Error::ContextTooShort {
            ctx,
            protocol: protocol.name(),
        });
    }
    let bos = match protocol {
        Protocol::Windows => None,
        Protocol::LlamaCpp512 => text.bos,
    };
    let stream: Vec<u32> = bos.into_iter().chain(text.tokens.iter().copied()).collect();
    let limit = max_tokens.unwrap_or(usize::MAX) / ctx;
    let window = |chunk: &[u32]| {
        let mut tokens = chunk.to_vec();
        if let (Some(bos), Some(first)) = (bos, tokens.first_mut()) {
            *first = bos;
        }
        Window {
            tokens,
            scored: scored.clone(),
        }
    };
    Ok(stream.chunks_exact(ctx).take(limit).map(window).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(n: u32, bos: Option<u32>) -> EvalText {
        EvalText::new("t", "abc", (10..10 + n).collect(), bos)
    }

    #[test]
    fn windows_are_consecutive_and_the_rest_is_dropped() {
        let w = windows(&text(11, Some(1)), Protocol::Windows, 4, None).unwrap();
        assert_eq!(w.len(), 2);
        assert_eq!(
            w[0],
            Window {
                tokens: vec![10, 11, 12, 13],
                scored: 1..4
            }
        );
        assert_eq!(
            w[1],
            Window {
                tokens: vec![14, 15, 16, 17],
                scored: 1..4
            }
        );
    }

    #[test]
    fn llama_cpp_scores_the_second_half_after_the_first_token_is_replaced() {
        let w = windows(&text(11, Some(1)), Protocol::LlamaCpp512, 4, None).unwrap();
        assert_eq!(w.len(), 3);
        assert_eq!(
            w[0],
            Window {
                tokens: vec![1, 10, 11, 12],
                scored: 3..4
            }
        );
        assert_eq!(
            w[1],
            Window {
                tokens: vec![1, 14, 15, 16],
                scored: 3..4
            }
        );
        let plain = windows(&text(11, None), Protocol::LlamaCpp512, 4, None).unwrap();
        assert_eq!((plain.len(), &plain[1].tokens), (2, &vec![14, 15, 16, 17]));
        assert_eq!(Protocol::LlamaCpp512.scored(512).len(), 255);
    }

    #[test]
    fn the_budget_counts_tokens_of_whole_windows() {
        let text = text(50_000, None);
        let count = |max| windows(&text, Protocol::Windows, 256, max).unwrap().len();
        assert_eq!(count(Some(40_960)), 160);
        assert_eq!(count(Some(40_959)), 159);
        assert_eq!(count(Some(255)), 0);
        assert_eq!(count(None), 195);
    }

    #[test]
    fn contexts_that_score_nothing_are_refused() {
        for (protocol, ctx) in [
            (Protocol::Windows, 0),
            (Protocol::Windows, 1),
            (Protocol::LlamaCpp512, 0),
            (Protocol::LlamaCpp512, 1),
            (Protocol::LlamaCpp512, 2),
        ] {
            let found = windows(&text(9, None), protocol, ctx, None);
            assert!(
                matches!(found, Err(Error::ContextTooShort { .. })),
                "{protocol} {ctx}"
            );
        }
    }

    #[test]
    fn names_round_trip_and_the_hash_is_sha256() {
        for p in [Protocol::Windows, Protocol::LlamaCpp512] {
            assert_eq!(p.name().parse::<Protocol>().unwrap(), p);
            assert_eq!(serde_json::to_value(p).unwrap(), p.name());
        }
        assert!(matches!(
            "llama".parse::<Protocol>(),
            Err(Error::UnknownProtocol(_))
        ));
        assert!(text(1, None).sha256.starts_with("ba7816bf8f01cfea"));
    }
}
