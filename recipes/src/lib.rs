//! Architectures and recipes as data.
//!
//! Owns what a checkpoint *is* ([`ModelSpec`], resolved from `config.json` by one of the
//! TOML files in `arch/`) and what shall become of it ([`Recipe`]). Knows names, shapes and
//! roles; knows neither files nor bytes.

pub mod role;
pub mod spec;

pub use role::{Role, RoleKind, TensorId};
pub use spec::{
    AttentionSpec, Biases, BlockSpec, LayerSpec, Mixer, Mlp, ModelSpec, Norm, Order, QkNorm,
    RopeLayout, RopeScaling, RopeSpec, SpecialTokens,
};
