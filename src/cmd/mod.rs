//! One file per command: resolves what was typed, calls the libraries, prints through `ui`.

pub(crate) mod bench;
pub(crate) mod convert;
pub(crate) mod demo;
pub(crate) mod diff;
pub(crate) mod eval;
pub(crate) mod export;
pub(crate) mod gate;
pub(crate) mod generate;
pub(crate) mod inspect;
mod outcome;
pub(crate) mod plan;
pub(crate) mod schema;
pub(crate) mod verify;

use std::path::Path;

use neuroconv_runtime::Source;

use crate::failure::Misuse;

/// Opens a model, and says so plainly where its name is one of a hub.
fn open(path: &Path) -> anyhow::Result<Source> {
    refuse_hub_id(path)?;
    Ok(neuroconv_runtime::open_source(path)?)
}

/// Opens a model to run it at once; its weights are still to be checked.
fn open_unchecked(path: &Path) -> anyhow::Result<Source> {
    refuse_hub_id(path)?;
    Ok(neuroconv_runtime::open_source_unchecked(path)?)
}

fn refuse_hub_id(path: &Path) -> anyhow::Result<()> {
    if !path.exists() && is_hub_id(path) {
        return Err(Misuse::new(
            format!(
                "`{}` is no folder, and models of a hub are not in this version",
                path.display()
            ),
            "download the model, then name its folder",
        )
        .into());
    }
    Ok(())
}

/// Whether a name has the form `org/name` or `org/name@revision`.
fn is_hub_id(path: &Path) -> bool {
    let word = |text: &str| {
        let first = text.chars().next().is_some_and(char::is_alphanumeric);
        first
            && text
                .chars()
                .all(|c| c.is_alphanumeric() || "-_.".contains(c))
    };
    let text = path.to_string_lossy();
    let (id, _revision) = text.split_once('@').unwrap_or((&text, ""));
    let mut parts = id.split('/');
    let two = parts.next().is_some_and(word) && parts.next().is_some_and(word);
    two && parts.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hub_names_are_told_from_paths() {
        for id in ["org/name", "org/Name-1.1B", "org/name@main", "a/b@0123abc"] {
            assert!(is_hub_id(Path::new(id)), "{id}");
        }
        for path in ["name", "./a/b", "/a/b", "a/b/c", "../b", "a/", ""] {
            assert!(!is_hub_id(Path::new(path)), "{path}");
        }
    }
}
