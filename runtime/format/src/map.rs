//! The one place where a file is mapped into memory.
//!
//! Weights are read from their first to their last byte for every token, which small pages make
//! slower: the table of addresses is walked for each. So a mapping asks for large pages. The system
//! gives them where the file lies so in its cache, as it does after a read from disk through such a
//! mapping, or after [`lay_in_large_pages`].

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use fs_err::File;

use crate::error::Error;
use crate::files::io_error;
use crate::tensor::SharedBytes;

/// What a large page holds on common processors. Elsewhere only speed depends on it.
const LARGE_PAGE: usize = 2 << 20;

/// Maps the whole of `file` for reading.
pub(crate) fn map(file: &File, path: &Path) -> Result<SharedBytes, Error> {
    let length = file.metadata().map_err(io_error(path))?.len();
    let map = map_range(file, 0..length).map_err(io_error(path))?;
    Ok(SharedBytes::new(Arc::new(map)))
}

/// Before `range` of a new `file` is written: lets the system lay it in large pages of its cache,
/// where it would else take as many pages as there are writes. Changes no byte, and does nothing
/// where the system cannot do so.
pub fn lay_in_large_pages(file: &File, range: Range<u64>) {
    let Ok(metadata) = file.metadata() else {
        return;
    };
    let into_page = range.start.checked_rem(LARGE_PAGE as u64).unwrap_or(0);
    let whole = range.start.saturating_sub(into_page)..range.end.min(metadata.len());
    if whole.is_empty() {
        return;
    }
    if let Ok(map) = map_range(file, whole) {
        let firsts = map.chunks(LARGE_PAGE).filter_map(<[u8]>::first);
        // What reads a page brings it into the cache.
        std::hint::black_box(firsts.fold(0, |all, byte| all | byte));
    }
}

/// Maps `range` of `file`, which begins at a page, in large pages where that can be.
#[expect(
    unsafe_code,
    reason = "packed weights are used in place, without a copy of the model"
)]
fn map_range(file: &File, range: Range<u64>) -> std::io::Result<memmap2::Mmap> {
    let mut options = memmap2::MmapOptions::new();
    let length = range.end.saturating_sub(range.start);
    options
        .offset(range.start)
        .len(usize::try_from(length).map_err(std::io::Error::other)?);
    // SAFETY: the mapping is private and read-only, and lives as long as any slice of it. An
    // artifact is written under another name and renamed once complete, and never changed after
    // that. Whoever changes its bytes in place may change what is computed from them, but every
    // access stays inside the mapping: sizes come from the header read before, and codes never
    // become an index. Whoever truncates it ends this process with a signal.
    let map = unsafe { options.map(file.file()) }?;
    #[cfg(target_os = "linux")]
    {
        // Where it cannot be, pages stay small.
        let _ = map.advise(memmap2::Advice::HugePage);
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn laying_pages_out_keeps_bytes_and_takes_any_range() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w");
        let mut options = fs_err::OpenOptions::new();
        let file = options.read(true).write(true).create_new(true);
        let file = file.open(&path).unwrap();
        lay_in_large_pages(&file, 0..10);
        let page = LARGE_PAGE as u64;
        let size = 2 * page + 5;
        file.set_len(size).unwrap();
        file.file().write_all_at(b"abc", page - 1).unwrap();
        for range in [0..1, page + 1..size, size..size + 1, 0..2 * size, 7..7] {
            lay_in_large_pages(&file, range);
        }
        file.file().write_all_at(b"de", size - 2).unwrap();
        let bytes = map(&file, &path).unwrap();
        let mut expected = vec![0; size as usize];
        expected[LARGE_PAGE - 1..][..3].copy_from_slice(b"abc");
        expected[size as usize - 2..].copy_from_slice(b"de");
        assert!(bytes[..] == expected);
    }
}
