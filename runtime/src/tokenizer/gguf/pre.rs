//! The names that GGUF files have for kinds of tokenizers and for how text is cut before byte pairs are
//! merged, each with the steps of a `tokenizer.json` that it stands for.
//!
//! Owns the table; both directions use it. A name is here only where its steps give the ids that
//! llama.cpp gives.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::{Value, json};

/// English contractions in either case.
const CONTRACTIONS: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
/// What follows words and numbers in the patterns since GPT-4: punctuation, line ends, spaces.
const REST: &str = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// GPT-2's pattern.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// The words of the keys, which are data: some are names of families.
static WORDS: LazyLock<Words> = LazyLock::new(|| {
    serde_json::from_str(include_str!("words.json")).expect("a test parses the embedded words")
});

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Words {
    /// Values of `tokenizer.ggml.model`.
    models: BTreeMap<String, Model>,
    /// Values of `tokenizer.ggml.pre`.
    pre: Vec<Row>,
}

/// Kinds of tokenizers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Model {
    /// Byte pairs over bytes.
    Bytes,
    /// `SentencePiece`'s byte pairs, with scores.
    Scores,
}

impl Model {
    /// The kind that the value `name` of `tokenizer.ggml.model` stands for.
    pub(super) fn named(name: &str) -> Option<Self> {
        WORDS.models.get(name).copied()
    }

    /// The value of `tokenizer.ggml.model` for this kind.
    pub fn name(self) -> Option<&'static str> {
        let mut models = WORDS.models.iter();
        models
            .find(|(_, model)| **model == self)
            .map(|(name, _)| name.as_str())
    }
}

/// How text is cut, and what else a name says.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    /// The names; files are written with the first.
    names: Vec<String>,
    cut: Cut,
    /// Whether a piece that is a token is one without merges.
    ignore_merges: bool,
    /// Whether a text begins with a token of its own where no key says.
    begins: bool,
}

/// Ways of cutting text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Cut {
    /// GPT-2's pattern.
    Gpt2,
    /// Every digit alone, then GPT-2's pattern.
    Digits,
    /// Contractions, words, up to three digits, and the rest.
    ThreeDigits,
    /// The same with single digits, after composing characters.
    OneDigit,
    /// Words by upper and lower case, single digits, and the rest.
    Cased,
    /// llama.cpp's own, where no name is given: punctuation, GPT-2's pattern, digits by threes.
    Default,
}

/// What a name says of a byte-level tokenizer, in the words of `tokenizer.json`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pre {
    pub(crate) normalizer: Value,
    /// `pre_tokenizer`.
    pub(crate) cut: Value,
    pub(crate) ignore_merges: bool,
    /// Whether a text begins with a token of its own where no key says.
    pub(crate) begins: bool,
}

impl Pre {
    /// What the value `name` of `tokenizer.ggml.pre` stands for.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let named = |row: &&Row| row.names.iter().any(|known| known == name);
        let row = WORDS.pre.iter().find(named)?;
        Some(row.pre())
    }
}

/// Every name that is understood.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    let names = WORDS.pre.iter().flat_map(|row| &row.names);
    names.map(String::as_str)
}

/// The value of `tokenizer.ggml.pre` for a byte-level `tokenizer.json`; `None` where no name stands for
/// its steps.
pub fn pre_name(tokenizer: &Value) -> Option<&'static str> {
    let ignore_merges = tokenizer["model"]["ignore_merges"] == true;
    let cut = (
        steps(&tokenizer["normalizer"], "normalizers"),
        steps(&tokenizer["pre_tokenizer"], "pretokenizers"),
    );
    let same = |row: &&Row| {
        let pre = row.pre();
        let known = (
            steps(&pre.normalizer, "normalizers"),
            steps(&pre.cut, "pretokenizers"),
        );
        row.ignore_merges == ignore_merges && known == cut
    };
    let names = &WORDS.pre.iter().find(same)?.names;
    names.first().map(String::as_str)
}

impl Row {
    fn pre(&self) -> Pre {
        let (normalizer, cut) = self.cut.steps();
        Pre {
            normalizer,
            cut,
            ignore_merges: self.ignore_merges,
            begins: self.begins,
        }
    }
}

impl Cut {
    /// Normalizer and pre-tokenizer.
    fn steps(self) -> (Value, Value) {
        let words = r"[^\r\n\p{L}\p{N}]?\p{L}+";
        match self {
            Cut::Gpt2 => (Value::Null, byte_level(true)),
            Cut::Digits => {
                let digits = json!({ "type": "Digits", "individual_digits": true });
                (Value::Null, sequence(&[digits, byte_level(true)]))
            }
            Cut::ThreeDigits => {
                let pattern = format!(r"{CONTRACTIONS}|{words}|\p{{N}}{{1,3}}|{REST}");
                (Value::Null, split_once(&pattern))
            }
            Cut::OneDigit => {
                let pattern = format!(r"{CONTRACTIONS}|{words}|\p{{N}}|{REST}");
                (json!({ "type": "NFC" }), split_once(&pattern))
            }
            Cut::Cased => {
                let (upper, lower) = (
                    r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]",
                    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]",
                );
                let before = r"[^\r\n\p{L}\p{N}]?";
                let rest = REST.replacen(r"[\r\n]*", r"[\r\n/]*", 1);
                let pattern =
                    format!(r"{before}{upper}*{lower}+|{before}{upper}+{lower}*|\p{{N}}|{rest}");
                (Value::Null, split_once(&pattern))
            }
            Cut::Default => {
                let patterns = [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"];
                let mut all: Vec<Value> = patterns.iter().map(|pattern| split(pattern)).collect();
                all.push(byte_level(false));
                (Value::Null, sequence(&all))
            }
        }
    }
}

/// One pattern whose matches are pieces, then bytes as characters.
fn split_once(pattern: &str) -> Value {
    sequence(&[split(pattern), byte_level(false)])
}

fn split(pattern: &str) -> Value {
    json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false })
}

fn byte_level(use_regex: bool) -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex })
}

fn sequence(steps: &[Value]) -> Value {
    json!({ "type": "Sequence", "pretokenizers": steps })
}

/// The steps of a normalizer or pre-tokenizer one after the other, without what does not change ids.
fn steps(value: &Value, list: &str) -> Vec<Value> {
    match (value, value[list].as_array()) {
        (Value::Null, _) => Vec::new(),
        (_, Some(inner)) => inner.iter().flat_map(|step| steps(step, list)).collect(),
        (step, None) => {
            let mut step = step.clone();
            if let Some(map) = step.as_object_mut() {
                map.remove("trim_offsets");
                if map.get("type") == Some(&json!("ByteLevel")) {
                    map.entry("use_regex").or_insert(json!(true));
                    map.entry("add_prefix_space").or_insert(json!(true));
                }
            }
            vec![step]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer(pre: &Pre) -> Value {
        json!({
            "normalizer": pre.normalizer,
            "pre_tokenizer": pre.cut,
            "model": { "ignore_merges": pre.ignore_merges },
        })
    }

    #[test]
    fn names_are_distinct_and_found_by_their_steps() {
        let mut all: Vec<&str> = names().collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        for row in &WORDS.pre {
            for name in &row.names {
                let pre = Pre::named(name).unwrap();
                assert_eq!(pre_name(&tokenizer(&pre)), Some(row.names[0].as_str()));
            }
        }
        assert_eq!(Pre::named("other"), None);
    }

    #[test]
    fn spellings_without_effect_do_not_matter_and_others_do() {
        let spelt = |pre_tokenizer: Value| json!({ "normalizer": null, "pre_tokenizer": pre_tokenizer, "model": {} });
        let short = json!({ "type": "ByteLevel", "add_prefix_space": false });
        assert_eq!(pre_name(&spelt(short.clone())), Some("gpt-2"));
        let nested = sequence(&[sequence(&[short])]);
        assert_eq!(pre_name(&spelt(nested)), Some("gpt-2"));
        let spaced = json!({ "type": "ByteLevel", "add_prefix_space": true });
        assert_eq!(pre_name(&spelt(spaced)), None);
        assert_eq!(pre_name(&spelt(Value::Null)), None);
        let mut llama = tokenizer(&Pre::named("llama-bpe").unwrap());
        llama["model"]["ignore_merges"] = json!(false);
        assert_eq!(pre_name(&llama), Some("dbrx"));
    }
}
