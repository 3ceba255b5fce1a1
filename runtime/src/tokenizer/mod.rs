//! Text to token ids and back, by a model's `tokenizer.json`.
//!
//! Owns the limits on the file, the boundary around the `tokenizers` crate and the streaming of
//! text. Which tokenizers are accepted stands in `check` and `parts`. Padding and truncation
//! settings are ignored: they belong to training, not to running.

mod check;
pub mod gguf;
mod parts;
mod stream;

use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::Tokenizer;

use crate::guard::quietly;
use crate::side::TOKENIZER;
use crate::{Error, SideFiles};

pub use stream::TextStream;

/// Bytes of the largest `tokenizer_config.json` that is read.
pub(crate) const CONFIG_LIMIT: u64 = 16 << 20;

/// The tokenizer of one model.
pub struct TextTokenizer {
    path: PathBuf,
    inner: Tokenizer,
    vocab_size: usize,
    /// Put before a prompt even where the tokenizer's own template does not.
    bos: Option<u32>,
}

impl fmt::Debug for TextTokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "TextTokenizer({}, {} ids)",
            self.path.display(),
            self.vocab_size
        )
    }
}

impl TextTokenizer {
    /// Reads `tokenizer.json` and, where present, `tokenizer_config.json` from the folder `dir`.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        TextTokenizer::of(&SideFiles::Folder(dir.to_owned()))
    }

    /// Reads the same files of a model, wherever they are.
    pub fn of(side: &SideFiles) -> Result<Self, Error> {
        let path = side.path(TOKENIZER);
        let file = side.tokenizer()?;
        let checked = check::check(&path, file)?;
        let failed = |detail| Error::TokenizerFailed {
            path: path.clone(),
            detail,
        };
        let inner = quietly(|| Tokenizer::from_bytes(checked.json.to_string()))
            .map_err(failed)?
            .map_err(|error| failed(error.to_string()))?;
        for (content, id) in &checked.added {
            let found = inner.token_to_id(content);
            if found != Some(*id) {
                return Err(Error::Tokenizer {
                    path,
                    place: format!("added token `{content}`"),
                    problem: format!("says id {id}, but gets {found:?}"),
                });
            }
        }
        let config = side.read_json("tokenizer_config.json", CONFIG_LIMIT)?;
        let bos = config
            .as_ref()
            .and_then(|config| wanted_bos(config, &inner));
        Ok(TextTokenizer {
            path,
            inner,
            vocab_size: checked.vocab_size,
            bos,
        })
    }

    /// One more than the largest id that the tokenizer can give.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The id of a token by its exact text.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The ids of `text` alone. No special tokens are put around it; the text of a special token
    /// inside `text` does become that token.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, Error> {
        self.encode(text, false)
    }

    /// The ids of `text` as the start of a text to continue: with the special tokens that the
    /// tokenizer's template puts around it, and the begin-of-text token where
    /// `tokenizer_config.json` sets `add_bos_token`.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, Error> {
        let mut ids = self.encode(text, true)?;
        if let Some(bos) = self.bos
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// The text of `ids`, special tokens left out. Bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> Result<String, Error> {
        quietly(|| self.inner.decode(ids, true))
            .map_err(|detail| self.failed(detail))?
            .map_err(|error| self.failed(error.to_string()))
    }

    /// Decodes ids as they come, from the start of a text.
    pub fn stream(&self) -> TextStream<'_> {
        self.stream_after(&[])
    }

    /// Decodes ids as they come after those of `before`, whose text is not given out. A first
    /// word keeps the space that it would lose at the start of a text.
    pub fn stream_after(&self, before: &[u32]) -> TextStream<'_> {
        TextStream::new(self, before)
    }

    fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, Error> {
        let encoding = quietly(|| self.inner.encode_fast(text, special))
            .map_err(|detail| self.failed(detail))?
            .map_err(|error| self.failed(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    fn failed(&self, detail: String) -> Error {
        Error::TokenizerFailed {
            path: self.path.clone(),
            detail,
        }
    }
}

/// The begin-of-text id that `tokenizer_config.json` asks for.
fn wanted_bos(config: &Value, tokenizer: &Tokenizer) -> Option<u32> {
    if config.get("add_bos_token") != Some(&Value::Bool(true)) {
        return None;
    }
    tokenizer.token_to_id(token_text(config.get("bos_token")?)?)
}

/// The text of a special token as configurations spell it: a string, or an object with `content`.
pub(crate) fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

#[cfg(test)]
mod tests;
