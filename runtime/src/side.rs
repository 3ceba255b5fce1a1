//! Reads the small files beside the weights, whatever may lie under their names.

use std::io::Read;
use std::path::Path;

use crate::Error;

/// The bytes of the regular file `path`, at most `limit` of them; `None` when there is no file.
pub(crate) fn read_capped(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, Error> {
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

/// [`read_capped`], parsed as JSON.
pub(crate) fn read_json(path: &Path, limit: u64) -> Result<Option<serde_json::Value>, Error> {
    let Some(bytes) = read_capped(path, limit)? else {
        return Ok(None);
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| Error::Json {
            path: path.to_owned(),
            detail: error.to_string(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_oversized_and_odd_files_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        assert!(read_json(&path, 10).unwrap().is_none());
        fs_err::write(&path, "[1, 2]").unwrap();
        assert_eq!(
            read_json(&path, 6).unwrap(),
            Some(serde_json::json!([1, 2]))
        );
        let large = read_json(&path, 5);
        assert!(matches!(
            large,
            Err(Error::FileSize {
                found: 6,
                limit: 5,
                ..
            })
        ));
        fs_err::write(&path, "[1, 2").unwrap();
        assert!(matches!(read_json(&path, 9), Err(Error::Json { .. })));
        assert!(matches!(
            read_json(dir.path(), 9),
            Err(Error::MissingFile { .. })
        ));
    }
}
