//! Recipes: what shall become of the tensors of any model, by role.
//!
//! Owns the language (TOML, schema 1), the built-in recipes and their application to a
//! [`ModelSpec`](crate::ModelSpec). Knows neither files nor how anything is quantized.

mod assign;
mod builtin;
mod calibration;
mod limits;
mod mla;
mod packed;
mod parse;
mod print;
mod rewrite;
mod scheme;
mod select;
mod threshold;

pub use assign::Assignment;
pub use builtin::{builtin, builtin_names};
pub use calibration::{Calibration, ImportanceFile};
pub use limits::Limits;
pub use mla::{MlaMode, MlaRecipe, Rank};
pub use packed::{Apart, Method, Packed, PackedKind};
pub use parse::RunSection;
pub use rewrite::{Auto, FoldNorms, Rewrites};
pub use scheme::{KeepDtype, Scheme};
pub use select::{Group, LayerSelect, Selector, UnknownSelector};
pub use threshold::Threshold;

use serde::Deserialize;

use crate::Error;
use crate::role::{Role, RoleKind};

/// What shall become of a model, resolved: nothing in it refers to another recipe.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// Short name.
    pub name: String,
    /// One line for people; may be empty.
    pub summary: String,
    /// How attention is converted before anything is stored, if at all.
    pub mla: Option<MlaRecipe>,
    /// Exact changes of the graph before anything is stored.
    pub rewrites: Rewrites,
    /// The text that the conversion learned from, once it is known.
    pub calibration: Option<Calibration>,
    /// What weighed the columns of matrices that are rounded by themselves, if anything did.
    pub importance: Option<ImportanceFile>,
    /// The first rule that speaks of a tensor decides.
    pub rules: Vec<Rule>,
    /// What becomes of tensors no rule speaks of.
    pub otherwise: Otherwise,
    /// The quality the result must keep.
    pub limits: Limits,
}

/// One rule of a recipe.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The tensors it speaks of.
    pub roles: Vec<Selector>,
    /// The layers it is restricted to.
    pub layers: Option<LayerSelect>,
    /// What becomes of them.
    pub scheme: Scheme,
    /// Why, for people.
    pub reason: Option<String>,
}

/// What becomes of tensors no rule speaks of.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Otherwise {
    /// What becomes of them.
    pub scheme: Scheme,
    /// Why, for people.
    pub reason: Option<String>,
}

impl Rule {
    /// Whether the rule speaks of a matrix inside a block, as opposed to tables and vectors.
    fn is_body(&self) -> bool {
        let linear = |role: &Role| role.kind() == RoleKind::Linear;
        Role::ALL
            .iter()
            .filter(|role| linear(role))
            .any(|r| self.roles.iter().any(|s| s.matches(*r)))
    }
}

impl Recipe {
    /// Sets the group size of every packed rule for matrices inside blocks. The vocabulary
    /// tables keep theirs.
    pub fn set_group_size(&mut self, group_size: usize) -> Result<(), Error> {
        packed::check_group_size(group_size)?;
        self.set_body("a group size", |packed| packed.group_size = group_size)
    }

    /// Sets the threshold of every ternary rule.
    pub fn set_threshold(&mut self, threshold: Threshold) -> Result<(), Error> {
        self.set_ternary("a ternary threshold", |packed| packed.threshold = threshold)
    }

    /// Changes how matrices inside blocks are packed, in every ternary rule; `what` names the
    /// change in the error of a recipe without one.
    pub fn set_ternary(
        &mut self,
        what: &'static str,
        change: impl Fn(&mut Packed),
    ) -> Result<(), Error> {
        let schemes = self.rules.iter_mut().map(|rule| &mut rule.scheme);
        let all = schemes.chain([&mut self.otherwise.scheme]);
        let packed = all.filter_map(Scheme::as_packed_mut);
        let ternary = packed.filter(|packed| packed.kind == PackedKind::Ternary);
        changed(&self.name, what, ternary.map(change).count())?;
        self.check_schemes()
    }

    /// Changes how matrices inside blocks are packed, in every rule that packs them; `what` names
    /// the change in the error of a recipe without one.
    pub fn set_body(
        &mut self,
        what: &'static str,
        change: impl Fn(&mut Packed),
    ) -> Result<(), Error> {
        let body = self.rules.iter_mut().filter(|rule| rule.is_body());
        let packed = body.filter_map(|rule| rule.scheme.as_packed_mut());
        changed(&self.name, what, packed.map(change).count())?;
        self.check_schemes()
    }

    /// How its rules pack matrices inside blocks, rule by rule.
    pub fn body(&self) -> impl Iterator<Item = Packed> + '_ {
        let body = self.rules.iter().filter(|rule| rule.is_body());
        body.filter_map(|rule| rule.scheme.as_packed().copied())
    }

    /// Whether anything in it is fitted to calibration text.
    pub fn learns(&self) -> bool {
        let schemes = self.rules.iter().map(|rule| &rule.scheme);
        let mut packed = schemes
            .chain([&self.otherwise.scheme])
            .filter_map(Scheme::as_packed);
        self.mla.is_some() || packed.any(Packed::reads_text)
    }

    /// Rounds every group by itself, for there is nothing to learn from. Fails where a rule asks
    /// for what only learning gives.
    pub fn without_learning(&mut self) -> Result<(), Error> {
        let schemes = self.rules.iter_mut().map(|rule| &mut rule.scheme);
        let all = schemes.chain([&mut self.otherwise.scheme]);
        for packed in all.filter_map(Scheme::as_packed_mut) {
            packed.method = Method::Rtn;
            if packed.reads_text() {
                return Err(Error::NothingToLearnFrom {
                    recipe: self.name.clone(),
                });
            }
        }
        Ok(())
    }

    fn check_schemes(&self) -> Result<(), Error> {
        let mut schemes = self.rules.iter().map(|rule| &rule.scheme);
        schemes.try_for_each(Scheme::check)
    }

    /// Replaces the limits that `limits` sets and leaves the others.
    pub fn set_limits(&mut self, limits: Limits) -> Result<(), Error> {
        limits.check()?;
        self.limits = limits.or(self.limits);
        Ok(())
    }
}

/// Fails where nothing could be changed.
fn changed(recipe: &str, what: &'static str, count: usize) -> Result<(), Error> {
    if count > 0 {
        return Ok(());
    }
    Err(Error::NothingToSet {
        recipe: recipe.to_owned(),
        what,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_size_is_set_in_the_body_only() {
        let mut recipe = builtin("ternary-mixed").unwrap();
        recipe.set_group_size(64).unwrap();
        for rule in &recipe.rules {
            let expected = match rule.scheme {
                Scheme::Keep { .. } => None,
                _ if rule.is_body() => Some(64),
                Scheme::Packed(_) => Some(128),
            };
            assert_eq!(rule.scheme.group_size(), expected);
        }
        let error = recipe.set_group_size(48).unwrap_err();
        assert_eq!(
            error.to_string(),
            "group size 48 is not one of 32, 64, 128, 256"
        );
        assert!(error.hint().is_some());
        recipe.rules.clear();
        let error = recipe.set_group_size(64).unwrap_err();
        assert_eq!(
            error.to_string(),
            "recipe `ternary-mixed` has no rule that a group size could apply to"
        );
    }

    #[test]
    fn a_threshold_needs_a_ternary_rule() {
        let mut recipe = builtin("ternary").unwrap();
        recipe.set_threshold(Threshold::Twn).unwrap();
        assert!(recipe.rules.iter().any(|rule| {
            rule.scheme
                == Scheme::Packed(Packed {
                    threshold: Threshold::Twn,
                    ..Packed::new(PackedKind::Ternary)
                })
        }));
        assert!(
            builtin("int4")
                .unwrap()
                .set_threshold(Threshold::Twn)
                .is_err()
        );
    }

    #[test]
    fn limits_are_set_one_by_one() {
        let mut recipe = builtin("int4").unwrap();
        recipe
            .set_limits(Limits {
                max_kld: Some(2.0),
                ..Limits::default()
            })
            .unwrap();
        assert_eq!(recipe.limits.max_kld, Some(2.0));
        assert_eq!(recipe.limits.min_top1, Some(0.88));
        let nan = Limits {
            max_kld: Some(f64::NAN),
            ..Limits::default()
        };
        assert!(recipe.set_limits(nan).is_err());
    }
}
