//! Flags of the commands that run a model: `eval`, `generate`, `bench`, `demo`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use neuroconv_runtime::KvCodec;

use super::number::{non_negative, share};
use super::{CalibrationArgs, HubArgs, MeasureArgs};

/// Flags of `eval`.
#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    /// A checkpoint folder, a GGUF file, an artifact, or `org/name` of a hub
    pub(crate) model: PathBuf,

    /// Models of a hub.
    #[command(flatten)]
    pub(crate) hub: HubArgs,

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
    /// A checkpoint folder, a GGUF file, an artifact, or `org/name` of a hub
    pub(crate) model: PathBuf,

    /// Models of a hub.
    #[command(flatten)]
    pub(crate) hub: HubArgs,

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
    /// A checkpoint folder, a GGUF file, an artifact, or `org/name` of a hub
    pub(crate) model: PathBuf,

    /// Models of a hub.
    #[command(flatten)]
    pub(crate) hub: HubArgs,

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

/// Flags of `demo`.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Another model than the built-in one: a path, or `org/name` of a hub
    pub(crate) model: Option<PathBuf>,

    /// Models of a hub.
    #[command(flatten)]
    pub(crate) hub: HubArgs,

    /// How quality is measured.
    #[command(flatten)]
    pub(crate) measure: MeasureArgs,

    /// Which text is learned from.
    #[command(flatten, next_help_heading = "Calibration")]
    pub(crate) calibration: CalibrationArgs,

    /// Keep the artifacts here, refused ones included
    #[arg(long, value_name = "DIR")]
    pub(crate) keep: Option<PathBuf>,

    /// Print the table as Markdown
    #[arg(long)]
    pub(crate) markdown: bool,
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
