//! The GGUF container: typed metadata and tensors of one file, read strictly and written.
//!
//! Owns bytes and the table of element types. Does not know what a key or a tensor means, but for
//! the importance matrices of [`imatrix`]. Little-endian versions 2 and 3 are read, 3 is written.
//! Nothing is allocated for a declared count that the file is too short for.

mod blocks;
mod cursor;
mod encode;
mod error;
mod file;
mod header;
pub mod imatrix;
mod kind;
mod metadata;
mod writer;

pub use encode::RowLevels;
pub use error::GgufError;
pub use file::GgufFile;
pub use header::GgufTensor;
pub use imatrix::Imatrix;
pub use kind::GgmlType;
pub use metadata::{Array, Metadata, Value};
pub use writer::{GgufLayout, PlannedGguf};

/// What a file begins with.
const MAGIC: [u8; 4] = *b"GGUF";
/// The version that is written, and the last that is read.
const VERSION: u32 = 3;
/// The first version that is read: version 1 had other lengths.
const FIRST_VERSION: u32 = 2;
/// Where `general.alignment` is not set, tensors begin at multiples of this.
const ALIGNMENT: u32 = 32;
/// The key that sets another alignment.
const ALIGNMENT_KEY: &str = "general.alignment";
/// Dimensions of a tensor at most.
const RANK: usize = 4;
