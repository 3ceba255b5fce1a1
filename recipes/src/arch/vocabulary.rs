//! The closed vocabulary of an architecture file: keys of a configuration and the rules of a
//! block. Owns words, not their interpretation.

use serde::Deserialize;

use crate::spec::{Mlp, Norm, Order, QkNorm, RopeLayout};

/// Where each dimension stands in config.json.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConfigKeys {
    pub(crate) hidden: Key<CountElse>,
    pub(crate) layers: Key<CountElse>,
    pub(crate) heads: Key<CountElse>,
    pub(crate) kv_heads: Key<CountElse>,
    pub(crate) head_dim: Key<CountElse>,
    pub(crate) ffn: Key<CountElse>,
    pub(crate) vocab: Key<CountElse>,
    pub(crate) max_positions: Key<CountElse>,
    pub(crate) norm_eps: Key<f64>,
    pub(crate) rope_theta: Key<f64>,
    pub(crate) tied: Key<bool>,
}

/// A key of config.json, and what its absence means; without `else` it must be there.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(from = "KeyText<D>")]
pub(crate) struct Key<D> {
    pub(crate) key: String,
    pub(crate) default: Option<D>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum KeyText<D> {
    Required(String),
    Optional(OptionalKey<D>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OptionalKey<D> {
    key: String,
    r#else: D,
}

impl<D> From<KeyText<D>> for Key<D> {
    fn from(text: KeyText<D>) -> Self {
        match text {
            KeyText::Required(key) => Key { key, default: None },
            KeyText::Optional(OptionalKey { key, r#else }) => Key {
                key,
                default: Some(r#else),
            },
        }
    }
}

/// What the absence of a count means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(crate) enum CountElse {
    /// A number.
    Value(u64),
    /// A number computed from others.
    Rule(CountRule),
}

/// Numbers computed from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(crate) enum CountRule {
    /// As many as there are query heads.
    #[serde(rename = "heads")]
    Heads,
    /// The residual width shared out among the query heads, without remainder.
    #[serde(rename = "hidden/heads")]
    HiddenPerHead,
}

/// What a block computes.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BlockRules {
    pub(crate) norm: Norm,
    pub(crate) order: Order,
    pub(crate) mlp: Mlp,
    pub(crate) rope: RopeLayout,
    pub(crate) rope_layers: RopeLayers,
    pub(crate) qk_norm: QkNorm,
    pub(crate) window: WindowRule,
    pub(crate) bias: BiasRules,
}

/// Which layers rotate queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum RopeLayers {
    /// Every one.
    All,
    /// Those with a 1 in `no_rope_layers`; without that list, all but every n-th, with n from
    /// `no_rope_layer_interval`.
    Listed,
}

/// Which layers attend through a window of `sliding_window` tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum WindowRule {
    /// None.
    None,
    /// Every one, unless `sliding_window` is null.
    AllLayers,
    /// Where `use_sliding_window` says so: `layer_types`, or those from `max_window_layers` on.
    FromLayer,
    /// Where `use_sliding_window` says so: `layer_types`, or those without rotation.
    UnrotatedLayers,
}

/// Which projections carry a bias.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BiasRules {
    pub(crate) qkv: Flag,
    pub(crate) o: Flag,
    pub(crate) mlp: Flag,
}

/// A fact of the architecture, or a key of config.json whose absence means no.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(crate) enum Flag {
    /// Always so.
    Fixed(bool),
    /// As this key says.
    Key(String),
}

impl Flag {
    pub(crate) fn possible(&self) -> bool {
        *self != Flag::Fixed(false)
    }
}
