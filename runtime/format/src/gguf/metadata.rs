//! The typed values by key that a GGUF file begins with.

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the names are the documentation")]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    Text(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// Several values of one type. Arrays of arrays are not read.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the names are the documentation")]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    Text(Vec<String>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

impl Value {
    /// The text, where it is one.
    pub fn text(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The number, where it is a whole one that is not negative.
    pub fn count(&self) -> Option<u64> {
        match *self {
            Value::U8(n) => Some(n.into()),
            Value::U16(n) => Some(n.into()),
            Value::U32(n) => Some(n.into()),
            Value::U64(n) => Some(n),
            Value::I8(n) => n.try_into().ok(),
            Value::I16(n) => n.try_into().ok(),
            Value::I32(n) => n.try_into().ok(),
            Value::I64(n) => n.try_into().ok(),
            Value::F32(_) | Value::F64(_) | Value::Bool(_) | Value::Text(_) | Value::Array(_) => {
                None
            }
        }
    }

    /// The number of its type in files.
    pub(super) const fn kind(&self) -> u32 {
        match self {
            Value::U8(_) => kind::U8,
            Value::I8(_) => kind::I8,
            Value::U16(_) => kind::U16,
            Value::I16(_) => kind::I16,
            Value::U32(_) => kind::U32,
            Value::I32(_) => kind::I32,
            Value::F32(_) => kind::F32,
            Value::Bool(_) => kind::BOOL,
            Value::Text(_) => kind::TEXT,
            Value::Array(_) => kind::ARRAY,
            Value::U64(_) => kind::U64,
            Value::I64(_) => kind::I64,
            Value::F64(_) => kind::F64,
        }
    }
}

impl Array {
    /// The number of the type of its values in files, and how many there are.
    pub(super) fn kind(&self) -> (u32, usize) {
        match self {
            Array::U8(v) => (kind::U8, v.len()),
            Array::I8(v) => (kind::I8, v.len()),
            Array::U16(v) => (kind::U16, v.len()),
            Array::I16(v) => (kind::I16, v.len()),
            Array::U32(v) => (kind::U32, v.len()),
            Array::I32(v) => (kind::I32, v.len()),
            Array::F32(v) => (kind::F32, v.len()),
            Array::Bool(v) => (kind::BOOL, v.len()),
            Array::Text(v) => (kind::TEXT, v.len()),
            Array::U64(v) => (kind::U64, v.len()),
            Array::I64(v) => (kind::I64, v.len()),
            Array::F64(v) => (kind::F64, v.len()),
        }
    }
}

/// Numbers of the types of values in files.
pub(super) mod kind {
    pub(crate) const U8: u32 = 0;
    pub(crate) const I8: u32 = 1;
    pub(crate) const U16: u32 = 2;
    pub(crate) const I16: u32 = 3;
    pub(crate) const U32: u32 = 4;
    pub(crate) const I32: u32 = 5;
    pub(crate) const F32: u32 = 6;
    pub(crate) const BOOL: u32 = 7;
    pub(crate) const TEXT: u32 = 8;
    pub(crate) const ARRAY: u32 = 9;
    pub(crate) const U64: u32 = 10;
    pub(crate) const I64: u32 = 11;
    pub(crate) const F64: u32 = 12;
}

/// Values by key, in the order of the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata(Vec<(String, Value)>);

impl Metadata {
    /// Adds a value at the end. A key that is there already makes a file that is not read.
    pub fn push(&mut self, key: impl Into<String>, value: Value) {
        self.0.push((key.into(), value));
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.iter().find(|(k, _)| *k == key).map(|(_, v)| v)
    }

    /// Every key and its value, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
