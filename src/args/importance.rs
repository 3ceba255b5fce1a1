//! Flags that name importance matrices of other programs.

use std::path::PathBuf;

use clap::Args;

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
