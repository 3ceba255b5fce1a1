//! Flags of `export`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::number::positive;
use super::{CalibrationArgs, HubArgs, MeasureArgs};

/// Flags of `export`.
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// An artifact, a checkpoint folder, or `org/name` of a hub
    pub(crate) model: PathBuf,

    /// Models of a hub.
    #[command(flatten)]
    pub(crate) hub: HubArgs,

    /// What is written: a checkpoint folder or a GGUF file
    #[arg(long, value_enum, value_name = "FORM")]
    pub(crate) to: FormArg,

    /// Who will load it [default: transformers for hf, llamacpp for gguf]
    #[arg(long, value_enum, value_name = "ENGINE")]
    pub(crate) target: Option<EngineArg>,

    /// Where the folder or file goes
    #[arg(short, long, value_name = "PATH", required_unless_present = "dry_run")]
    pub(crate) output: Option<PathBuf>,

    /// Replace an export that is already there
    #[arg(long)]
    pub(crate) overwrite: bool,

    /// Print what would be written and which engine can run it, and stop
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// How weights are stored.
    #[command(flatten, next_help_heading = "Weights")]
    pub(crate) weights: WeightArgs,

    /// What latent attention is fitted on for engines that norm it.
    #[command(flatten, next_help_heading = "Calibration")]
    pub(crate) calibration: CalibrationArgs,

    /// How the export is compared with the model.
    #[command(flatten, next_help_heading = "Measurement")]
    pub(crate) measure: MeasureArgs,

    /// Refuse an export that is further from the model, in nats per token, where the engine computes
    /// another function [default: 0.1]
    #[arg(long, value_name = "X", value_parser = positive, help_heading = "Gate")]
    pub(crate) max_kld: Option<f64>,

    /// Write it all the same; the card says so
    #[arg(long, help_heading = "Gate")]
    pub(crate) allow_quality_loss: bool,
}

/// How the weights of an export are stored.
#[derive(Debug, Args)]
pub(crate) struct WeightArgs {
    /// Form of the matrices of a checkpoint; `auto` packs four and eight bits, and writes three levels
    /// as plain numbers
    #[arg(long, value_enum, value_name = "FORM", default_value_t)]
    pub(crate) weights: PackingArg,

    /// Element type of plain numbers [default: that of the source]
    #[arg(long, value_enum, value_name = "TYPE")]
    pub(crate) dtype: Option<DTypeArg>,

    /// Block type of three levels in a GGUF file; `auto` takes the smallest that holds them
    #[arg(long, value_enum, value_name = "TYPE", default_value_t)]
    pub(crate) ternary_type: TernaryArg,

    /// Write four bits in groups of 256 as `Q4_K` instead of `Q4_0`
    #[arg(long)]
    pub(crate) q4_k: bool,

    /// Bytes of one file of a checkpoint at most, in GB
    #[arg(long, value_name = "GB", default_value_t = 5.0, value_parser = positive)]
    pub(crate) max_shard_size: f64,

    /// Class of latent attention in a checkpoint
    #[arg(long, value_name = "NAME", default_value = "deepseek_v3")]
    pub(crate) latent_class: String,
}

/// The two forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FormArg {
    /// A checkpoint folder
    Hf,
    /// A GGUF file
    Gguf,
}

/// The engines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EngineArg {
    /// The Python library
    Transformers,
    /// The server
    Vllm,
    /// llama.cpp and its relatives
    #[value(name = "llamacpp")]
    LlamaCpp,
}

/// Forms of packed matrices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum PackingArg {
    /// What fits the model
    #[default]
    Auto,
    /// Plain numbers
    Dense,
    /// compressed-tensors, pack-quantized
    CompressedTensors,
    /// GPTQ
    Gptq,
    /// `BitNet`: three levels, one scale per matrix, activations in 8 bits
    Bitnet,
}

/// Element types.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DTypeArg {
    /// Single precision
    F32,
    /// Half precision
    F16,
    /// Upper half of a single
    Bf16,
}

/// Block types of three levels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum TernaryArg {
    /// The smallest that every reader knows and that holds them
    #[default]
    Auto,
    /// 1.69 bits, groups of 256
    #[value(name = "tq1_0")]
    Tq1,
    /// 2.06 bits, groups of 256
    #[value(name = "tq2_0")]
    Tq2,
    /// 2.25 bits, groups of 64 or more; llama.cpp of 2026
    #[value(name = "q2_0")]
    Q2,
    /// 4.5 bits, any group
    #[value(name = "q4_0")]
    Q4,
}
