//! The files of a model that is no artifact, seen as a Hugging Face checkpoint whatever they are: its
//! configuration, its dense tensors by the names of a checkpoint, and what travels with it.

use std::ffi::OsStr;
use std::ops::Range;
use std::path::{Path, PathBuf};

use neuroconv_format::{CheckpointFiles, DenseTensor, SafetensorsFile, TensorInfo};
use neuroconv_recipes::Dropped;
use serde_json::Value;

use super::gguf::{self, GgufModel};
use crate::{Error, SideFiles};

/// The configuration of a checkpoint.
pub(super) const CONFIG: &str = "config.json";

/// The files of a model.
#[derive(Debug)]
pub struct ModelFiles {
    path: PathBuf,
    kind: Kind,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one for a model")]
enum Kind {
    Folder(CheckpointFiles),
    Gguf(Box<GgufModel>),
}

/// A small file that travels with a model.
#[derive(Clone, Debug)]
pub struct SideFile {
    /// Its path below the folder of the model.
    pub name: PathBuf,
    /// What it holds.
    pub content: SideContent,
}

/// What a small file holds.
#[derive(Clone, Debug)]
pub enum SideContent {
    /// What stands in this file.
    Stored(PathBuf),
    /// This, made from what the model's file says.
    Made(Vec<u8>),
}

impl SideFile {
    /// Its bytes.
    pub fn read(&self) -> Result<Vec<u8>, Error> {
        match &self.content {
            SideContent::Stored(path) => Ok(fs_err::read(path)?),
            SideContent::Made(bytes) => Ok(bytes.clone()),
        }
    }

    /// Its length in bytes.
    pub fn size(&self) -> Result<u64, Error> {
        match &self.content {
            SideContent::Stored(path) => Ok(fs_err::metadata(path)?.len()),
            SideContent::Made(bytes) => Ok(bytes.len() as u64),
        }
    }
}

/// Where a tensor is stored.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) path: PathBuf,
    pub(super) range: Range<u64>,
    /// The element type as the file calls it.
    pub(super) element: String,
}

impl ModelFiles {
    /// Opens a folder with `config.json` and safetensors, a GGUF file, or a folder with one: reads
    /// headers and configuration, no weights.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let kind = match gguf::file_of(path) {
            Some(file) if !path.join(CONFIG).exists() => {
                Kind::Gguf(Box::new(GgufModel::open(&file)?))
            }
            _ => Kind::Folder(CheckpointFiles::open(path)?),
        };
        Ok(ModelFiles {
            path: path.to_owned(),
            kind,
        })
    }

    /// What was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder that the files lie in.
    pub fn folder(&self) -> &Path {
        match &self.kind {
            Kind::Folder(files) => files.path(),
            Kind::Gguf(model) => model.path().parent().unwrap_or(Path::new("")),
        }
    }

    /// Every tensor, sorted by name. Sizes in bytes are those stored, element types those that
    /// [`ModelFiles::read`] gives.
    pub fn tensors(&self) -> Box<dyn Iterator<Item = &TensorInfo> + '_> {
        match &self.kind {
            Kind::Folder(files) => Box::new(files.tensors()),
            Kind::Gguf(model) => Box::new(model.tensors()),
        }
    }

    /// The tensor `name`.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        match &self.kind {
            Kind::Folder(files) => files.info(name),
            Kind::Gguf(model) => model.info(name),
        }
    }

    /// The weights of the tensor `name`. They may hold values that are not finite.
    pub fn read(&self, name: &str) -> Result<DenseTensor, Error> {
        match &self.kind {
            Kind::Folder(files) => Ok(files.read(name)?),
            Kind::Gguf(model) => model.read(name),
        }
    }

    /// The files that hold the weights, in order of name.
    pub fn weight_files(&self) -> Vec<PathBuf> {
        match &self.kind {
            Kind::Folder(files) => files.weight_files(),
            Kind::Gguf(model) => vec![model.path().to_owned()],
        }
    }

    /// Every file that the model, and what is copied from it, is made of.
    pub fn all_files(&self) -> Result<Vec<PathBuf>, Error> {
        let mut paths = self.weight_files();
        let single = |path: &PathBuf| path.file_name() == Some(OsStr::new("model.safetensors"));
        if let Kind::Folder(files) = &self.kind {
            if !paths.iter().any(single) {
                paths.push(files.path().join("model.safetensors.index.json"));
            }
            paths.push(files.path().join(CONFIG));
            paths.extend(files.side_files()?);
        }
        Ok(paths)
    }

    /// `config.json`.
    pub fn config(&self) -> &Value {
        match &self.kind {
            Kind::Folder(files) => files.config(),
            Kind::Gguf(model) => model.config(),
        }
    }

    /// `config.json` as a file.
    pub fn config_file(&self) -> Result<SideFile, Error> {
        let content = match &self.kind {
            Kind::Folder(files) => SideContent::Stored(files.path().join(CONFIG)),
            Kind::Gguf(model) => SideContent::Made(gguf::pretty(model.config())),
        };
        Ok(SideFile {
            name: CONFIG.into(),
            content,
        })
    }

    /// `generation_config.json`, where there is one.
    pub fn generation_config(&self) -> Option<&Value> {
        match &self.kind {
            Kind::Folder(files) => files.generation_config(),
            Kind::Gguf(_) => None,
        }
    }

    /// The small files that a tokenizer and a chat template are read from.
    pub fn side(&self) -> Result<SideFiles, Error> {
        match &self.kind {
            Kind::Folder(files) => Ok(SideFiles::Folder(files.path().to_owned())),
            Kind::Gguf(model) => Ok(SideFiles::Made {
                origin: model.path().to_owned(),
                files: model.made()?,
            }),
        }
    }

    /// The files to put beside converted weights, in order of name: tokenizer, chat templates,
    /// generation defaults, licenses. Not `config.json`. Never code.
    pub fn side_files(&self) -> Result<Vec<SideFile>, Error> {
        match &self.kind {
            Kind::Folder(files) => Ok(files
                .side_files()?
                .into_iter()
                .map(|path| SideFile {
                    name: path.strip_prefix(files.path()).unwrap_or(&path).to_owned(),
                    content: SideContent::Stored(path),
                })
                .collect()),
            Kind::Gguf(model) => Ok(model
                .made()?
                .into_iter()
                .map(|(name, bytes)| SideFile {
                    name: name.into(),
                    content: SideContent::Made(bytes),
                })
                .collect()),
        }
    }

    /// How the weights were rounded before, where a conversion that starts from them would lose twice.
    pub fn rounded(&self) -> Option<String> {
        match &self.kind {
            Kind::Folder(_) => None,
            Kind::Gguf(model) => model.rounded(),
        }
    }

    /// What people should know of these files, though nothing is wrong.
    pub(super) fn warnings(&self) -> &[String] {
        match &self.kind {
            Kind::Folder(_) => &[],
            Kind::Gguf(model) => model.warnings(),
        }
    }

    /// Tensors of the files that are no weights and are not listed.
    pub(super) fn dropped(&self) -> Vec<Dropped> {
        match &self.kind {
            Kind::Folder(_) => Vec::new(),
            Kind::Gguf(model) => model.dropped(),
        }
    }

    /// Where the bytes of a tensor stand.
    pub(super) fn place(&self, name: &str) -> Result<Option<Place>, Error> {
        match &self.kind {
            Kind::Folder(files) => {
                for path in files.weight_files() {
                    let weights = SafetensorsFile::open(&path)?;
                    if let Some(info) = weights.tensors().iter().find(|info| info.name == name) {
                        return Ok(Some(Place {
                            path,
                            range: info.range.clone(),
                            element: info.dtype.name().to_owned(),
                        }));
                    }
                }
                Ok(None)
            }
            Kind::Gguf(model) => Ok(model.place(name)),
        }
    }
}
