//! The recipes that come with the program, as the files in `recipe/` write them.

use super::Recipe;
use crate::Error;
use crate::suggest::{near, shown};

const NAMES: [&str; 5] = ["int8", "int4", "ternary", "ternary-mixed", "mla"];
const TEXTS: [&str; 5] = [
    include_str!("../../recipe/int8.toml"),
    include_str!("../../recipe/int4.toml"),
    include_str!("../../recipe/ternary.toml"),
    include_str!("../../recipe/ternary-mixed.toml"),
    include_str!("../../recipe/mla.toml"),
];

/// The names [`builtin`] knows.
pub fn builtin_names() -> &'static [&'static str] {
    &NAMES
}

/// The built-in recipe called `name`.
pub fn builtin(name: &str) -> Result<Recipe, Error> {
    let text = NAMES
        .iter()
        .zip(TEXTS)
        .find_map(|(own, text)| (*own == name).then_some(text));
    let text = text.ok_or_else(|| Error::UnknownRecipe {
        name: shown(name),
        near: near(name, NAMES),
        known: NAMES.map(ToOwned::to_owned).to_vec(),
    })?;
    Recipe::parse(text, name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{KeepDtype, PackedKind, Scheme};
    use crate::role::RoleKind;
    use crate::samples::{config_of, resolved};

    #[test]
    fn every_built_in_fits_every_architecture_and_says_why() {
        for arch in crate::architectures() {
            let spec = resolved(&config_of(&arch.classes[0])).spec;
            for name in NAMES {
                let recipe = builtin(name).unwrap();
                assert_eq!(recipe.name, name);
                assert!(!recipe.summary.is_empty() && !recipe.limits.is_empty());
                assert!(
                    recipe.rules.iter().all(|rule| rule.reason.is_some()),
                    "{name}"
                );
                for assignment in recipe.assign(&spec).unwrap() {
                    let expected = match assignment.id.role.kind() {
                        RoleKind::Norm | RoleKind::Bias => Scheme::Keep {
                            dtype: Some(KeepDtype::F32),
                        },
                        RoleKind::Vocab if recipe.mla.is_some() => Scheme::Keep { dtype: None },
                        RoleKind::Vocab => Scheme::packed(PackedKind::Int8),
                        RoleKind::Linear | RoleKind::Frequency => continue,
                    };
                    assert_eq!(assignment.scheme, expected, "{name}: {}", assignment.id);
                }
            }
        }
    }

    #[test]
    fn no_built_in_extends_another() {
        assert!(TEXTS.iter().all(|text| !text.contains("extends")));
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let error = builtin("ternay").unwrap_err();
        assert_eq!(error.to_string(), "there is no built-in recipe `ternay`");
        assert_eq!(
            error.hint().unwrap(),
            "did you mean `ternary`? supported: `int8`, `int4`, `ternary`, `ternary-mixed`, `mla`"
        );
    }
}
