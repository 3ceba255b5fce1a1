//! What can be wrong with the bytes of a safetensors file.

use crate::dtype::ElementType;
use crate::limits;
use crate::sniff::Disguise;

/// Why a file is no valid safetensors file. Offsets count from the start of the tensor data.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum HeaderError {
    #[error("the file is {0}")]
    Disguised(Disguise),
    #[error("the file has {found} bytes, fewer than the 8 of the header length")]
    TooShort { found: u64 },
    #[error(
        "the header has {declared} bytes, more than the {} accepted",
        limits::HEADER_BYTES
    )]
    HeaderLength { declared: u64 },
    #[error("the header has {declared} bytes, but only {available} follow")]
    HeaderCut { declared: u64, available: u64 },
    #[error("the header does not begin with `{{`")]
    NoBrace,
    #[error("header{}, line {line}, column {column}: {reason}", of(tensor.as_ref()))]
    Json {
        tensor: Option<String>,
        line: usize,
        column: usize,
        reason: String,
    },
    #[error("more than {} tensors", limits::TENSORS_PER_FILE)]
    TensorCount,
    #[error("more than {} metadata keys", limits::METADATA_KEYS)]
    MetadataCount,
    #[error("metadata key `{key}` occurs twice")]
    DuplicateMetadata { key: String },
    #[error(
        "tensor `{tensor}`: a name of {bytes} bytes, accepted are 1 to {}",
        limits::NAME_BYTES
    )]
    NameLength { tensor: String, bytes: usize },
    #[error("tensor `{tensor}`: a control character in the name")]
    NameControl { tensor: String },
    #[error("tensor `{tensor}` occurs twice")]
    DuplicateTensor { tensor: String },
    #[error("tensor `{tensor}`: unknown field `{field}`")]
    UnknownField { tensor: String, field: String },
    #[error("tensor `{tensor}`: field `{field}` occurs twice")]
    DuplicateField { tensor: String, field: &'static str },
    #[error("tensor `{tensor}`: field `{field}` is missing")]
    MissingField { tensor: String, field: &'static str },
    #[error("tensor `{tensor}`: unknown element type `{dtype}`")]
    UnknownDtype { tensor: String, dtype: String },
    #[error("tensor `{tensor}`: more than {} dimensions", limits::RANK)]
    Rank { tensor: String },
    #[error(
        "tensor `{tensor}`: size {found} is more than the {} accepted",
        limits::SIZE
    )]
    Size { tensor: String, found: u64 },
    #[error("tensor `{tensor}`: shape {shape:?} has too many elements to count")]
    Overflow { tensor: String, shape: Vec<u64> },
    #[error("tensor `{tensor}`: shape {shape:?} of {dtype} is no whole number of bytes")]
    PartialByte {
        tensor: String,
        dtype: ElementType,
        shape: Vec<u64>,
    },
    #[error("tensor `{tensor}`: begins at {begin}, after its end at {end}")]
    Backwards {
        tensor: String,
        begin: u64,
        end: u64,
    },
    #[error("tensor `{tensor}`: expected {expected} bytes for its shape, found {found}")]
    ByteCount {
        tensor: String,
        expected: u64,
        found: u64,
    },
    #[error("tensor `{tensor}`: a hole before it, expected it at {expected}, found it at {found}")]
    Hole {
        tensor: String,
        expected: u64,
        found: u64,
    },
    #[error(
        "tensor `{tensor}`: overlaps the one before, expected it at {expected}, found it at {found}"
    )]
    Overlap {
        tensor: String,
        expected: u64,
        found: u64,
    },
    #[error("tensor `{tensor}`: ends at {end}, but the data has only {available} bytes")]
    DataCut {
        tensor: String,
        end: u64,
        available: u64,
    },
    #[error("expected the data to end at {expected}, found {found} bytes")]
    Trailing { expected: u64, found: u64 },
}

impl HeaderError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            HeaderError::Disguised(disguise) => disguise.hint(),
            HeaderError::TooShort { .. }
            | HeaderError::HeaderCut { .. }
            | HeaderError::DataCut { .. } => "the file is cut off; download it again",
            HeaderError::TensorCount | HeaderError::MetadataCount | HeaderError::Rank { .. } => {
                "no known model needs that many; the file is not what it claims to be"
            }
            _ => "the file is damaged or not what it claims to be; download it again",
        };
        Some(hint.to_owned())
    }
}

fn of(tensor: Option<&String>) -> String {
    tensor
        .map(|name| format!(", tensor `{name}`"))
        .unwrap_or_default()
}
