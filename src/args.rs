//! What can be typed. Owns flags, their help and their ranges; does nothing.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use neuroconv_runtime::KvCodec;

use crate::mla_args::{CalibrationArgs, MlaArgs};

/// Converts a transformer checkpoint to a smaller one, with the proof that it still works.
#[derive(Debug, Parser)]
#[command(name = "neuroconv", version, max_term_width = 100, after_help = crate::exit::HELP)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,

    /// Flags that every command takes.
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
}

/// Flags that every command takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct GlobalArgs {
    /// Print one JSON object on stdout instead of text
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// Worker threads; `bench` takes several counts, as in 1,2 [default: all cores]
    #[arg(long, global = true, value_name = "N", value_parser = thread_counts, env = "NEUROCONV_THREADS")]
    pub(crate) threads: Option<ThreadCounts>,

    /// Seed of everything that draws at random
    #[arg(long, global = true, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,

    /// Print results and errors only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,

    /// Say more; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

/// Numbers of threads, at least one number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ThreadCounts(pub(crate) Vec<u16>);

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show what a model, an artifact, an architecture or a recipe is
    Inspect(InspectArgs),
    /// Show the fate of every tensor, without reading a weight
    Plan(PlanArgs),
    /// Convert attention to multi-head latent attention: a smaller cache
    Mla(Box<MlaArgs>),
    /// Quantize to 8 bits per weight
    Int8(QuantizeArgs),
    /// Quantize to 4 bits per weight
    Int4(QuantizeArgs),
    /// Quantize to the three levels -1, 0, 1
    Ternary(TernaryArgs),
    /// Convert by a recipe file
    Run(RunArgs),
    /// Compare an artifact with the model it was made from, and judge it
    #[command(after_help = crate::exit::HELP)]
    Verify(VerifyArgs),
    /// Measure the perplexity of a model on a text
    Eval(EvalArgs),
    /// Continue a text
    Generate(GenerateArgs),
    /// Measure speed against the bandwidth of the memory
    Bench(BenchArgs),
    /// Compare two models tensor by tensor
    Diff(DiffArgs),
    /// Quantize a small built-in model in three ways and compare the results
    Demo(DemoArgs),
    /// Write forms that other engines load (not in this version)
    Export(UnsupportedArgs),
    /// Judge an artifact for a build: original, limits, yardstick and stored baseline
    #[command(after_help = crate::exit::HELP)]
    Gate(GateArgs),
    /// Print the JSON Schema of a file that this program writes
    Schema(SchemaArgs),
}

/// Flags of a command that this version does not have, swallowed so that the answer is plain.
#[derive(Debug, Args)]
pub(crate) struct UnsupportedArgs {
    /// Anything
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    pub(crate) rest: Vec<String>,
}

/// Flags of `inspect`.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["model", "arch", "recipe"])))]
pub(crate) struct InspectArgs {
    /// A checkpoint folder or an artifact
    pub(crate) model: Option<PathBuf>,

    /// Print an architecture as pseudo-code (`list` names them)
    #[arg(long, value_name = "NAME")]
    pub(crate) arch: Option<String>,

    /// Print a built-in recipe, resolved (`list` names them)
    #[arg(long, value_name = "NAME")]
    pub(crate) recipe: Option<String>,
}

/// Flags of `plan`.
#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// A built-in recipe (int8, int4, ternary, ternary-mixed, mla) or a recipe file
    pub(crate) recipe: String,

    /// A checkpoint folder
    pub(crate) model: PathBuf,
}

/// Where the artifact goes and how its making is told.
#[derive(Debug, Clone, Args)]
pub(crate) struct OutputArgs {
    /// Folder of the artifact
    #[arg(short, long, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,

    /// Replace an artifact that is already there
    #[arg(long)]
    pub(crate) overwrite: bool,

    /// Print the plan and stop
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// Take the first two layers all the way before the whole model
    #[arg(long, value_enum, value_name = "WHEN", default_value_t)]
    pub(crate) smoke: SmokeArg,
}

/// How quality is measured.
#[derive(Debug, Clone, Args)]
pub(crate) struct MeasureArgs {
    /// Evaluation text, repeatable [default: a built-in English text]
    #[arg(long = "text", value_name = "FILE")]
    pub(crate) texts: Vec<PathBuf>,

    /// Tokens per window [default: 512, or what the model allows]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=1_048_576))]
    pub(crate) ctx: Option<u32>,

    /// How the text is cut and scored
    #[arg(long, value_enum, default_value_t = ProtocolArg::Windows)]
    pub(crate) protocol: ProtocolArg,

    /// Evaluate at most this many tokens of each text
    #[arg(long, value_name = "N", default_value_t = 40_960, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) max_eval_tokens: u64,
}

/// Names of the protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProtocolArg {
    /// Consecutive windows, every position but the first scored
    Windows,
    /// As llama.cpp: begin-of-text in front, the second half of each window scored
    #[value(name = "llamacpp-512")]
    LlamaCpp512,
}

/// Number formats of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum KvArg {
    /// Single precision
    F32,
    /// Half precision
    F16,
    /// Eight bits, with a scale per token and head
    Int8,
}

impl From<KvArg> for KvCodec {
    fn from(kv: KvArg) -> Self {
        match kv {
            KvArg::F32 => KvCodec::F32,
            KvArg::F16 => KvCodec::F16,
            KvArg::Int8 => KvCodec::Int8,
        }
    }
}

/// What the gate accepts.
#[derive(Debug, Clone, Args)]
pub(crate) struct LimitArgs {
    /// Refuse above this ratio of perplexities, artifact to original
    #[arg(long, value_name = "X", value_parser = positive)]
    pub(crate) max_ppl_ratio: Option<f64>,

    /// Refuse above this mean KL divergence, in nats per token
    #[arg(long, value_name = "X", value_parser = positive)]
    pub(crate) max_kld: Option<f64>,

    /// Refuse below this share of tokens with the same best guess, 0 to 1
    #[arg(long, value_name = "X", value_parser = share)]
    pub(crate) min_top1: Option<f64>,

    /// Emit although quality is refused; the waiver is written into manifest and card
    #[arg(long)]
    pub(crate) allow_quality_loss: bool,
}

/// How much is measured, and against what.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct JudgeArgs {
    /// Use all the tokens allowed, although fewer would decide
    #[arg(long)]
    pub(crate) all_tokens: bool,

    /// Also judge against the original rounded as a common format rounds
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(crate) yardstick: Option<YardstickArg>,

    /// Refuse above this ratio of mean KL divergences, artifact to yardstick
    #[arg(long, value_name = "X", value_parser = positive, default_value = "1.25", requires = "yardstick")]
    pub(crate) max_yardstick: Option<f64>,

    /// Keep the original's logits here between runs, exactly; 4 bytes per token and vocabulary entry
    #[arg(long, value_name = "DIR")]
    pub(crate) logit_cache: Option<PathBuf>,
}

/// Formats that the original can be rounded as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum YardstickArg {
    /// Eight bits in blocks of 32
    Q8,
    /// Four bits in blocks of 32
    Q4,
}

/// When annotations for GitHub are printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum GithubArg {
    /// In workflows of GitHub
    #[default]
    Auto,
    /// Always
    On,
    /// Never
    Off,
}

/// Whether two layers are tried before the whole model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum SmokeArg {
    /// For weights of more than 512 MB
    #[default]
    Auto,
    /// Always
    On,
    /// Never
    Off,
}

/// Which reports are written.
#[derive(Debug, Clone, Args)]
pub(crate) struct ReportArgs {
    /// Report forms, besides JSON
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [ReportForm::Json, ReportForm::Md, ReportForm::Html])]
    pub(crate) report: Vec<ReportForm>,

    /// Also write the reports here, whatever the verdict
    #[arg(long, value_name = "DIR")]
    pub(crate) report_dir: Option<PathBuf>,

    /// Print annotations, append the step summary and set outputs of a GitHub workflow
    #[arg(long, value_enum, value_name = "WHEN", default_value_t)]
    pub(crate) github: GithubArg,
}

/// Forms of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum ReportForm {
    /// For programs; always written
    Json,
    /// For terminals and forges
    Md,
    /// One page for browsers
    Html,
    /// For CI systems
    Junit,
    /// For what reads results of lm-evaluation-harness
    LmEval,
}

/// Flags of every conversion.
#[derive(Debug, Clone, Args)]
pub(crate) struct ConvertArgs {
    /// Where the artifact goes.
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    /// How quality is measured.
    #[command(flatten, next_help_heading = "Measurement")]
    pub(crate) measure: MeasureArgs,
    /// What the gate accepts.
    #[command(flatten, next_help_heading = "Gate")]
    pub(crate) limits: LimitArgs,
    /// How much is measured, and against what.
    #[command(flatten, next_help_heading = "Gate")]
    pub(crate) judge: JudgeArgs,
    /// Which reports are written.
    #[command(flatten, next_help_heading = "Reports")]
    pub(crate) report: ReportArgs,
}

/// Flags of `int8` and `int4`.
#[derive(Debug, Args)]
pub(crate) struct QuantizeArgs {
    /// A checkpoint folder
    pub(crate) model: PathBuf,

    /// Columns that share a scale
    #[arg(long, value_name = "N", value_parser = group_size)]
    pub(crate) group_size: Option<usize>,

    /// What all conversions share.
    #[command(flatten)]
    pub(crate) convert: ConvertArgs,
}

/// Flags of `ternary`.
#[derive(Debug, Args)]
pub(crate) struct TernaryArgs {
    /// A checkpoint folder
    pub(crate) model: PathBuf,

    /// How the threshold of a group is found: mse, twn, entropy-max, rd:LAMBDA, sparsity:SHARE
    #[arg(long, value_name = "RULE")]
    pub(crate) threshold: Option<neuroconv_recipes::Threshold>,

    /// Columns that share a scale
    #[arg(long, value_name = "N", value_parser = group_size)]
    pub(crate) group_size: Option<usize>,

    /// What all conversions share.
    #[command(flatten)]
    pub(crate) convert: ConvertArgs,
}

/// Flags of `run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// A recipe file, or the name of a built-in recipe
    pub(crate) recipe: String,

    /// A checkpoint folder [default: the recipe's `run.model`]
    pub(crate) model: Option<PathBuf>,

    /// Which text is learned from, where the recipe learns.
    #[command(flatten, next_help_heading = "Calibration")]
    pub(crate) calibration: CalibrationArgs,

    /// What all conversions share.
    #[command(flatten)]
    pub(crate) convert: ConvertArgs,
}

/// Flags of `verify`.
#[derive(Debug, Clone, Args)]
pub(crate) struct VerifyArgs {
    /// The artifact to judge
    pub(crate) artifact: PathBuf,

    /// The model it was made from
    #[arg(long, value_name = "MODEL")]
    pub(crate) against: PathBuf,

    /// How the cache stores keys and values, or latents
    #[arg(long, value_enum, default_value_t = KvArg::F32)]
    pub(crate) kv: KvArg,

    /// How quality is measured.
    #[command(flatten, next_help_heading = "Measurement")]
    pub(crate) measure: MeasureArgs,
    /// What the gate accepts.
    #[command(flatten, next_help_heading = "Gate")]
    pub(crate) limits: LimitArgs,
    /// How much is measured, and against what.
    #[command(flatten, next_help_heading = "Gate")]
    pub(crate) judge: JudgeArgs,
    /// Which reports are written.
    #[command(flatten, next_help_heading = "Reports")]
    pub(crate) report: ReportArgs,
}

/// Flags of `gate`.
#[derive(Debug, Args)]
pub(crate) struct GateArgs {
    /// What `verify` takes.
    #[command(flatten)]
    pub(crate) verify: VerifyArgs,

    /// What exports reached before: judge the change
    #[arg(long, value_name = "FILE")]
    pub(crate) baseline: Option<PathBuf>,

    /// Refuse where a figure of the baseline became worse by more than this share, such as 2%
    #[arg(long, value_name = "SHARE", value_parser = percent, default_value = "2%", requires = "baseline")]
    pub(crate) max_drift: f64,

    /// Write what was reached into the baseline, if no other check fails
    #[arg(long, requires = "baseline")]
    pub(crate) update_baseline: bool,
}

/// Flags of `schema`.
#[derive(Debug, Args)]
pub(crate) struct SchemaArgs {
    /// Which file
    #[arg(value_enum)]
    pub(crate) what: SchemaArg,
}

/// Files with a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SchemaArg {
    /// report.json
    Report,
}

/// Flags of `eval`.
#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    /// A checkpoint folder or an artifact
    pub(crate) model: PathBuf,

    /// How quality is measured.
    #[command(flatten)]
    pub(crate) measure: MeasureArgs,

    /// Use the independent f32 reference instead of the runtime
    #[arg(long, conflicts_with = "kv")]
    pub(crate) reference: bool,

    /// How the cache stores keys and values, or latents
    #[arg(long, value_enum, default_value_t = KvArg::F32)]
    pub(crate) kv: KvArg,
}

/// Flags of `generate`.
#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    /// A checkpoint folder or an artifact
    pub(crate) model: PathBuf,

    /// Text to continue; `-` reads it from standard input
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) prompt: String,

    /// Tokens to generate at most
    #[arg(short = 'n', long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_tokens: u32,

    /// How the cache stores keys and values, or latents
    #[arg(long, value_enum, default_value_t = KvArg::F32)]
    pub(crate) kv: KvArg,

    /// 0 takes the likeliest token; higher is more varied
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = non_negative)]
    pub(crate) temperature: f64,

    /// Draw from the K likeliest tokens only
    #[arg(long, value_name = "K")]
    pub(crate) top_k: Option<usize>,

    /// Draw from the likeliest tokens that together hold this probability
    #[arg(long, value_name = "P", value_parser = share)]
    pub(crate) top_p: Option<f64>,

    /// Put the prompt through the model's chat template as a user message
    #[arg(long)]
    pub(crate) chat: bool,

    /// System message, with --chat
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub(crate) system: Option<String>,
}

/// Flags of `bench`.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// A checkpoint folder or an artifact
    pub(crate) model: PathBuf,

    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) prompt: u32,

    /// Tokens generated after it
    #[arg(long = "gen", value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) generate: u32,

    /// Measurements of each figure, of which the median counts
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) repeat: u32,

    /// How the cache stores keys and values, or latents
    #[arg(long, value_enum, default_value_t = KvArg::F32)]
    pub(crate) kv: KvArg,
}

/// Flags of `diff`.
#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// A checkpoint folder or an artifact
    pub(crate) a: PathBuf,
    /// Another
    pub(crate) b: PathBuf,
}

/// Flags of `demo`.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Another model than the built-in one
    pub(crate) model: Option<PathBuf>,

    /// How quality is measured.
    #[command(flatten)]
    pub(crate) measure: MeasureArgs,

    /// Keep the artifacts here, refused ones included
    #[arg(long, value_name = "DIR")]
    pub(crate) keep: Option<PathBuf>,

    /// Print the table as Markdown
    #[arg(long)]
    pub(crate) markdown: bool,
}

fn thread_counts(text: &str) -> Result<ThreadCounts, String> {
    let count = |word: &str| match word.parse() {
        Ok(count @ 1..=1024) => Ok(count),
        _ => Err(format!("`{word}` is no number from 1 to 1024")),
    };
    text.split(',')
        .map(count)
        .collect::<Result<_, _>>()
        .map(ThreadCounts)
}

fn finite(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if value.is_finite() {
        Ok(value)
    } else {
        Err("must be finite".to_owned())
    }
}

fn positive(text: &str) -> Result<f64, String> {
    finite(text).and_then(|v| {
        if v > 0.0 {
            Ok(v)
        } else {
            Err("must be above 0".to_owned())
        }
    })
}

pub(crate) fn non_negative(text: &str) -> Result<f64, String> {
    finite(text).and_then(|v| {
        if v >= 0.0 {
            Ok(v)
        } else {
            Err("must be 0 or more".to_owned())
        }
    })
}

/// A share, in percent where the sign says so.
fn percent(text: &str) -> Result<f64, String> {
    match text.strip_suffix('%') {
        Some(number) => Ok(non_negative(number.trim_end())? / 100.0),
        None => non_negative(text),
    }
}

pub(crate) fn share(text: &str) -> Result<f64, String> {
    finite(text).and_then(|v| {
        if (0.0..=1.0).contains(&v) {
            Ok(v)
        } else {
            Err("must lie between 0 and 1".to_owned())
        }
    })
}

fn group_size(text: &str) -> Result<usize, String> {
    let value: usize = text.parse().map_err(|_| "not a whole number".to_owned())?;
    if neuroconv_format::codec::GROUP_SIZES.contains(&value) {
        Ok(value)
    } else {
        Err("must be 32, 64, 128 or 256".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn limits_that_are_no_numbers_are_refused() {
        for bad in ["nan", "inf", "-1", "0", "x"] {
            assert!(positive(bad).is_err(), "{bad}");
        }
        assert!(percent("2%") == Ok(0.02) && percent("0.5") == Ok(0.5) && percent("-1%").is_err());
        assert!(share("1.01").is_err() && share("NaN").is_err() && share("1") == Ok(1.0));
        assert_eq!(thread_counts("1,16"), Ok(ThreadCounts(vec![1, 16])));
        assert!(
            ["", "0", "1,", "1025", "-1"]
                .iter()
                .all(|t| thread_counts(t).is_err())
        );
        assert!(group_size("48").is_err() && group_size("64") == Ok(64));
    }
}
