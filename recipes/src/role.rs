//! What a tensor is for, independent of what a checkpoint calls it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The function of one tensor in the model. Closed: a new mechanism is a new variant, and the
/// compiler lists every `match` that must answer for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Token embedding, `[vocab, hidden]`.
    Embed,
    /// Output projection to logits, `[vocab, hidden]`; absent when tied to [`Role::Embed`].
    Head,
    /// Norm gain before the head, `[hidden]`.
    FinalNorm,
    /// Norm gain before the mixer, `[hidden]`.
    AttnNorm,
    /// Query projection, `[heads * head_dim, hidden]`.
    Q,
    /// Key projection, `[kv_heads * head_dim, hidden]`.
    K,
    /// Value projection, `[kv_heads * head_dim, hidden]`.
    V,
    /// Attention output projection, `[hidden, heads * head_dim]`.
    O,
    /// Bias of [`Role::Q`].
    QBias,
    /// Bias of [`Role::K`].
    KBias,
    /// Bias of [`Role::V`].
    VBias,
    /// Bias of [`Role::O`].
    OBias,
    /// Per-head norm gain of the queries, `[head_dim]`.
    QNorm,
    /// Per-head norm gain of the keys, `[head_dim]`.
    KNorm,
    /// Normed queries to their rotated parts, `[heads * rope_dim, head_dim]`; latent attention.
    QRope,
    /// Input, or normed keys and values, to latent and rotated key, `[rank + rope_dim, width]`.
    KvA,
    /// Bias of [`Role::KvA`].
    KvABias,
    /// Norm gain of the latent, `[rank]`.
    KvANorm,
    /// Latent to unrotated keys, `[heads * head_dim, rank]`.
    KB,
    /// Latent to values, `[heads * head_dim, rank]`.
    VB,
    /// Radians per position of the rotated pairs of latent attention, `[rope_dim / 2]`.
    RopeFreq,
    /// Norm gain before the feed-forward block, `[hidden]`.
    MlpNorm,
    /// Gate projection, `[ffn, hidden]`.
    Gate,
    /// Up projection, `[ffn, hidden]`.
    Up,
    /// Down projection, `[hidden, ffn]`.
    Down,
    /// Bias of [`Role::Gate`].
    GateBias,
    /// Bias of [`Role::Up`].
    UpBias,
    /// Bias of [`Role::Down`].
    DownBias,
}

/// The broad kind of a role: what recipes treat alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RoleKind {
    /// A vocabulary-sized table: embedding or head.
    Vocab,
    /// A matrix inside a block.
    Linear,
    /// A norm gain.
    Norm,
    /// A bias vector.
    Bias,
    /// A table of rotary frequencies: always single precision, no recipe changes it.
    Frequency,
}

impl Role {
    /// Every role, in the order in which tensors are planned and stored.
    pub const ALL: [Role; 28] = [
        Role::Embed,
        Role::AttnNorm,
        Role::Q,
        Role::QBias,
        Role::QNorm,
        Role::QRope,
        Role::K,
        Role::KBias,
        Role::KNorm,
        Role::V,
        Role::VBias,
        Role::KvA,
        Role::KvABias,
        Role::KvANorm,
        Role::KB,
        Role::VB,
        Role::RopeFreq,
        Role::O,
        Role::OBias,
        Role::MlpNorm,
        Role::Gate,
        Role::GateBias,
        Role::Up,
        Role::UpBias,
        Role::Down,
        Role::DownBias,
        Role::FinalNorm,
        Role::Head,
    ];

    /// The canonical name, used in recipes, manifests and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Role::Embed => "embed",
            Role::Head => "head",
            Role::FinalNorm => "final_norm",
            Role::AttnNorm => "attn_norm",
            Role::Q => "attn_q",
            Role::K => "attn_k",
            Role::V => "attn_v",
            Role::O => "attn_o",
            Role::QBias => "attn_q_bias",
            Role::KBias => "attn_k_bias",
            Role::VBias => "attn_v_bias",
            Role::OBias => "attn_o_bias",
            Role::QNorm => "attn_q_norm",
            Role::KNorm => "attn_k_norm",
            Role::QRope => "attn_q_rope",
            Role::KvA => "attn_kv_a",
            Role::KvABias => "attn_kv_a_bias",
            Role::KvANorm => "attn_kv_a_norm",
            Role::KB => "attn_k_b",
            Role::VB => "attn_v_b",
            Role::RopeFreq => "attn_rope_freq",
            Role::MlpNorm => "mlp_norm",
            Role::Gate => "mlp_gate",
            Role::Up => "mlp_up",
            Role::Down => "mlp_down",
            Role::GateBias => "mlp_gate_bias",
            Role::UpBias => "mlp_up_bias",
            Role::DownBias => "mlp_down_bias",
        }
    }

    /// The kind of this role.
    pub const fn kind(self) -> RoleKind {
        match self {
            Role::Embed | Role::Head => RoleKind::Vocab,
            Role::Q | Role::K | Role::V | Role::O | Role::Gate | Role::Up | Role::Down => {
                RoleKind::Linear
            }
            Role::QRope | Role::KvA | Role::KB | Role::VB => RoleKind::Linear,
            Role::RopeFreq => RoleKind::Frequency,
            Role::FinalNorm
            | Role::AttnNorm
            | Role::QNorm
            | Role::KNorm
            | Role::KvANorm
            | Role::MlpNorm => RoleKind::Norm,
            Role::QBias
            | Role::KBias
            | Role::VBias
            | Role::OBias
            | Role::KvABias
            | Role::GateBias
            | Role::UpBias
            | Role::DownBias => RoleKind::Bias,
        }
    }

    /// Whether the role makes or reads a latent. Their errors reach every head at once, so
    /// recipes treat them with more care than other matrices.
    pub const fn is_latent(self) -> bool {
        matches!(self, Role::QRope | Role::KvA | Role::KB | Role::VB)
    }

    /// Whether the role belongs to what mixes the tokens of a layer.
    pub const fn is_mixer(self) -> bool {
        match self {
            Role::Q
            | Role::QBias
            | Role::QNorm
            | Role::QRope
            | Role::K
            | Role::KBias
            | Role::KNorm
            | Role::V
            | Role::VBias
            | Role::KvA
            | Role::KvABias
            | Role::KvANorm
            | Role::KB
            | Role::VB
            | Role::RopeFreq
            | Role::O
            | Role::OBias => true,
            Role::Embed
            | Role::Head
            | Role::FinalNorm
            | Role::AttnNorm
            | Role::MlpNorm
            | Role::Gate
            | Role::Up
            | Role::Down
            | Role::GateBias
            | Role::UpBias
            | Role::DownBias => false,
        }
    }

    /// Whether the role exists once per layer rather than once per model.
    pub const fn is_per_layer(self) -> bool {
        !matches!(self, Role::Embed | Role::Head | Role::FinalNorm)
    }

    /// The position of the role in [`Role::ALL`].
    fn order(self) -> usize {
        Role::ALL
            .iter()
            .position(|&r| r == self)
            .unwrap_or(usize::MAX)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A word that names no role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a tensor role")]
pub struct UnknownRole(pub String);

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Role::ALL
            .into_iter()
            .find(|r| r.name() == s)
            .ok_or_else(|| UnknownRole(s.to_owned()))
    }
}

/// One tensor of one model: a role, and the layer it stands in when the role is per layer.
///
/// Displays as `embed` or `blk.3.attn_q`, the name under which the native format stores it.
/// Ordered as stored: embedding, layers from first to last, final norm, head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TensorId {
    /// Layer index, `None` for model-level roles.
    pub layer: Option<usize>,
    /// What the tensor is for.
    pub role: Role,
}

impl TensorId {
    /// A tensor of the model as a whole.
    pub const fn model(role: Role) -> Self {
        TensorId { layer: None, role }
    }

    /// A tensor of layer `layer`.
    pub const fn layer(layer: usize, role: Role) -> Self {
        TensorId {
            layer: Some(layer),
            role,
        }
    }

    fn sort_key(self) -> (usize, usize, usize) {
        let section = match (self.layer, self.role) {
            (None, Role::Embed) => 0,
            (Some(_), _) => 1,
            (None, _) => 2,
        };
        (section, self.layer.unwrap_or(0), self.role.order())
    }
}

impl Ord for TensorId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.sort_key().cmp(&other.sort_key())
    }
}

impl PartialOrd for TensorId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for TensorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.layer {
            Some(layer) => write!(f, "blk.{layer}.{}", self.role),
            None => write!(f, "{}", self.role),
        }
    }
}

impl FromStr for TensorId {
    type Err = UnknownRole;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let unknown = || UnknownRole(s.to_owned());
        let (layer, role) = match s.strip_prefix("blk.") {
            Some(rest) => {
                let (index, role) = rest.split_once('.').ok_or_else(unknown)?;
                let layer: usize = index.parse().map_err(|_| unknown())?;
                if layer.to_string() != index {
                    return Err(unknown());
                }
                (Some(layer), role)
            }
            None => (None, s),
        };
        let role: Role = role.parse().map_err(|_| unknown())?;
        if role.is_per_layer() == layer.is_some() {
            Ok(TensorId { layer, role })
        } else {
            Err(unknown())
        }
    }
}

impl Serialize for TensorId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TensorId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_is_listed_once_and_round_trips() {
        for (i, role) in Role::ALL.into_iter().enumerate() {
            assert_eq!(role.order(), i);
            assert_eq!(role.name().parse(), Ok(role));
        }
    }

    #[test]
    fn ids_round_trip_and_bad_ones_are_refused() {
        for role in Role::ALL {
            let id = if role.is_per_layer() {
                TensorId::layer(12, role)
            } else {
                TensorId::model(role)
            };
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        for bad in [
            "",
            "blk",
            "blk.",
            "blk.1",
            "blk.01.attn_q",
            "blk.x.attn_q",
            "attn_q",
            "blk.1.embed",
        ] {
            assert!(bad.parse::<TensorId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn order_is_embedding_layers_norm_head() {
        let mut ids = [
            TensorId::model(Role::Head),
            TensorId::layer(1, Role::Q),
            TensorId::model(Role::FinalNorm),
            TensorId::layer(0, Role::Down),
            TensorId::layer(1, Role::AttnNorm),
            TensorId::model(Role::Embed),
        ];
        ids.sort();
        let names: Vec<String> = ids.iter().map(ToString::to_string).collect();
        assert_eq!(
            names,
            [
                "embed",
                "blk.0.mlp_down",
                "blk.1.attn_norm",
                "blk.1.attn_q",
                "final_norm",
                "head"
            ]
        );
    }
}
