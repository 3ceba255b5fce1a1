//! Joins configuration, architecture and the tensors a checkpoint lists: every tensor of the
//! model filled once with the right shape, every tensor of the checkpoint used once or dropped
//! with a reason. Reads no weights.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::Error;
use crate::arch::ArchSpec;
use crate::config;
use crate::error::{MissingTensor, NAMED, UnknownReason, UnknownTensor, WrongShape};
use crate::role::{Role, TensorId};
use crate::spec::ModelSpec;
use crate::suggest::{near, shown};

/// A tensor as a checkpoint lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceTensor {
    /// Name in the checkpoint.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
}

/// A tensor of the model and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// What it is for.
    pub id: TensorId,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Name in the checkpoint.
    pub source: String,
}

/// A tensor of the checkpoint that the model does without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// Name in the checkpoint.
    pub source: String,
    /// Why.
    pub reason: String,
}

/// A checkpoint whose every tensor has its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolved {
    /// The model.
    pub spec: ModelSpec,
    /// One slot per tensor of [`ModelSpec::tensors`], in the same order.
    pub slots: Vec<Slot>,
    /// What is left out, sorted by name.
    pub dropped: Vec<Dropped>,
    /// What people should know, though nothing is wrong.
    pub warnings: Vec<String>,
}

/// Resolves a checkpoint from its parsed `config.json`, its `generation_config.json` if there is
/// one, and the tensors its files list, in any order.
pub fn resolve(
    config: &Value,
    generation_config: Option<&Value>,
    tensors: &[SourceTensor],
) -> Result<Resolved, Error> {
    let config::ReadConfig {
        arch,
        mut spec,
        mut warnings,
    } = config::read(config, generation_config)?;
    let mut unused: BTreeMap<&str, &[usize]> = BTreeMap::new();
    for tensor in tensors {
        if unused.insert(&tensor.name, &tensor.shape).is_some() {
            return Err(Error::DuplicateTensor {
                name: shown(&tensor.name),
            });
        }
    }
    let head = name_of(arch, TensorId::model(Role::Head));
    if unused.contains_key(head.as_str()) {
        if spec.tied {
            warnings.push(format!(
                "config.json ties the head to the embedding, but the checkpoint has `{head}`: \
                 its bytes decide"
            ));
        }
        spec.tied = false;
    }
    let slots = fill(arch, &spec, &mut unused)?;
    let mut dropped = Vec::new();
    unused.retain(|name, _| match arch.ignores(name) {
        Some(reason) => {
            dropped.push(Dropped {
                source: (*name).to_owned(),
                reason: reason.to_owned(),
            });
            false
        }
        None => true,
    });
    if !unused.is_empty() {
        let first = unused
            .keys()
            .take(NAMED)
            .map(|name| unknown(arch, &spec, name))
            .collect();
        return Err(Error::UnknownTensors {
            arch: arch.name.clone(),
            first,
            count: unused.len(),
        });
    }
    Ok(Resolved {
        spec,
        slots,
        dropped,
        warnings,
    })
}

impl Resolved {
    /// Gives up the separate head, which the caller found to hold the same bytes as the
    /// embedding. Does nothing to a model that is tied already.
    pub fn tie_head(&mut self) {
        let head = TensorId::model(Role::Head);
        let Some(at) = self.slots.iter().position(|slot| slot.id == head) else {
            return;
        };
        let slot = self.slots.remove(at);
        let reason = "holds the same bytes as the embedding".to_owned();
        self.dropped.push(Dropped {
            source: slot.source,
            reason,
        });
        self.dropped.sort_by(|a, b| a.source.cmp(&b.source));
        self.spec.tied = true;
    }
}

/// Takes from `unused` what the model needs.
fn fill(
    arch: &ArchSpec,
    spec: &ModelSpec,
    unused: &mut BTreeMap<&str, &[usize]>,
) -> Result<Vec<Slot>, Error> {
    let mut slots = Vec::new();
    let mut missing = Vec::new();
    let mut wrong = Vec::new();
    for (id, expected) in spec.tensors() {
        let name = name_of(arch, id);
        match unused.remove(name.as_str()) {
            None => missing.push(MissingTensor { name, id }),
            Some(found) if found == expected => slots.push(Slot {
                id,
                shape: expected,
                source: name,
            }),
            Some(found) => wrong.push(WrongShape {
                name,
                id,
                expected,
                found: found.to_vec(),
            }),
        }
    }
    if let Some(first) = missing.first() {
        let foreign = unused
            .keys()
            .copied()
            .filter(|name| arch.tensor_id(name).is_none());
        let near = near(&first.name, foreign).map(|name| shown(&name));
        let count = missing.len();
        missing.truncate(NAMED);
        return Err(Error::MissingTensors {
            first: missing,
            count,
            near,
        });
    }
    if !wrong.is_empty() {
        let count = wrong.len();
        wrong.truncate(NAMED);
        return Err(Error::WrongShapes {
            first: wrong,
            count,
        });
    }
    Ok(slots)
}

fn name_of(arch: &ArchSpec, id: TensorId) -> String {
    arch.source_name(id)
        .expect("an architecture names every role its configurations can have")
}

/// What can be said about a tensor that has no place.
fn unknown(arch: &ArchSpec, spec: &ModelSpec, name: &str) -> UnknownTensor {
    let layers = spec.layers.len();
    let reason = match arch.tensor_id(name) {
        Some(TensorId {
            layer: Some(layer), ..
        }) if layer >= layers => Some(UnknownReason::LayerBeyond { layers }),
        Some(id) => Some(UnknownReason::TurnedOff(id)),
        None => {
            let known: Vec<String> = spec
                .tensors()
                .iter()
                .map(|(id, _)| name_of(arch, *id))
                .collect();
            near(name, known.iter().map(String::as_str)).map(UnknownReason::Near)
        }
    };
    UnknownTensor {
        name: shown(name),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::samples::{config, resolved, tensors};

    #[test]
    fn every_tensor_is_used_once_or_dropped_with_a_reason() {
        let config = config();
        let mut listed = tensors(&config);
        listed.push(SourceTensor {
            name: "model.layers.1.self_attn.rotary_emb.inv_freq".to_owned(),
            shape: vec![2],
        });
        listed.reverse();
        let resolved = resolve(&config, None, &listed).unwrap();
        assert_eq!(resolved.slots.len() + resolved.dropped.len(), listed.len());
        let ids: Vec<_> = resolved
            .slots
            .iter()
            .map(|s| (s.id, s.shape.clone()))
            .collect();
        assert_eq!(ids, resolved.spec.tensors());
        assert_eq!(
            resolved.dropped[0].reason,
            "rotary frequencies are computed from the configuration"
        );
        assert!(!resolved.spec.tied);
    }

    #[test]
    fn the_head_is_tied_by_its_absence_or_by_its_bytes() {
        let mut config = config();
        let mut listed = tensors(&config);
        let head = listed.pop().unwrap();
        assert_eq!(head.name, "lm_head.weight");
        let Err(Error::MissingTensors { first, .. }) = resolve(&config, None, &listed) else {
            panic!("an untied model needs its head");
        };
        assert_eq!(first[0].id, TensorId::model(Role::Head));
        config["tie_word_embeddings"] = json!(true);
        assert!(resolve(&config, None, &listed).unwrap().spec.tied);
        listed.push(head);
        let mut stored = resolve(&config, None, &listed).unwrap();
        assert!(!stored.spec.tied);
        assert!(
            stored.warnings[0].contains("lm_head.weight"),
            "{:?}",
            stored.warnings
        );
        stored.tie_head();
        stored.tie_head();
        assert!(stored.spec.tied);
        assert_eq!(stored.slots.len(), stored.spec.tensors().len());
        assert_eq!(stored.dropped.len(), 1);
        assert_eq!(stored.dropped[0].source, "lm_head.weight");
    }

    #[test]
    fn a_missing_tensor_is_named_with_its_role() {
        let config = config();
        let mut listed = tensors(&config);
        listed.retain(|t| !t.name.contains("layers.1."));
        let error = resolve(&config, None, &listed).unwrap_err();
        assert!(error.to_string().starts_with(
            "9 tensors missing: `model.layers.1.input_layernorm.weight` (`blk.1.attn_norm`), "
        ));
        assert!(error.to_string().ends_with("and 4 more"), "{error}");
        assert_eq!(
            error.hint().unwrap(),
            "a shard may be missing or the download cut short"
        );
    }

    #[test]
    fn a_misspelt_tensor_is_recognised() {
        let config = config();
        let mut listed = tensors(&config);
        let typo = "model.layers.0.self_attn.q_prj.weight";
        listed[2].name = typo.to_owned();
        let error = resolve(&config, None, &listed).unwrap_err();
        assert_eq!(
            error.to_string(),
            "1 tensor missing: `model.layers.0.self_attn.q_proj.weight` (`blk.0.attn_q`)"
        );
        assert_eq!(
            error.hint().unwrap(),
            format!("the checkpoint has `{typo}`, which nothing uses")
        );
    }

    #[test]
    fn an_unknown_tensor_is_named_with_what_is_known_of_it() {
        let config = config();
        let complain = |name: &str| {
            let mut listed = tensors(&config);
            listed.push(SourceTensor {
                name: name.to_owned(),
                shape: vec![4],
            });
            let error = resolve(&config, None, &listed).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("1 tensor unknown to architecture `llama`: `{name}`")
            );
            error.hint()
        };
        assert_eq!(
            complain("model.layers.2.mlp.up_proj.weight").unwrap(),
            "config.json gives the model 2 layers"
        );
        assert_eq!(
            complain("model.layers.0.self_attn.q_proj.bias").unwrap(),
            "it would be `blk.0.attn_q_bias`, which config.json turns off"
        );
        assert_eq!(
            complain("model.layers.0.self_attn.q_proj.weights").unwrap(),
            "did you mean `model.layers.0.self_attn.q_proj.weight`?"
        );
        assert_eq!(complain("vision_tower.patch"), None);
    }

    #[test]
    fn wrong_shapes_show_both_sides() {
        let config = config();
        let mut listed = tensors(&config);
        let (q, k) = (listed[2].name.clone(), listed[3].name.clone());
        listed[2].name = k;
        listed[3].name = q;
        let error = resolve(&config, None, &listed).unwrap_err();
        assert_eq!(
            error.to_string(),
            "2 tensors of the wrong shape: \
             `model.layers.0.self_attn.q_proj.weight` (`blk.0.attn_q`): expected [16, 16], found [8, 16], \
             `model.layers.0.self_attn.k_proj.weight` (`blk.0.attn_k`): expected [8, 16], found [16, 16]"
        );
        assert!(error.hint().unwrap().contains("swapped"));
        let mut listed = tensors(&config);
        listed[3].shape.reverse();
        let error = resolve(&config, None, &listed).unwrap_err();
        assert_eq!(error.hint().unwrap(), "the matrix lies transposed");
    }

    #[test]
    fn a_name_listed_twice_is_refused() {
        let config = config();
        let mut listed = tensors(&config);
        listed.push(listed[0].clone());
        let error = resolve(&config, None, &listed).unwrap_err();
        assert_eq!(
            error.to_string(),
            "tensor `model.embed_tokens.weight` appears more than once"
        );
        assert!(error.hint().is_some());
    }

    #[test]
    fn the_sample_is_what_the_other_tests_take_it_for() {
        let spec = resolved(&config()).spec;
        assert_eq!(
            (spec.layers.len(), spec.hidden, spec.arch.as_str()),
            (2, 16, "llama")
        );
    }
}
