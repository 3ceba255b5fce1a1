//! What makes two conversions the same: the identity of the source files, and the job.
//!
//! Owns the hashing of the source. The same job writes the same weights, so its hash names the
//! staging folder and tells whether the work of a killed run may be used.

use std::fmt::Write as _;
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use neuroconv_format::manifest::{FileRecord, Manifest};
use neuroconv_runtime::Progress;
use rayon::prelude::*;
use sha2::{Digest as _, Sha256};

use crate::Error;

/// Bytes read at a time.
const CHUNK: usize = 1 << 20;

/// SHA-256 over everything that determines the bytes of the weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JobId(String);

impl JobId {
    /// Digits of the short form.
    const SHORT: usize = 16;

    /// The job that a manifest describes: tool, format, recipe and source files.
    pub(crate) fn of(manifest: &Manifest) -> Self {
        let mut text = format!(
            "neuroconv {}\nmanifest {}\nrecipe {}\n",
            manifest.tool.version, manifest.schema_version, manifest.recipe.sha256
        );
        for file in &manifest.source.files {
            let _ = writeln!(text, "{} {} {}", file.sha256, file.size, file.path);
        }
        JobId::of_text(&text)
    }

    /// The job that a text describes.
    pub(crate) fn of_text(text: &str) -> Self {
        JobId(sha256(text.as_bytes()))
    }

    /// The first 16 digits: enough to tell folders apart.
    pub(crate) fn short(&self) -> &str {
        &self.0[..JobId::SHORT]
    }

    /// Whether `text` could be a short form.
    pub(crate) fn is_short(text: &[u8]) -> bool {
        text.len() == JobId::SHORT && text.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    }
}

/// One file of the source as it was when it was hashed.
#[derive(Clone, Debug)]
struct Snapshot {
    path: PathBuf,
    record: FileRecord,
    stamp: Stamp,
}

/// `path` as seen from `root`: what may be written down, since no absolute path may.
pub(crate) fn relative(root: &Path, path: &Path) -> String {
    let name = path
        .strip_prefix(root)
        .unwrap_or(Path::new(path.file_name().unwrap_or_default()));
    name.to_string_lossy().into_owned()
}

/// What changes when a file is written to: device, inode, size, times of data and inode.
type Stamp = (u64, u64, u64, (i64, i64), (i64, i64));

fn stamp(path: &Path) -> Result<Stamp, Error> {
    let m = fs_err::metadata(path)?;
    Ok((
        m.dev(),
        m.ino(),
        m.size(),
        (m.mtime(), m.mtime_nsec()),
        (m.ctime(), m.ctime_nsec()),
    ))
}

/// The files of a source, hashed.
#[derive(Clone, Debug)]
pub(crate) struct SourceFiles(Vec<Snapshot>);

impl SourceFiles {
    /// Hashes `paths` below `root`, sorted; `None` when `cancel` was set meanwhile.
    pub(crate) fn hash(
        root: &Path,
        mut paths: Vec<PathBuf>,
        progress: &dyn Progress,
        cancel: &AtomicBool,
    ) -> Result<Option<Self>, Error> {
        paths.sort();
        paths.dedup();
        let stamps = paths
            .iter()
            .map(|path| stamp(path))
            .collect::<Result<Vec<_>, _>>()?;
        progress.start("hash source", stamps.iter().map(|s| s.2).sum(), "bytes");
        let files = paths.into_par_iter().zip(stamps).map(|(path, stamp)| {
            let Some((sha256, size)) = hash_file(&path, progress, cancel)? else {
                return Ok(None);
            };
            let record = FileRecord {
                path: relative(root, &path),
                size,
                sha256,
            };
            Ok(Some(Snapshot {
                path,
                record,
                stamp,
            }))
        });
        let files = files.collect::<Result<Option<Vec<_>>, Error>>()?;
        progress.finish();
        Ok(files.map(SourceFiles))
    }

    /// What the manifest says about the files.
    pub(crate) fn records(&self) -> Vec<FileRecord> {
        self.0.iter().map(|f| f.record.clone()).collect()
    }

    /// The hash of the file at `path`, if it is one of these.
    pub(crate) fn sha256_of(&self, path: &Path) -> Option<&str> {
        self.0
            .iter()
            .find(|f| f.path == path)
            .map(|f| f.record.sha256.as_str())
    }

    /// Checks that no file was written to since it was hashed.
    pub(crate) fn check_unchanged(&self) -> Result<(), Error> {
        for file in &self.0 {
            if stamp(&file.path)? != file.stamp || file.stamp.2 != file.record.size {
                return Err(Error::SourceChanged {
                    path: file.path.clone(),
                });
            }
        }
        Ok(())
    }
}

/// SHA-256 of a file and the number of bytes read; `None` when `cancel` was set meanwhile.
pub(crate) fn hash_file(
    path: &Path,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<Option<(String, u64)>, Error> {
    let mut file = fs_err::File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let mut size = 0;
    loop {
        if cancel.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let n = match file.read(&mut buffer) {
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(e.into()),
        };
        if n == 0 {
            return Ok(Some((hex(&hasher.finalize()), size)));
        }
        hasher.update(&buffer[..n]);
        size += n as u64;
        progress.advance(n as u64);
    }
}

/// SHA-256 of bytes in hex.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        let _ = write!(out, "{byte:02x}");
    }
    out
}
