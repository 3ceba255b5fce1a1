//! What a `tokenizer.json` may hold before the `tokenizers` crate sees it.
//!
//! The crate panics, aborts or multiplies text without bound on files that contradict
//! themselves. Here the parts that decoder models use are listed and everything else is refused;
//! within them, whatever the crate takes for granted is checked: merges lie in the vocabulary,
//! templates name tokens that exist, sequences are shallow, growth is bounded.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Map, Value, json};

use super::parts::{Fault, Growth, decoder_growth, normalizer_growth, pre_tokenizer_growth};
use crate::Error;

/// Ids above this are no vocabulary.
const ID_LIMIT: u64 = 1 << 24;
/// Bytes of an added token.
const ADDED_LIMIT: usize = 4096;
/// Sequences inside each other.
const DEPTH: usize = 4;
/// Steps of one sequence, pieces of one template.
pub(super) const STEPS: usize = 64;
/// Bytes that one byte of text may become before it is cut into tokens.
const GROWTH_LIMIT: usize = 64;

/// A tokenizer that may be loaded.
pub(super) struct Checked {
    /// The file without what is ignored.
    pub(super) json: Value,
    /// Added tokens with the ids they must get.
    pub(super) added: Vec<(String, u32)>,
    /// One more than the largest id.
    pub(super) vocab_size: usize,
}

/// Checks the parsed file `file` of `path`.
pub(super) fn check(path: &Path, file: Value) -> Result<Checked, Error> {
    let check = Check { path };
    let Value::Object(mut file) = file else {
        return Err(check.bad("the file", "is not an object"));
    };
    let mut part = |name: &str| file.remove(name).unwrap_or(Value::Null);
    let (model, added) = (part("model"), part("added_tokens"));
    let (normalizer, pre_tokenizer) = (part("normalizer"), part("pre_tokenizer"));
    let (mut post_processor, decoder) = (part("post_processor"), part("decoder"));

    let ids = check.model(&model)?;
    let added_ids = check.added(&added, &ids)?;
    let growth = check.steps(
        "normalizer",
        "normalizers",
        &normalizer,
        DEPTH,
        normalizer_growth,
    )?;
    let further = check.steps(
        "pre_tokenizer",
        "pretokenizers",
        &pre_tokenizer,
        DEPTH,
        pre_tokenizer_growth,
    )?;
    if growth.saturating_mul(further) > GROWTH_LIMIT {
        let problem = format!("could make the text more than {GROWTH_LIMIT} times as long");
        return Err(check.bad("the normalizer", &problem));
    }
    check.steps("decoder", "decoders", &decoder, DEPTH, decoder_growth)?;
    let vocab_size = ids
        .values()
        .chain(added_ids.values())
        .max()
        .map_or(0, |id| id + 1) as usize;
    check.post_processor("post_processor", &mut post_processor, vocab_size, DEPTH)?;
    let json = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": if added.is_null() { json!([]) } else { added.clone() },
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor,
        "decoder": decoder,
        "model": model,
    });
    let added = added_ids
        .into_iter()
        .map(|(content, id)| (content.to_owned(), id))
        .collect();
    Ok(Checked {
        json,
        added,
        vocab_size,
    })
}

/// The kind and the members of a step.
type Step<'s> = (&'s str, &'s Map<String, Value>);

/// The ids of a vocabulary by token.
type Ids<'v> = BTreeMap<&'v str, u32>;

struct Check<'a> {
    path: &'a Path,
}

impl Check<'_> {
    fn bad(&self, place: &str, problem: &str) -> Error {
        Error::Tokenizer {
            path: self.path.to_owned(),
            place: place.to_owned(),
            problem: problem.to_owned(),
        }
    }

    fn unsupported(&self, place: &str, found: &str) -> Error {
        Error::TokenizerPart {
            path: self.path.to_owned(),
            place: place.to_owned(),
            found: found.to_owned(),
        }
    }

    fn fault(&self, place: &str, fault: Fault) -> Error {
        match fault {
            Fault::Unsupported(found) => self.unsupported(place, &found),
            Fault::Bad(problem) => self.bad(place, &problem),
        }
    }

    /// The step `value`, `None` where the part is absent.
    fn step<'s>(&self, place: &str, value: &'s Value) -> Result<Option<Step<'s>>, Error> {
        if value.is_null() {
            return Ok(None);
        }
        let step = value
            .as_object()
            .ok_or_else(|| self.bad(place, "is not an object"))?;
        let kind = step.get("type").and_then(Value::as_str);
        let kind = kind.ok_or_else(|| self.bad(place, "has no `type`"))?;
        Ok(Some((kind, step)))
    }

    /// Checks a step or a sequence of steps; the product of what they do to the length.
    fn steps(
        &self,
        place: &str,
        list: &str,
        value: &Value,
        depth: usize,
        growth: fn(&str, &Map<String, Value>) -> Growth,
    ) -> Result<usize, Error> {
        let Some((kind, step)) = self.step(place, value)? else {
            return Ok(1);
        };
        if kind != "Sequence" {
            return growth(kind, step).map_err(|fault| self.fault(place, fault));
        }
        let mut product = 1_usize;
        for (i, inner) in self.sequence(place, step, list, depth)?.iter().enumerate() {
            let place = format!("{place}[{i}]");
            let factor = self.steps(&place, list, inner, depth - 1, growth)?;
            product = product.saturating_mul(factor);
        }
        Ok(product)
    }

    fn sequence<'s>(
        &self,
        place: &str,
        step: &'s Map<String, Value>,
        list: &str,
        depth: usize,
    ) -> Result<&'s Vec<Value>, Error> {
        let steps = step.get(list).and_then(Value::as_array);
        let steps = steps.ok_or_else(|| self.bad(place, &format!("has no list `{list}`")))?;
        if depth == 0 || steps.len() > STEPS {
            return Err(self.bad(place, "has too many or too deeply nested steps"));
        }
        Ok(steps)
    }

    /// The vocabulary of a byte-pair model whose merges all lie in it.
    fn model<'v>(&self, model: &'v Value) -> Result<Ids<'v>, Error> {
        let place = "the model";
        let model = model
            .as_object()
            .ok_or_else(|| self.bad(place, "is missing"))?;
        match model.get("type").map(|kind| kind.as_str().unwrap_or("?")) {
            Some("BPE") | None => {}
            Some(other) => return Err(self.unsupported(place, other)),
        }
        for name in ["continuing_subword_prefix", "end_of_word_suffix", "dropout"] {
            let value = model.get(name).unwrap_or(&Value::Null);
            if !(value.is_null() || value.as_str() == Some("") || value.as_f64() == Some(0.0)) {
                return Err(self.unsupported(place, name));
            }
        }
        let vocab = model.get("vocab").and_then(Value::as_object);
        let vocab = vocab.ok_or_else(|| self.bad(place, "has no `vocab`"))?;
        let mut ids = Ids::new();
        let mut seen = BTreeSet::new();
        for (token, id) in vocab {
            let id = self.id(&format!("token `{token}`"), id)?;
            if !seen.insert(id) {
                return Err(self.bad(&format!("token `{token}`"), "shares its id with another"));
            }
            ids.insert(token, id);
        }
        match model.get("unk_token").unwrap_or(&Value::Null) {
            Value::Null => {}
            Value::String(token) if ids.contains_key(token.as_str()) => {}
            _ => return Err(self.bad("`unk_token`", "is not in the vocabulary")),
        }
        self.merges(model.get("merges").unwrap_or(&Value::Null), &ids)?;
        Ok(ids)
    }

    fn merges(&self, merges: &Value, ids: &Ids<'_>) -> Result<(), Error> {
        let merges = merges
            .as_array()
            .ok_or_else(|| self.bad("the model", "has no `merges`"))?;
        for (i, merge) in merges.iter().enumerate() {
            let pair = match merge {
                Value::String(text) => text.split_once(' ').filter(|(_, b)| !b.contains(' ')),
                Value::Array(pair) => match pair.as_slice() {
                    [Value::String(a), Value::String(b)] => Some((a.as_str(), b.as_str())),
                    _ => None,
                },
                _ => None,
            };
            let place = format!("merge {i}");
            let (a, b) = pair.ok_or_else(|| self.bad(&place, "is not a pair of tokens"))?;
            for token in [a, b, &format!("{a}{b}")] {
                if !ids.contains_key(token) {
                    let problem = format!("needs `{token}`, which is not in the vocabulary");
                    return Err(self.bad(&place, &problem));
                }
            }
        }
        Ok(())
    }

    fn id(&self, place: &str, value: &Value) -> Result<u32, Error> {
        value
            .as_u64()
            .filter(|id| *id < ID_LIMIT)
            .map(|id| id as u32)
            .ok_or_else(|| self.bad(place, &format!("has the id {value}, not one below 2^24")))
    }

    fn added<'v>(&self, added: &'v Value, ids: &Ids<'_>) -> Result<Ids<'v>, Error> {
        let list = match added {
            Value::Null => return Ok(Ids::new()),
            Value::Array(list) => list,
            _ => return Err(self.bad("`added_tokens`", "is not a list")),
        };
        let of_vocab: BTreeSet<u32> = ids.values().copied().collect();
        let mut seen = BTreeSet::new();
        let mut found = Ids::new();
        for (i, token) in list.iter().enumerate() {
            let place = format!("added token {i}");
            let content = token.get("content").and_then(Value::as_str);
            let content = content
                .filter(|content| !content.is_empty() && content.len() <= ADDED_LIMIT)
                .ok_or_else(|| self.bad(&place, "needs a `content` of a usable length"))?;
            let id = self.id(&place, token.get("id").unwrap_or(&Value::Null))?;
            let consistent = match ids.get(content) {
                Some(of_model) => *of_model == id,
                None => !of_vocab.contains(&id),
            };
            if !consistent || !seen.insert(id) || found.insert(content, id).is_some() {
                return Err(self.bad(&format!("added token `{content}`"), "has a taken id"));
            }
        }
        Ok(found)
    }

    /// Checks what is put around an encoded text. Pairs of texts never occur here, so a
    /// template's `pair` is replaced by the plain one.
    fn post_processor(
        &self,
        place: &str,
        value: &mut Value,
        vocab_size: usize,
        depth: usize,
    ) -> Result<(), Error> {
        let Some((kind, step)) = self.step(place, value)? else {
            return Ok(());
        };
        match kind {
            "ByteLevel" => return Ok(()),
            "Sequence" => {
                self.sequence(place, step, "processors", depth)?;
            }
            "TemplateProcessing" => self.template(place, step, vocab_size)?,
            other => return Err(self.unsupported(place, other)),
        }
        if let Some(pair) = value.get_mut("pair") {
            *pair = json!([{ "Sequence": { "id": "A", "type_id": 0 } },
                           { "Sequence": { "id": "B", "type_id": 0 } }]);
        }
        if let Some(Value::Array(steps)) = value.get_mut("processors") {
            for (i, step) in steps.iter_mut().enumerate() {
                self.post_processor(&format!("{place}[{i}]"), step, vocab_size, depth - 1)?;
            }
        }
        Ok(())
    }

    fn template(
        &self,
        place: &str,
        step: &Map<String, Value>,
        vocab_size: usize,
    ) -> Result<(), Error> {
        let pieces = step.get("single").and_then(Value::as_array);
        let pieces = pieces.ok_or_else(|| self.bad(place, "has no list `single`"))?;
        let mut texts = 0;
        for piece in pieces {
            let text = piece
                .get("Sequence")
                .and_then(|s| s.get("id"))
                .and_then(Value::as_str);
            let token = piece
                .get("SpecialToken")
                .and_then(|s| s.get("id"))
                .and_then(Value::as_str);
            match (text, token) {
                (Some("A"), None) => texts += 1,
                (None, Some(token)) => {
                    let entry = step
                        .get("special_tokens")
                        .and_then(|tokens| tokens.get(token));
                    if !entry.is_some_and(|entry| is_special_token(entry, vocab_size)) {
                        let problem = format!("uses `{token}`, which it does not define");
                        return Err(self.bad(place, &problem));
                    }
                }
                _ => return Err(self.bad(place, "has a piece that is no text and no token")),
            }
        }
        if texts != 1 || pieces.len() > STEPS {
            return Err(self.bad(place, "does not hold the text exactly once"));
        }
        Ok(())
    }
}

/// Whether a template's special token has as many ids as names, all inside the vocabulary.
fn is_special_token(entry: &Value, vocab_size: usize) -> bool {
    let list = |name| entry.get(name).and_then(Value::as_array);
    let (Some(ids), Some(tokens)) = (list("ids"), list("tokens")) else {
        return false;
    };
    ids.len() == tokens.len()
        && (1..=STEPS).contains(&ids.len())
        && ids
            .iter()
            .all(|id| id.as_u64().is_some_and(|id| id < vocab_size as u64))
}
