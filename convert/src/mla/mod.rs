//! From grouped-query attention to multi-head latent attention (MLA), without training.
//!
//! Owns the arithmetic: which key channels keep their rotation, the latent, the refits. Works on
//! plain matrices, layer by layer, with the activations of one batch of calibration windows; knows
//! neither files nor architectures.

pub mod activations;
pub mod attention;
pub mod convert;
pub mod error;
pub mod latent;
pub mod layer;
pub mod linalg;
pub mod load;
pub mod model;
pub mod moments;
pub mod rotary;
pub mod score_fit;
pub mod score_ls;
mod score_precond;
pub mod score_weights;
pub mod slots;
pub mod source;
pub mod teacher;

#[cfg(test)]
mod tests;

pub use activations::Activations;
pub use convert::{Diagnostics, Options, Streams, convert_layer};
pub use error::Error;
pub use layer::MlaAttention;
pub use model::convert_model;
pub use slots::Table;
pub use source::{FeedForward, Geometry, SourceAttention, SourceLayer};
