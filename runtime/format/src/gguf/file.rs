//! One GGUF file: opened, its header checked, its tensors read at their positions.

use std::io::BufReader;
use std::path::{Path, PathBuf};

use fs_err::File;

use super::cursor::Fault;
use super::error::GgufError;
use super::header::{self, GgufTensor, Header};
use super::kind::GgmlType;
use super::metadata::Metadata;
use crate::error::Error;
use crate::files::{io_error, open_regular, read_at};
use crate::sniff::{Disguise, SNIFF_BYTES};
use crate::tensor::DenseTensor;

/// A GGUF file whose header is valid and whose tensors tile its data.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    file: File,
    header: Header,
}

impl GgufFile {
    /// Opens `path` and checks everything but the values of the elements.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref().to_owned();
        let (file, size) = open_regular(&path)?;
        let first = read_at(&file, &path, 0, size.min(SNIFF_BYTES as u64))?;
        let header = header::parse(BufReader::new(&file), size).map_err(|fault| match fault {
            Fault::Io(source) => io_error(&path)(source),
            Fault::Bytes(error) => Error::Gguf {
                path: path.clone(),
                source: Box::new(disguised(&first).unwrap_or(error)),
            },
        })?;
        Ok(GgufFile { path, file, header })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The values by key.
    pub fn metadata(&self) -> &Metadata {
        &self.header.metadata
    }

    /// Every tensor, in the order in which they lie in the file.
    pub fn tensors(&self) -> &[GgufTensor] {
        &self.header.tensors
    }

    /// The stored bytes of the tensor `info` of this file.
    pub fn read(&self, info: &GgufTensor) -> Result<Vec<u8>, Error> {
        read_at(&self.file, &self.path, info.range.start, info.size_bytes())
    }

    /// The values of the tensor `info` of this file, which must be of type F32.
    pub fn read_f32(&self, info: &GgufTensor) -> Result<Vec<f32>, Error> {
        if info.kind != GgmlType::F32 {
            return Err(self.refuse(GgufError::NotF32 {
                tensor: crate::error::shown(&info.name),
                found: info.kind,
            }));
        }
        let bytes = self.read(info)?;
        let (chunks, _) = bytes.as_chunks();
        Ok(chunks.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }

    /// The tensor `info` of this file: plain elements as they are stored, blocks decoded to single
    /// precision. Values may be other than finite.
    pub fn read_dense(&self, info: &GgufTensor) -> Result<DenseTensor, Error> {
        let dtype = info.kind.dense().ok_or_else(|| self.not_read(info))?;
        let bytes = self.read(info)?;
        let bytes = match info.kind.decode(&bytes) {
            Some(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            None => bytes,
        };
        Ok(DenseTensor {
            dtype,
            shape: info.shape.clone(),
            bytes: bytes.into(),
        })
    }

    /// What to say of a tensor whose element type [`GgufFile::read_dense`] does not know.
    pub fn not_read(&self, info: &GgufTensor) -> Error {
        self.refuse(GgufError::NotRead {
            tensor: crate::error::shown(&info.name),
            found: info.kind,
        })
    }

    /// The same error with the path.
    pub(super) fn refuse(&self, error: GgufError) -> Error {
        Error::Gguf {
            path: self.path.clone(),
            source: Box::new(error),
        }
    }
}

/// What a file that does not begin like GGUF seems to be.
fn disguised(first: &[u8]) -> Option<GgufError> {
    let disguise = Disguise::sniff(first).filter(|d| *d != Disguise::Gguf);
    disguise.map(GgufError::Disguised)
}
