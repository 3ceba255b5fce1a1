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
    /// The name of the folder `path`, or of the file without its ending.
    pub(crate) fn of(path: &Path) -> Self {
        let full = if path.file_name().is_none() {
            fs_err::canonicalize(path).ok()
        } else {
            None
        };
        let path = full.as_deref().unwrap_or(path);
        let (dir, name) = if path.is_file() {
            (path.parent(), path.file_stem())
        } else {
            (Some(path), path.file_name())
        };
        let own = || SourceName {
            id: name
                .unwrap_or(path.as_os_str())
                .to_string_lossy()
                .into_owned(),
            commit: None,
        };
        dir.and_then(SourceName::of_snapshot).unwrap_or_else(own)
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

    #[test]
    fn a_file_is_called_by_its_name_or_its_repository() {
        let root = tempfile::tempdir().unwrap();
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let snapshot = root.path().join("models--org--name/snapshots").join(commit);
        fs_err::create_dir_all(&snapshot).unwrap();
        for (dir, name) in [(root.path(), "a.v1"), (snapshot.as_path(), "org/name")] {
            let path = dir.join("a.v1.gguf");
            fs_err::write(&path, "").unwrap();
            assert_eq!(SourceName::of(&path).id, name);
        }
    }
}
