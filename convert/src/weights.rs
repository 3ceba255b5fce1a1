//! The staged weights file: reserved first, then written tensor by tensor at fixed offsets.
//!
//! Owns disk space and positioned writes. Does not know what the bytes mean.

use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use fs_err::os::unix::fs::OpenOptionsExt as _;
use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;

use crate::Error;

/// Bytes read at a time.
const CHUNK: u64 = 1 << 20;

/// A file of a size known beforehand.
#[derive(Debug)]
pub(crate) struct WeightsFile {
    file: fs_err::File,
    path: PathBuf,
}

impl WeightsFile {
    /// Opens or creates the file and reserves `size` bytes; `more` bytes will be needed beside
    /// it. Bytes that a killed run wrote stay as they are.
    pub(crate) fn open(path: PathBuf, size: u64, more: u64) -> Result<Self, Error> {
        let mut options = fs_err::OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
        let file = options.open(&path)?;
        let there = file.metadata()?.blocks().saturating_mul(512);
        check_space(&path, size.saturating_sub(there).saturating_add(more))?;
        file.set_len(size)?;
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, size) {
            // Where space cannot be reserved, the check above has to do.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            Err(Errno::NOSPC) => return Err(no_space(&path, size)),
            Err(e) => return Err(Error::file("reserve space", &path)(e)),
        }
        Ok(WeightsFile { file, path })
    }

    /// Writes all of `bytes` from `offset` on.
    pub(crate) fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), Error> {
        let end = offset.saturating_add(bytes.len() as u64);
        neuroconv_format::lay_in_large_pages(&self.file, offset..end);
        self.file
            .file()
            .write_all_at(bytes, offset)
            .map_err(Error::file("write", &self.path))
    }

    /// BLAKE3 of a range in hex.
    pub(crate) fn blake3(&self, range: Range<u64>) -> Result<String, Error> {
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; CHUNK as usize];
        let mut at = range.start;
        while at < range.end {
            let part = &mut buffer[..CHUNK.min(range.end - at) as usize];
            self.file
                .file()
                .read_exact_at(part, at)
                .map_err(Error::file("read", &self.path))?;
            hasher.update(part);
            at += part.len() as u64;
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// Returns once everything written is on disk.
    pub(crate) fn sync(&self) -> Result<(), Error> {
        Ok(self.file.sync_data()?)
    }
}

/// Refuses when fewer than `needed` bytes are free on the file system of `path`.
fn check_space(path: &Path, needed: u64) -> Result<(), Error> {
    let free = free(path)?;
    if needed > free {
        return Err(Error::DiskSpace {
            path: path.to_owned(),
            needed,
            free,
        });
    }
    Ok(())
}

/// Bytes that an ordinary user may still write.
pub(crate) fn free(path: &Path) -> Result<u64, Error> {
    let fs = rustix::fs::statvfs(path).map_err(Error::file("measure free space", path))?;
    Ok(fs.f_bavail.saturating_mul(fs.f_frsize))
}

fn no_space(path: &Path, needed: u64) -> Error {
    match free(path) {
        Ok(free) => Error::DiskSpace {
            path: path.to_owned(),
            needed,
            free,
        },
        Err(e) => e,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_the_disk_holds_is_refused_before_anything_is_reserved() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w");
        let Err(Error::DiskSpace { needed, free, .. }) =
            WeightsFile::open(path.clone(), 1 << 20, 1 << 60)
        else {
            panic!("expected a lack of space");
        };
        assert!(needed > free && needed >= 1 << 60);
        assert_eq!(fs_err::metadata(&path).unwrap().len(), 0);
    }

    #[test]
    fn reopening_keeps_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w");
        let first = WeightsFile::open(path.clone(), 3 << 20, 0).unwrap();
        first.write_at(b"abc", (1 << 20) + 1).unwrap();
        let hash = first.blake3(1 << 20..(3 << 20)).unwrap();
        drop(first);
        let again = WeightsFile::open(path, 3 << 20, 0).unwrap();
        assert_eq!(again.blake3(1 << 20..(3 << 20)).unwrap(), hash);
        let mut expected = vec![0; 2 << 20];
        expected[1..4].copy_from_slice(b"abc");
        assert_eq!(hash, blake3::hash(&expected).to_hex().to_string());
    }
}
