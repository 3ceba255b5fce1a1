//! Recognises by its first bytes what lies where a safetensors file was expected. Owns the magic
//! numbers and the advice; never decides that a file is good.

use std::fmt;

/// Bytes from the start of a file that [`Disguise::sniff`] looks at.
pub(crate) const SNIFF_BYTES: usize = 512;

/// What a file really is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disguise {
    /// The text that stands for a large file in a repository.
    LfsPointer,
    /// A web page, usually an error message of a server.
    Html,
    /// A Python pickle.
    Pickle,
    /// A zip archive, which is how `torch.save` writes.
    Zip,
    /// A GGUF model.
    Gguf,
    /// JSON text, usually an error message of a server or the index of a checkpoint.
    Json,
    /// Nothing but zero bytes.
    Zeros,
}

impl Disguise {
    /// What a file that begins with `first` and is no safetensors file seems to be.
    pub(crate) fn sniff(first: &[u8]) -> Option<Self> {
        let text = first.trim_ascii_start();
        let page = |tag: &[u8]| {
            text.get(..tag.len())
                .is_some_and(|t| t.eq_ignore_ascii_case(tag))
        };
        if first.starts_with(b"version https://git-lfs.github.com/spec/") {
            Some(Disguise::LfsPointer)
        } else if page(b"<!doctype") || page(b"<html") || page(b"<?xml") {
            Some(Disguise::Html)
        } else if first.starts_with(b"PK\x03\x04") {
            Some(Disguise::Zip)
        } else if first.starts_with(b"GGUF") {
            Some(Disguise::Gguf)
        } else if matches!(first, [0x80, 2..=5, ..]) {
            Some(Disguise::Pickle)
        } else if text.starts_with(b"{\"") || text.starts_with(b"{\n") {
            Some(Disguise::Json)
        } else if !first.is_empty() && first.iter().all(|&b| b == 0) {
            Some(Disguise::Zeros)
        } else {
            None
        }
    }

    /// What to do about it.
    pub(crate) fn hint(self) -> &'static str {
        match self {
            Disguise::LfsPointer => {
                "fetch the file itself with `git lfs pull`, or download it again"
            }
            Disguise::Html | Disguise::Json => {
                "the download got a message instead of the file; open it in an editor to read it"
            }
            Disguise::Pickle | Disguise::Zip => {
                "pickled checkpoints can run code and are never read; convert it to safetensors first"
            }
            Disguise::Gguf => "GGUF is not read; take the safetensors checkpoint it was made from",
            Disguise::Zeros => "the file was never written completely; download it again",
        }
    }
}

impl fmt::Display for Disguise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Disguise::LfsPointer => "a Git LFS pointer",
            Disguise::Html => "a web page",
            Disguise::Pickle => "a Python pickle",
            Disguise::Zip => "a zip archive",
            Disguise::Gguf => "a GGUF file",
            Disguise::Json => "JSON text",
            Disguise::Zeros => "nothing but zero bytes",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_magic_is_recognised() {
        for (bytes, expected) in [
            (
                &b"version https://git-lfs.github.com/spec/v1\noid sha256:00"[..],
                Some(Disguise::LfsPointer),
            ),
            (b"\n <!DocType html><html>", Some(Disguise::Html)),
            (b"<HTML>", Some(Disguise::Html)),
            (b"<?xml version='1.0'?>", Some(Disguise::Html)),
            (b"PK\x03\x04....", Some(Disguise::Zip)),
            (b"\x80\x02}q\x00", Some(Disguise::Pickle)),
            (b"GGUF\x03\0\0\0", Some(Disguise::Gguf)),
            (b"{\"error\":\"not found\"}", Some(Disguise::Json)),
            (b"\0\0\0\0\0\0\0\0\0", Some(Disguise::Zeros)),
            (b"", None),
            (b"hello there", None),
        ] {
            assert_eq!(Disguise::sniff(bytes), expected, "{bytes:?}");
        }
    }
}
