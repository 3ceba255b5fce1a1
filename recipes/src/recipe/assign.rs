//! Applies a recipe to a model: one scheme and one reason per tensor.

use super::{KeepDtype, Packed, PackedKind, Recipe, Rule, Scheme};
use crate::Error;
use crate::recipe::LayerSelect;
use crate::role::{RoleKind, TensorId};
use crate::spec::ModelSpec;
use crate::suggest::listed;

/// What becomes of one tensor, and why.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Assignment {
    /// The tensor.
    pub id: TensorId,
    /// What becomes of it.
    pub scheme: Scheme,
    /// Why, for people.
    pub reason: String,
}

impl Rule {
    fn matches(&self, id: TensorId, layers: usize) -> bool {
        self.roles.iter().any(|selector| selector.matches(id.role))
            && self
                .layers
                .as_ref()
                .is_none_or(|select| select.matches(id, layers))
    }

    /// What the rule asks for, for messages.
    fn selects(&self) -> String {
        let roles = listed(&self.roles.iter().map(|s| s.name()).collect::<Vec<_>>());
        match &self.layers {
            Some(layers) => format!("{roles} in layers {layers}"),
            None => roles,
        }
    }
}

impl Recipe {
    /// One assignment for every tensor of `spec`, in storage order. Fails for a rule that
    /// speaks of nothing in this model, even if only because of its layers; a rule whose
    /// tensors earlier rules took is fine, for that is how one recipe refines another.
    pub fn assign(&self, spec: &ModelSpec) -> Result<Vec<Assignment>, Error> {
        let layers = spec.layers.len();
        let mut used = vec![false; self.rules.len()];
        let mut out = Vec::new();
        for (id, shape) in spec.tensors() {
            let mut decided = None;
            for (number, rule) in self.rules.iter().enumerate() {
                if rule.matches(id, layers) {
                    used[number] = true;
                    decided = decided.or(Some((number, rule)));
                }
            }
            let assignment = match id.role.kind() {
                RoleKind::Frequency => frequencies(id),
                _ => self.assignment(id, decided),
            };
            if assignment.scheme.is_packed() && shape.len() != 2 {
                return Err(Error::NotAMatrix {
                    recipe: self.name.clone(),
                    place: decided
                        .map_or("`otherwise`".to_owned(), |(n, _)| format!("rule {}", n + 1)),
                    tensor: id,
                    scheme: assignment.scheme.name(),
                });
            }
            out.push(assignment);
        }
        self.check_used(&used, layers)?;
        Ok(out)
    }

    fn assignment(&self, id: TensorId, decided: Option<(usize, &Rule)>) -> Assignment {
        let (scheme, reason, place) = match decided {
            Some((number, rule)) => (rule.scheme, &rule.reason, format!("rule {}", number + 1)),
            None => (
                self.otherwise.scheme,
                &self.otherwise.reason,
                "otherwise".to_owned(),
            ),
        };
        let reason = reason
            .clone()
            .unwrap_or_else(|| format!("recipe `{}`, {place}", self.name));
        let by_name = |rule: &Rule| rule.roles.iter().any(|s| s.means_latents(id.role));
        if id.role.is_latent() && !decided.is_some_and(|(_, rule)| by_name(rule)) {
            return with_care(Assignment { id, scheme, reason });
        }
        Assignment { id, scheme, reason }
    }

    fn check_used(&self, used: &[bool], layers: usize) -> Result<(), Error> {
        for (number, rule) in self.rules.iter().enumerate() {
            let (recipe, rule_number) = (self.name.clone(), number + 1);
            if let Some(LayerSelect::Indices(indices)) = &rule.layers
                && let Some(&layer) = indices.iter().find(|&&i| i >= layers)
            {
                return Err(Error::NoSuchLayer {
                    recipe,
                    rule: rule_number,
                    layer,
                    layers,
                });
            }
            if !used[number] {
                return Err(Error::UnusedRule {
                    recipe,
                    rule: rule_number,
                    selects: rule.selects(),
                });
            }
        }
        Ok(())
    }
}

/// Frequencies multiply positions in the thousands, so they keep every bit.
fn frequencies(id: TensorId) -> Assignment {
    Assignment {
        id,
        scheme: Scheme::Keep {
            dtype: Some(KeepDtype::F32),
        },
        reason: "rotary frequencies are always kept in single precision".to_owned(),
    }
}

/// Fewer than eight bits for a latent only where a rule asks for it by name: all heads read it.
fn with_care(assignment: Assignment) -> Assignment {
    match assignment.scheme {
        Scheme::Packed(packed) if packed.kind != PackedKind::Int8 => Assignment {
            scheme: Scheme::Packed(Packed::new(PackedKind::Int8).with_group(packed.group_size)),
            reason: "stays int8: every head reads the latent, so its errors reach all of them"
                .to_owned(),
            ..assignment
        },
        Scheme::Keep { .. } | Scheme::Packed(_) => assignment,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::builtin;
    use crate::role::Role;
    use crate::samples::{config, resolved};

    fn recipe(rules: &str) -> Recipe {
        Recipe::parse(&format!("name = \"test\"\n{rules}"), "test.toml").unwrap()
    }

    fn scheme_of(recipe: &Recipe, id: TensorId) -> Assignment {
        let spec = resolved(&config()).spec;
        recipe
            .assign(&spec)
            .unwrap()
            .into_iter()
            .find(|a| a.id == id)
            .unwrap()
    }

    #[test]
    fn there_is_one_assignment_per_tensor_in_storage_order() {
        let spec = resolved(&config()).spec;
        let assigned: Vec<TensorId> = builtin("ternary")
            .unwrap()
            .assign(&spec)
            .unwrap()
            .iter()
            .map(|a| a.id)
            .collect();
        let stored: Vec<TensorId> = spec.tensors().into_iter().map(|(id, _)| id).collect();
        assert_eq!(assigned, stored);
    }

    #[test]
    fn the_first_rule_wins_and_gives_its_reason() {
        let recipe = recipe(
            "rule = [{ roles = [\"attn_v\"], layers = { indices = [1] }, scheme = \"int8\" }, \
             { roles = [\"attention\"], scheme = \"int4\", reason = \"small\" }]",
        );
        let of = |layer, role| scheme_of(&recipe, TensorId::layer(layer, role));
        assert_eq!(of(1, Role::V).scheme, Scheme::packed(PackedKind::Int8));
        assert_eq!(of(1, Role::V).reason, "recipe `test`, rule 1");
        assert_eq!(of(0, Role::V).scheme, Scheme::packed(PackedKind::Int4));
        assert_eq!(of(0, Role::V).reason, "small");
        assert_eq!(of(0, Role::Up).scheme, Scheme::Keep { dtype: None });
        assert_eq!(of(0, Role::Up).reason, "recipe `test`, otherwise");
    }

    #[test]
    fn the_mixed_recipe_protects_ends_and_outputs() {
        let mut config = config();
        config["num_hidden_layers"] = serde_json::json!(16);
        let spec = resolved(&config).spec;
        let ternary = Scheme::packed(PackedKind::Ternary);
        for Assignment { id, scheme, .. } in
            builtin("ternary-mixed").unwrap().assign(&spec).unwrap()
        {
            let inner = id.layer.is_some_and(|layer| (2..14).contains(&layer));
            let light = matches!(id.role, Role::Q | Role::K | Role::Gate | Role::Up);
            assert_eq!(scheme == ternary, inner && light, "{id}: {scheme:?}");
        }
    }

    #[test]
    fn latents_stay_at_eight_bits_unless_a_rule_names_them() {
        let spec = resolved(&config()).spec;
        let mla = crate::recipe::MlaRecipe::default();
        let (spec, _) = mla.converted(&spec).unwrap();
        let of = |recipe: &Recipe, role| {
            let all = recipe.assign(&spec).unwrap();
            all.iter()
                .find(|a| a.id == TensorId::layer(1, role))
                .unwrap()
                .scheme
        };
        let ternary = builtin("ternary").unwrap();
        for role in [Role::KvA, Role::KB, Role::VB] {
            assert_eq!(of(&ternary, role), Scheme::packed(PackedKind::Int8));
        }
        assert_eq!(of(&ternary, Role::Q).name(), "ternary");
        let keep = Scheme::Keep {
            dtype: Some(KeepDtype::F32),
        };
        assert_eq!(of(&ternary, Role::RopeFreq), keep);
        let named = recipe(
            "extends = \"int4\"\nrule = [{ roles = [\"latent\"], scheme = \"int4\" }, \
             { roles = [\"attn_v_b\"], scheme = \"ternary\" }]",
        );
        assert_eq!(of(&named, Role::KvA).name(), "int4");
        assert_eq!(of(&named, Role::VB).name(), "int4");
    }

    #[test]
    fn a_rule_that_speaks_of_nothing_is_an_error() {
        let spec = resolved(&config()).spec;
        let refuse = |rule: &str| recipe(rule).assign(&spec).unwrap_err();
        let error = refuse("rule = [{ roles = [\"bias\", \"attn_q_norm\"], scheme = \"keep\" }]");
        assert_eq!(
            error.to_string(),
            "recipe `test`: rule 1 (`bias`, `attn_q_norm`) matches no tensor of this model"
        );
        let error = refuse(
            "rule = [{ roles = [\"linear\"], scheme = \"int8\" }, \
             { roles = [\"vocab\"], layers = { first = 1.0 }, scheme = \"int8\" }]",
        );
        assert!(
            error
                .to_string()
                .contains("rule 2 (`vocab` in layers first = 1.0, last = 0.0)"),
            "{error}"
        );
        let error = refuse(
            "rule = [{ roles = [\"mlp\"], layers = { indices = [0, 2] }, scheme = \"int8\" }]",
        );
        assert_eq!(
            error.to_string(),
            "recipe `test`: rule 1: layer 2 does not exist, the model has 2"
        );
        assert!(error.hint().is_some());
    }

    #[test]
    fn a_shadowed_rule_is_fine() {
        let spec = resolved(&config()).spec;
        let recipe =
            recipe("extends = \"ternary\"\nrule = [{ roles = [\"linear\"], scheme = \"int4\" }]");
        assert!(
            recipe
                .assign(&spec)
                .unwrap()
                .iter()
                .all(|a| a.scheme.name() != "ternary")
        );
    }

    #[test]
    fn vectors_are_never_packed() {
        let spec = resolved(&config()).spec;
        let error = recipe("otherwise = { scheme = \"int8\" }")
            .assign(&spec)
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "recipe `test`: `otherwise` packs `blk.0.attn_norm` as int8, but it is no matrix"
        );
        let error = recipe("rule = [{ roles = [\"norm\"], scheme = \"int4\" }]")
            .assign(&spec)
            .unwrap_err();
        assert!(error.to_string().contains("rule 1 packs"), "{error}");
        assert!(error.hint().unwrap().contains("`norm`"));
    }
}
