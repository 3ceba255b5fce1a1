//! Runs a model: one decoder for every architecture, its cache, tokenizer and sampling.
//!
//! Owns the forward pass over dense and packed weights. Knows roles and specs, never the names
//! of a foreign checkpoint beyond what `recipes` resolved, and never how weights were fitted.

pub mod cache;
pub mod chat;
pub mod corrections;
mod decoder;
pub mod error;
pub mod generate;
pub mod progress;
pub mod sample;
pub mod source;
pub mod tokenizer;
pub mod weights;

mod attention;
mod guard;
mod latent;
mod layers;
mod linear;
mod load;
mod mla;
mod mlp;
mod norm;
mod ops;
mod plane;
mod rope;
mod side;
#[cfg(test)]
mod testing;

pub use cache::KvCache;
pub use chat::chat_prompt;
pub use decoder::Decoder;
pub use error::Error;
pub use generate::{Generation, Stop, generate};
pub use layers::{Head, OneLayer, embed};
pub use plane::KvCodec;
pub use progress::{Progress, Quiet};
pub use sample::{Sampler, SamplerConfig};
pub use side::SideFiles;
pub use source::{
    AsNumbers, Checkpoint, ModelFiles, PackedModel, Rewritten, Rounded, SideContent, SideFile,
    Source, open_source, open_source_unchecked,
};
pub use tokenizer::{TextStream, TextTokenizer};
pub use weights::WeightSource;
