//! Importance matrices as llama.cpp writes them: for each weight matrix the sums of squares of what
//! its columns met, and how many tokens were summed.
//!
//! Owns the keys and names of the form. Which matrix a name means is not known here.

use std::collections::BTreeMap;
use std::path::Path;

use super::error::GgufError;
use super::file::GgufFile;
use super::header::GgufTensor;
use super::kind::GgmlType;
use super::metadata::{Array, Metadata, Value};
use super::writer::{GgufLayout, PlannedGguf};
use crate::error::{Error, shown};

const TYPE_KEY: &str = "general.type";
const TYPE: &str = "imatrix";
const DATASETS: &str = "imatrix.datasets";
const CHUNK_COUNT: &str = "imatrix.chunk_count";
const CHUNK_SIZE: &str = "imatrix.chunk_size";
const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";

/// What the columns of many matrices met.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Imatrix {
    /// Names of the texts, for people.
    pub datasets: Vec<String>,
    /// Windows of text.
    pub chunks: u32,
    /// Tokens of a window.
    pub chunk_tokens: u32,
    /// By the name of the weight matrix, as in `blk.0.attn_q.weight`.
    pub entries: BTreeMap<String, Importance>,
    /// Tensors of the file that are neither sums nor counts, and are not read.
    pub ignored: Vec<String>,
}

/// What the columns of one matrix met, or of several of the same shape that take turns.
#[derive(Clone, Debug, PartialEq)]
pub struct Importance {
    /// Sums of squares, `[matrices, columns]`.
    pub sums: Vec<f32>,
    /// Tokens summed, `[matrices]`.
    pub counts: Vec<f32>,
}

impl Importance {
    /// Number of matrices that take turns.
    pub fn matrices(&self) -> usize {
        self.counts.len()
    }

    /// Columns of each.
    pub fn columns(&self) -> usize {
        self.sums.len().checked_div(self.counts.len()).unwrap_or(0)
    }
}

impl Imatrix {
    /// Reads a file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let file = GgufFile::open(path)?;
        let metadata = file.metadata();
        match metadata.get(TYPE_KEY).and_then(Value::text) {
            Some(TYPE) => {}
            found => {
                let found = found.map_or("missing".to_owned(), |text| format!("`{}`", shown(text)));
                return Err(file.refuse(GgufError::NotImatrix { found }));
            }
        }
        let count = |key| {
            let value = metadata.get(key).and_then(Value::count);
            value.and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
        };
        let datasets = match metadata.get(DATASETS) {
            Some(Value::Array(Array::Text(names))) => names.clone(),
            _ => Vec::new(),
        };
        let (entries, ignored) = entries(&file)?;
        Ok(Imatrix {
            datasets,
            chunks: count(CHUNK_COUNT),
            chunk_tokens: count(CHUNK_SIZE),
            entries,
            ignored,
        })
    }

    /// Adds what another part of the text, or another text, showed. The name of the first matrix that has another shape
    /// there, and nothing is added.
    pub fn add(&mut self, other: &Imatrix) -> Result<(), String> {
        let differs = |(name, entry): &(&String, &Importance)| {
            let known = self.entries.get(*name);
            known
                .is_some_and(|e| (e.matrices(), e.columns()) != (entry.matrices(), entry.columns()))
        };
        if let Some((name, _)) = other.entries.iter().find(differs) {
            return Err(name.clone());
        }
        // Parts of a text have its name.
        unite(&mut self.datasets, &other.datasets);
        unite(&mut self.ignored, &other.ignored);
        self.chunks = self.chunks.saturating_add(other.chunks);
        for (name, entry) in &other.entries {
            let Some(known) = self.entries.get_mut(name) else {
                self.entries.insert(name.clone(), entry.clone());
                continue;
            };
            let sums = known.sums.iter_mut().zip(&entry.sums);
            sums.for_each(|(sum, more)| *sum += more);
            let counts = known.counts.iter_mut().zip(&entry.counts);
            counts.for_each(|(count, more)| *count += more);
        }
        Ok(())
    }

    /// The bytes of a file.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        let mut metadata = Metadata::default();
        metadata.push(TYPE_KEY, Value::Text(TYPE.to_owned()));
        metadata.push(DATASETS, Value::Array(Array::Text(self.datasets.clone())));
        metadata.push(CHUNK_COUNT, Value::U32(self.chunks));
        metadata.push(CHUNK_SIZE, Value::U32(self.chunk_tokens));
        let mut planned = Vec::new();
        for (name, entry) in &self.entries {
            // A single matrix is written without its leading dimension, as others do.
            let tensor = |suffix, columns| PlannedGguf {
                name: format!("{name}{suffix}"),
                kind: GgmlType::F32,
                shape: match entry.matrices() {
                    1 => vec![columns],
                    matrices => vec![matrices, columns],
                },
            };
            planned.push(tensor(SUMS, entry.columns()));
            planned.push(tensor(COUNTS, 1));
        }
        let layout = GgufLayout::new(&metadata, &planned)?;
        let mut bytes = layout.header_bytes().to_vec();
        let values = self.entries.values().flat_map(|e| [&e.sums, &e.counts]);
        for (info, values) in layout.tensors().iter().zip(values) {
            bytes.resize(usize::try_from(info.range.start).unwrap_or(usize::MAX), 0);
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        bytes.resize(usize::try_from(layout.file_size()).unwrap_or(usize::MAX), 0);
        Ok(bytes)
    }
}

/// Adds the names that are not there yet.
fn unite(names: &mut Vec<String>, others: &[String]) {
    for name in others {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
}

/// The entries of a file, each sums with their counts, and the names of what is neither.
fn entries(file: &GgufFile) -> Result<(BTreeMap<String, Importance>, Vec<String>), Error> {
    let mut sums: BTreeMap<&str, &GgufTensor> = BTreeMap::new();
    let mut counts: BTreeMap<&str, &GgufTensor> = BTreeMap::new();
    let mut ignored = Vec::new();
    for info in file.tensors() {
        if let Some(name) = info.name.strip_suffix(SUMS) {
            sums.insert(name, info);
        } else if let Some(name) = info.name.strip_suffix(COUNTS) {
            counts.insert(name, info);
        } else {
            ignored.push(info.name.clone());
        }
    }
    let missing = |name: &str, suffix| {
        file.refuse(GgufError::NoTensor {
            tensor: format!("{}{suffix}", shown(name)),
        })
    };
    let mut entries = BTreeMap::new();
    for (name, info) in sums {
        let count = counts.remove(name).ok_or_else(|| missing(name, COUNTS))?;
        entries.insert(name.to_owned(), entry(file, info, count)?);
    }
    if let Some(name) = counts.keys().next() {
        return Err(missing(name, SUMS));
    }
    if entries.is_empty() {
        return Err(file.refuse(GgufError::NoImportance));
    }
    Ok((entries, ignored))
}

fn entry(file: &GgufFile, sums: &GgufTensor, counts: &GgufTensor) -> Result<Importance, Error> {
    let refuse = |info: &GgufTensor, what| {
        file.refuse(GgufError::ImportanceShape {
            tensor: shown(&info.name),
            what,
            found: info.shape.clone(),
        })
    };
    let matrices = elements(&counts.shape);
    if matrices == 0 {
        return Err(refuse(counts, "one count for each matrix"));
    }
    let (columns, rows) = match sums.shape.split_last() {
        Some((&columns, rows)) => (columns, elements(rows)),
        None => (0, 0),
    };
    if columns == 0 || rows != matrices {
        return Err(refuse(sums, "a row of sums for each count"));
    }
    let checked = |info: &GgufTensor| {
        let values = file.read_f32(info)?;
        let wrong = values.iter().position(|v| !(v.is_finite() && *v >= 0.0));
        match wrong.and_then(|index| Some((index, *values.get(index)?))) {
            Some((index, found)) => Err(file.refuse(GgufError::ImportanceValue {
                tensor: shown(&info.name),
                index,
                found,
            })),
            None => Ok(values),
        }
    };
    Ok(Importance {
        sums: checked(sums)?,
        counts: checked(counts)?,
    })
}

/// Elements of a shape; never overflows, for a dimension of zero may stand beside large ones.
fn elements(shape: &[usize]) -> usize {
    shape.iter().copied().fold(1, usize::saturating_mul)
}
