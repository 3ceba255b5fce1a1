//! Which texts are measured on: files the user names, or the built-in one.

use std::path::Path;

use anyhow::Context;
use neuroconv_recipes::ModelSpec;
use neuroconv_runtime::TextTokenizer;
use neuroconv_verify::{EvalText, Protocol};

use crate::args::{MeasureArgs, ProtocolArg};
use crate::failure::Misuse;

/// The evaluation text used where none is named: English prose written for this program.
const BUILT_IN: &str = include_str!("../fixtures/texts/english.txt");

/// Largest text file that is read.
const MAX_TEXT_BYTES: u64 = 1 << 30;

/// How a model is measured, resolved for one model.
pub(crate) struct Measurement {
    /// The texts, tokenized.
    pub(crate) texts: Vec<EvalText>,
    /// How they are cut.
    pub(crate) protocol: Protocol,
    /// Tokens per window.
    pub(crate) ctx: usize,
    /// Tokens of each text at most.
    pub(crate) max_tokens: usize,
    /// What tokenized them.
    pub(crate) tokenizer: TextTokenizer,
}

/// Reads and tokenizes the texts that `args` names, or the built-in one.
pub(crate) fn measurement(
    args: &MeasureArgs,
    spec: &ModelSpec,
    tokenizer: TextTokenizer,
) -> anyhow::Result<Measurement> {
    let ctx = window_tokens(args.ctx, spec)?;
    let mut texts = Vec::new();
    for path in &args.texts {
        let text = read_text(path)?;
        let name = path
            .file_name()
            .unwrap_or(path.as_os_str())
            .to_string_lossy();
        texts.push(tokenize(&name, &text, &tokenizer)?);
    }
    if texts.is_empty() {
        texts.push(tokenize("built-in English", BUILT_IN, &tokenizer)?);
    }
    let protocol = match args.protocol {
        ProtocolArg::Windows => Protocol::Windows,
        ProtocolArg::LlamaCpp512 => Protocol::LlamaCpp512,
    };
    let max_tokens = usize::try_from(args.max_eval_tokens).unwrap_or(usize::MAX);
    Ok(Measurement {
        texts,
        protocol,
        ctx,
        max_tokens,
        tokenizer,
    })
}

/// Tokens per window: those asked for, or what suits the model.
pub(crate) fn window_tokens(ctx: Option<u32>, spec: &ModelSpec) -> Result<usize, Misuse> {
    match ctx {
        Some(ctx) if ctx as usize > spec.max_positions => Err(Misuse::new(
            format!(
                "--ctx {ctx} is longer than the model's {} positions",
                spec.max_positions
            ),
            format!("ask for --ctx {} or less", spec.max_positions),
        )),
        Some(ctx) => Ok(ctx as usize),
        None => Ok(spec.max_positions.min(512)),
    }
}

/// A text and its tokens.
pub(crate) fn tokenize(
    name: &str,
    text: &str,
    tokenizer: &TextTokenizer,
) -> anyhow::Result<EvalText> {
    let tokens = tokenizer.encode_plain(text)?;
    Ok(EvalText::new(name, text, tokens, bos(tokenizer)?))
}

/// The token that the tokenizer puts before a text, if it does.
fn bos(tokenizer: &TextTokenizer) -> anyhow::Result<Option<u32>> {
    let plain = tokenizer.encode_plain("a")?;
    let prompt = tokenizer.encode_prompt("a")?;
    Ok(match prompt.split_first() {
        Some((first, rest)) if rest.starts_with(&plain) => Some(*first),
        _ => None,
    })
}

pub(crate) fn read_text(path: &Path) -> anyhow::Result<String> {
    let size = fs_err::metadata(path)?.len();
    if size > MAX_TEXT_BYTES {
        return Err(Misuse::new(
            format!("`{}`: a text of {size} bytes is too large", path.display()),
            "cut the text to 1 GiB or less; only --max-eval-tokens of it are used".to_owned(),
        )
        .into());
    }
    let bytes = fs_err::read(path)?;
    String::from_utf8(bytes).with_context(|| format!("`{}`: the text is not UTF-8", path.display()))
}
