//! The tensors that one quantized matrix is made of, and the settings of its method, read strictly.

use std::path::{Path, PathBuf};

use neuroconv_format::{CheckpointFiles, ElementType, TensorInfo};
use serde_json::Value;

use super::KEY;
use crate::Error;

/// `quantization_config`.
pub(super) struct Settings<'a> {
    path: PathBuf,
    config: &'a Value,
}

impl<'a> Settings<'a> {
    pub(super) fn of(dir: &Path, config: &'a Value) -> Self {
        Settings {
            path: dir.join("config.json"),
            config: &config[KEY],
        }
    }

    pub(super) fn bad(&self, key: &str, problem: &str) -> Error {
        let found = match self.config.get(key) {
            None => "missing".to_owned(),
            Some(Value::Object(_) | Value::Array(_)) => "of another form".to_owned(),
            Some(value) => value.to_string(),
        };
        Error::Quantization {
            path: self.path.clone(),
            place: format!("`{KEY}.{key}`"),
            problem: format!("is {found}; {problem}"),
        }
    }

    /// The value of a key; `None` where it is null or missing.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.config.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn needed(&self, key: &str) -> Result<&'a Value, Error> {
        self.get(key).ok_or_else(|| self.bad(key, "it is needed"))
    }

    /// Refuses a value that says something: it changes what the tensors mean.
    pub(super) fn nothing(&self, key: &str) -> Result<(), Error> {
        let says = match self.get(key) {
            None | Some(Value::Bool(false)) => false,
            Some(Value::Object(map)) => !map.is_empty(),
            Some(Value::Array(items)) => !items.is_empty(),
            Some(_) => true,
        };
        if says {
            return Err(self.bad(key, "it is not read"));
        }
        Ok(())
    }

    /// Refuses a value that is there and is none of `known`.
    pub(super) fn check(&self, key: &str, known: &[Value]) -> Result<(), Error> {
        match self.get(key) {
            Some(value) if !known.contains(value) => {
                let known: Vec<String> = known.iter().map(Value::to_string).collect();
                Err(self.bad(key, &format!("known are {}", known.join(", "))))
            }
            _ => Ok(()),
        }
    }
}

/// The tensors of one matrix.
pub(super) struct Parts<'a> {
    files: &'a CheckpointFiles,
    stem: &'a str,
    codes: &'a str,
}

impl<'a> Parts<'a> {
    pub(super) fn new(files: &'a CheckpointFiles, stem: &'a str, codes: &'a str) -> Self {
        Parts { files, stem, codes }
    }

    /// The refusal of the tensor with this end of its name.
    pub(super) fn bad(&self, suffix: &str, problem: impl Into<String>) -> Error {
        Error::Quantization {
            path: self.files.path().to_owned(),
            place: format!("tensor `{}{suffix}`", self.stem),
            problem: problem.into(),
        }
    }

    pub(super) fn find(&self, suffix: &str) -> Option<&'a TensorInfo> {
        self.files.info(&format!("{}{suffix}", self.stem))
    }

    fn info(&self, suffix: &str) -> Result<&'a TensorInfo, Error> {
        self.find(suffix)
            .ok_or_else(|| self.bad(suffix, "is missing"))
    }

    /// Rows and columns of the codes as they are stored.
    pub(super) fn codes(&self) -> Result<[usize; 2], Error> {
        self.pair(self.codes)
    }

    /// Rows and columns of a part.
    pub(super) fn pair(&self, suffix: &str) -> Result<[usize; 2], Error> {
        let shape = &self.info(suffix)?.shape;
        match shape.as_slice() {
            &[rows, cols] if rows > 0 && cols > 0 => Ok([rows, cols]),
            _ => Err(self.bad(suffix, format!("has shape {shape:?}, not that of a matrix"))),
        }
    }

    /// Refuses a part of another shape.
    pub(super) fn expect(&self, suffix: &str, expected: &[usize]) -> Result<(), Error> {
        let found = &self.info(suffix)?.shape;
        if found == expected {
            return Ok(());
        }
        Err(self.bad(
            suffix,
            format!("has shape {found:?}, expected {expected:?}"),
        ))
    }

    /// The bytes of a part, which has to be of one of these element types.
    pub(super) fn bytes(&self, suffix: &str, of: &[ElementType]) -> Result<Vec<u8>, Error> {
        let info = self.info(suffix)?;
        if of.contains(&info.dtype) {
            return Ok(self.files.read_bytes(&info.name)?);
        }
        let names: Vec<&str> = of.iter().map(|element| element.name()).collect();
        let found = info.dtype;
        Err(self.bad(
            suffix,
            format!("is of type {found}, expected {}", names.join(" or ")),
        ))
    }

    /// The words of a part.
    pub(super) fn words(&self, suffix: &str) -> Result<Vec<u32>, Error> {
        let bytes = self.bytes(suffix, &[ElementType::I32])?;
        let (words, _) = bytes.as_chunks();
        Ok(words.iter().map(|b| u32::from_le_bytes(*b)).collect())
    }

    /// The numbers of a part that is stored as weights are.
    pub(super) fn floats(&self, suffix: &str) -> Result<Vec<f32>, Error> {
        let info = self.info(suffix)?;
        let plain = [ElementType::F32, ElementType::F16, ElementType::BF16];
        if !plain.contains(&info.dtype) {
            let found = info.dtype;
            return Err(self.bad(suffix, format!("is of type {found}, expected a float")));
        }
        Ok(self.files.read(&info.name)?.to_f32())
    }

    /// Numbers below `limit`, one for each column.
    pub(super) fn indices(&self, suffix: &str, limit: usize) -> Result<Vec<usize>, Error> {
        let words = self.words(suffix)?;
        let indices: Vec<usize> = words.iter().map(|&word| word as usize).collect();
        match indices.iter().find(|&&index| index >= limit) {
            Some(index) => Err(self.bad(suffix, format!("names group {index} of {limit}"))),
            None => Ok(indices),
        }
    }
}
