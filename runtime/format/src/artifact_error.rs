//! What can be wrong with an artifact.

use crate::codec::LayoutError;
use crate::corrections::{PartCodec, PartKind};
use crate::dtype::{DType, ElementType};
use crate::manifest::TensorCodec;

/// Why a folder is no valid artifact.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum ArtifactError {
    #[error("`{}` is missing", crate::artifact::MANIFEST)]
    NoManifest,
    #[error("tensor `{tensor}`: `{file}` is not the plain name of a `.safetensors` file")]
    FileName { tensor: String, file: String },
    #[error("weight file `{file}` is missing, which should hold tensor `{tensor}`")]
    NoFile { tensor: String, file: String },
    #[error("`{file}`, tensor `{tensor}`: the manifest does not list it")]
    Unlisted { file: String, tensor: String },
    #[error("`{file}`, tensor `{tensor}`: {fault}")]
    Tensor {
        file: String,
        tensor: String,
        fault: TensorFault,
    },
}

/// What is wrong with one tensor of an artifact.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum TensorFault {
    #[error("the manifest lists it twice")]
    ListedTwice,
    #[error("the file does not hold it")]
    NotInFile,
    #[error("expected element type {expected}, found {found}")]
    Dtype { expected: DType, found: ElementType },
    #[error("expected shape {expected:?}, found {found:?}")]
    Shape {
        expected: Vec<usize>,
        found: Vec<usize>,
    },
    #[error("the manifest places it at {manifest}, the header of the file at {header}")]
    Offset { manifest: u64, header: u64 },
    #[error("the manifest gives it {manifest} bytes, the header of the file {header}")]
    Size { manifest: u64, header: u64 },
    #[error("shape {shape:?} cannot be stored as {}", codec.name())]
    BadShape {
        codec: TensorCodec,
        shape: Vec<usize>,
    },
    #[error("no group size, which {} needs", codec.name())]
    NoGroup { codec: TensorCodec },
    #[error("a group size, a shift or activation bits, which {} does not have", codec.name())]
    DenseGroup { codec: TensorCodec },
    #[error(transparent)]
    Layout(LayoutError),
    #[error("expected {expected} bytes for its layout, found {found}")]
    LayoutSize { expected: u64, found: u64 },
    #[error("begins at {offset}, which is not a multiple of {alignment}")]
    Unaligned { offset: u64, alignment: u64 },
    #[error("expected {expected} bits per weight, found {found}")]
    BitsPerWeight { expected: f64, found: f64 },
    #[error("byte {byte} is {value:#04x}, which no {} code has", codec.name())]
    Code {
        codec: TensorCodec,
        byte: usize,
        value: u8,
    },
    #[error("the code of row {row}, column {col} is padding and does not mean zero")]
    Padding { row: usize, col: usize },
    #[error("byte {byte} is padding and not zero")]
    Tail { byte: usize },
    #[error("the scale of row {row}, group {group} is not finite")]
    Scale { row: usize, group: usize },
    #[error("the shift of row {row}, group {group} is not finite")]
    Shift { row: usize, group: usize },
    #[error("element {element} is not finite")]
    NotFinite { element: usize },
    #[error("expected BLAKE3 {expected}, found {found}")]
    Hash { expected: String, found: String },
    #[error("parts, which {} does not have", codec.name())]
    DenseParts { codec: TensorCodec },
    #[error("part `{}`: {fault}", part.name())]
    Part {
        part: PartKind,
        fault: Box<TensorFault>,
    },
    #[error("it is not there together with `{}`", without.name())]
    PartAlone { without: PartKind },
    #[error("it cannot be stored as {} with the group size {group:?}", codec.name())]
    PartCodec {
        codec: PartCodec,
        group: Option<usize>,
    },
    #[error("a correction of rank {rank} for a matrix of {rows} x {cols}")]
    Rank {
        rank: usize,
        rows: usize,
        cols: usize,
    },
    #[error("index {place} is {index}, expected at least {least} and less than {cols}")]
    ColumnIndex {
        place: usize,
        index: u32,
        least: u32,
        cols: usize,
    },
    #[error("the code of row {row}, column {col} does not mean zero; the column is stored apart")]
    ApartCode { row: usize, col: usize },
}

impl ArtifactError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            ArtifactError::NoManifest => "name the folder that a conversion gave",
            ArtifactError::NoFile { .. } => {
                "the artifact is not complete; copy or convert it again"
            }
            _ => "the artifact is damaged; copy or convert it again",
        };
        Some(hint.to_owned())
    }
}
