//! Text out of tokens that come one by one, never a broken character.

use super::TextTokenizer;
use crate::Error;

/// Tokens that may at most be held back: a character has four bytes, and no token less than one.
const MAX_HELD: usize = 8;

/// Gives the text of a growing sequence of tokens in whole characters.
///
/// A token alone does not say its text: a character may be spread over several tokens, and a
/// decoder may drop a space at the start. So each piece is decoded together with the one before
/// it, whose text is then taken off, and is held back while it ends inside a character.
#[derive(Debug)]
pub struct TextStream<'t> {
    tokenizer: &'t TextTokenizer,
    /// The piece that was given out last, then what is held back.
    ids: Vec<u32>,
    given: usize,
}

impl<'t> TextStream<'t> {
    pub(super) fn new(tokenizer: &'t TextTokenizer, before: &[u32]) -> Self {
        let ids = before[before.len().saturating_sub(MAX_HELD)..].to_vec();
        TextStream {
            tokenizer,
            given: ids.len(),
            ids,
        }
    }

    /// Adds one token; the text that is complete now, often none.
    pub fn push(&mut self, id: u32) -> Result<String, Error> {
        self.ids.push(id);
        let held = self.ids.len() - self.given;
        self.take(held > MAX_HELD)
    }

    /// The text that is still held back, its broken characters as U+FFFD.
    pub fn finish(mut self) -> Result<String, Error> {
        self.take(true)
    }

    fn take(&mut self, even_broken: bool) -> Result<String, Error> {
        let before = self.tokenizer.decode(&self.ids[..self.given])?;
        let now = self.tokenizer.decode(&self.ids)?;
        if now.ends_with(char::REPLACEMENT_CHARACTER) && !even_broken {
            return Ok(String::new());
        }
        let Some(text) = now.strip_prefix(before.as_str()) else {
            return Ok(if even_broken { now } else { String::new() });
        };
        if text.is_empty() {
            return Ok(String::new());
        }
        let text = text.to_owned();
        self.ids.drain(..self.given);
        self.given = self.ids.len();
        Ok(text)
    }
}
