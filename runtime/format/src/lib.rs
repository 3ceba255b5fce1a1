//! Bytes on disk: the safetensors and GGUF containers, the native artifact and the table of codecs.
//!
//! Owns layouts, limits and the validation of everything untrusted that is read from a file.
//! Knows bytes and shapes, never models. After a file is open no accessor can fail.

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        clippy::panic,
        clippy::unwrap_used,
        clippy::expect_used
    )
)]

pub mod artifact;
mod artifact_error;
mod check;
pub mod checkpoint;
mod checkpoint_error;
pub mod codec;
mod corrections;
pub mod dtype;
mod entry;
pub mod error;
mod files;
pub mod gguf;
mod header;
mod header_error;
mod index;
pub mod limits;
pub mod manifest;
mod map;
mod parts;
pub mod safetensors;
mod sniff;
mod strict_json;
pub mod tensor;
pub mod writer;

pub use artifact::{Artifact, Validate};
pub use artifact_error::{ArtifactError, TensorFault};
pub use checkpoint::{CheckpointFiles, side_files};
pub use codec::{ActivationBits, Codec, PackedLayout};
pub use corrections::{
    Columns, Corrections, CorrectionsPlan, LowRank, PartCodec, PartKind, PartLayout,
};
pub use dtype::{DType, ElementType};
pub use error::{CheckpointError, Error, HeaderError};
pub use files::sha256_file;
pub use manifest::{Manifest, TensorCodec};
pub use map::lay_in_large_pages;
pub use safetensors::{SafetensorsFile, TensorInfo};
pub use sniff::Disguise;
pub use tensor::{DenseTensor, PackedTensor, SharedBytes, Tensor};
pub use writer::{PlannedTensor, SafetensorsLayout};
