//! How llama.cpp's files write down a model: names of tensors here, keys in [`keys`], order of rows
//! in `rows`, from keys to a configuration in `config`; what differs between families stands in the `[gguf]` table of their files.
//!
//! A role without a name has no counterpart of the same shape there.

mod config;
pub mod keys;
mod rows;

pub use config::{GgufConfig, config};
pub use rows::{GgufRules, gathered};

use crate::role::{Role, TensorId};

impl Role {
    /// The name in GGUF files, after `blk.N.` where the role is per layer.
    pub const fn gguf_name(self) -> Option<&'static str> {
        Some(match self {
            Role::Embed => "token_embd.weight",
            Role::Head => "output.weight",
            Role::FinalNorm => "output_norm.weight",
            Role::AttnNorm => "attn_norm.weight",
            Role::Q => "attn_q.weight",
            Role::K => "attn_k.weight",
            Role::V => "attn_v.weight",
            Role::O => "attn_output.weight",
            Role::QBias => "attn_q.bias",
            Role::KBias => "attn_k.bias",
            Role::VBias => "attn_v.bias",
            Role::OBias => "attn_output.bias",
            Role::QNorm => "attn_q_norm.weight",
            Role::KNorm => "attn_k_norm.weight",
            Role::MlpNorm => "ffn_norm.weight",
            Role::Gate => "ffn_gate.weight",
            Role::Up => "ffn_up.weight",
            Role::Down => "ffn_down.weight",
            Role::GateBias => "ffn_gate.bias",
            Role::UpBias => "ffn_up.bias",
            Role::DownBias => "ffn_down.bias",
            // Latents are laid out in other ways there.
            Role::QRope
            | Role::KvA
            | Role::KvABias
            | Role::KvANorm
            | Role::KB
            | Role::VB
            | Role::RopeFreq => return None,
        })
    }
}

impl TensorId {
    /// The name in GGUF files.
    pub fn gguf_name(self) -> Option<String> {
        let name = self.role.gguf_name()?;
        Some(match self.layer {
            Some(layer) => format!("blk.{layer}.{name}"),
            None => name.to_owned(),
        })
    }

    /// The tensor of this name in GGUF files.
    pub fn from_gguf(name: &str) -> Option<TensorId> {
        let (layer, rest) = match name.strip_prefix("blk.") {
            Some(rest) => {
                let (layer, rest) = rest.split_once('.')?;
                (Some(layer.parse().ok()?), rest)
            }
            None => (None, name),
        };
        let named = |role: &Role| role.gguf_name() == Some(rest);
        let role = Role::ALL.into_iter().find(named)?;
        let id = TensorId { layer, role };
        // Refuses other spellings of the layer, and a layer that the role does not have.
        (role.is_per_layer() == layer.is_some() && id.gguf_name().as_deref() == Some(name))
            .then_some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_read_back() {
        for role in Role::ALL {
            let id = if role.is_per_layer() {
                TensorId::layer(12, role)
            } else {
                TensorId::model(role)
            };
            if let Some(name) = id.gguf_name() {
                assert_eq!(TensorId::from_gguf(&name), Some(id), "{name}");
            }
        }
        let id = TensorId::layer(3, Role::O);
        assert_eq!(id.gguf_name().as_deref(), Some("blk.3.attn_output.weight"));
        for bad in [
            "",
            "blk.3",
            "blk.03.attn_q.weight",
            "blk.x.attn_q.weight",
            "attn_q.weight",
            "blk.0.output.weight",
            "blk.0.ffn_up_exps.weight",
        ] {
            assert_eq!(TensorId::from_gguf(bad), None, "{bad}");
        }
    }
}
