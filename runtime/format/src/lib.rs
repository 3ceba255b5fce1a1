//! Bytes on disk: the safetensors container, the native artifact and the table of codecs.
//!
//! Owns layouts, limits and the validation of everything untrusted that is read from a file.
//! Knows bytes and shapes, never models. After a file is open no accessor can fail.

pub mod codec;
pub mod dtype;
pub mod tensor;

pub use codec::{Codec, PackedLayout};
pub use dtype::DType;
pub use tensor::{DenseTensor, PackedTensor, SharedBytes, Tensor};
