//! Typed access to one JSON object of a configuration. Every getter treats null as absent,
//! checks type and range, and names the file and the key when it refuses.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::Error;
use crate::suggest::shown;
use crate::validate::within;

/// One object of a configuration file.
pub(crate) struct Reader<'a> {
    file: &'static str,
    /// Path of the object in the file, with a dot at its end; empty at the top.
    path: String,
    map: &'a Map<String, Value>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(file: &'static str, value: &'a Value) -> Result<Self, Error> {
        let map = value.as_object().ok_or(Error::NotAnObject { file })?;
        Ok(Reader {
            file,
            path: String::new(),
            map,
        })
    }

    /// Path of `key` in the file.
    pub(crate) fn path(&self, key: &str) -> String {
        format!("{}{key}", self.path)
    }

    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// Whether the key is there, be it null.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &'a str> {
        self.map.keys().map(String::as_str)
    }

    pub(crate) fn missing(&self, key: &str) -> Error {
        Error::MissingKey {
            file: self.file,
            key: self.path(key),
        }
    }

    pub(crate) fn bad(&self, key: &str, expected: &str, found: &Value) -> Error {
        let found = print(found);
        Error::BadValue {
            file: self.file,
            key: self.path(key),
            expected: expected.to_owned(),
            found,
        }
    }

    pub(crate) fn unsupported(&self, key: &str, found: &Value, supported: &str) -> Error {
        Error::Unsupported {
            file: self.file,
            key: self.path(key),
            found: print(found),
            supported: supported.to_owned(),
        }
    }

    /// An integer, written as one.
    pub(crate) fn count(
        &self,
        key: &str,
        range: &RangeInclusive<u64>,
    ) -> Result<Option<usize>, Error> {
        self.typed(key, &format!("an integer in {}", within(range)), |v| {
            let count = v.as_u64().filter(|c| range.contains(c))?;
            usize::try_from(count).ok()
        })
    }

    pub(crate) fn real(
        &self,
        key: &str,
        range: &RangeInclusive<f64>,
    ) -> Result<Option<f64>, Error> {
        self.typed(key, &format!("a number in {}", within(range)), |v| {
            v.as_f64().filter(|r| range.contains(r))
        })
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, Error> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, Error> {
        self.typed(key, "a string", Value::as_str)
    }

    pub(crate) fn list(&self, key: &str) -> Result<Option<&'a [Value]>, Error> {
        self.typed(key, "a list", |v| v.as_array().map(Vec::as_slice))
    }

    pub(crate) fn object(&self, key: &str) -> Result<Option<Reader<'a>>, Error> {
        let map = self.typed(key, "an object", Value::as_object)?;
        let path = format!("{}.", self.path(key));
        Ok(map.map(|map| Reader {
            file: self.file,
            path,
            map,
        }))
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => read(value)
                .map(Some)
                .ok_or_else(|| self.bad(key, expected, value)),
        }
    }
}

/// A value as a message may show it.
pub(crate) fn print(value: &Value) -> String {
    match value {
        Value::String(text) => shown(text),
        Value::Object(map) => format!("an object of {} keys", map.len()),
        Value::Array(items) if items.len() > 8 => format!("a list of {} items", items.len()),
        other => shown(&other.to_string()),
    }
}
