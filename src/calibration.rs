//! Which text a conversion learns from: a file the user names, the built-in one, or none.

use neuroconv_recipes::{Calibration, ModelSpec};
use neuroconv_runtime::TextTokenizer;
use neuroconv_verify::EvalText;

use crate::args::CalibrationArgs;
use crate::corpus::{Measurement, read_text, tokenize};
use crate::failure::Misuse;

/// A text that comes with the program.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BuiltInText {
    /// How a recipe records it.
    pub(crate) name: &'static str,
    /// The text.
    pub(crate) text: &'static str,
}

/// The calibration text used where none is named: English prose written for this program.
pub(crate) const ENGLISH: BuiltInText = BuiltInText {
    name: "built-in English",
    text: include_str!("../fixtures/texts/english-calib.txt"),
};

/// Tokens below which a conversion learns the text rather than the language.
const ENOUGH_TOKENS: usize = 16_384;

/// Tokens for each column of the widest matrix that rounding with feedback should have.
const TOKENS_PER_COLUMN: usize = 4;

/// What a conversion learns from.
#[derive(Debug, Default)]
pub(crate) struct CalibrationText {
    /// How a recipe records it; `None` where nothing is learned from text.
    pub(crate) record: Option<Calibration>,
    /// Windows of equal length, evenly spread over the text.
    pub(crate) windows: Vec<Vec<u32>>,
    /// What the user should know.
    pub(crate) warnings: Vec<String>,
}

/// Reads, tokenizes and cuts the text that `args` names, or else `built_in`. It must not be one of
/// those that are measured on, and must have a token for each of the `widest` matrix's columns.
pub(crate) fn calibration(
    args: &CalibrationArgs,
    built_in: BuiltInText,
    spec: &ModelSpec,
    tokenizer: &TextTokenizer,
    measurement: &Measurement,
    widest: usize,
) -> anyhow::Result<CalibrationText> {
    if args.is_none() {
        let warning = "no calibration text: only the weights are looked at, which costs much \
                       quality; name a text with --calib";
        return Ok(CalibrationText {
            warnings: vec![warning.to_owned()],
            ..CalibrationText::default()
        });
    }
    let CutText { text, ctx, windows } = cut(args, built_in, spec, tokenizer, measurement.ctx)?;
    if let Some(same) = measurement.texts.iter().find(|t| t.sha256 == text.sha256) {
        return Err(Misuse::new(
            format!("`{}` is both learned from and measured on", same.name),
            "name different texts with --calib and --text",
        )
        .into());
    }
    if windows.len() < 2 {
        return Err(Misuse::new(
            format!(
                "`{}` has {} tokens, but calibration needs two windows of {ctx}",
                text.name,
                text.tokens.len()
            ),
            "name a longer text with --calib, or shorter windows with --calib-ctx",
        )
        .into());
    }
    let tokens = windows.len() * ctx;
    check_coverage(&text.name, tokens, widest)?;
    let enough = ENOUGH_TOKENS.max(TOKENS_PER_COLUMN * widest);
    let few = tokens < enough;
    let warnings = few.then(|| {
        format!(
            "calibrated on {tokens} tokens of `{}` only: {enough} or more of text like what the model \
             will read give a better model (--calib, --calib-tokens)",
            text.name
        )
    });
    Ok(CalibrationText {
        record: Some(Calibration {
            text: text.name,
            sha256: text.sha256,
            tokens,
            ctx,
        }),
        windows,
        warnings: warnings.into_iter().collect(),
    })
}

/// A text in windows.
pub(crate) struct CutText {
    pub(crate) text: EvalText,
    /// Tokens per window.
    pub(crate) ctx: usize,
    /// Evenly spread over the text; none where it is shorter than a window.
    pub(crate) windows: Vec<Vec<u32>>,
}

/// Reads, tokenizes and cuts the text that `args` names, or else `built_in`. Windows are of `ctx` tokens
/// where `args` does not say.
pub(crate) fn cut(
    args: &CalibrationArgs,
    built_in: BuiltInText,
    spec: &ModelSpec,
    tokenizer: &TextTokenizer,
    ctx: usize,
) -> anyhow::Result<CutText> {
    let ctx = match args.calib_ctx {
        Some(ctx) if ctx as usize > spec.max_positions => {
            return Err(Misuse::new(
                format!(
                    "--calib-ctx {ctx} is longer than the model's {} positions",
                    spec.max_positions
                ),
                format!("ask for --calib-ctx {} or less", spec.max_positions),
            )
            .into());
        }
        Some(ctx) => ctx as usize,
        None => ctx,
    };
    let text = match &args.calib {
        Some(path) => {
            let name = path.file_name().unwrap_or(path.as_os_str());
            tokenize(&name.to_string_lossy(), &read_text(path)?, tokenizer)?
        }
        None => tokenize(built_in.name, built_in.text, tokenizer)?,
    };
    let most = usize::try_from(args.calib_tokens).unwrap_or(usize::MAX);
    let windows = spread(&text, ctx, most);
    Ok(CutText { text, ctx, windows })
}

/// Refuses fewer tokens than the widest matrix has columns: their moments leave directions in which
/// any error seems free, and the result can be worse than without text.
fn check_coverage(name: &str, tokens: usize, widest: usize) -> anyhow::Result<()> {
    if tokens >= widest {
        return Ok(());
    }
    Err(Misuse::new(
        format!(
            "{tokens} tokens of `{name}` are too few to learn from: the widest matrix has {widest} columns"
        ),
        format!(
            "give a longer text or more --calib-tokens, at best {} or more; `--method rtn` needs none",
            ENOUGH_TOKENS.max(TOKENS_PER_COLUMN * widest)
        ),
    )
    .into())
}

/// As many windows of `ctx` tokens as `most` tokens allow, evenly spread over the text.
fn spread(text: &EvalText, ctx: usize, most: usize) -> Vec<Vec<u32>> {
    let all: Vec<&[u32]> = text.tokens.chunks_exact(ctx).collect();
    let count = (most / ctx).min(all.len());
    (0..count)
        .map(|i| all[i * all.len() / count].to_vec())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_spread_over_the_whole_text() {
        let text = EvalText::new("t", "t", (0..100).collect(), None);
        let firsts = |ctx, most| -> Vec<u32> {
            let windows = spread(&text, ctx, most);
            assert!(windows.iter().all(|w| w.len() == ctx));
            windows.iter().map(|w| w[0]).collect()
        };
        assert_eq!(firsts(10, 30), [0, 30, 60]);
        assert_eq!(firsts(30, 1000), [0, 30, 60]);
        assert!(firsts(30, 29).is_empty() && firsts(200, 1000).is_empty());
    }

    #[test]
    fn a_token_for_each_column_is_the_least() {
        assert!(check_coverage("t", 1024, 1024).is_ok() && check_coverage("t", 2, 0).is_ok());
        let error = check_coverage("t", 1023, 1024).unwrap_err();
        assert!(error.to_string().contains("1024 columns"), "{error}");
    }
}
