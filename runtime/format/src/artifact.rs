//! The native artifact: opened, checked against its manifest, and used where it is mapped, or read
//! tensor by tensor.
//!
//! After [`Artifact::open`] every tensor has the shape, layout, place and alignment that the
//! manifest says. Owns no meaning of tensors: what the model is stands in [`Manifest::model`].

use std::collections::BTreeMap;
use std::path::Path;

use rayon::prelude::*;

use crate::artifact_error::{ArtifactError, TensorFault};
use crate::check::check_values;
use crate::codec::{Codec, PackedLayout, UNIT_BYTES};
use crate::dtype::DType;
use crate::error::{Error, shown};
use crate::files::{Folder, is_weight_file_name, read_capped};
use crate::limits;
use crate::manifest::{Manifest, TensorRecord};
use crate::map::map;
use crate::parts;
use crate::safetensors::{SafetensorsFile, TensorInfo};
use crate::tensor::{DenseTensor, PackedTensor, SharedBytes, Tensor};

/// The manifest, relative to the artifact.
pub(crate) const MANIFEST: &str = "neuroconv/manifest.json";

/// How much of an artifact is checked when it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validate {
    /// Everything: structure, codes, padding, finite values and hashes. Reads every byte.
    Full,
    /// Manifest and headers only. Enough for memory safety, since no kernel uses a code, scale or
    /// shift as an index, but damaged weights go unnoticed until [`Artifact::check`].
    Structure,
}

/// An open artifact.
#[derive(Debug)]
pub struct Artifact {
    folder: Folder,
    manifest: Manifest,
    /// Mapped; nothing of it is in memory until it is looked at.
    tensors: BTreeMap<String, Tensor>,
    /// The weight files, where tensors are read from them instead.
    unmapped: Option<BTreeMap<String, SafetensorsFile>>,
}

impl Artifact {
    /// Whether `path` is a folder with a manifest in it, valid or not.
    pub fn is_artifact(path: impl AsRef<Path>) -> bool {
        path.as_ref().join(MANIFEST).is_file()
    }

    /// Opens the artifact `dir`, maps its weights and checks them as far as `validate` says.
    pub fn open(dir: impl AsRef<Path>, validate: Validate) -> Result<Self, Error> {
        let artifact = Artifact::open_structure(dir.as_ref())?;
        if validate == Validate::Full {
            artifact.check()?;
        }
        Ok(artifact)
    }

    /// The same, but [`Artifact::tensor`] reads what it gives, so that no more is in memory than is
    /// in use: mapped pages count as memory of the process once they were looked at.
    pub fn open_unmapped(dir: impl AsRef<Path>, validate: Validate) -> Result<Self, Error> {
        let mut artifact = Artifact::open_structure(dir.as_ref())?;
        let mut files = BTreeMap::new();
        for record in &artifact.manifest.tensors {
            if !files.contains_key(&record.file) {
                let path = artifact.folder.path().join(&record.file);
                files.insert(record.file.clone(), SafetensorsFile::open(path)?);
            }
        }
        artifact.unmapped = Some(files);
        if validate == Validate::Full {
            artifact.check()?;
        }
        Ok(artifact)
    }

    fn open_structure(dir: &Path) -> Result<Self, Error> {
        let folder = Folder::open(dir)?;
        let refuse = |error| Error::Artifact {
            path: folder.path().to_owned(),
            source: Box::new(error),
        };
        let path = folder
            .member(MANIFEST)?
            .ok_or_else(|| refuse(ArtifactError::NoManifest))?;
        let manifest = Manifest::parse(&read_capped(&path, limits::MANIFEST_BYTES)?, &path)?;
        let mut files = open_files(&folder, &manifest)?;
        let mut tensors = BTreeMap::new();
        for record in &manifest.tensors {
            let fault = |fault| {
                let (file, tensor) = (record.file.clone(), shown(&record.name));
                refuse(ArtifactError::Tensor {
                    file,
                    tensor,
                    fault,
                })
            };
            if tensors.contains_key(&record.name) {
                return Err(fault(TensorFault::ListedTwice));
            }
            let mut file = files.get_mut(record.file.as_str());
            let take = |name: &str| file.as_mut().and_then(|file| file.take(name));
            let tensor = read_tensor(record, take).map_err(fault)?;
            tensors.insert(record.name.clone(), tensor);
        }
        let mut left = files
            .iter()
            .filter_map(|(name, file)| Some((name, file.tensors.keys().next()?)));
        if let Some((file, tensor)) = left.next() {
            let (file, tensor) = ((*file).to_owned(), shown(tensor));
            return Err(refuse(ArtifactError::Unlisted { file, tensor }));
        }
        Ok(Artifact {
            folder,
            manifest,
            tensors,
            unmapped: None,
        })
    }

    /// Checks what [`Validate::Structure`] leaves out, on the threads of the current rayon pool:
    /// codes, padding, finite values and hashes. Tells the first fault in the manifest's order.
    pub fn check(&self) -> Result<(), Error> {
        let fault = |record: &TensorRecord| -> Result<(), Error> {
            let tensor = self.tensor(&record.name)?;
            let checked = check_values(&tensor).and_then(|()| check_hash(record, &tensor));
            checked.map_err(|fault| Error::Artifact {
                path: self.path().to_owned(),
                source: Box::new(ArtifactError::Tensor {
                    file: record.file.clone(),
                    tensor: shown(&record.name),
                    fault,
                }),
            })
        };
        let faults = self.manifest.tensors.par_iter();
        let first = faults.map(fault).find_first(Result::is_err);
        first.unwrap_or(Ok(()))
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The tensor `name` of the manifest, without a copy of its bytes where they are mapped.
    pub fn tensor(&self, name: &str) -> Result<Tensor, Error> {
        let mut tensor = self
            .tensors
            .get(name)
            .cloned()
            .ok_or_else(|| Error::NoTensor {
                path: self.path().to_owned(),
                tensor: shown(name),
            })?;
        for file in self.unmapped.iter().flat_map(BTreeMap::values) {
            // What a packed tensor has beside its codes is small, and stays mapped.
            if let Some(info) = file.tensors().iter().find(|info| info.name == name) {
                let bytes = file.read(info)?.into();
                match &mut tensor {
                    Tensor::Dense(dense) => dense.bytes = bytes,
                    Tensor::Packed(packed) => packed.bytes = bytes,
                }
            }
        }
        Ok(tensor)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// A mapped weight file and those of its tensors that no record has claimed yet.
struct WeightFile {
    bytes: SharedBytes,
    tensors: BTreeMap<String, TensorInfo>,
}

impl WeightFile {
    fn take(&mut self, name: &str) -> Option<(TensorInfo, SharedBytes)> {
        let info = self.tensors.remove(name)?;
        let start = usize::try_from(info.range.start).ok()?;
        let end = usize::try_from(info.range.end).ok()?;
        let bytes = self.bytes.slice(start..end)?;
        Some((info, bytes))
    }
}

/// Opens and maps every file that a record names.
fn open_files<'a>(
    folder: &Folder,
    manifest: &'a Manifest,
) -> Result<BTreeMap<&'a str, WeightFile>, Error> {
    let mut files = BTreeMap::new();
    for record in &manifest.tensors {
        let refuse = |error| Error::Artifact {
            path: folder.path().to_owned(),
            source: Box::new(error),
        };
        let (file, tensor) = (&record.file, || shown(&record.name));
        if files.contains_key(file.as_str()) {
            continue;
        }
        if !is_weight_file_name(file) {
            return Err(refuse(ArtifactError::FileName {
                tensor: tensor(),
                file: shown(file),
            }));
        }
        let path = folder.member(file)?.ok_or_else(|| {
            refuse(ArtifactError::NoFile {
                tensor: tensor(),
                file: file.clone(),
            })
        })?;
        let open = SafetensorsFile::open(&path)?;
        let bytes = map(open.file(), &path)?;
        let tensors = open
            .into_tensors()
            .into_iter()
            .map(|info| (info.name.clone(), info))
            .collect();
        files.insert(file.as_str(), WeightFile { bytes, tensors });
    }
    Ok(files)
}

/// The tensor of `record` with its parts, which `take` gives by name.
fn read_tensor(
    record: &TensorRecord,
    mut take: impl FnMut(&str) -> Option<(TensorInfo, SharedBytes)>,
) -> Result<Tensor, TensorFault> {
    let (info, bytes) = take(&record.name).ok_or(TensorFault::NotInFile)?;
    let mut tensor = match_tensor(record, &info, bytes)?;
    match &mut tensor {
        Tensor::Packed(packed) => {
            packed.corrections = parts::corrections(record, &packed.layout, take)?;
        }
        Tensor::Dense(_) if record.parts.is_empty() => {}
        Tensor::Dense(_) => {
            return Err(TensorFault::DenseParts {
                codec: record.codec,
            });
        }
    }
    Ok(tensor)
}

/// Checks `record` against the header entry `info` and against itself.
fn match_tensor(
    record: &TensorRecord,
    info: &TensorInfo,
    bytes: SharedBytes,
) -> Result<Tensor, TensorFault> {
    check_place(record.codec.dtype(), record.offset, record.size, info)?;
    if record.shape.is_empty() || record.shape.contains(&0) {
        return Err(bad_shape(record));
    }
    let tensor = match record.codec.packed() {
        Some(codec) => match_packed(record, codec, info, bytes)?,
        None => match_dense(record, info, bytes)?,
    };
    check_bits(record)?;
    Ok(tensor)
}

/// Checks type and place that the manifest gives against the header entry `info`.
pub(crate) fn check_place(
    dtype: DType,
    offset: u64,
    size: u64,
    info: &TensorInfo,
) -> Result<(), TensorFault> {
    if info.dtype != dtype.into() {
        return Err(TensorFault::Dtype {
            expected: dtype,
            found: info.dtype,
        });
    }
    if info.range.start != offset {
        return Err(TensorFault::Offset {
            manifest: offset,
            header: info.range.start,
        });
    }
    if info.size_bytes() != size {
        return Err(TensorFault::Size {
            manifest: size,
            header: info.size_bytes(),
        });
    }
    Ok(())
}

fn match_packed(
    record: &TensorRecord,
    codec: Codec,
    info: &TensorInfo,
    bytes: SharedBytes,
) -> Result<Tensor, TensorFault> {
    let &[rows, cols] = record.shape.as_slice() else {
        return Err(bad_shape(record));
    };
    let stored = record.codec;
    let group = record.group.ok_or(TensorFault::NoGroup { codec: stored })?;
    let layout =
        PackedLayout::new(codec, rows, cols, group, record.shift).map_err(TensorFault::Layout)?;
    if bytes.len() != layout.size_bytes() {
        let (expected, found) = (layout.size_bytes() as u64, record.size);
        return Err(TensorFault::LayoutSize { expected, found });
    }
    check_shape(&[layout.size_bytes()], &info.shape)?;
    check_alignment(record.offset, UNIT_BYTES)?;
    Ok(Tensor::Packed(PackedTensor {
        activations: record.activation_bits.unwrap_or_default(),
        ..PackedTensor::new(layout, bytes)
    }))
}

fn match_dense(
    record: &TensorRecord,
    info: &TensorInfo,
    bytes: SharedBytes,
) -> Result<Tensor, TensorFault> {
    let (dtype, shape) = (record.codec.dtype(), record.shape.clone());
    if record.group.is_some() || record.shift || record.activation_bits.is_some() {
        return Err(TensorFault::DenseGroup {
            codec: record.codec,
        });
    }
    check_shape(&shape, &info.shape)?;
    check_alignment(record.offset, dtype.size())?;
    Ok(Tensor::Dense(DenseTensor {
        dtype,
        shape,
        bytes,
    }))
}

fn bad_shape(record: &TensorRecord) -> TensorFault {
    TensorFault::BadShape {
        codec: record.codec,
        shape: record.shape.clone(),
    }
}

pub(crate) fn check_shape(expected: &[usize], found: &[usize]) -> Result<(), TensorFault> {
    if expected == found {
        return Ok(());
    }
    Err(TensorFault::Shape {
        expected: expected.to_vec(),
        found: found.to_vec(),
    })
}

pub(crate) fn check_alignment(offset: u64, alignment: usize) -> Result<(), TensorFault> {
    let alignment = alignment as u64;
    if offset.is_multiple_of(alignment) {
        return Ok(());
    }
    Err(TensorFault::Unaligned { offset, alignment })
}

/// The stated bits per weight must be those that the sizes give.
fn check_bits(record: &TensorRecord) -> Result<(), TensorFault> {
    let elements: f64 = record.shape.iter().map(|&dim| dim as f64).product();
    let bytes = record.stored_bytes() as f64;
    let (expected, found) = (bytes * 8.0 / elements, record.bits_per_weight);
    if (found - expected).abs() <= 1e-6 * expected {
        return Ok(());
    }
    Err(TensorFault::BitsPerWeight { expected, found })
}

fn check_hash(record: &TensorRecord, tensor: &Tensor) -> Result<(), TensorFault> {
    let bytes = match tensor {
        Tensor::Dense(dense) => &dense.bytes,
        Tensor::Packed(packed) => &packed.bytes,
    };
    let found = blake3::hash(bytes).to_hex().to_string();
    if found != record.blake3 {
        return Err(TensorFault::Hash {
            expected: shown(&record.blake3),
            found,
        });
    }
    match tensor {
        Tensor::Dense(_) => Ok(()),
        Tensor::Packed(packed) => parts::check_hashes(record, &packed.corrections),
    }
}
