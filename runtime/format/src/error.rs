//! Everything that can go wrong with a file, one variant per reason.
//!
//! [`Error`] names the file or folder; what is wrong inside it is its source: a [`HeaderError`],
//! a [`CheckpointError`] or an [`ArtifactError`].

use std::io;
use std::path::PathBuf;

pub use crate::artifact_error::ArtifactError;
pub use crate::checkpoint_error::CheckpointError;
use crate::dtype::ElementType;
pub use crate::gguf::GgufError;
pub use crate::header_error::HeaderError;
use crate::limits;

/// Why a file or folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("cannot read `{path}`")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// A folder, pipe, socket or device where a file was expected.
    #[error("`{path}` is not a regular file")]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// Anything else where a folder was expected.
    #[error("`{path}` is not a folder")]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },
    /// A link that leads out of the folder it lies in.
    #[error("`{path}` leads out of its folder, to `{target}`")]
    Outside {
        /// The link.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// A text file larger than its limit.
    #[error("`{path}` has {found} bytes, more than the {limit} accepted")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Bytes accepted.
        limit: u64,
        /// Bytes found.
        found: u64,
    },
    /// Not enough memory to hold a part of a file.
    #[error("no memory for {bytes} bytes of `{path}`")]
    OutOfMemory {
        /// The file.
        path: PathBuf,
        /// Bytes wanted.
        bytes: u64,
    },
    /// A text file that is not the JSON it should be.
    #[error("`{path}`, line {line}, column {column}: {reason}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Line, counted from 1.
        line: usize,
        /// Column, counted from 1.
        column: usize,
        /// What the parser said.
        reason: String,
    },
    /// A weight file that is no valid safetensors file.
    #[error("`{path}` is not a valid safetensors file")]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: Box<HeaderError>,
    },
    /// A file that is no valid GGUF file, or not one of importance.
    #[error("`{path}` is not a usable GGUF file")]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: Box<GgufError>,
    },
    /// Metadata and tensors that cannot be written as a GGUF file.
    #[error("these tensors cannot be written as a GGUF file")]
    GgufLayout(#[source] Box<GgufError>),
    /// A tensor of a type that weights are not read from.
    #[error("`{path}`, tensor `{tensor}`: elements of type {dtype} cannot be read as weights")]
    ElementType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its element type.
        dtype: ElementType,
    },
    /// A folder that is no checkpoint.
    #[error("`{path}` is not a usable checkpoint")]
    Checkpoint {
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: Box<CheckpointError>,
    },
    /// A folder that is no artifact.
    #[error("`{path}` is not a valid artifact")]
    Artifact {
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: Box<ArtifactError>,
    },
    /// A tensor was asked for that is not there.
    #[error("`{path}` has no tensor `{tensor}`")]
    NoTensor {
        /// The checkpoint or artifact.
        path: PathBuf,
        /// The name asked for.
        tensor: String,
    },
    /// A packed tensor whose size would move the next one off its alignment.
    #[error("packed tensor `{tensor}`: {bytes} bytes are not a multiple of 64")]
    Unaligned {
        /// The tensor.
        tensor: String,
        /// Its planned size.
        bytes: u64,
    },
    /// Tensors that cannot be written as one safetensors file.
    #[error("these tensors cannot be written as one safetensors file")]
    Layout(#[source] Box<HeaderError>),
    /// A manifest of a version that is not read.
    #[error(
        "`{path}` has schema version {found}, read are 1 to {}",
        crate::manifest::SCHEMA_VERSION
    )]
    ManifestVersion {
        /// The manifest.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// A number of a manifest that JSON cannot hold.
    #[error("manifest: `{field}` is {value}, which is not a finite number")]
    NotFinite {
        /// Where it stands.
        field: String,
        /// The number.
        value: f64,
    },
}

impl Error {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Error::Io { .. } | Error::NotAFile { .. } | Error::NoTensor { .. } => return None,
            Error::NotAFolder { .. } => "name the folder that holds `config.json` and the weights",
            Error::Outside { .. } => {
                "put the file itself into the folder; links may lead only into the folder or into \
                 the `blobs` of the same hub cache entry"
            }
            Error::TooLarge { .. } => "this is not the file it claims to be; download it again",
            Error::OutOfMemory { .. } => "free memory, or use a machine with more",
            Error::Json { .. } => "the file is damaged or was edited by hand; download it again",
            Error::ElementType { .. } => "take a checkpoint stored as BF16, F16 or F32",
            Error::ManifestVersion { .. } => "use a newer version of the program",
            Error::Header { source, .. } | Error::Layout(source) => return source.hint(),
            Error::Gguf { source, .. } | Error::GgufLayout(source) => return source.hint(),
            Error::Checkpoint { source, .. } => return source.hint(),
            Error::Artifact { source, .. } => return source.hint(),
            Error::Unaligned { .. } | Error::NotFinite { .. } => {
                "this is a bug in the program; please report it"
            }
        };
        Some(hint.to_owned())
    }
}

/// Untrusted text as it is repeated in messages: escaped, and cut where it is long.
pub(crate) fn shown(text: &str) -> String {
    let mut out: String = text
        .chars()
        .take(limits::SHOWN_CHARS)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().nth(limits::SHOWN_CHARS).is_some() {
        out.push('…');
    }
    out
}

/// The words of a JSON error without the position, which is reported on its own.
pub(crate) fn json_reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    shown(
        text.rsplit_once(" at line ")
            .map_or(text.as_str(), |(reason, _)| reason),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn untrusted_text_is_escaped_and_cut() {
        assert_eq!(shown("a\u{1b}[31m\u{202e}é"), "a\\u{1b}[31m\\u{202e}é");
        let cut = shown(&"x".repeat(5000));
        assert_eq!(cut.chars().count(), limits::SHOWN_CHARS + 1);
        assert!(cut.ends_with('…'));
    }

    #[test]
    fn json_errors_lose_their_position_only() {
        let error = serde_json::from_str::<u8>("\"at line \"").unwrap_err();
        assert_eq!(
            json_reason(&error),
            "invalid type: string \\\"at line \\\", expected u8"
        );
    }
}
