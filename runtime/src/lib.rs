//! Runs a model: one decoder for every architecture, its cache, tokenizer and sampling.
//!
//! Owns the forward pass over dense and packed weights. Knows roles and specs, never the names
//! of a foreign checkpoint beyond what `recipes` resolved, and never how weights were fitted.

pub mod error;
pub mod progress;
pub mod weights;

pub use error::Error;
pub use progress::{Progress, Quiet};
pub use weights::WeightSource;
