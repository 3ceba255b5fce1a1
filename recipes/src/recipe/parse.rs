//! Recipe text to [`Recipe`]: strict, with line, column and caret, and the near word where a
//! word failed.

use serde::Deserialize;

use super::{
    Calibration, ImportanceFile, LayerSelect, Limits, MlaRecipe, Otherwise, Recipe, Rewrites, Rule,
    Scheme, builtin,
};
use crate::Error;
use crate::suggest::near;

/// Bytes a recipe may have.
const MAX_BYTES: usize = 1 << 20;
/// The version of the language.
const SCHEMA: u32 = 1;
/// Letters of a name.
const NAME_LETTERS: usize = 64;
/// Letters of a summary or reason.
const PROSE_LETTERS: usize = 400;
/// Whose limits a recipe without any gets, so that nothing is ever emitted unjudged.
const DEFAULT_LIMITS: &str = "int4";

/// What `run` converts and where to, when a recipe file says so. No part of the recipe proper:
/// the same recipe gives the same bytes wherever they go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSection {
    /// The model to convert.
    pub model: Option<String>,
    /// Where the artifact shall appear.
    pub output: Option<String>,
}

/// The text of a recipe as it stands.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RecipeFile {
    #[serde(default = "schema")]
    schema: u32,
    name: String,
    #[serde(default)]
    summary: String,
    extends: Option<String>,
    mla: Option<MlaRecipe>,
    #[serde(default)]
    rewrite: Rewrites,
    calibration: Option<Calibration>,
    importance: Option<ImportanceFile>,
    #[serde(default, rename = "rule")]
    rules: Vec<Rule>,
    otherwise: Option<Otherwise>,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    run: RunSection,
}

fn schema() -> u32 {
    SCHEMA
}

impl Recipe {
    /// Reads a recipe; `origin` says in messages where the text comes from. `extends` names a
    /// built-in recipe, whose rules follow the own ones and whose `otherwise` and limits stand
    /// in for those that are not given.
    pub fn parse(text: &str, origin: &str) -> Result<Recipe, Error> {
        Recipe::parse_with_run(text, origin).map(|(recipe, _)| recipe)
    }

    /// The same, together with the `[run]` section.
    pub fn parse_with_run(text: &str, origin: &str) -> Result<(Recipe, RunSection), Error> {
        let origin = origin.to_owned();
        if text.len() > MAX_BYTES {
            return Err(Error::RecipeTooLong {
                origin,
                limit: MAX_BYTES,
                found: text.len(),
            });
        }
        let file: RecipeFile = toml::from_str(text).map_err(|error| syntax(&origin, &error))?;
        if file.schema != SCHEMA {
            return Err(Error::RecipeSchema {
                origin,
                found: file.schema,
            });
        }
        file.check(&origin)?;
        let base = file.extends.as_deref().map(builtin).transpose()?;
        let mut rules = file.rules;
        let (mut otherwise, mut limits) = (file.otherwise, file.limits);
        let mut mla = file.mla;
        if let Some(base) = base {
            mla = mla.or(base.mla);
            rules.extend(base.rules);
            otherwise = otherwise.or(Some(base.otherwise));
            limits = limits.or(base.limits);
        } else if limits.is_empty() {
            limits = builtin(DEFAULT_LIMITS)?.limits;
        }
        let keep = Otherwise {
            scheme: Scheme::Keep { dtype: None },
            reason: None,
        };
        let otherwise = otherwise.unwrap_or(keep);
        let recipe = Recipe {
            name: file.name,
            summary: file.summary,
            mla,
            rewrites: file.rewrite,
            calibration: file.calibration,
            importance: file.importance,
            rules,
            otherwise,
            limits,
        };
        Ok((recipe, file.run))
    }
}

impl RecipeFile {
    /// Checks what types cannot say.
    fn check(&self, origin: &str) -> Result<(), Error> {
        let named = (1..=NAME_LETTERS).contains(&self.name.len())
            && self
                .name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        if !named {
            return Err(Error::RecipeValue {
                place: origin.to_owned(),
                key: "name",
                expected: "1 to 64 letters, digits, `-`, `_` or `.`",
                found: crate::suggest::shown(&self.name),
            });
        }
        check_prose(origin, "summary", &self.summary)?;
        for (index, rule) in self.rules.iter().enumerate() {
            rule.check(&format!("{origin}: rule {}", index + 1))?;
        }
        if let Some(otherwise) = &self.otherwise {
            otherwise.scheme.check()?;
            check_prose(origin, "reason", otherwise.reason.as_deref().unwrap_or(""))?;
        }
        if let Some(mla) = &self.mla {
            mla.check(origin)?;
        }
        self.limits.check()
    }
}

impl Rule {
    fn check(&self, place: &str) -> Result<(), Error> {
        let bad = |key, expected, found: String| {
            Err(Error::RecipeValue {
                place: place.to_owned(),
                key,
                expected,
                found,
            })
        };
        if self.roles.is_empty() {
            return bad("roles", "at least one role", "[]".to_owned());
        }
        self.scheme.check()?;
        check_prose(place, "reason", self.reason.as_deref().unwrap_or(""))?;
        let Some(LayerSelect::Ends { first, last }) = self.layers else {
            return Ok(());
        };
        for (key, share) in [("first", first), ("last", last)] {
            if !(0.0..=1.0).contains(&share) {
                return bad(key, "a share of the layers from 0 to 1", share.to_string());
            }
        }
        Ok(())
    }
}

/// Prose ends up in reports and cards: one line of sensible length.
fn check_prose(place: &str, key: &'static str, text: &str) -> Result<(), Error> {
    if text.chars().count() <= PROSE_LETTERS && !text.chars().any(char::is_control) {
        return Ok(());
    }
    Err(Error::RecipeValue {
        place: place.to_owned(),
        key,
        expected: "one line of at most 400 letters",
        found: crate::suggest::shown(text),
    })
}

fn syntax(origin: &str, error: &toml::de::Error) -> Error {
    let text = error.to_string();
    let text = text.trim_end();
    let detail = text
        .strip_prefix("TOML parse error at ")
        .unwrap_or(text)
        .to_owned();
    Error::RecipeSyntax {
        origin: origin.to_owned(),
        detail,
        near: near_word(error.message()),
    }
}

/// The near one of the words that a message "unknown … `a`, expected … `b`, `c`" lists.
fn near_word(message: &str) -> Option<String> {
    if !message.starts_with("unknown ") {
        return None;
    }
    let mut words = message.split('`').skip(1).step_by(2);
    let failed = words.next()?;
    near(failed, words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{Packed, PackedKind, Selector, Threshold};
    use crate::role::Role;

    const FULL: &str = r#"
schema = 1
name = "mine"
summary = "a test"

[[rule]]
roles = ["attn_v", "mlp"]
layers = { first = 0.25 }
scheme = { type = "int4", group_size = 64 }
reason = "because"

[[rule]]
roles = ["linear"]
scheme = { type = "ternary", threshold = "sparsity:0.5" }

[otherwise]
scheme = { type = "keep", dtype = "f16" }

[limits]
max_ppl_ratio = 2

[run]
model = "some/folder"
output = "out"
"#;

    fn refused(text: &str) -> Error {
        Recipe::parse(text, "r.toml").unwrap_err()
    }

    #[test]
    fn a_full_recipe_is_read() {
        let (recipe, run) = Recipe::parse_with_run(FULL, "r.toml").unwrap();
        assert_eq!(recipe.rules[0].roles[0], Selector::Role(Role::V));
        assert_eq!(
            recipe.rules[0].layers,
            Some(LayerSelect::Ends {
                first: 0.25,
                last: 0.0
            })
        );
        assert_eq!(
            recipe.rules[0].scheme,
            Scheme::Packed(Packed::new(PackedKind::Int4).with_group(64))
        );
        let ternary = Scheme::Packed(Packed {
            threshold: Threshold::Sparsity(0.5),
            ..Packed::new(PackedKind::Ternary)
        });
        assert_eq!(recipe.rules[1].scheme, ternary);
        assert_eq!(
            recipe.limits,
            Limits {
                max_ppl_ratio: Some(2.0),
                ..Limits::default()
            }
        );
        assert_eq!(run.model.as_deref(), Some("some/folder"));
        assert_eq!(run.output.as_deref(), Some("out"));
        assert_eq!(Recipe::parse(FULL, "r.toml").unwrap(), recipe);
    }

    #[test]
    fn extends_puts_own_rules_in_front() {
        let text = r#"
            name = "mine"
            extends = "ternary"
            rule = [{ roles = ["mlp_down"], scheme = "int8" }]
            limits = { max_kld = 0.5 }
        "#;
        let recipe = Recipe::parse(text, "r.toml").unwrap();
        let base = builtin("ternary").unwrap();
        assert_eq!(recipe.rules[1..], base.rules[..]);
        assert_eq!(recipe.otherwise, base.otherwise);
        assert_eq!(
            recipe.limits,
            Limits {
                max_kld: Some(0.5),
                ..base.limits
            }
        );
        let error = refused("name = \"x\"\nextends = \"ternery\"");
        assert!(error.hint().unwrap().starts_with("did you mean `ternary`?"));
        assert!(matches!(
            refused("name = \"x\"\nextends = \"./int8.toml\""),
            Error::UnknownRecipe { .. }
        ));
    }

    #[test]
    fn no_recipe_goes_unjudged() {
        let bare = Recipe::parse("name = \"bare\"\n[limits]", "r.toml").unwrap();
        assert_eq!(bare.limits, builtin("int4").unwrap().limits);
    }

    #[test]
    fn a_mistake_is_shown_with_caret_and_near_word() {
        let error = refused("name = \"x\"\n[[rule]]\nroles = [\"linear\"]\nsheme = \"int8\"\n");
        assert_eq!(
            error.to_string(),
            "r.toml: line 4, column 1\n  |\n4 | sheme = \"int8\"\n  | ^^^^^\n\
             unknown field `sheme`, expected one of `roles`, `layers`, `scheme`, `reason`"
        );
        assert_eq!(error.hint().unwrap(), "did you mean `scheme`?");
        for (text, meant) in [
            ("name = \"x\"\nextend = \"int8\"", "extends"),
            ("name = \"x\"\n[limits]\nmax_kdl = 1", "max_kld"),
            ("name = \"x\"\n[otherwise]\nscheme = \"itn8\"", "int8"),
            (
                "name = \"x\"\n[otherwise]\nscheme = { type = \"keep\", dtyp = \"f32\" }",
                "dtype",
            ),
            (
                "name = \"x\"\n[[rule]]\nroles = [\"liner\"]\nscheme = \"int8\"",
                "linear",
            ),
            (
                "name = \"x\"\n[[rule]]\nroles = [\"attn_p\"]\nscheme = \"int8\"",
                "attn_q",
            ),
            ("name = \"x\"\n[run]\nmodle = \"m\"", "model"),
        ] {
            assert_eq!(
                refused(text).hint().unwrap(),
                format!("did you mean `{meant}`?"),
                "{text}"
            );
            assert!(refused(text).to_string().contains('^'), "{}", refused(text));
        }
        assert_eq!(refused("name = ").hint(), None);
        assert!(refused("").to_string().contains("missing field `name`"));
    }

    #[test]
    fn values_that_make_no_sense_are_refused() {
        let rule = |body: &str| {
            refused(&format!(
                "name = \"x\"\n[[rule]]\nroles = [\"linear\"]\n{body}"
            ))
        };
        let scheme = "scheme = \"int8\"\n";
        assert!(matches!(
            rule("scheme = { type = \"int8\", group_size = 100 }"),
            Error::GroupSize { found: 100 }
        ));
        for share in ["nan", "inf", "-0.1", "1.5"] {
            let error = rule(&format!("{scheme}layers = {{ first = {share} }}"));
            assert!(
                matches!(&error, Error::RecipeValue { key: "first", .. }),
                "{error}"
            );
            assert!(error.hint().is_some());
        }
        for layers in ["{}", "{ indices = [] }", "{ indices = [1], first = 0.5 }"] {
            let error = rule(&format!("{scheme}layers = {layers}"));
            assert!(
                error.to_string().contains("layers are chosen by"),
                "{error}"
            );
        }
        assert!(matches!(
            rule("scheme = { type = \"ternary\", threshold = \"sparsity:2\" }"),
            Error::RecipeSyntax { .. }
        ));
        assert!(matches!(
            rule(&format!("{scheme}reason = \"a\\nb\"")),
            Error::RecipeValue { key: "reason", .. }
        ));
        for limit in ["nan", "inf", "-1"] {
            let error = refused(&format!("name = \"x\"\n[limits]\nmax_kld = {limit}"));
            assert!(matches!(error, Error::BadLimit { key: "max_kld", .. }));
        }
        let error = refused("name = \"x\"\n[[rule]]\nroles = []\nscheme = \"int8\"");
        assert_eq!(
            error.to_string(),
            "r.toml: rule 1: `roles`: expected at least one role, found `[]`"
        );
        for name in ["", "a b", "a/b", "a\\u0000"] {
            assert!(matches!(
                refused(&format!("name = \"{name}\"")),
                Error::RecipeValue { key: "name", .. }
            ));
        }
    }

    #[test]
    fn other_versions_and_huge_texts_are_refused() {
        let error = refused("schema = 2\nname = \"x\"");
        assert_eq!(
            error.to_string(),
            "r.toml: recipe schema 2 is not supported, supported is 1"
        );
        assert!(error.hint().is_some());
        let error = refused(&" ".repeat(MAX_BYTES + 1));
        assert_eq!(
            error.to_string(),
            "r.toml: a recipe has at most 1048576 bytes, found 1048577"
        );
        let deep = format!("name = {}", "[".repeat(100_000));
        assert!(matches!(refused(&deep), Error::RecipeSyntax { .. }));
    }
}
