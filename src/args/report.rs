//! Flags of the reports.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

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
