//! Flags of the conversions, and of where an artifact goes.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use neuroconv_convert::unit::Unit;

use crate::memory::Size;

use super::{
    CalibrationArgs, HubArgs, ImportanceArgs, JudgeArgs, LimitArgs, MeasureArgs, PackArgs,
    ReportArgs, SizeArgs,
};

/// Flags of every conversion.
#[derive(Debug, Clone, Args)]
pub(crate) struct ConvertArgs {
    /// Start from weights that were rounded before, which loses twice
    #[arg(long)]
    pub(crate) allow_requantize: bool,

    /// Do one of N parts only, and write it beside the output for `merge`
    #[arg(long, value_name = "I/N")]
    pub(crate) unit: Option<Unit>,

    /// Where the artifact goes.
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    /// Models of a hub.
    #[command(flatten)]
    pub(crate) hub: HubArgs,
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

/// Flags of `merge`.
#[derive(Debug, Args)]
pub(crate) struct MergeArgs {
    /// What the units were made from: a checkpoint folder, a GGUF file, or `org/name` of a hub
    pub(crate) model: PathBuf,

    /// The folders of all units [default: those beside the output]
    pub(crate) units: Vec<PathBuf>,

    /// What all conversions share.
    #[command(flatten)]
    pub(crate) convert: ConvertArgs,
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

    /// Refuse to begin where more memory is needed, as in `1.5GiB`
    #[arg(long, value_name = "SIZE", env = "NEUROCONV_MAX_MEMORY")]
    pub(crate) max_memory: Option<Size>,

    /// Take the first two layers all the way before the whole model
    #[arg(long, value_enum, value_name = "WHEN", default_value_t)]
    pub(crate) smoke: SmokeArg,
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

/// Flags of `int8` and `int4`.
#[derive(Debug, Args)]
pub(crate) struct QuantizeArgs {
    /// A checkpoint folder, a GGUF file, or `org/name` of a hub
    pub(crate) model: PathBuf,

    /// How matrices are packed.
    #[command(flatten, next_help_heading = "Packing")]
    pub(crate) pack: PackArgs,

    /// Which size is aimed at.
    #[command(flatten, next_help_heading = "Packing")]
    pub(crate) size: SizeArgs,

    /// Which text is learned from.
    #[command(flatten, next_help_heading = "Calibration")]
    pub(crate) calibration: CalibrationArgs,

    /// Importance matrices, read and written.
    #[command(flatten, next_help_heading = "Calibration")]
    pub(crate) importance: ImportanceArgs,

    /// What all conversions share.
    #[command(flatten)]
    pub(crate) convert: ConvertArgs,
}

/// Flags of `ternary`.
#[derive(Debug, Args)]
pub(crate) struct TernaryArgs {
    /// What all quantizations share.
    #[command(flatten)]
    pub(crate) quantize: QuantizeArgs,

    /// How the threshold of a group is found: mse, twn, entropy-max, rd:LAMBDA, sparsity:SHARE
    #[arg(long, value_name = "RULE", help_heading = "Packing")]
    pub(crate) threshold: Option<neuroconv_recipes::Threshold>,

    /// Ternary planes: two are nine levels in four bits
    #[arg(long, value_name = "N", help_heading = "Packing", value_parser = clap::value_parser!(u8).range(1..=2))]
    pub(crate) planes: Option<u8>,
}

/// Flags of `run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// A recipe file, or the name of a built-in recipe
    pub(crate) recipe: String,

    /// A checkpoint folder, a GGUF file, or `org/name` of a hub [default: the recipe's `run.model`]
    pub(crate) model: Option<PathBuf>,

    /// Which size is aimed at.
    #[command(flatten, next_help_heading = "Packing")]
    pub(crate) size: SizeArgs,

    /// Which text is learned from, where the recipe learns.
    #[command(flatten, next_help_heading = "Calibration")]
    pub(crate) calibration: CalibrationArgs,

    /// Importance matrices, read and written.
    #[command(flatten, next_help_heading = "Calibration")]
    pub(crate) importance: ImportanceArgs,

    /// What all conversions share.
    #[command(flatten)]
    pub(crate) convert: ConvertArgs,
}
