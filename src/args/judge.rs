//! Flags of measuring and judging: text, protocol, limits, yardstick, baseline.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::number::{percent, positive, share};
use super::{HubArgs, KvArg, ReportArgs};

/// Flags of `verify`.
#[derive(Debug, Clone, Args)]
pub(crate) struct VerifyArgs {
    /// The artifact to judge
    pub(crate) artifact: PathBuf,

    /// The model it was made from: a path, or `org/name` of a hub
    #[arg(long, value_name = "MODEL")]
    pub(crate) against: PathBuf,

    /// Models of a hub.
    #[command(flatten)]
    pub(crate) hub: HubArgs,

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
