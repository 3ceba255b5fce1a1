//! What can be wrong with the bytes of a GGUF file.

use super::{ALIGNMENT_KEY, FIRST_VERSION, GgmlType, RANK, VERSION};
use crate::limits;
use crate::sniff::Disguise;

/// Why a file is no valid GGUF file, or not one of importance. Offsets count from the start of the
/// tensor data.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum GgufError {
    #[error("the file is {0}")]
    Disguised(Disguise),
    #[error("the file does not begin with `GGUF`")]
    Magic,
    #[error("the file is big-endian, which is not read")]
    BigEndian,
    #[error("version {found}, read are {FIRST_VERSION} to {VERSION}")]
    Version { found: u32 },
    #[error("the file ends in {place}: {needed} bytes needed, {available} left")]
    Cut {
        place: String,
        needed: u64,
        available: u64,
    },
    #[error(
        "the header has more than the {} bytes accepted, at {place}",
        limits::HEADER_BYTES
    )]
    HeaderLength { place: String },
    #[error(
        "{found} metadata keys, more than the {} accepted",
        limits::METADATA_KEYS
    )]
    MetadataCount { found: u64 },
    #[error("{found} tensors, more than the {} accepted", limits::TENSORS_PER_FILE)]
    TensorCount { found: u64 },
    #[error("{place} is no valid text")]
    NotText { place: String },
    #[error(
        "{place}: a name of {bytes} bytes, accepted are 1 to {}",
        limits::NAME_BYTES
    )]
    NameLength { place: String, bytes: u64 },
    #[error("{place}: a control character in `{name}`")]
    NameControl { place: String, name: String },
    #[error("metadata key `{key}` occurs twice")]
    DuplicateKey { key: String },
    #[error("metadata `{key}`: unknown type {found}")]
    ValueType { key: String, found: u32 },
    #[error("metadata `{key}`: arrays of arrays are not read")]
    NestedArray { key: String },
    #[error("metadata `{key}`: {found} is neither true nor false")]
    Bool { key: String, found: u8 },
    #[error("metadata `{ALIGNMENT_KEY}`: expected a power of two from 8 to 65536 as U32")]
    Alignment,
    #[error("tensor `{tensor}` occurs twice")]
    DuplicateTensor { tensor: String },
    #[error("tensor `{tensor}`: {found} dimensions, more than the {RANK} accepted")]
    Rank { tensor: String, found: u32 },
    #[error(
        "tensor `{tensor}`: size {found} is more than the {} accepted",
        limits::SIZE
    )]
    Size { tensor: String, found: u64 },
    #[error("tensor `{tensor}`: shape {shape:?} has too many elements to count")]
    Overflow { tensor: String, shape: Vec<u64> },
    #[error("tensor `{tensor}`: unknown element type {found}")]
    TensorType { tensor: String, found: u32 },
    #[error("tensor `{tensor}`: rows of {columns} are no whole number of {kind} blocks")]
    PartialBlock {
        tensor: String,
        kind: GgmlType,
        columns: u64,
    },
    #[error("tensor `{tensor}`: expected at {expected}, found at {found}")]
    Offset {
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
    #[error("tensor `{tensor}`: expected elements of type F32, found {found}")]
    NotF32 { tensor: String, found: GgmlType },
    #[error("tensor `{tensor}`: elements of type {found} are not read")]
    NotRead { tensor: String, found: GgmlType },
    #[error("`general.type` is {found}, expected `imatrix`")]
    NotImatrix { found: String },
    #[error("tensor `{tensor}` is missing")]
    NoTensor { tensor: String },
    #[error("tensor `{tensor}`: shape {found:?} is not that of {what}")]
    ImportanceShape {
        tensor: String,
        what: &'static str,
        found: Vec<usize>,
    },
    #[error("tensor `{tensor}`: value {index} is {found}, not finite and at least 0")]
    ImportanceValue {
        tensor: String,
        index: usize,
        found: f32,
    },
    #[error("the file holds no importance of any matrix")]
    NoImportance,
}

impl GgufError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            GgufError::Disguised(disguise) => disguise.hint(),
            GgufError::Cut { .. } | GgufError::DataCut { .. } => {
                "the file is cut off; make it or download it again"
            }
            GgufError::BigEndian | GgufError::Version { .. } => {
                "write the file again with a current version of the tool that made it"
            }
            GgufError::NotRead { .. } => {
                "read are F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K, TQ1_0 and TQ2_0"
            }
            GgufError::NotImatrix { .. } | GgufError::NoImportance => {
                "an importance matrix is what `llama-imatrix` writes with `--output-format gguf`"
            }
            GgufError::Magic => "a GGUF file was expected: a model, or importance matrices",
            _ => "the file is damaged or not what it claims to be; make it or download it again",
        };
        Some(hint.to_owned())
    }
}
