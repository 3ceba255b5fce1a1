//! Flags of every command that takes a model, for models of a hub.

use clap::Args;

/// Which revision, and whether anything is fetched.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct HubArgs {
    /// Branch, tag or commit of a model of a hub [default: main]
    #[arg(long, value_name = "REV", help_heading = "Hub")]
    pub(crate) revision: Option<String>,

    /// Fetch nothing: models of a hub are those in the cache
    #[arg(long, help_heading = "Hub")]
    pub(crate) offline: bool,
}
