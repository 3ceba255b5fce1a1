//! What a source is called, as far as its folder tells.
//!
//! The cache of the Hugging Face hub keeps a repository's files in
//! `models--org--name/snapshots/commit`; any other folder has only its own name.

use std::path::{Component, Path};

/// A source's name and, where the folder tells it, its commit.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SourceName {
    /// `org/name` of a repository, else the name of the folder; never a path.
    pub(crate) id: String,
    /// The commit of the repository.
    pub(crate) commit: Option<String>,
}

impl SourceName {
    pub(crate) fn of(dir: &Path) -> Self {
        let full = if dir.file_name().is_none() {
            fs_err::canonicalize(dir).ok()
        } else {
            None
        };
        let dir = full.as_deref().unwrap_or(dir);
        SourceName::of_snapshot(dir).unwrap_or_else(|| SourceName {
            id: dir
                .file_name()
                .unwrap_or(dir.as_os_str())
                .to_string_lossy()
                .into_owned(),
            commit: None,
        })
    }

    /// The repository and commit of a folder in the hub's cache.
    fn of_snapshot(dir: &Path) -> Option<Self> {
        let mut parts = dir.components().rev().filter_map(|part| match part {
            Component::Normal(name) => name.to_str(),
            _ => None,
        });
        let (commit, snapshots, repository) = (parts.next()?, parts.next()?, parts.next()?);
        let is_commit = commit.len() == 40 && commit.bytes().all(|b| b.is_ascii_hexdigit());
        let name = repository.strip_prefix("models--")?;
        (snapshots == "snapshots" && is_commit).then(|| SourceName {
            id: name.replacen("--", "/", 1),
            commit: Some(commit.to_owned()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_of_the_hub_tell_repository_and_commit() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let of = |path: &str| {
            let name = SourceName::of(Path::new(path));
            (name.id, name.commit)
        };
        let hub = format!("/c/hub/models--org--a-model/snapshots/{commit}");
        let known = Some(commit.to_owned());
        assert_eq!(of(&hub), ("org/a-model".to_owned(), known.clone()));
        assert_eq!(
            of(&format!("{hub}/")),
            ("org/a-model".to_owned(), known.clone())
        );
        let old = format!("models--gpt2/snapshots/{commit}");
        assert_eq!(of(&old), ("gpt2".to_owned(), known));
        for (path, name) in [
            ("models/a-model", "a-model"),
            ("models--org--a/snapshots/main", "main"),
            (
                "org--a/snapshots/0123456789abcdef0123456789abcdef01234567",
                commit,
            ),
        ] {
            let (id, commit) = of(path);
            assert_eq!(id, name, "{path}");
            assert_eq!(commit, None, "{path}");
        }
    }
}
