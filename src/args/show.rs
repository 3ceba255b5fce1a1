//! Flags of the commands that show: `inspect`, `plan`, `diff`, `schema`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::HubArgs;

/// Flags of `inspect`.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["model", "arch", "recipe"])))]
pub(crate) struct InspectArgs {
    /// A checkpoint folder, a GGUF file, an artifact, or `org/name` of a hub
    pub(crate) model: Option<PathBuf>,

    /// Print an architecture as pseudo-code (`list` names them)
    #[arg(long, value_name = "NAME")]
    pub(crate) arch: Option<String>,

    /// Print a built-in recipe, resolved (`list` names them)
    #[arg(long, value_name = "NAME")]
    pub(crate) recipe: Option<String>,

    /// Models of a hub.
    #[command(flatten)]
    pub(crate) hub: HubArgs,
}

/// Flags of `plan`.
#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// A built-in recipe (int8, int4, ternary, ternary-mixed, mla) or a recipe file
    pub(crate) recipe: String,

    /// A checkpoint folder, a GGUF file, or `org/name` of a hub
    pub(crate) model: PathBuf,

    /// Show how the conversion splits into this many units
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) units: Option<u32>,

    /// Models of a hub.
    #[command(flatten)]
    pub(crate) hub: HubArgs,
}

/// Flags of `diff`.
#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// A checkpoint folder, a GGUF file, an artifact, or `org/name[@REV]` of a hub
    pub(crate) a: PathBuf,
    /// Another
    pub(crate) b: PathBuf,

    /// Models of a hub.
    #[command(flatten)]
    pub(crate) hub: HubArgs,
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
