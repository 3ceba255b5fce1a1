//! A Hugging Face checkpoint folder: its configuration, its weights in one or many safetensors
//! files, and the files that travel with a model.
//!
//! Where both a single file and an index are there, the single file is taken, as `transformers`
//! does. Owns which files are read; what their tensors mean is not known here.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{CheckpointError, Error, json_reason, shown};
use crate::files::{Folder, read_capped};
use crate::index::{self, IndexError, ShardIndex};
use crate::limits;
use crate::safetensors::{SafetensorsFile, TensorInfo};
use crate::strict_json::StrictValue;
use crate::tensor::DenseTensor;

/// The configuration of a model.
pub(crate) const CONFIG: &str = "config.json";
/// Defaults for sampling.
const GENERATION_CONFIG: &str = "generation_config.json";
/// All weights in one file.
pub(crate) const SINGLE: &str = "model.safetensors";
/// Which shard holds which tensor.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// Files that belong to a model besides weights and configuration.
const SIDE_FILES: [&str; 10] = [
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    GENERATION_CONFIG,
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "USE_POLICY.md",
];
/// Beginnings of the names of more such files.
const SIDE_PREFIXES: [&str; 3] = ["LICENSE", "NOTICE", "tokenizer"];
/// The folder of further chat templates.
const TEMPLATES: &str = "additional_chat_templates";
/// Endings of the names of weights in formats that are not read.
const OTHER_WEIGHTS: [&str; 8] = [
    ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".gguf", ".h5", ".msgpack",
];

/// An open checkpoint folder whose headers are valid and agree with its index.
#[derive(Debug)]
pub struct CheckpointFiles {
    folder: Folder,
    shards: Vec<SafetensorsFile>,
    /// Shard and place in the shard of every tensor, sorted by name.
    order: Vec<(usize, usize)>,
    config: Value,
    generation_config: Option<Value>,
}

impl CheckpointFiles {
    /// Opens the folder `dir` and reads its configuration and headers, no weights.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, Error> {
        let folder = Folder::open(dir.as_ref())?;
        let refuse = |error| Error::Checkpoint {
            path: folder.path().to_owned(),
            source: Box::new(error),
        };
        let config =
            read_json(&folder, CONFIG)?.ok_or_else(|| refuse(CheckpointError::NoConfig))?;
        let generation_config = read_json(&folder, GENERATION_CONFIG)?;
        let shards = if let Some(path) = folder.member(SINGLE)? {
            vec![SafetensorsFile::open(path)?]
        } else if let Some(path) = folder.member(INDEX)? {
            let index = index::parse(&read_capped(&path, limits::INDEX_BYTES)?).map_err(
                |error| match error {
                    IndexError::Json {
                        line,
                        column,
                        reason,
                    } => Error::Json {
                        path,
                        line,
                        column,
                        reason,
                    },
                    IndexError::Checkpoint(source) => refuse(source),
                },
            )?;
            open_shards(&folder, &index)?
        } else {
            return Err(refuse(no_weights(&folder)?));
        };
        let order = by_name(&shards);
        Ok(CheckpointFiles {
            folder,
            shards,
            order,
            config,
            generation_config,
        })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Every tensor, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.order
            .iter()
            .filter_map(|&place| self.at(place))
            .map(|(_, info)| info)
    }

    /// The tensor `name`.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.find(name).map(|(_, info)| info)
    }

    /// The weights of the tensor `name`, as stored. They may hold values that are not finite.
    pub fn read(&self, name: &str) -> Result<DenseTensor, Error> {
        let (shard, info) = self.find(name).ok_or_else(|| self.no_tensor(name))?;
        shard.read_dense(info)
    }

    /// The bytes of the tensor `name`, whatever its element type.
    pub fn read_bytes(&self, name: &str) -> Result<Vec<u8>, Error> {
        let (shard, info) = self.find(name).ok_or_else(|| self.no_tensor(name))?;
        shard.read(info)
    }

    /// The file that the tensor `name` stands in.
    pub fn file_of(&self, name: &str) -> Option<PathBuf> {
        Some(self.find(name)?.0.path().to_owned())
    }

    /// The files that hold the weights, in order of name.
    pub fn weight_files(&self) -> Vec<PathBuf> {
        self.shards
            .iter()
            .map(|shard| shard.path().to_owned())
            .collect()
    }

    /// `config.json`.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// `generation_config.json`, where there is one.
    pub fn generation_config(&self) -> Option<&Value> {
        self.generation_config.as_ref()
    }

    /// The files to copy beside converted weights, byte for byte and in order of name: tokenizer,
    /// chat templates, generation defaults, licenses. Not `config.json`. Never code.
    pub fn side_files(&self) -> Result<Vec<PathBuf>, Error> {
        side_files_in(&self.folder)
    }

    fn no_tensor(&self, name: &str) -> Error {
        Error::NoTensor {
            path: self.path().to_owned(),
            tensor: shown(name),
        }
    }

    fn at(&self, (shard, place): (usize, usize)) -> Option<(&SafetensorsFile, &TensorInfo)> {
        let shard = self.shards.get(shard)?;
        Some((shard, shard.tensors().get(place)?))
    }

    fn find(&self, name: &str) -> Option<(&SafetensorsFile, &TensorInfo)> {
        let name_at = |&place: &(usize, usize)| self.at(place).map_or("", |(_, info)| &info.name);
        let place = self
            .order
            .binary_search_by(|place| name_at(place).cmp(name))
            .ok()?;
        self.at(*self.order.get(place)?)
    }
}

/// The files of the folder `dir`, a checkpoint or an artifact, that belong to a model besides weights
/// and configuration; as [`CheckpointFiles::side_files`].
pub fn side_files(dir: impl AsRef<Path>) -> Result<Vec<PathBuf>, Error> {
    side_files_in(&Folder::open(dir.as_ref())?)
}

fn side_files_in(folder: &Folder) -> Result<Vec<PathBuf>, Error> {
    let mut names = folder.names("")?;
    names.retain(|name| is_side_file(name));
    let templates = folder.names(TEMPLATES)?;
    names.extend(
        templates
            .into_iter()
            .filter(|name| has_extension(name, "jinja")),
    );
    let mut files = Vec::new();
    for name in names {
        files.extend(folder.member(&name)?);
    }
    Ok(files)
}

fn is_side_file(name: &str) -> bool {
    let known =
        SIDE_FILES.contains(&name) || SIDE_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    known && !has_extension(name, "py")
}

fn has_extension(name: &str, extension: &str) -> bool {
    Path::new(name)
        .extension()
        .is_some_and(|found| found == extension)
}

fn read_json(folder: &Folder, name: &str) -> Result<Option<Value>, Error> {
    let Some(path) = folder.member(name)? else {
        return Ok(None);
    };
    let bytes = read_capped(&path, limits::CONFIG_BYTES)?;
    let StrictValue(value) = serde_json::from_slice(&bytes).map_err(|error| Error::Json {
        path,
        line: error.line(),
        column: error.column(),
        reason: json_reason(&error),
    })?;
    Ok(Some(value))
}

/// Why there are no weights to read: none at all, or in a format that is not read.
fn no_weights(folder: &Folder) -> Result<CheckpointError, Error> {
    let other = |name: &String| OTHER_WEIGHTS.iter().any(|ending| name.ends_with(ending));
    let file = folder.names("")?.into_iter().find(other);
    Ok(file.map_or(CheckpointError::NoWeights, |file| {
        CheckpointError::OtherWeights { file: shown(&file) }
    }))
}

/// Opens every shard and checks that each holds exactly the tensors that the index places there.
fn open_shards(folder: &Folder, index: &ShardIndex) -> Result<Vec<SafetensorsFile>, Error> {
    let refuse = |error| Error::Checkpoint {
        path: folder.path().to_owned(),
        source: Box::new(error),
    };
    let mut shards = Vec::new();
    let mut found = 0_usize;
    for (number, shard) in index.shards.iter().enumerate() {
        let placed = || {
            index
                .tensors
                .iter()
                .filter(|&(_, &at)| at == number)
                .map(|(name, _)| name)
        };
        let Some(path) = folder.member(shard)? else {
            let tensor = placed().next().map(|name| shown(name)).unwrap_or_default();
            return Err(refuse(CheckpointError::NoShard {
                shard: shard.clone(),
                tensor,
            }));
        };
        let file = SafetensorsFile::open(path)?;
        if let Some(info) = file
            .tensors()
            .iter()
            .find(|info| index.tensors.get(&info.name) != Some(&number))
        {
            let tensor = shown(&info.name);
            return Err(refuse(CheckpointError::NotInIndex {
                shard: shard.clone(),
                tensor,
            }));
        }
        found = found.saturating_add(file.tensors().len());
        shards.push(file);
    }
    // Every tensor found is placed where it lies, so only missing ones are left.
    if found != index.tensors.len() {
        let order = by_name(&shards);
        let names = order
            .iter()
            .filter_map(|&(s, t)| shards.get(s)?.tensors().get(t))
            .map(|info| &info.name);
        let mut names = names.peekable();
        for (name, &number) in &index.tensors {
            if names.next_if_eq(&name).is_none() {
                let shard = index.shards.get(number).cloned().unwrap_or_default();
                return Err(refuse(CheckpointError::NotInShard {
                    shard,
                    tensor: shown(name),
                }));
            }
        }
    }
    Ok(shards)
}

/// Shard and place of every tensor, sorted by name.
fn by_name(shards: &[SafetensorsFile]) -> Vec<(usize, usize)> {
    let mut names: Vec<(&str, (usize, usize))> = shards
        .iter()
        .enumerate()
        .flat_map(|(s, shard)| {
            shard
                .tensors()
                .iter()
                .enumerate()
                .map(move |(t, info)| (info.name.as_str(), (s, t)))
        })
        .collect();
    names.sort_unstable();
    names.into_iter().map(|(_, place)| place).collect()
}
