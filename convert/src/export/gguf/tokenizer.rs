//! The tokenizer of a model as the keys of a GGUF file.
//!
//! Owns the two kinds that llama.cpp has for such models: byte pairs over bytes, whose way of cutting text
//! must have a name there, and `SentencePiece`'s byte pairs, whose merges become scores.

use neuroconv_format::gguf::{Array, Metadata, Value as Meta};
use neuroconv_recipes::ModelSpec;
use neuroconv_runtime::tokenizer::gguf::{Model, pre_name};
use serde_json::Value;

use crate::export::ExportError;
use crate::export::side::Side;

const FILE: &str = "tokenizer.json";
/// `SentencePiece`'s mark of a space.
const SPACE: &str = "\u{2581}";

/// Numbers of `tokenizer.ggml.token_type`.
mod kind {
    pub(super) const NORMAL: i32 = 1;
    pub(super) const UNKNOWN: i32 = 2;
    pub(super) const CONTROL: i32 = 3;
    pub(super) const USER_DEFINED: i32 = 4;
    pub(super) const UNUSED: i32 = 5;
    pub(super) const BYTE: i32 = 6;
}

/// Adds the keys of the tokenizer.
pub(crate) fn add(out: &mut Metadata, spec: &ModelSpec, side: &Side) -> Result<(), ExportError> {
    let refuse = |reason: &str| ExportError::Tokenizer {
        path: FILE.into(),
        reason: reason.to_owned(),
    };
    let json = side
        .json(FILE)?
        .ok_or_else(|| refuse("the model has none"))?;
    let config = side.json("tokenizer_config.json")?.unwrap_or(Value::Null);
    if json["model"]["type"] != "BPE" {
        return Err(refuse(
            "only tokenizers that merge byte pairs have a counterpart",
        ));
    }
    let merges =
        merges(&json["model"]["merges"]).ok_or_else(|| refuse("the merges are no pairs"))?;
    let sentence_piece = json["model"]["byte_fallback"] == true;
    let mut vocabulary = Vocabulary::read(&json, spec.vocab)
        .ok_or_else(|| refuse("a token has an id beyond the vocabulary of the model"))?;
    let mut key = |name: &str, value: Meta| out.push(format!("tokenizer.ggml.{name}"), value);
    if sentence_piece {
        if json["pre_tokenizer"]["type"] == "ByteLevel" {
            return Err(refuse("falls back to bytes and cuts into bytes"));
        }
        vocabulary.mark_bytes();
        let scores = vocabulary.scores(&merges);
        key(
            "model",
            Meta::Text(Model::Scores.name().unwrap_or_default().to_owned()),
        );
        key("pre", Meta::Text("default".to_owned()));
        key("scores", Meta::Array(Array::F32(scores)));
        key("add_space_prefix", Meta::Bool(prepends_space(&json)));
    } else {
        let pre = pre_name(&json).ok_or_else(|| {
            refuse("its way of cutting text has no name in llama.cpp that is known here")
        })?;
        key(
            "model",
            Meta::Text(Model::Bytes.name().unwrap_or_default().to_owned()),
        );
        key("pre", Meta::Text(pre.to_owned()));
        let pairs = merges
            .iter()
            .map(|(left, right)| format!("{left} {right}"))
            .collect();
        key("merges", Meta::Array(Array::Text(pairs)));
    }
    let id_of = |name: &str| token_text(&config[name]).and_then(|text| vocabulary.id(text));
    let bos = spec.special.bos.or_else(|| id_of("bos_token"));
    let eos = spec
        .special
        .eos
        .first()
        .copied()
        .or_else(|| id_of("eos_token"));
    for (name, id) in [
        ("bos_token_id", bos),
        ("eos_token_id", eos),
        ("unknown_token_id", id_of("unk_token")),
        ("padding_token_id", id_of("pad_token")),
    ] {
        if let Some(id) = id {
            key(name, Meta::U32(id));
        }
    }
    let begins = config["add_bos_token"]
        .as_bool()
        .unwrap_or_else(|| adds_first(&json));
    key("add_bos_token", Meta::Bool(begins && bos.is_some()));
    key("add_eos_token", Meta::Bool(config["add_eos_token"] == true));
    key("token_type", Meta::Array(Array::I32(vocabulary.kinds)));
    key("tokens", Meta::Array(Array::Text(vocabulary.tokens)));
    let template = side.text("chat_template.jinja");
    let template = template.or_else(|| config["chat_template"].as_str().map(ToOwned::to_owned));
    if let Some(template) = template {
        out.push("tokenizer.chat_template", Meta::Text(template));
    }
    Ok(())
}

/// Every id's token and kind.
struct Vocabulary {
    tokens: Vec<String>,
    kinds: Vec<i32>,
}

impl Vocabulary {
    /// The tokens of `json`, and names of their own for ids without one.
    fn read(json: &Value, size: usize) -> Option<Self> {
        let mut tokens: Vec<String> = (0..size).map(|id| format!("[PAD{id}]")).collect();
        let mut kinds = vec![kind::UNUSED; size];
        let place = |id: &Value| usize::try_from(id.as_u64()?).ok();
        for (token, id) in json["model"]["vocab"].as_object()? {
            let id = place(id)?;
            token.clone_into(tokens.get_mut(id)?);
            kinds[id] = kind::NORMAL;
        }
        let unknown = json["model"]["unk_token"].as_str();
        for added in json["added_tokens"].as_array().into_iter().flatten() {
            let (id, content) = (place(&added["id"])?, added["content"].as_str()?);
            content.clone_into(tokens.get_mut(id)?);
            kinds[id] = match (added["special"] == true, unknown == Some(content)) {
                (_, true) => kind::UNKNOWN,
                (true, false) => kind::CONTROL,
                (false, false) => kind::USER_DEFINED,
            };
        }
        Some(Vocabulary { tokens, kinds })
    }

    fn id(&self, token: &str) -> Option<u32> {
        let at = self.tokens.iter().position(|t| t == token)?;
        u32::try_from(at).ok()
    }

    /// Marks the tokens that stand for single bytes.
    fn mark_bytes(&mut self) {
        for (token, kind) in self.tokens.iter().zip(&mut self.kinds) {
            let hex = token.strip_prefix("<0x").and_then(|t| t.strip_suffix('>'));
            if hex.is_some_and(|hex| hex.len() == 2 && u8::from_str_radix(hex, 16).is_ok()) {
                *kind = kind::BYTE;
            }
        }
    }

    /// The earlier a token is merged, the higher its score; what nothing merges into comes last.
    fn scores(&self, merges: &[(&str, &str)]) -> Vec<f32> {
        let mut rank = std::collections::BTreeMap::new();
        for (at, (left, right)) in merges.iter().enumerate() {
            rank.entry(format!("{left}{right}")).or_insert(at);
        }
        let last = merges.len();
        let score = |(token, &of): (&String, &i32)| match of {
            kind::NORMAL => -(rank.get(token).copied().unwrap_or(last) as f32),
            _ => 0.0,
        };
        self.tokens.iter().zip(&self.kinds).map(score).collect()
    }
}

/// Pairs of tokens, in either spelling.
fn merges(list: &Value) -> Option<Vec<(&str, &str)>> {
    list.as_array()?
        .iter()
        .map(|merge| match merge {
            Value::String(text) => text.split_once(' '),
            Value::Array(two) => match two.as_slice() {
                [left, right] => Some((left.as_str()?, right.as_str()?)),
                _ => None,
            },
            _ => None,
        })
        .collect()
}

/// Whether a text begins with a space that it does not have.
fn prepends_space(json: &Value) -> bool {
    let normalizer = &json["normalizer"];
    let steps = normalizer["normalizers"].as_array();
    let mut steps = steps
        .map_or(std::slice::from_ref(normalizer), Vec::as_slice)
        .iter();
    let prepends = steps.any(|step| step["type"] == "Prepend" && step["prepend"] == SPACE);
    let meta = &json["pre_tokenizer"];
    let scheme = meta["prepend_scheme"].as_str().unwrap_or("always");
    prepends || meta["type"] == "Metaspace" && scheme != "never"
}

/// Whether the template of single texts begins with a special token.
fn adds_first(json: &Value) -> bool {
    let processor = &json["post_processor"];
    let steps = processor["processors"].as_array();
    let mut steps = steps
        .map_or(std::slice::from_ref(processor), Vec::as_slice)
        .iter();
    steps.any(|step| step["single"][0]["SpecialToken"].is_object())
}

/// The text of a special token as configurations spell it.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value["content"].as_str())
}
