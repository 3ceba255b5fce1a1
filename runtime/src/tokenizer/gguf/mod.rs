//! The tokenizer of a GGUF file as `tokenizer.json` and `tokenizer_config.json`.
//!
//! Owns what the keys of tokenizers mean. The two kinds that decoder models use are read: byte pairs over
//! bytes (`gpt2`) and `SentencePiece`'s byte pairs with scores (`llama`). Whether the result holds together
//! is checked where every `tokenizer.json` is.

mod merges;
mod pre;

use std::collections::BTreeMap;
use std::path::Path;

use neuroconv_format::gguf::{Array, Metadata, Value as Meta};
use serde_json::{Map, Value, json};

use crate::Error;
use pre::Pre;
pub use pre::{Model, pre_name};

/// What every key of a tokenizer begins with.
const PREFIX: &str = "tokenizer.ggml.";
/// The key of the chat template.
const TEMPLATE: &str = "tokenizer.chat_template";
/// `SentencePiece`'s mark of a space.
const SPACE: &str = "\u{2581}";

/// What a token is for, as `tokenizer.ggml.token_type` numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl Kind {
    fn of(number: i32) -> Option<Self> {
        Some(match number {
            1 => Kind::Normal,
            2 => Kind::Unknown,
            3 => Kind::Control,
            4 => Kind::UserDefined,
            5 => Kind::Unused,
            6 => Kind::Byte,
            _ => return None,
        })
    }
}

/// The files that a tokenizer is read from, by name; none where the metadata describe no tokenizer.
pub(crate) fn side_files(
    metadata: &Metadata,
    path: &Path,
) -> Result<Vec<(&'static str, Value)>, Error> {
    let keys = Keys { metadata, path };
    let Some(model) = keys.text("model")? else {
        return Ok(Vec::new());
    };
    let vocab = Vocab::read(&keys)?;
    let (tokenizer, begins) = match Model::named(model) {
        Some(Model::Bytes) => byte_level(&keys, &vocab)?,
        Some(Model::Scores) => sentence_piece(&keys, &vocab)?,
        None => {
            let problem = "is neither byte pairs over bytes nor with scores";
            return Err(keys.bad("model", format!("`{model}` {problem}")));
        }
    };
    let config = vocab.config(&keys, begins)?;
    Ok(vec![
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", config),
    ])
}

/// Typed access to the keys of the tokenizer.
struct Keys<'a> {
    metadata: &'a Metadata,
    path: &'a Path,
}

impl<'a> Keys<'a> {
    fn bad(&self, key: &str, problem: impl Into<String>) -> Error {
        Error::GgufTokenizer {
            path: self.path.to_owned(),
            key: format!("{PREFIX}{key}"),
            problem: problem.into(),
        }
    }

    fn get(&self, key: &str) -> Option<&'a Meta> {
        self.metadata.get(&format!("{PREFIX}{key}"))
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, Error> {
        let text = |value: &'a Meta| value.text().ok_or_else(|| self.bad(key, "is no text"));
        self.get(key).map(text).transpose()
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Meta::Bool(on)) => Ok(Some(*on)),
            Some(_) => Err(self.bad(key, "is neither true nor false")),
        }
    }

    fn texts(&self, key: &str) -> Result<&'a [String], Error> {
        match self.get(key) {
            Some(Meta::Array(Array::Text(texts))) => Ok(texts),
            _ => Err(self.bad(key, "is no list of texts")),
        }
    }
}

/// The tokens, what each is for, and which have a meaning of their own.
struct Vocab<'a> {
    tokens: &'a [String],
    kinds: Vec<Kind>,
    /// Ids by text, without what stands for nothing.
    ids: BTreeMap<&'a str, u32>,
}

impl<'a> Vocab<'a> {
    fn read(keys: &Keys<'a>) -> Result<Self, Error> {
        let tokens = keys.texts("tokens")?;
        let kinds = match keys.get("token_type") {
            None => vec![Kind::Normal; tokens.len()],
            Some(Meta::Array(Array::I32(kinds))) if kinds.len() == tokens.len() => {
                let kinds = kinds.iter().map(|kind| Kind::of(*kind));
                let kinds: Option<Vec<Kind>> = kinds.collect();
                kinds
                    .ok_or_else(|| keys.bad("token_type", "has a number that is none of 1 to 6"))?
            }
            Some(_) => return Err(keys.bad("token_type", "is no list of one I32 per token")),
        };
        let mut ids = BTreeMap::new();
        for ((id, token), kind) in (0_u32..).zip(tokens).zip(&kinds) {
            if *kind != Kind::Unused && ids.insert(token.as_str(), id).is_some() {
                return Err(keys.bad("tokens", format!("`{token}` occurs twice")));
            }
        }
        Ok(Vocab { tokens, kinds, ids })
    }

    /// `vocab` of the model, in order of ids.
    fn model(&self) -> Map<String, Value> {
        let used = (0_u32..).zip(self.tokens).zip(&self.kinds);
        let used = used.filter(|(_, kind)| **kind != Kind::Unused);
        used.map(|((id, token), _)| (token.clone(), json!(id)))
            .collect()
    }

    /// `added_tokens`: those whose text is never cut.
    fn added(&self) -> Value {
        let all = self.tokens.iter().zip(&self.kinds).enumerate();
        all.filter_map(|(id, (token, kind))| {
            let special = match kind {
                Kind::Control | Kind::Unknown => true,
                Kind::UserDefined => false,
                Kind::Normal | Kind::Unused | Kind::Byte => return None,
            };
            Some(json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": special,
            }))
        })
        .collect()
    }

    /// The token that the key `key` gives the id of.
    fn special(&self, keys: &Keys<'_>, key: &str) -> Result<Option<(usize, &'a str)>, Error> {
        let Some(value) = keys.get(key) else {
            return Ok(None);
        };
        let id = value.count().and_then(|id| usize::try_from(id).ok());
        let token = id.and_then(|id| Some((id, self.tokens.get(id)?.as_str())));
        token
            .map(Some)
            .ok_or_else(|| keys.bad(key, "is no id of a token"))
    }

    /// The token before a text, and the one after it.
    fn around(
        &self,
        keys: &Keys<'_>,
        begins: bool,
    ) -> Result<[Option<(usize, &'a str)>; 2], Error> {
        let wanted = |key: &str, default: bool, token: &str| -> Result<_, Error> {
            if keys.flag(key)?.unwrap_or(default) {
                self.special(keys, token)
            } else {
                Ok(None)
            }
        };
        Ok([
            wanted("add_bos_token", begins, "bos_token_id")?,
            wanted("add_eos_token", false, "eos_token_id")?,
        ])
    }

    /// `post_processor`: the tokens put around a text.
    fn post_processor(&self, keys: &Keys<'_>, begins: bool) -> Result<Value, Error> {
        let around = self.around(keys, begins)?;
        if around == [None, None] {
            return Ok(Value::Null);
        }
        let piece =
            |(_, token): (usize, &str)| json!({ "SpecialToken": { "id": token, "type_id": 0 } });
        let text = |id: &str| json!({ "Sequence": { "id": id, "type_id": 0 } });
        let [before, after] = around.map(|token| token.map(piece));
        let single: Vec<Value> = before.into_iter().chain([text("A")]).chain(after).collect();
        let defined: Map<String, Value> = around
            .into_iter()
            .flatten()
            .map(|(id, token)| {
                let entry = json!({ "id": token, "ids": [id], "tokens": [token] });
                (token.to_owned(), entry)
            })
            .collect();
        Ok(json!({
            "type": "TemplateProcessing", "single": single, "pair": [text("A"), text("B")],
            "special_tokens": defined,
        }))
    }

    /// `tokenizer_config.json`.
    fn config(&self, keys: &Keys<'_>, begins: bool) -> Result<Value, Error> {
        let [before, after] = self.around(keys, begins)?;
        let mut config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": before.is_some(),
            "add_eos_token": after.is_some(),
            "clean_up_tokenization_spaces": false,
        });
        for (name, key) in [
            ("bos_token", "bos_token_id"),
            ("eos_token", "eos_token_id"),
            ("unk_token", "unknown_token_id"),
            ("pad_token", "padding_token_id"),
        ] {
            if let Some((_, token)) = self.special(keys, key)? {
                config[name] = json!(token);
            }
        }
        if let Some(template) = keys.metadata.get(TEMPLATE).and_then(Meta::text) {
            config["chat_template"] = json!(template);
        }
        Ok(config)
    }
}

/// Byte pairs over bytes, and whether a text begins with a token of its own.
fn byte_level(keys: &Keys<'_>, vocab: &Vocab<'_>) -> Result<(Value, bool), Error> {
    let name = keys.text("pre")?.unwrap_or("default");
    let pre = Pre::named(name).ok_or_else(|| {
        let known: Vec<&str> = pre::names().collect();
        let problem = format!("`{name}` is not read; read are {}", known.join(", "));
        keys.bad("pre", problem)
    })?;
    let merges = keys.texts("merges")?.iter().map(|merge| {
        // A token may begin with a space, none has one inside.
        let start = merge.chars().next().map_or(0, char::len_utf8);
        let at = merge[start..].find(' ').map(|at| at + start);
        let (left, right) = merge.split_at(at?);
        Some(json!([left, &right[1..]]))
    });
    let merges: Option<Vec<Value>> = merges.collect();
    let merges = merges.ok_or_else(|| keys.bad("merges", "has one that is no pair"))?;
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": vocab.added(),
        "normalizer": pre.normalizer,
        "pre_tokenizer": pre.cut,
        "post_processor": vocab.post_processor(keys, pre.begins)?,
        "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": pre.ignore_merges, "vocab": vocab.model(), "merges": merges,
        },
    });
    Ok((tokenizer, pre.begins))
}

/// `SentencePiece`'s byte pairs, which begin with a token of their own unless a key says otherwise.
fn sentence_piece(keys: &Keys<'_>, vocab: &Vocab<'_>) -> Result<(Value, bool), Error> {
    let scores = match keys.get("scores") {
        Some(Meta::Array(Array::F32(scores))) if scores.len() == vocab.tokens.len() => scores,
        _ => return Err(keys.bad("scores", "is no list of one F32 per token")),
    };
    if scores.iter().any(|score| score.is_nan()) {
        return Err(keys.bad("scores", "has one that is no number"));
    }
    let mut mergeable: Vec<(&str, f32)> = vocab
        .tokens
        .iter()
        .zip(scores)
        .zip(&vocab.kinds)
        .filter(|(_, kind)| **kind == Kind::Normal)
        .map(|((token, score), _)| (token.as_str(), *score))
        .collect();
    // Files made without SentencePiece's own have one score for all; tokens stand in their order.
    if mergeable
        .windows(2)
        .all(|pair| pair[0].1.total_cmp(&pair[1].1).is_eq())
    {
        let ordered = mergeable.iter_mut().enumerate();
        ordered.for_each(|(at, token)| token.1 = -(at as f32));
    }
    let ids = mergeable.iter().map(|(token, _)| *token);
    let ids = ids.map(|token| (token, vocab.ids[token])).collect();
    let unknown = vocab.kinds.iter().position(|kind| *kind == Kind::Unknown);
    let unknown = match unknown {
        Some(id) => Some(vocab.tokens[id].as_str()),
        None => vocab
            .special(keys, "unknown_token_id")?
            .map(|(_, token)| token),
    };
    let prefix = keys.flag("add_space_prefix")?.unwrap_or(true);
    let marks = json!({ "type": "Replace", "pattern": { "String": " " }, "content": SPACE });
    let spaces = json!({ "type": "Replace", "pattern": { "String": SPACE }, "content": " " });
    let mut normalizers = vec![marks];
    let mut decoders = vec![
        spaces,
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if prefix {
        normalizers.insert(0, json!({ "type": "Prepend", "prepend": SPACE }));
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": vocab.added(),
        "normalizer": { "type": "Sequence", "normalizers": normalizers },
        "pre_tokenizer": null,
        "post_processor": vocab.post_processor(keys, true)?,
        "decoder": { "type": "Sequence", "decoders": decoders },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
            "ignore_merges": false, "vocab": vocab.model(),
            "merges": merges::merges(&ids, &mergeable),
        },
    });
    Ok((tokenizer, true))
}

#[cfg(test)]
mod tests;
