//! Builds files byte by byte, good and bad ones.

use std::path::PathBuf;

use neuroconv_format::{Error, HeaderError, SafetensorsFile};
use tempfile::TempDir;

/// A safetensors file: the length of `header`, `header`, `data` zero bytes.
pub(crate) fn container(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

/// One entry of a header.
pub(crate) fn entry(name: &str, dtype: &str, shape: &[u64], offsets: [u64; 2]) -> String {
    let name = serde_json::Value::from(name);
    format!(r#"{name}:{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":{offsets:?}}}"#)
}

/// A header of these entries.
pub(crate) fn header(entries: &[String]) -> String {
    format!("{{{}}}", entries.join(","))
}

/// A folder that is removed in the end.
pub(crate) struct Dir(TempDir);

impl Dir {
    pub(crate) fn new() -> Self {
        Dir(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        // Some file systems write a file through to the disk when it is replaced in place.
        let _ = fs_err::remove_file(&path);
        fs_err::write(&path, bytes).unwrap();
        path
    }
}

/// What comes of opening a file of these bytes.
pub(crate) fn open(dir: &Dir, bytes: &[u8]) -> Result<SafetensorsFile, HeaderError> {
    match SafetensorsFile::open(dir.write("x.safetensors", bytes)) {
        Ok(file) => Ok(file),
        Err(Error::Header { source, path }) => {
            assert_eq!(path, dir.path("x.safetensors"));
            Err(*source)
        }
        Err(other) => panic!("{other:?}"),
    }
}

/// Pseudo-random numbers (`SplitMix64`), the same on every machine.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}
