//! The files of a model that is no artifact, seen as a Hugging Face checkpoint whatever they are: its
//! configuration, its dense tensors by the names of a checkpoint, and what travels with it.

use std::ffi::OsStr;
use std::ops::Range;
use std::path::{Path, PathBuf};

use neuroconv_format::{CheckpointFiles, DenseTensor, SafetensorsFile, TensorInfo};
use neuroconv_recipes::Dropped;
use serde_json::Value;

use super::gguf::{self, GgufModel};
use super::quantized::{self, QuantizedFolder};
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
    Quantized(Box<QuantizedFolder>),
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

/// How weights were rounded before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rounded {
    /// Element types, or a method.
    pub how: String,
    /// Whether to three levels per matrix, which ternary codes hold without loss.
    pub ternary: bool,
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
            _ => {
                let files = CheckpointFiles::open(path)?;
                if quantized::is_quantized(files.config()) {
                    Kind::Quantized(Box::new(QuantizedFolder::open(files)?))
                } else {
                    Kind::Folder(files)
                }
            }
        };
        Ok(ModelFiles {
            path: path.to_owned(),
            kind,
        })
    }

    /// The folder of safetensors, unless the model is one GGUF file.
    fn stored(&self) -> Result<&CheckpointFiles, &GgufModel> {
        match &self.kind {
            Kind::Folder(files) => Ok(files),
            Kind::Quantized(model) => Ok(model.files()),
            Kind::Gguf(model) => Err(model),
        }
    }

    /// What was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder that the files lie in.
    pub fn folder(&self) -> &Path {
        match self.stored() {
            Ok(files) => files.path(),
            Err(model) => model.path().parent().unwrap_or(Path::new("")),
        }
    }

    /// Every tensor, sorted by name. Sizes in bytes are those stored, element types those that
    /// [`ModelFiles::read`] gives.
    pub fn tensors(&self) -> Box<dyn Iterator<Item = &TensorInfo> + '_> {
        match &self.kind {
            Kind::Folder(files) => Box::new(files.tensors()),
            Kind::Quantized(model) => Box::new(model.tensors()),
            Kind::Gguf(model) => Box::new(model.tensors()),
        }
    }

    /// The tensor `name`.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        match &self.kind {
            Kind::Folder(files) => files.info(name),
            Kind::Quantized(model) => model.info(name),
            Kind::Gguf(model) => model.info(name),
        }
    }

    /// The weights of the tensor `name`. They may hold values that are not finite.
    pub fn read(&self, name: &str) -> Result<DenseTensor, Error> {
        match &self.kind {
            Kind::Folder(files) => Ok(files.read(name)?),
            Kind::Quantized(model) => model.read(name),
            Kind::Gguf(model) => model.read(name),
        }
    }

    /// The files that hold the weights, in order of name.
    pub fn weight_files(&self) -> Vec<PathBuf> {
        match self.stored() {
            Ok(files) => files.weight_files(),
            Err(model) => vec![model.path().to_owned()],
        }
    }

    /// The file that the tensor `name` stands in; `None` where it is made of several tensors.
    pub fn file_of(&self, name: &str) -> Option<PathBuf> {
        match &self.kind {
            Kind::Folder(files) => files.file_of(name),
            Kind::Quantized(_) => None,
            Kind::Gguf(model) => Some(model.path().to_owned()),
        }
    }

    /// Every file that the model, and what is copied from it, is made of.
    pub fn all_files(&self) -> Result<Vec<PathBuf>, Error> {
        let mut paths = self.weight_files();
        let single = |path: &PathBuf| path.file_name() == Some(OsStr::new("model.safetensors"));
        if let Ok(files) = self.stored() {
            if !paths.iter().any(single) {
                paths.push(files.path().join("model.safetensors.index.json"));
            }
            paths.push(files.path().join(CONFIG));
            paths.extend(files.side_files()?);
        }
        Ok(paths)
    }

    /// `config.json`, without what it says of quantization.
    pub fn config(&self) -> &Value {
        match &self.kind {
            Kind::Folder(files) => files.config(),
            Kind::Quantized(model) => model.config(),
            Kind::Gguf(model) => model.config(),
        }
    }

    /// `config.json` as a file, as it stands.
    pub fn config_file(&self) -> SideFile {
        let content = match self.stored() {
            Ok(files) => SideContent::Stored(files.path().join(CONFIG)),
            Err(model) => SideContent::Made(gguf::pretty(model.config())),
        };
        SideFile {
            name: CONFIG.into(),
            content,
        }
    }

    /// `generation_config.json`, where there is one.
    pub fn generation_config(&self) -> Option<&Value> {
        self.stored().ok()?.generation_config()
    }

    /// The small files that a tokenizer and a chat template are read from.
    pub fn side(&self) -> Result<SideFiles, Error> {
        match self.stored() {
            Ok(files) => Ok(SideFiles::Folder(files.path().to_owned())),
            Err(model) => Ok(SideFiles::Made {
                origin: model.path().to_owned(),
                files: model.made()?,
            }),
        }
    }

    /// The files to put beside converted weights, in order of name: tokenizer, chat templates,
    /// generation defaults, licenses. Not `config.json`. Never code.
    pub fn side_files(&self) -> Result<Vec<SideFile>, Error> {
        match self.stored() {
            Ok(files) => Ok(files
                .side_files()?
                .into_iter()
                .map(|path| SideFile {
                    name: path.strip_prefix(files.path()).unwrap_or(&path).to_owned(),
                    content: SideContent::Stored(path),
                })
                .collect()),
            Err(model) => Ok(model
                .made()?
                .into_iter()
                .map(|(name, bytes)| SideFile {
                    name: name.into(),
                    content: SideContent::Made(bytes),
                })
                .collect()),
        }
    }

    /// How weights were rounded before, where a conversion that starts from them would lose twice.
    pub fn rounded(&self) -> Option<Rounded> {
        match &self.kind {
            Kind::Folder(_) => None,
            Kind::Quantized(model) => model.rounded().map(|how| Rounded {
                how: how.to_owned(),
                ternary: model.is_ternary(),
            }),
            Kind::Gguf(model) => model.rounded().map(|how| Rounded {
                how,
                ternary: false,
            }),
        }
    }

    /// Whether the tensor `name` was rounded before and is decoded.
    pub fn decodes(&self, name: &str) -> bool {
        match &self.kind {
            Kind::Folder(_) => false,
            Kind::Quantized(model) => model.decodes(name),
            Kind::Gguf(model) => model.decodes(name),
        }
    }

    /// What people should know of these files, though nothing is wrong.
    pub(super) fn warnings(&self) -> &[String] {
        match &self.kind {
            Kind::Folder(_) => &[],
            Kind::Quantized(model) => model.warnings(),
            Kind::Gguf(model) => model.warnings(),
        }
    }

    /// Tensors of the files that are no weights and are not listed.
    pub(super) fn dropped(&self) -> Vec<Dropped> {
        match &self.kind {
            Kind::Folder(_) | Kind::Quantized(_) => Vec::new(),
            Kind::Gguf(model) => model.dropped(),
        }
    }

    /// Where the bytes of a tensor stand; `None` where it is made of several.
    pub(super) fn place(&self, name: &str) -> Result<Option<Place>, Error> {
        let files = match self.stored() {
            Ok(_) if self.decodes(name) => return Ok(None),
            Ok(files) => files,
            Err(model) => return Ok(model.place(name)),
        };
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
}
