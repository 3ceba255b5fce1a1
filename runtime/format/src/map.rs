//! The one place where a file is mapped into memory.

use std::path::Path;
use std::sync::Arc;

use fs_err::File;

use crate::error::Error;
use crate::files::io_error;
use crate::tensor::SharedBytes;

/// Maps the whole of `file` for reading.
#[expect(
    unsafe_code,
    reason = "packed weights are used in place, without a copy of the model"
)]
pub(crate) fn map(file: &File, path: &Path) -> Result<SharedBytes, Error> {
    // SAFETY: the mapping is private and read-only, and lives as long as any slice of it. An
    // artifact is written under another name and renamed once complete, and never changed after
    // that. Whoever changes its bytes in place may change what is computed from them, but every
    // access stays inside the mapping: sizes come from the header read before, and codes never
    // become an index. Whoever truncates it ends this process with a signal.
    let map = unsafe { memmap2::Mmap::map(file.file()) }.map_err(io_error(path))?;
    Ok(SharedBytes::new(Arc::new(map)))
}
