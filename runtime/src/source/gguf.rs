//! A GGUF file seen as a Hugging Face checkpoint: tensors under the names and in the order of rows of a
//! checkpoint, a configuration from the metadata, the tokenizer's files.
//!
//! Which keys mean what stands in `recipes`, the tokenizer in `tokenizer::gguf`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use neuroconv_format::gguf::{Array, GgmlType, GgufFile, GgufTensor, Metadata, Value as Meta};
use neuroconv_format::{DenseTensor, ElementType, TensorInfo};
use neuroconv_recipes::gguf::{self, GgufConfig, keys};
use neuroconv_recipes::{Dropped, SourceTensor, TensorId};
use serde_json::{Map, Value};

use super::files::Place;
use crate::Error;
use crate::tokenizer::gguf as tokenizer;

/// How the name of a GGUF file ends.
const EXTENSION: &str = "gguf";
/// The key of how many files a model was split into.
const SPLITS: &str = "split.count";
/// Values of the longest list that is looked at as a setting of the model.
const LIST: usize = 4096;

/// A GGUF file as a checkpoint.
#[derive(Debug)]
pub(super) struct GgufModel {
    file: GgufFile,
    config: GgufConfig,
    views: BTreeMap<String, View>,
    dropped: Vec<Dropped>,
}

/// A tensor as it is seen.
#[derive(Debug)]
struct View {
    info: TensorInfo,
    /// Its place in the list of the file.
    at: usize,
    /// Whether its rows stand in another order.
    reordered: bool,
}

/// The GGUF file that `path` names: itself, or the only one in a folder.
pub(super) fn file_of(path: &Path) -> Option<PathBuf> {
    if !path.is_dir() {
        return is_gguf(path).then(|| path.to_owned());
    }
    let mut files = files_in(path);
    files.next().filter(|_| files.next().is_none())
}

/// The GGUF files in a folder, in no order.
pub(super) fn files_in(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs_err::read_dir(dir).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.path()).filter(|path| is_gguf(path)))
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == EXTENSION)
}

/// JSON for people, with a newline at the end.
pub(super) fn pretty(value: &Value) -> Vec<u8> {
    let mut text = format!("{value:#}");
    text.push('\n');
    text.into_bytes()
}

impl GgufModel {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let file = GgufFile::open(path)?;
        let splits = file.metadata().get(SPLITS).and_then(Meta::count);
        if let Some(files) = splits.filter(|&files| files > 1) {
            return Err(Error::SplitGguf {
                path: path.to_owned(),
                files,
            });
        }
        let mut listed = Vec::new();
        let mut dropped = Vec::new();
        let mut factors = None;
        for info in file.tensors() {
            if info.name == keys::ROPE_FACTORS {
                factors = Some(file.read_f32(info)?);
                dropped.push(Dropped {
                    source: info.name.clone(),
                    reason: "its factors became settings of the rotary frequencies".to_owned(),
                });
            } else {
                listed.push(SourceTensor {
                    name: info.name.clone(),
                    shape: info.shape.clone(),
                });
            }
        }
        let config = gguf::config(&settings(file.metadata()), &listed, factors.as_deref())?;
        let views = views(&file, &config)?;
        Ok(GgufModel {
            file,
            config,
            views,
            dropped,
        })
    }

    pub(super) fn path(&self) -> &Path {
        self.file.path()
    }

    pub(super) fn config(&self) -> &Value {
        &self.config.config
    }

    pub(super) fn warnings(&self) -> &[String] {
        &self.config.warnings
    }

    pub(super) fn dropped(&self) -> Vec<Dropped> {
        self.dropped.clone()
    }

    /// Whether a tensor's blocks are decoded.
    pub(super) fn decodes(&self, name: &str) -> bool {
        let view = self.views.get(name);
        view.is_some_and(|view| self.stored(view).kind.block() > 1)
    }

    /// The coarse element types among those of the tensors. Eight bits are taken as exact enough.
    pub(super) fn rounded(&self) -> Option<String> {
        let fine = [GgmlType::F32, GgmlType::F16, GgmlType::BF16, GgmlType::Q8_0];
        let kinds = self.file.tensors().iter().map(|info| info.kind);
        let coarse: BTreeSet<&str> = kinds
            .filter(|kind| !fine.contains(kind))
            .map(GgmlType::name)
            .collect();
        let coarse: Vec<&str> = coarse.into_iter().collect();
        (!coarse.is_empty()).then(|| coarse.join(", "))
    }

    pub(super) fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.views.values().map(|view| &view.info)
    }

    pub(super) fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.views.get(name).map(|view| &view.info)
    }

    fn stored(&self, view: &View) -> &GgufTensor {
        &self.file.tensors()[view.at]
    }

    pub(super) fn place(&self, name: &str) -> Option<Place> {
        let stored = self.stored(self.views.get(name)?);
        Some(Place {
            path: self.path().to_owned(),
            range: stored.range.clone(),
            element: stored.kind.name().to_owned(),
        })
    }

    pub(super) fn read(&self, name: &str) -> Result<DenseTensor, Error> {
        let view = self.views.get(name).ok_or_else(|| Error::NoSuchTensor {
            path: self.path().to_owned(),
            tensor: name.to_owned(),
        })?;
        let mut tensor = self.file.read_dense(self.stored(view))?;
        let rows = tensor.shape.first().copied().unwrap_or(0);
        if let Some(rules) = self.config.arch.gguf().filter(|_| view.reordered) {
            let head_dim = self.config.head_dim;
            let bytes = gguf::gathered(&tensor.bytes, rows, |row| rules.row_of_file(row, head_dim));
            tensor.bytes = bytes.into();
        }
        Ok(tensor)
    }

    /// The tokenizer's files, by name.
    pub(super) fn made(&self) -> Result<BTreeMap<String, Vec<u8>>, Error> {
        let files = tokenizer::side_files(self.file.metadata(), self.path())?;
        let pretty = |(name, value): (&str, Value)| (name.to_owned(), pretty(&value));
        Ok(files.into_iter().map(pretty).collect())
    }
}

/// Every tensor under the name of a checkpoint; one without keeps its own, and is refused as unknown.
fn views(file: &GgufFile, config: &GgufConfig) -> Result<BTreeMap<String, View>, Error> {
    let mut views = BTreeMap::new();
    for (at, stored) in file.tensors().iter().enumerate() {
        if stored.name == keys::ROPE_FACTORS {
            continue;
        }
        let id = TensorId::from_gguf(&stored.name);
        let name = id.and_then(|id| config.arch.source_name(id));
        let name = name.unwrap_or_else(|| stored.name.clone());
        let Some(dtype) = stored.kind.dense() else {
            return Err(file.not_read(stored).into());
        };
        let rows = stored.shape.first().copied().unwrap_or(0);
        let moved = id.is_some_and(|id| config.arch.reorders_in_gguf(id.role));
        let view = View {
            info: TensorInfo {
                name: name.clone(),
                dtype: ElementType::from(dtype),
                shape: stored.shape.clone(),
                range: stored.range.clone(),
            },
            at,
            // Rows of another number are of another shape, and refused as such.
            reordered: moved && rows.is_multiple_of(config.head_dim),
        };
        if views.insert(name.clone(), view).is_some() {
            return Err(neuroconv_recipes::Error::DuplicateTensor { name }.into());
        }
    }
    Ok(views)
}

/// The settings among the metadata as JSON: those of the model, and the ids of special tokens.
fn settings(metadata: &Metadata) -> Map<String, Value> {
    let arch = metadata.get(keys::ARCHITECTURE).and_then(Meta::text);
    let of_model = format!("{}.", arch.unwrap_or_default());
    let mut map = Map::new();
    for (key, value) in metadata.iter() {
        let token = key.starts_with("tokenizer.ggml.") && key.ends_with("_token_id");
        if key == keys::ARCHITECTURE || key.starts_with(&of_model) || token {
            map.insert(key.to_owned(), json(value));
        }
    }
    map
}

/// A value as JSON. A number that is not finite becomes its text, which is no number.
fn json(value: &Meta) -> Value {
    match value {
        Meta::U8(n) => (*n).into(),
        Meta::I8(n) => (*n).into(),
        Meta::U16(n) => (*n).into(),
        Meta::I16(n) => (*n).into(),
        Meta::U32(n) => (*n).into(),
        Meta::I32(n) => (*n).into(),
        Meta::U64(n) => (*n).into(),
        Meta::I64(n) => (*n).into(),
        Meta::F32(n) => decimal(*n),
        Meta::F64(n) => real(*n),
        Meta::Bool(on) => (*on).into(),
        Meta::Text(text) => text.as_str().into(),
        Meta::Array(array) => list(array),
    }
}

fn list(array: &Array) -> Value {
    match array {
        Array::U8(v) if v.len() <= LIST => v.clone().into(),
        Array::I8(v) if v.len() <= LIST => v.clone().into(),
        Array::U16(v) if v.len() <= LIST => v.clone().into(),
        Array::I16(v) if v.len() <= LIST => v.clone().into(),
        Array::U32(v) if v.len() <= LIST => v.clone().into(),
        Array::I32(v) if v.len() <= LIST => v.clone().into(),
        Array::U64(v) if v.len() <= LIST => v.clone().into(),
        Array::I64(v) if v.len() <= LIST => v.clone().into(),
        Array::F32(v) if v.len() <= LIST => v.iter().map(|n| decimal(*n)).collect(),
        Array::F64(v) if v.len() <= LIST => v.iter().map(|n| real(*n)).collect(),
        Array::Bool(v) if v.len() <= LIST => v.clone().into(),
        _ => Value::from("a long list, or one of texts"),
    }
}

/// The number as people write it: single precision holds too few digits for `1e-5` to be exact.
fn decimal(number: f32) -> Value {
    real(number.to_string().parse().unwrap_or(f64::NAN))
}

fn real(number: f64) -> Value {
    serde_json::Number::from_f64(number)
        .map_or_else(|| Value::from(number.to_string()), Value::Number)
}
