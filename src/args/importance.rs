//! Flags that name importance matrices, and those of the commands that make them.

use std::path::PathBuf;

use clap::Args;
use neuroconv_convert::unit::Unit;

use super::{CalibrationArgs, HubArgs};

/// Importance matrices, as `llama-imatrix` writes them.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ImportanceArgs {
    /// Weigh the columns of matrices that are rounded by themselves (--method rtn) by this
    /// importance matrix, a GGUF file; of several the sums are added up
    #[arg(long, value_name = "FILE")]
    pub(crate) imatrix: Vec<PathBuf>,

    /// Write the importance matrix of the calibration text to this GGUF file
    #[arg(long, value_name = "FILE")]
    pub(crate) save_imatrix: Option<PathBuf>,
}

/// Flags of `imatrix`.
#[derive(Debug, Args)]
#[command(mut_arg("calib", |arg| arg.help("Text to look at [default: a short built-in English text]")))]
pub(crate) struct ImatrixArgs {
    /// A checkpoint folder, a GGUF file, or `org/name` of a hub
    pub(crate) model: PathBuf,

    /// Look at one of N parts of the text only; `imatrix-merge` and --imatrix add the parts up
    #[arg(long, value_name = "I/N")]
    pub(crate) part: Option<Unit>,

    /// Which text is looked at.
    #[command(flatten)]
    pub(crate) calibration: CalibrationArgs,

    /// Tokens per window, as conversions measure [default: 512, or what the model allows]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=1_048_576))]
    pub(crate) ctx: Option<u32>,

    /// Where the sums go.
    #[command(flatten)]
    pub(crate) place: PlaceArgs,

    /// Models of a hub.
    #[command(flatten)]
    pub(crate) hub: HubArgs,
}

/// Flags of `imatrix-merge`.
#[derive(Debug, Args)]
pub(crate) struct ImatrixMergeArgs {
    /// The importance matrices of all parts, GGUF files
    #[arg(required = true)]
    pub(crate) parts: Vec<PathBuf>,

    /// Where the sums go.
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
}

/// Where an importance matrix goes.
#[derive(Debug, Args)]
pub(crate) struct PlaceArgs {
    /// The GGUF file to write
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,

    /// Replace a file that is already there
    #[arg(long)]
    pub(crate) overwrite: bool,
}
