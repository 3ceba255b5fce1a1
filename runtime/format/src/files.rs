//! Opening what others made: regular files only, inside their folder only, capped before read.
//!
//! Owns every call to the file system besides the mapping. Knows no format.

use std::fmt::Write as _;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use fs_err::File;
use fs_err::os::unix::fs::OpenOptionsExt;
use sha2::{Digest, Sha256};

use crate::error::Error;

/// Wraps what the operating system said about `path`.
pub(crate) fn io_error(path: &Path) -> impl FnOnce(io::Error) -> Error + '_ {
    |source| Error::Io {
        path: path.to_owned(),
        source,
    }
}

/// Opens the regular file `path` and tells its size. Never waits for a pipe to be written.
pub(crate) fn open_regular(path: &Path) -> Result<(File, u64), Error> {
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let mut options = fs_err::OpenOptions::new();
    let file = match options.read(true).custom_flags(nonblock).open(path) {
        Ok(file) => file,
        // A socket cannot be opened at all.
        Err(_) if fs_err::metadata(path).is_ok_and(|m| !m.is_file()) => {
            return Err(Error::NotAFile {
                path: path.to_owned(),
            });
        }
        Err(source) => return Err(io_error(path)(source)),
    };
    let metadata = file.metadata().map_err(io_error(path))?;
    if metadata.is_file() {
        Ok((file, metadata.len()))
    } else {
        Err(Error::NotAFile {
            path: path.to_owned(),
        })
    }
}

/// The `len` bytes of `file` from `offset` on.
pub(crate) fn read_at(file: &File, path: &Path, offset: u64, len: u64) -> Result<Vec<u8>, Error> {
    let no_memory = || Error::OutOfMemory {
        path: path.to_owned(),
        bytes: len,
    };
    let len_usize = usize::try_from(len).map_err(|_| no_memory())?;
    let mut bytes = Vec::new();
    bytes
        .try_reserve_exact(len_usize)
        .map_err(|_| no_memory())?;
    bytes.resize(len_usize, 0);
    file.file()
        .read_exact_at(&mut bytes, offset)
        .map_err(io_error(path))?;
    Ok(bytes)
}

/// The whole of a text file of at most `limit` bytes.
pub(crate) fn read_capped(path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let (file, found) = open_regular(path)?;
    if found > limit {
        return Err(Error::TooLarge {
            path: path.to_owned(),
            limit,
            found,
        });
    }
    read_at(&file, path, 0, found)
}

/// SHA-256 of a file in lower-case hexadecimal, read once from start to end.
pub fn sha256_file(path: impl AsRef<Path>) -> Result<String, Error> {
    let path = path.as_ref();
    let (mut file, _) = open_regular(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer).map_err(io_error(path))?;
        match buffer.get(..read) {
            None | Some([]) => break,
            Some(bytes) => hasher.update(bytes),
        }
    }
    let mut hex = String::with_capacity(64);
    for byte in hasher.finalize() {
        let _ = write!(hex, "{byte:02x}");
    }
    Ok(hex)
}

/// A folder of files that belong together.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    real: PathBuf,
    /// Where else its files may lie.
    blobs: Vec<PathBuf>,
}

impl Folder {
    /// Opens the folder `path`. Where it is a snapshot of a hub cache, that is
    /// `models--X/snapshots/REVISION`, its files may be links into `models--X/blobs`, or through
    /// there into the `blobs` that all repositories of the cache share.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let real = fs_err::canonicalize(path).map_err(io_error(path))?;
        if !real.is_dir() {
            return Err(Error::NotAFolder {
                path: path.to_owned(),
            });
        }
        let named = |path: &Path, test: fn(&str) -> bool| {
            path.file_name()
                .and_then(|name| name.to_str())
                .is_some_and(test)
        };
        let entry = real
            .ancestors()
            .filter(|path| named(path, |name| name == "snapshots"))
            .filter_map(Path::parent)
            .find(|entry| named(entry, |name| name.starts_with("models--")));
        let blobs = entry
            .into_iter()
            .flat_map(|entry| [Some(entry), entry.parent()])
            .flatten()
            .filter_map(|folder| fs_err::canonicalize(folder.join("blobs")).ok())
            .collect();
        Ok(Folder {
            path: path.to_owned(),
            real,
            blobs,
        })
    }

    /// The folder as the user named it.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The path of the file `name` in this folder, or `None` where there is none. An error where
    /// it is no regular file or a link that leads elsewhere.
    pub(crate) fn member(&self, name: &str) -> Result<Option<PathBuf>, Error> {
        let path = self.path.join(name);
        match fs_err::symlink_metadata(&path) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error(&path)(error)),
        }
        let target = fs_err::canonicalize(&path).map_err(io_error(&path))?;
        let in_blobs = self.blobs.iter().any(|blobs| target.starts_with(blobs));
        if !in_blobs && !target.starts_with(&self.real) {
            return Err(Error::Outside { path, target });
        }
        if target.is_file() {
            Ok(Some(path))
        } else {
            Err(Error::NotAFile { path })
        }
    }

    /// The paths, relative to this folder and sorted, of everything in its part `below` that
    /// is no folder and has a name of valid text. Nothing where there is no such part.
    pub(crate) fn names(&self, below: &str) -> Result<Vec<String>, Error> {
        let path = self.real.join(below);
        let mut names = Vec::new();
        if path.is_dir() {
            for entry in fs_err::read_dir(&path).map_err(io_error(&path))? {
                let entry = entry.map_err(io_error(&path))?;
                if !entry.file_type().map_err(io_error(&path))?.is_dir() {
                    let name = Path::new(below).join(entry.file_name());
                    names.extend(name.into_os_string().into_string());
                }
            }
        }
        names.sort();
        Ok(names)
    }
}

/// Whether `name` is a plain file name `[A-Za-z0-9][A-Za-z0-9._-]*.safetensors`.
pub(crate) fn is_weight_file_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    name.len() <= 255
        && name.strip_suffix(".safetensors").is_some_and(|stem| {
            stem.bytes()
                .next()
                .is_some_and(|first| first.is_ascii_alphanumeric())
                && stem.bytes().all(plain)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weight_file_names_are_plain() {
        for good in [
            "model.safetensors",
            "model-00001-of-00002.safetensors",
            "a.safetensors",
        ] {
            assert!(is_weight_file_name(good), "{good}");
        }
        for bad in [
            "",
            ".safetensors",
            "-a.safetensors",
            "../a.safetensors",
            "/etc/a.safetensors",
            "a/b.safetensors",
            "a\\b.safetensors",
            "a.safetensors\n",
            "a.bin",
            "ä.safetensors",
            "a\0.safetensors",
            "..safetensors",
        ] {
            assert!(!is_weight_file_name(bad), "{bad:?}");
        }
        assert!(!is_weight_file_name(&format!(
            "{}.safetensors",
            "a".repeat(250)
        )));
    }

    #[test]
    fn sha256_is_that_of_the_standard() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("abc");
        fs_err::write(&path, "abc").unwrap();
        assert_eq!(
            sha256_file(&path).unwrap(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert!(matches!(
            sha256_file(dir.path()),
            Err(Error::NotAFile { .. })
        ));
    }
}
