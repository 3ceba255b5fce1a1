//! The tensors of a GGUF file, and the order of rows that llama.cpp expects.

use neuroconv_recipes::gguf::keys;
use neuroconv_recipes::stock::stock_latent;
use neuroconv_recipes::{Mixer, MlaSpec, ModelSpec, Role, RopeScaling, RopeSpec, architecture};

use crate::export::ExportError;
use crate::export::engine::Engine;
use crate::export::foreign::{Foreign, Origin, Rows};
use crate::export::latent::score_scale;

/// The tensors of a model with the attention of its architecture.
pub(crate) fn own(spec: &ModelSpec) -> Result<Vec<Foreign>, ExportError> {
    let rules = architecture(&spec.arch)?
        .gguf()
        .ok_or_else(|| no_family(spec))?;
    let mut out = Vec::new();
    for (id, shape) in spec.tensors() {
        let name = id.gguf_name().ok_or(ExportError::NoTensor(id))?;
        let mixer = id.layer.and_then(|layer| spec.layers.get(layer));
        let tail = match mixer.map(|layer| &layer.mixer) {
            Some(Mixer::Attention(a)) if rules.reorders(id.role, spec.rope.layout) => a.head_dim,
            _ => 0,
        };
        let rows = Rows {
            head: usize::from(tail == 0),
            tail,
            ..Rows::plain(id)
        };
        out.push(Foreign {
            name,
            shape,
            origin: Origin::Rows(rows),
        });
    }
    let head_dim = spec.layers.iter().find_map(|layer| match &layer.mixer {
        Mixer::Attention(a) => Some(a.head_dim),
        Mixer::Mla(_) | Mixer::Latent(_) => None,
    });
    if let (RopeScaling::Llama3 { .. }, Some(head_dim)) = (spec.rope.scaling, head_dim) {
        let factors = divisors(&spec.rope, head_dim);
        out.push(Foreign {
            name: keys::ROPE_FACTORS.to_owned(),
            shape: vec![factors.len()],
            origin: Origin::Numbers(factors),
        });
    }
    Ok(out)
}

/// What each plain frequency is divided by.
fn divisors(rope: &RopeSpec, head_dim: usize) -> Vec<f32> {
    let plain = RopeSpec {
        scaling: RopeScaling::None,
        ..*rope
    };
    let pairs = plain
        .inv_freq(head_dim)
        .into_iter()
        .zip(rope.inv_freq(head_dim));
    pairs
        .map(|(plain, scaled)| (plain / scaled) as f32)
        .collect()
}

/// The tensors of a model whose layers all are `mla`.
pub(crate) fn latent(spec: &ModelSpec, mla: &MlaSpec) -> Result<Vec<Foreign>, ExportError> {
    let MlaSpec {
        heads,
        head_dim,
        rank,
        rope_dim,
        ..
    } = *mla;
    let names = &stock_latent().gguf;
    let scale = score_scale(mla);
    let mut out = Vec::new();
    for (id, shape) in spec.tensors() {
        let name = |pattern: &str| {
            let layer = id.layer.unwrap_or_default();
            pattern.replacen("{i}", &layer.to_string(), 1)
        };
        let layer = id.layer.unwrap_or_default();
        let turned = |pattern, head, tail_scale, shape| Foreign {
            name: name(pattern),
            shape,
            origin: Origin::Rows(Rows {
                id,
                head,
                tail: rope_dim,
                tail_scale,
            }),
        };
        out.push(match id.role {
            Role::Q => turned(&names.q, head_dim, None, shape),
            Role::KvA => turned(&names.kv_a, rank, Some(scale), shape),
            Role::KvANorm => Foreign::plain(name(&names.kv_a_norm), id, shape),
            Role::KB => Foreign {
                name: name(&names.k_b),
                shape: vec![heads, rank, head_dim],
                origin: Origin::KeysTransposed {
                    layer,
                    heads,
                    scale,
                },
            },
            Role::VB => Foreign::plain(name(&names.v_b), id, vec![heads, head_dim, rank]),
            // Zero in the form that engines without biases get; the frequencies are their own table.
            Role::QBias | Role::KvABias | Role::OBias | Role::RopeFreq => continue,
            _ => {
                let name = id.gguf_name().ok_or(ExportError::NoTensor(id))?;
                Foreign::plain(name, id, shape)
            }
        });
    }
    Ok(out)
}

/// The family has no name in GGUF files.
pub(crate) fn no_family(spec: &ModelSpec) -> ExportError {
    ExportError::Refused {
        engine: Engine::LlamaCpp,
        reason: format!(
            "its files have no family `{}` that is written here",
            spec.arch
        ),
        hint: None,
    }
}
