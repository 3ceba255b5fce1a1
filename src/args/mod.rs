//! What can be typed. Owns flags, their help and their ranges; does nothing.

mod convert;
mod export;
mod hub;
mod importance;
mod judge;
mod mla;
mod number;
mod pack;
mod report;
mod run;
mod show;
mod size;

use clap::{Args, Parser, Subcommand};

pub(crate) use convert::{ConvertArgs, MergeArgs, QuantizeArgs, RunArgs, SmokeArg, TernaryArgs};
pub(crate) use export::{DTypeArg, EngineArg, ExportArgs, FormArg, PackingArg, TernaryArg};
pub(crate) use hub::HubArgs;
pub(crate) use importance::{ImatrixArgs, ImatrixMergeArgs, ImportanceArgs, PlaceArgs};
pub(crate) use judge::{
    GateArgs, JudgeArgs, LimitArgs, MeasureArgs, ProtocolArg, VerifyArgs, YardstickArg,
};
pub(crate) use mla::{CalibrationArgs, MlaArgs};
pub(crate) use number::ThreadCounts;
pub(crate) use pack::PackArgs;
pub(crate) use report::{GithubArg, ReportArgs, ReportForm};
pub(crate) use run::{BenchArgs, DemoArgs, EvalArgs, GenerateArgs, KvArg};
pub(crate) use show::{DiffArgs, InspectArgs, PlanArgs, SchemaArg, SchemaArgs};
pub(crate) use size::{SizeArgs, TargetSize};

use number::thread_counts;

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
    /// Make one artifact of the parts that conversions with `--unit` wrote
    Merge(Box<MergeArgs>),
    /// Make the importance matrix of a text, or of a part of it
    Imatrix(ImatrixArgs),
    /// Add up the importance matrices of parts of a text
    ImatrixMerge(ImatrixMergeArgs),
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
    /// Write a form that another engine loads, and compare it with the model
    #[command(after_help = crate::exit::HELP)]
    Export(Box<ExportArgs>),
    /// Judge an artifact for a build: original, limits, yardstick and stored baseline
    #[command(after_help = crate::exit::HELP)]
    Gate(GateArgs),
    /// Print the JSON Schema of a file that this program writes
    Schema(SchemaArgs),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
