//! Continues a prompt token by token.

use std::ops::ControlFlow;

use crate::{Decoder, Error, Sampler};

/// What came after a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// The new tokens, without the one that ended the text.
    pub tokens: Vec<u32>,
    /// Why there are no more.
    pub stop: Stop,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The model ended the text.
    EndOfText,
    /// As many tokens as asked for.
    MaxTokens,
    /// The model has no more positions.
    ContextFull,
    /// The caller had enough.
    Caller,
}

/// Continues `prompt` by up to `max_tokens` tokens, each given to `on_token` as soon as it is
/// chosen. The tokens that end a text are those of the model's description.
pub fn generate(
    decoder: &Decoder,
    prompt: &[u32],
    max_tokens: usize,
    sampler: &mut Sampler,
    on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
) -> Result<Generation, Error> {
    let spec = decoder.spec();
    let mut cache = decoder.new_cache();
    let mut tokens = Vec::new();
    let mut hidden_td = decoder.hidden(prompt, &mut cache)?;
    let stop = loop {
        if tokens.len() == max_tokens {
            break Stop::MaxTokens;
        }
        let last_d = &hidden_td[hidden_td.len() - spec.hidden..];
        let token = sampler.sample(&decoder.logits(last_d))?;
        if spec.special.eos.contains(&token) {
            break Stop::EndOfText;
        }
        tokens.push(token);
        if on_token(token).is_break() {
            break Stop::Caller;
        }
        if tokens.len() < max_tokens {
            if cache.len() == spec.max_positions {
                break Stop::ContextFull;
            }
            hidden_td = decoder.hidden(&[token], &mut cache)?;
        }
    };
    Ok(Generation { tokens, stop })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SamplerConfig;
    use crate::testing::{Model, spec};

    fn run(decoder: &Decoder, max_tokens: usize, limit: usize) -> (Generation, Vec<u32>) {
        let mut seen = Vec::new();
        let mut on_token = |token| {
            seen.push(token);
            if seen.len() == limit {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        let found = generate(
            decoder,
            &[1, 5, 9],
            max_tokens,
            &mut Sampler::greedy(),
            &mut on_token,
        );
        (found.unwrap(), seen)
    }

    #[test]
    fn greedy_tokens_are_those_of_the_whole_text_run_again() {
        let decoder = Decoder::load(&Model::random(spec())).unwrap();
        let (found, seen) = run(&decoder, 12, usize::MAX);
        assert_eq!(
            (&found.tokens, found.tokens.len(), found.stop),
            (&seen, 12, Stop::MaxTokens)
        );
        let mut text = vec![1, 5, 9];
        for token in found.tokens {
            let hidden_td = decoder.hidden(&text, &mut decoder.new_cache()).unwrap();
            let logits = decoder.logits(&hidden_td[(text.len() - 1) * decoder.spec().hidden..]);
            assert_eq!(Sampler::greedy().sample(&logits).unwrap(), token);
            text.push(token);
        }
    }

    #[test]
    fn every_reason_to_stop_is_told() {
        let mut model = Model::random(spec());
        let decoder = Decoder::load(&model).unwrap();
        let (all, _) = run(&decoder, 5, usize::MAX);
        assert!(run(&decoder, 0, usize::MAX).0.tokens.is_empty());
        let (stopped, _) = run(&decoder, 5, 2);
        assert_eq!(
            (&stopped.tokens[..], stopped.stop),
            (&all.tokens[..2], Stop::Caller)
        );

        model.spec.special.eos = vec![all.tokens[0]];
        let (ended, _) = run(&Decoder::load(&model).unwrap(), 5, usize::MAX);
        assert_eq!((ended.tokens.len(), ended.stop), (0, Stop::EndOfText));

        model.spec.special.eos.clear();
        model.spec.max_positions = 6;
        let (full, _) = run(&Decoder::load(&model).unwrap(), 50, usize::MAX);
        assert_eq!((full.tokens.len(), full.stop), (4, Stop::ContextFull));
        let mut cut = Sampler::greedy();
        let decoder = Decoder::load(&model).unwrap();
        let long = generate(&decoder, &[1; 7], 1, &mut cut, &mut |_| {
            ControlFlow::Continue(())
        });
        assert!(matches!(long, Err(Error::Context { asked: 7, limit: 6 })));
    }

    #[test]
    fn a_seed_fixes_the_text() {
        let decoder = Decoder::load(&Model::random(spec())).unwrap();
        let text = |seed| {
            let config = SamplerConfig {
                temperature: 1.5,
                top_k: None,
                top_p: 0.95,
                seed,
            };
            let mut sampler = Sampler::new(config).unwrap();
            let on_token = &mut |_| ControlFlow::Continue(());
            generate(&decoder, &[1], 20, &mut sampler, on_token)
                .unwrap()
                .tokens
        };
        assert_eq!(text(4), text(4));
        assert_ne!(text(4), text(5));
    }
}
