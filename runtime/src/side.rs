//! The small files beside the weights of a model: in its folder, or made from what one file says.
//!
//! Owns where they are found. Reads capped, whatever may lie under their names.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::Error;

/// The file of the tokenizer.
pub(crate) const TOKENIZER: &str = "tokenizer.json";
/// Bytes of the largest `tokenizer.json` that is read.
pub(crate) const TOKENIZER_LIMIT: u64 = 256 << 20;

/// The small files of a model.
#[derive(Clone, Debug)]
pub enum SideFiles {
    /// In this folder.
    Folder(PathBuf),
    /// Made from what stands in a file.
    Made {
        /// The file.
        origin: PathBuf,
        /// Contents by name.
        files: BTreeMap<String, Vec<u8>>,
    },
}

impl SideFiles {
    /// The folder, or the file that they are made from: for messages.
    pub(crate) fn root(&self) -> &Path {
        match self {
            SideFiles::Folder(root) | SideFiles::Made { origin: root, .. } => root,
        }
    }

    /// Where a file of this name would be: for messages.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    /// `tokenizer.json`, parsed.
    pub fn tokenizer(&self) -> Result<serde_json::Value, Error> {
        let file = self.read_json(TOKENIZER, TOKENIZER_LIMIT)?;
        file.ok_or_else(|| Error::MissingFile {
            path: self.path(TOKENIZER),
        })
    }

    /// The bytes of the file `name`, at most `limit` of them; `None` when there is none.
    pub(crate) fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, Error> {
        match self {
            SideFiles::Folder(dir) => read_capped(&dir.join(name), limit),
            SideFiles::Made { files, .. } => match files.get(name) {
                Some(bytes) if bytes.len() as u64 > limit => Err(Error::FileSize {
                    path: self.path(name),
                    found: bytes.len() as u64,
                    limit,
                }),
                bytes => Ok(bytes.cloned()),
            },
        }
    }

    /// [`SideFiles::read`], parsed as JSON.
    pub(crate) fn read_json(
        &self,
        name: &str,
        limit: u64,
    ) -> Result<Option<serde_json::Value>, Error> {
        let Some(bytes) = self.read(name, limit)? else {
            return Ok(None);
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| Error::Json {
                path: self.path(name),
                detail: error.to_string(),
            })
    }
}

/// The bytes of the regular file `path`, at most `limit` of them; `None` when there is no file.
fn read_capped(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, Error> {
    let metadata = match fs_err::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if !metadata.is_file() {
        return Err(Error::MissingFile {
            path: path.to_owned(),
        });
    }
    let oversized = |found| Error::FileSize {
        path: path.to_owned(),
        found,
        limit,
    };
    if metadata.len() > limit {
        return Err(oversized(metadata.len()));
    }
    let mut bytes = Vec::new();
    fs_err::File::open(path)?
        .take(limit + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(oversized(bytes.len() as u64));
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_oversized_and_odd_files_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let folder = SideFiles::Folder(dir.path().to_owned());
        assert!(folder.read_json("a.json", 10).unwrap().is_none());
        fs_err::write(dir.path().join("a.json"), "[1, 2]").unwrap();
        let made = SideFiles::Made {
            origin: dir.path().join("model"),
            files: BTreeMap::from([("a.json".to_owned(), b"[1, 2]".to_vec())]),
        };
        for side in [&folder, &made] {
            assert_eq!(
                side.read_json("a.json", 6).unwrap(),
                Some(serde_json::json!([1, 2]))
            );
            assert!(side.read_json("b.json", 6).unwrap().is_none());
            let large = side.read_json("a.json", 5);
            assert!(matches!(
                large,
                Err(Error::FileSize {
                    found: 6,
                    limit: 5,
                    ..
                })
            ));
        }
        fs_err::write(dir.path().join("a.json"), "[1, 2").unwrap();
        let cut = folder.read_json("a.json", 9);
        assert!(matches!(cut, Err(Error::Json { .. })));
        let odd = SideFiles::Folder(dir.path().join(".."))
            .read(dir.path().file_name().unwrap().to_str().unwrap(), 9);
        assert!(matches!(odd, Err(Error::MissingFile { .. })));
    }
}
