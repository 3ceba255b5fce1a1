//! From grouped-query attention to multi-head latent attention (MLA), without training.
//!
//! Owns the arithmetic: which key channels keep their rotation, the latent, the refits. Works on
//! plain matrices, layer by layer, with the activations of one batch of calibration windows; knows
//! neither files nor architectures.

pub mod activations;
pub mod assemble;
pub mod attention;
pub mod convert;
pub mod error;
pub mod layer;
pub mod linalg;
pub mod load;
pub mod model;
pub mod moments;
pub mod options;
pub mod rebuilt;
pub mod reduce;
pub mod refit;
pub mod remix;
pub mod rotary;
pub mod score_fit;
pub mod score_ls;
mod score_precond;
pub mod slots;
pub mod source;
pub mod streams;
pub mod student;
pub mod teacher;
pub mod weight_only;

#[cfg(test)]
mod tests;

pub use activations::Activations;
pub use convert::convert_layer;
pub use error::Error;
pub use layer::{Encoder, MlaAttention};
pub use model::convert_model;
pub use options::{Converted, Diagnostics, Mode, Options, rank_for};
pub use rebuilt::LatentAttention;
pub use slots::Table;
pub use source::{FeedForward, Geometry, SourceAttention, SourceLayer};
pub use streams::Streams;
pub use student::{Side, Student};
pub use weight_only::weight_only;
