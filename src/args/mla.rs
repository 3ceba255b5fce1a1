//! Flags of `mla`, and the ones that name calibration text.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{Args, ValueEnum};
use neuroconv_recipes::{MlaMode, MlaRecipe, Rank};

use super::ConvertArgs;
use super::number::{non_negative, share};

/// Flags of `mla`.
#[derive(Debug, Args)]
pub(crate) struct MlaArgs {
    /// A checkpoint folder, a GGUF file, or `org/name` of a hub
    pub(crate) model: PathBuf,

    /// Width of the latent, or `auto` for the smallest that passes the gate
    /// [default: what --kv-budget leaves]
    #[arg(long, value_name = "R")]
    pub(crate) rank: Option<RankArg>,

    /// Width of the rotated key that all heads share
    #[arg(long, value_name = "D")]
    pub(crate) rope_dim: Option<usize>,

    /// Numbers cached per token, as a share of the source's [default: 0.5]
    #[arg(long, value_name = "SHARE", value_parser = share)]
    pub(crate) kv_budget: Option<f64>,

    /// Variance of keys and values that `--rank auto` keeps at least
    #[arg(long, value_name = "SHARE", default_value_t = 0.95, value_parser = share)]
    pub(crate) retain_variance: f64,

    /// What the latent stands for
    #[arg(long, value_enum, default_value_t = ModeArg::Mla)]
    pub(crate) mode: ModeArg,

    /// Layers that stay as they are, counted from 0
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) keep_layers: Vec<usize>,

    /// Keep the layers that cost most, until the others cost at most this divergence, in nats
    /// per token
    #[arg(long, value_name = "X", value_parser = non_negative)]
    pub(crate) max_layers_kld: Option<f64>,

    /// Use the frequencies of stock models instead of the layer's own best; costs quality
    #[arg(long)]
    pub(crate) stock_rope: bool,

    /// Convert although the cache would grow
    #[arg(long)]
    pub(crate) force: bool,

    /// How the weights are stored
    #[arg(long, value_enum, default_value_t = WeightsArg::Keep)]
    pub(crate) weights: WeightsArg,

    /// Which text is learned from.
    #[command(flatten, next_help_heading = "Calibration")]
    pub(crate) calibration: CalibrationArgs,

    /// What all conversions share.
    #[command(flatten)]
    pub(crate) convert: ConvertArgs,
}

/// Which text a conversion learns from.
#[derive(Debug, Clone, Args)]
pub(crate) struct CalibrationArgs {
    /// Calibration text, or `none` to look at the weights alone
    /// [default: a short built-in English text]
    #[arg(long, value_name = "FILE")]
    pub(crate) calib: Option<PathBuf>,

    /// Calibrate on at most this many tokens
    #[arg(long, value_name = "N", default_value_t = 32_768, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) calib_tokens: u64,

    /// Tokens per calibration window [default: as --ctx]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=1_048_576))]
    pub(crate) calib_ctx: Option<u32>,
}

impl CalibrationArgs {
    /// Whether nothing is to be learned from text.
    pub(crate) fn is_none(&self) -> bool {
        self.calib.as_deref() == Some(Path::new("none"))
    }
}

/// A rank, or the word `auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RankArg(Rank);

impl FromStr for RankArg {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "auto" {
            return Ok(RankArg(Rank::AUTO));
        }
        match text.parse() {
            Ok(rank) if rank > 0 => Ok(RankArg(Rank::Fixed(rank))),
            _ => Err("neither a number from 1 nor `auto`"),
        }
    }
}

/// Names of the modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ModeArg {
    /// Multi-head latent attention: a latent and one rotated key
    Mla,
    /// Keys rebuilt from the latent with exact rotations: best quality per byte, slower
    Latent,
}

/// How the weights of the converted model are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum WeightsArg {
    /// In the precision of the source
    Keep,
    /// In 8 bits
    Int8,
    /// In 4 bits, latents in 8
    Int4,
    /// In three levels, latents in 8 bits
    Ternary,
}

impl WeightsArg {
    /// The recipe for the weights, and the name of the whole.
    pub(crate) const fn recipe(self) -> (&'static str, &'static str) {
        match self {
            WeightsArg::Keep => ("mla", "mla"),
            WeightsArg::Int8 => ("int8", "mla-int8"),
            WeightsArg::Int4 => ("int4", "mla-int4"),
            WeightsArg::Ternary => ("ternary", "mla-ternary"),
        }
    }
}

impl MlaArgs {
    /// The part of a recipe that these flags say.
    pub(crate) fn section(&self) -> MlaRecipe {
        MlaRecipe {
            mode: match self.mode {
                ModeArg::Mla => MlaMode::Mla,
                ModeArg::Latent => MlaMode::Latent,
            },
            rank: self.rank.map(|RankArg(rank)| rank),
            rope_dim: self.rope_dim,
            retain_variance: self.retain_variance,
            kv_budget: self.kv_budget,
            keep_layers: self.keep_layers.clone(),
            max_layers_kld: self.max_layers_kld,
            stock_rope: self.stock_rope,
            allow_growth: self.force,
            ..MlaRecipe::default()
        }
    }
}
