//! Architectures and recipes as data.
//!
//! Owns what a checkpoint *is* ([`ModelSpec`], resolved from `config.json` by one of the
//! TOML files in `arch/`) and what shall become of it ([`Recipe`]). Knows names, shapes and
//! roles; knows neither files nor bytes.

pub mod arch;
mod config;
pub mod error;
pub mod gguf;
pub mod latent;
mod pseudo;
pub mod recipe;
pub mod resolve;
pub mod role;
#[cfg(test)]
mod samples;
pub mod spec;
pub mod stock;
mod suggest;
mod validate;
#[cfg(test)]
mod workspace;

pub use arch::{ArchSpec, architecture, architectures};
pub use error::Error;
pub use gguf::GgufRules;
pub use latent::{LatentSpec, MlaEncoder, MlaSpec};
pub use pseudo::pseudo_code;
pub use recipe::{
    Apart, Assignment, Auto, Calibration, FoldNorms, ImportanceFile, KeepDtype, LayerSelect,
    Limits, Method, MlaMode, MlaRecipe, Packed, PackedKind, Rank, Recipe, Rewrites, Rule,
    RunSection, Scheme, Selector, Threshold, builtin, builtin_names,
};
pub use resolve::{Dropped, Resolved, Slot, SourceTensor, resolve};
pub use role::{Role, RoleKind, TensorId};
pub use spec::{
    AttentionSpec, Biases, BlockSpec, LayerSpec, Mixer, Mlp, ModelSpec, Norm, Order, QkNorm,
    RopeLayout, RopeScaling, RopeSpec, SpecialTokens,
};
pub use suggest::near;
