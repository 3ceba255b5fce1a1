//! One safetensors file: opened, its header checked, its tensors read at their positions.
//!
//! Never maps a file it did not write, so that a file that shrinks is an error and no signal.

use std::path::{Path, PathBuf};

use fs_err::File;

use crate::error::{Error, HeaderError};
use crate::files::{open_regular, read_at};
use crate::header;
pub use crate::header::TensorInfo;
use crate::limits;
use crate::sniff::{Disguise, SNIFF_BYTES};
use crate::tensor::DenseTensor;

/// A safetensors file whose header is valid and whose tensors tile its data.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    file: File,
    tensors: Vec<TensorInfo>,
}

impl SafetensorsFile {
    /// Opens `path` and checks everything but the values of the elements.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref().to_owned();
        let (file, size) = open_regular(&path)?;
        let refuse = |error| Error::Header {
            path: path.clone(),
            source: Box::new(error),
        };
        let first = read_at(&file, &path, 0, size.min(SNIFF_BYTES as u64))?;
        let length = header_length(&first, size).map_err(|error| {
            refuse(Disguise::sniff(&first).map_or(error, HeaderError::Disguised))
        })?;
        let json = read_at(&file, &path, 8, length)?;
        let tensors = header::parse(&json, length.saturating_add(8)..size).map_err(refuse)?;
        Ok(SafetensorsFile {
            path,
            file,
            tensors,
        })
    }

    /// Every tensor, in the order in which they lie in the file.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The stored bytes of the tensor `info` of this file.
    pub fn read(&self, info: &TensorInfo) -> Result<Vec<u8>, Error> {
        read_at(&self.file, &self.path, info.range.start, info.size_bytes())
    }

    /// The tensor `info` of this file as weights; an error where its elements are of a type that
    /// weights are not read from.
    pub fn read_dense(&self, info: &TensorInfo) -> Result<DenseTensor, Error> {
        let dtype = info.dtype.dense().ok_or_else(|| Error::ElementType {
            path: self.path.clone(),
            tensor: info.name.clone(),
            dtype: info.dtype,
        })?;
        Ok(DenseTensor {
            dtype,
            shape: info.shape.clone(),
            bytes: self.read(info)?.into(),
        })
    }

    /// Every tensor, in the order in which they lie in the file.
    pub(crate) fn into_tensors(self) -> Vec<TensorInfo> {
        self.tensors
    }

    /// The open file.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }
}

/// The length of the header of a file of `size` bytes that begins with `first`.
fn header_length(first: &[u8], size: u64) -> Result<u64, HeaderError> {
    let declared = first.first_chunk().map(|&bytes| u64::from_le_bytes(bytes));
    let declared = declared.ok_or(HeaderError::TooShort { found: size })?;
    if declared > limits::HEADER_BYTES {
        return Err(HeaderError::HeaderLength { declared });
    }
    let available = size.saturating_sub(8);
    if declared > available {
        return Err(HeaderError::HeaderCut {
            declared,
            available,
        });
    }
    if declared == 0 || first.get(8) != Some(&b'{') {
        return Err(HeaderError::NoBrace);
    }
    Ok(declared)
}
