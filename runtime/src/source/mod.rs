//! Models on disk: Hugging Face checkpoints, GGUF files and native artifacts, told apart by their files.

mod files;
mod gguf;
mod numbers;
mod quantized;
mod rewritten;

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use neuroconv_format::{Artifact, Tensor, Validate};
use neuroconv_recipes::{ModelSpec, Resolved, Role, SourceTensor, TensorId, near, resolve};

use crate::{Error, SideFiles, TextTokenizer, WeightSource};

use files::{CONFIG, Place};
pub use files::{ModelFiles, Rounded, SideContent, SideFile};
pub use numbers::AsNumbers;
pub use rewritten::Rewritten;

/// Bytes compared at a time.
const COMPARE_BYTES: u64 = 1 << 20;

/// A checkpoint, resolved to a model.
#[derive(Debug)]
pub struct Checkpoint {
    files: ModelFiles,
    resolved: Resolved,
    names: BTreeMap<TensorId, String>,
}

impl Checkpoint {
    /// Opens what [`ModelFiles::open`] does, and finds whether a stored head is the embedding once
    /// more, byte for byte.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let files = ModelFiles::open(path)?;
        let tensors: Vec<SourceTensor> = files
            .tensors()
            .map(|info| SourceTensor {
                name: info.name.clone(),
                shape: info.shape.clone(),
            })
            .collect();
        let mut resolved = resolve(files.config(), files.generation_config(), &tensors)?;
        resolved.warnings.extend_from_slice(files.warnings());
        resolved.dropped.extend(files.dropped());
        let name_of = |resolved: &Resolved, role| {
            let slot = resolved
                .slots
                .iter()
                .find(|slot| slot.id == TensorId::model(role));
            slot.map(|slot| slot.source.clone())
        };
        if let (Some(embed), Some(head)) = (
            name_of(&resolved, Role::Embed),
            name_of(&resolved, Role::Head),
        ) && same_bytes(&files, &embed, &head)?
        {
            resolved.tie_head();
        }
        let names = resolved
            .slots
            .iter()
            .map(|slot| (slot.id, slot.source.clone()))
            .collect();
        Ok(Checkpoint {
            files,
            resolved,
            names,
        })
    }

    /// What the checkpoint was resolved to.
    pub fn resolved(&self) -> &Resolved {
        &self.resolved
    }

    /// The files.
    pub fn files(&self) -> &ModelFiles {
        &self.files
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> Result<TextTokenizer, Error> {
        TextTokenizer::of(&self.files.side()?)
    }
}

impl WeightSource for Checkpoint {
    fn spec(&self) -> &ModelSpec {
        &self.resolved.spec
    }

    fn tensor(&self, id: TensorId) -> Result<Tensor, Error> {
        let name = self.names.get(&id).ok_or(Error::NoTensor(id))?;
        Ok(Tensor::Dense(self.files.read(name)?))
    }

    fn has_packed(&self) -> Result<bool, Error> {
        Ok(false)
    }
}

/// Whether two tensors of a checkpoint have the same element type and bytes. Reads no more than
/// up to the first difference.
fn same_bytes(files: &ModelFiles, a: &str, b: &str) -> Result<bool, Error> {
    let shape = |name| files.info(name).map(|info| &info.shape);
    let (Some(place_a), Some(place_b)) = (files.place(a)?, files.place(b)?) else {
        return Ok(false);
    };
    if place_a.element != place_b.element || shape(a) != shape(b) {
        return Ok(false);
    }
    let (mut a, mut b) = (Span::open(&place_a)?, Span::open(&place_b)?);
    let (mut block_a, mut block_b) = (Vec::new(), Vec::new());
    loop {
        a.next(&mut block_a)?;
        b.next(&mut block_b)?;
        if block_a != block_b {
            return Ok(false);
        }
        if block_a.is_empty() {
            return Ok(true);
        }
    }
}

/// The bytes of one tensor, read from first to last.
struct Span {
    file: fs_err::File,
    left: u64,
}

impl Span {
    fn open(place: &Place) -> Result<Self, Error> {
        let mut file = fs_err::File::open(&place.path)?;
        file.seek(SeekFrom::Start(place.range.start))?;
        Ok(Span {
            file,
            left: place.range.end - place.range.start,
        })
    }

    fn next(&mut self, block: &mut Vec<u8>) -> Result<(), Error> {
        let size = self.left.min(COMPARE_BYTES);
        block.resize(size as usize, 0);
        self.file.read_exact(block)?;
        self.left -= size;
        Ok(())
    }
}

/// A native artifact, checked to be the model that its manifest describes.
#[derive(Debug)]
pub struct PackedModel {
    artifact: Artifact,
    spec: ModelSpec,
}

impl PackedModel {
    /// Opens the artifact folder `dir`; `validate` says how much of its bytes is checked.
    pub fn open(dir: &Path, validate: Validate) -> Result<Self, Error> {
        PackedModel::of(Artifact::open(dir, validate)?)
    }

    /// The same with all bytes checked and none kept: every tensor is read when it is asked for, so
    /// that memory holds what is in use of a model that may be larger.
    pub fn open_unmapped(dir: &Path) -> Result<Self, Error> {
        PackedModel::of(Artifact::open_unmapped(dir, Validate::Full)?)
    }

    fn of(artifact: Artifact) -> Result<Self, Error> {
        let dir = artifact.path();
        let spec: ModelSpec =
            serde_json::from_value(artifact.manifest().model.clone()).map_err(|error| {
                Error::ModelSpec {
                    path: dir.to_owned(),
                    detail: error.to_string(),
                }
            })?;
        spec.validate()?;
        let shapes: BTreeMap<TensorId, Vec<usize>> = spec.tensors().into_iter().collect();
        for (id, expected) in &shapes {
            let found = artifact.tensor(&id.to_string())?.shape();
            if found != *expected {
                return Err(Error::Shape {
                    tensor: *id,
                    expected: expected.clone(),
                    found,
                });
            }
        }
        for record in &artifact.manifest().tensors {
            if !record
                .name
                .parse()
                .is_ok_and(|id: TensorId| shapes.contains_key(&id))
            {
                let tensor = record.name.clone();
                return Err(Error::ExtraTensor {
                    path: dir.to_owned(),
                    tensor,
                });
            }
        }
        Ok(PackedModel { artifact, spec })
    }

    /// The artifact.
    pub fn artifact(&self) -> &Artifact {
        &self.artifact
    }
}

impl WeightSource for PackedModel {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn tensor(&self, id: TensorId) -> Result<Tensor, Error> {
        if id == TensorId::model(Role::Head) && self.spec.tied {
            return Err(Error::NoTensor(id));
        }
        Ok(self.artifact.tensor(&id.to_string())?)
    }

    fn has_packed(&self) -> Result<bool, Error> {
        let mut records = self.artifact.manifest().tensors.iter();
        Ok(records.any(|record| record.codec.packed().is_some()))
    }
}

/// A model of any kind.
#[derive(Debug)]
pub enum Source {
    /// A Hugging Face checkpoint, or a GGUF file.
    Checkpoint(Checkpoint),
    /// A native artifact.
    Artifact(PackedModel),
}

/// Opens the model at `path`: an artifact where there is a manifest, every byte of it checked, else a
/// checkpoint, else a GGUF file.
pub fn open_source(path: &Path) -> Result<Source, Error> {
    open_source_as(path, Validate::Full)
}

/// Opens the model at `path` so far that it can run: the weights of an artifact are
/// checked when [`Source::check`] is called.
pub fn open_source_unchecked(path: &Path) -> Result<Source, Error> {
    open_source_as(path, Validate::Structure)
}

fn open_source_as(path: &Path, validate: Validate) -> Result<Source, Error> {
    if Artifact::is_artifact(path) {
        return Ok(Source::Artifact(PackedModel::open(path, validate)?));
    }
    let is_gguf = || gguf::file_of(path).is_some_and(|file| file.exists());
    if path.join(CONFIG).exists() || is_gguf() {
        return Ok(Source::Checkpoint(Checkpoint::open(path)?));
    }
    let path = path.to_owned();
    match fs_err::metadata(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Error::NotFound {
            near: near_sibling(&path),
            path,
        }),
        Err(error) => Err(error.into()),
        Ok(metadata) if !metadata.is_dir() => Err(Error::NotAFolder { path }),
        Ok(_) => Err(Error::NoModel {
            inside: model_inside(&path),
            several: gguf::files_in(&path).next().is_some(),
            path,
        }),
    }
}

impl Source {
    /// The small files that a tokenizer and a chat template are read from.
    pub fn side(&self) -> Result<SideFiles, Error> {
        match self {
            Source::Checkpoint(checkpoint) => checkpoint.files.side(),
            Source::Artifact(model) => Ok(SideFiles::Folder(model.artifact.path().to_owned())),
        }
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> Result<TextTokenizer, Error> {
        TextTokenizer::of(&self.side()?)
    }

    /// Checks every byte of the weights of an artifact. Nothing is left to check of a checkpoint,
    /// whose tensors are checked as they are read.
    pub fn check(&self) -> Result<(), Error> {
        match self {
            Source::Checkpoint(_) => Ok(()),
            Source::Artifact(model) => Ok(model.artifact.check()?),
        }
    }
}

impl WeightSource for Source {
    fn spec(&self) -> &ModelSpec {
        match self {
            Source::Checkpoint(checkpoint) => checkpoint.spec(),
            Source::Artifact(model) => model.spec(),
        }
    }

    fn tensor(&self, id: TensorId) -> Result<Tensor, Error> {
        match self {
            Source::Checkpoint(checkpoint) => checkpoint.tensor(id),
            Source::Artifact(model) => model.tensor(id),
        }
    }

    fn has_packed(&self) -> Result<bool, Error> {
        match self {
            Source::Checkpoint(checkpoint) => checkpoint.has_packed(),
            Source::Artifact(model) => model.has_packed(),
        }
    }
}

/// The folders in `dir`, sorted by name.
fn folders(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs_err::read_dir(dir) else {
        return Vec::new();
    };
    let mut folders: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_dir())
        .collect();
    folders.sort();
    folders
}

/// The folder beside `path` whose name is most like it.
fn near_sibling(path: &Path) -> Option<String> {
    let parent = path.parent()?;
    let dir = if parent.as_os_str().is_empty() {
        Path::new(".")
    } else {
        parent
    };
    let folders = folders(dir);
    let names = folders
        .iter()
        .filter_map(|folder| folder.file_name()?.to_str());
    let name = near(path.file_name()?.to_str()?, names)?;
    Some(parent.join(name).display().to_string())
}

/// The only folder inside `path` that holds a model.
fn model_inside(path: &Path) -> Option<String> {
    let is_model =
        |folder: &PathBuf| folder.join(CONFIG).is_file() || Artifact::is_artifact(folder);
    let mut models = folders(path).into_iter().filter(is_model);
    let only = models.next().filter(|_| models.next().is_none())?;
    Some(only.display().to_string())
}

#[cfg(test)]
mod tests;
