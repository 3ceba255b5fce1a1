//! Reads the header of a GGUF file from start to end, never more than there is.

use std::fmt;
use std::io::{self, Read};

use super::error::GgufError;
use crate::error::shown;
use crate::limits;

/// Why reading stopped.
#[derive(Debug)]
pub(super) enum Fault {
    /// The operating system refused.
    Io(io::Error),
    /// The bytes are wrong.
    Bytes(GgufError),
}

impl From<GgufError> for Fault {
    fn from(error: GgufError) -> Self {
        Fault::Bytes(error)
    }
}

/// What is being read, for messages.
#[derive(Clone, Debug)]
pub(super) enum Place {
    Header,
    Key(u64),
    Value(String),
    Name(u64),
    Tensor(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Header => f.write_str("the header"),
            Place::Key(number) => write!(f, "metadata key {number}"),
            Place::Value(key) => write!(f, "metadata `{}`", shown(key)),
            Place::Name(number) => write!(f, "the name of tensor {number}"),
            Place::Tensor(name) => write!(f, "tensor `{}`", shown(name)),
        }
    }
}

/// A position in a file of known size.
pub(super) struct Cursor<R> {
    inner: R,
    at: u64,
    size: u64,
    pub(super) place: Place,
}

impl<R: Read> Cursor<R> {
    pub(super) fn new(inner: R, size: u64) -> Self {
        Cursor {
            inner,
            at: 0,
            size,
            place: Place::Header,
        }
    }

    /// Bytes read so far.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// Refuses `count` items of at least `bytes` each where the file is too short for them.
    fn check(&self, count: u64, bytes: u64) -> Result<u64, GgufError> {
        let needed = count.saturating_mul(bytes);
        let available = self.size.saturating_sub(self.at);
        if needed > available {
            return Err(GgufError::Cut {
                place: self.place.to_string(),
                needed,
                available,
            });
        }
        if self.at.saturating_add(needed) > limits::HEADER_BYTES {
            return Err(GgufError::HeaderLength {
                place: self.place.to_string(),
            });
        }
        Ok(needed)
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        self.check(1, N as u64)?;
        let mut bytes = [0; N];
        self.inner.read_exact(&mut bytes).map_err(Fault::Io)?;
        self.at = self.at.saturating_add(N as u64);
        Ok(bytes)
    }

    pub(super) fn magic(&mut self) -> Result<[u8; 4], Fault> {
        self.fixed()
    }

    pub(super) fn u32(&mut self) -> Result<u32, Fault> {
        self.number(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Fault> {
        self.number(u64::from_le_bytes)
    }

    /// One number.
    pub(super) fn number<const N: usize, T>(
        &mut self,
        decode: fn([u8; N]) -> T,
    ) -> Result<T, Fault> {
        Ok(decode(self.fixed()?))
    }

    /// `count` numbers.
    pub(super) fn numbers<const N: usize, T>(
        &mut self,
        count: u64,
        decode: fn([u8; N]) -> T,
    ) -> Result<Vec<T>, Fault> {
        let bytes = self.bytes(count, N as u64)?;
        let (chunks, _) = bytes.as_chunks();
        Ok(chunks.iter().map(|chunk| decode(*chunk)).collect())
    }

    /// A text with its length before it.
    pub(super) fn text(&mut self) -> Result<String, Fault> {
        let length = self.u64()?;
        let bytes = self.bytes(length, 1)?;
        let not_text = |_| GgufError::NotText {
            place: self.place.to_string(),
        };
        Ok(String::from_utf8(bytes).map_err(not_text)?)
    }

    /// `count` texts.
    pub(super) fn texts(&mut self, count: u64) -> Result<Vec<String>, Fault> {
        // Each has at least its length.
        self.check(count, 8)?;
        (0..count).map(|_| self.text()).collect()
    }

    /// A short text without control characters.
    pub(super) fn name(&mut self) -> Result<String, Fault> {
        let bytes = self.u64()?;
        let place = || self.place.to_string();
        if bytes == 0 || bytes > limits::NAME_BYTES as u64 {
            let place = place();
            return Err(GgufError::NameLength { place, bytes }.into());
        }
        let bytes = self.bytes(bytes, 1)?;
        let place = || self.place.to_string();
        let name = String::from_utf8(bytes).map_err(|_| GgufError::NotText { place: place() })?;
        if name.chars().any(char::is_control) {
            let (place, name) = (place(), shown(&name));
            return Err(GgufError::NameControl { place, name }.into());
        }
        Ok(name)
    }

    fn bytes(&mut self, count: u64, size: u64) -> Result<Vec<u8>, Fault> {
        let needed = self.check(count, size)?;
        let mut bytes = Vec::new();
        let read = (&mut self.inner).take(needed).read_to_end(&mut bytes);
        if read.map_err(Fault::Io)? as u64 != needed {
            return Err(Fault::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        self.at = self.at.saturating_add(needed);
        Ok(bytes)
    }
}
