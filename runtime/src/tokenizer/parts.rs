//! The steps of a tokenizer that are accepted, one by one: normalizers, pre-tokenizers, decoders.
//!
//! Owns the list and what each step may do to the length of a text.

use serde_json::{Map, Value};

use super::check::STEPS;

/// Bytes of one regular expression.
const REGEX_LIMIT: usize = 64 << 10;
/// Open parentheses inside each other in one regular expression.
const REGEX_DEPTH: usize = 32;
/// Bytes of a text that a step inserts.
const INSERT_LIMIT: usize = 64;

/// What one step does to the length of a text, or what is wrong with it.
pub(super) type Growth = Result<usize, Fault>;

/// What is wrong with one part.
pub(super) enum Fault {
    /// A kind of part that is not on the list.
    Unsupported(String),
    /// A part that contradicts itself or a limit.
    Bad(String),
}

impl Fault {
    fn bad(problem: impl Into<String>) -> Self {
        Fault::Bad(problem.into())
    }
}

pub(super) fn normalizer_growth(kind: &str, step: &Map<String, Value>) -> Growth {
    match kind {
        "NFC" | "NFD" => Ok(3),
        "NFKC" | "NFKD" => Ok(11),
        "Lowercase" | "ByteLevel" => Ok(2),
        "Strip" | "StripAccents" => Ok(1),
        "Prepend" => inserted(step, "prepend").map(|_| 1),
        "Replace" => replace_growth(step),
        other => Err(Fault::Unsupported(other.to_owned())),
    }
}

pub(super) fn pre_tokenizer_growth(kind: &str, step: &Map<String, Value>) -> Growth {
    match kind {
        "ByteLevel" => Ok(2),
        "Metaspace" => one_char(step, "replacement").map(char::len_utf8),
        "Digits" | "Punctuation" | "Whitespace" | "WhitespaceSplit" => Ok(1),
        "Split" => pattern(step).map(|_| 1),
        other => Err(Fault::Unsupported(other.to_owned())),
    }
}

pub(super) fn decoder_growth(kind: &str, step: &Map<String, Value>) -> Growth {
    match kind {
        "ByteLevel" | "ByteFallback" | "Fuse" => Ok(1),
        "Metaspace" => one_char(step, "replacement").map(|_| 1),
        "Replace" => replace_growth(step).map(|_| 1),
        "Strip" => {
            one_char(step, "content")?;
            let count = |name| step.get(name).and_then(Value::as_u64);
            match (count("start"), count("stop")) {
                (Some(start), Some(0)) if start <= STEPS as u64 => Ok(1),
                _ => Err(Fault::bad("strips more than a few characters at the start")),
            }
        }
        other => Err(Fault::Unsupported(other.to_owned())),
    }
}

/// Bytes that a byte may become: the inserted text stands for at least one matched byte, and a
/// pattern that matches nothing inserts beside each byte.
fn replace_growth(step: &Map<String, Value>) -> Growth {
    let content = inserted(step, "content")?;
    let matched = pattern(step)?;
    Ok(match matched {
        Some(bytes) => content.len().div_ceil(bytes).max(1),
        None => content.len() + 1,
    })
}

/// Bytes of the literal text that the step's pattern matches, `None` for a regular expression.
fn pattern(step: &Map<String, Value>) -> Result<Option<usize>, Fault> {
    let object = step.get("pattern").and_then(Value::as_object);
    let entry = object
        .filter(|o| o.len() == 1)
        .and_then(|o| o.iter().next());
    match entry.map(|(kind, text)| (kind.as_str(), text.as_str())) {
        Some(("String", Some(text))) if !text.is_empty() && text.len() <= REGEX_LIMIT => {
            Ok(Some(text.len()))
        }
        Some(("Regex", Some(text))) if text.len() > REGEX_LIMIT => Err(Fault::bad(format!(
            "has a pattern of more than {REGEX_LIMIT} bytes"
        ))),
        Some(("Regex", Some(text))) if regex_depth(text) > REGEX_DEPTH => Err(Fault::bad(format!(
            "has a pattern nested deeper than {REGEX_DEPTH}"
        ))),
        Some(("Regex", Some(text))) if !text.is_empty() => Ok(None),
        _ => Err(Fault::bad("has no usable pattern")),
    }
}

/// An upper bound of the nesting of a regular expression.
fn regex_depth(text: &str) -> usize {
    let (mut depth, mut deepest, mut escaped) = (0_usize, 0, false);
    for c in text.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '(' | '[' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            ')' | ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

fn inserted<'s>(step: &'s Map<String, Value>, name: &str) -> Result<&'s str, Fault> {
    let text = step.get(name).and_then(Value::as_str);
    text.filter(|text| text.len() <= INSERT_LIMIT)
        .ok_or_else(|| Fault::bad(format!("needs a `{name}` of at most {INSERT_LIMIT} bytes")))
}

fn one_char(step: &Map<String, Value>, name: &str) -> Result<char, Fault> {
    let mut chars = step
        .get(name)
        .and_then(Value::as_str)
        .unwrap_or_default()
        .chars();
    match (chars.next(), chars.next()) {
        (Some(c), None) => Ok(c),
        _ => Err(Fault::bad(format!("needs a `{name}` of one character"))),
    }
}
