//! How a model of a hub is named on a command line.

use super::HubError;
use super::names::{check_name, check_revision};

/// The address of the hub that everyone means.
pub(crate) const HUB: &str = "https://huggingface.co";
/// The revision where none is named.
const MAIN: &str = "main";

/// A repository and, where it is named, a revision of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// `org/name`.
    pub repository: String,
    revision: Option<String>,
}

impl Reference {
    /// Reads `org/name[@REV]`, `hf://[models/]org/name[@REV]`, or the address of a model at `endpoint` or at
    /// the Hugging Face hub. `None` where `text` is a path: whoever asks has looked for that path before.
    ///
    /// # Errors
    ///
    /// Where `text` cannot be a path, and names no model either.
    pub fn parse(text: &str, endpoint: &str) -> Result<Option<Self>, HubError> {
        let bad = |reason| HubError::Name {
            text: text.to_owned(),
            reason,
        };
        if let Some(rest) = text.strip_prefix("hf://") {
            let other = ["datasets/", "spaces/"];
            if other.iter().any(|kind| rest.starts_with(kind)) {
                return Err(bad("this is no model"));
            }
            let rest = rest.strip_prefix("models/").unwrap_or(rest);
            return Reference::of_id(rest).map(Some).map_err(bad);
        }
        if text.starts_with("https://") || text.starts_with("http://") {
            let base = |base: &str| text.strip_prefix(base)?.strip_prefix('/');
            let rest = base(HUB).or_else(|| base(endpoint));
            let rest = rest.ok_or_else(|| bad("this is no address of a hub"))?;
            return Reference::of_address(rest).map(Some).map_err(bad);
        }
        let id = text.split_once('@').map_or(text, |(id, _)| id);
        if text.starts_with(['/', '.', '~']) || id.matches('/').count() != 1 {
            return Ok(None);
        }
        match Reference::of_id(text) {
            Ok(reference) => Ok(Some(reference)),
            // A path may have any characters, but with a revision behind it, it is hardly one.
            Err(reason) if text.contains('@') => Err(bad(reason)),
            Err(_) => Ok(None),
        }
    }

    /// `org/name[@REV]`.
    fn of_id(text: &str) -> Result<Self, &'static str> {
        let (id, revision) = match text.split_once('@') {
            Some((id, revision)) => (id, Some(revision)),
            None => (text, None),
        };
        let two = "a model of a hub has an organization and a name";
        let (organization, name) = id.split_once('/').ok_or(two)?;
        if name.contains('/') {
            return Err("files and folders of a model cannot be named alone");
        }
        check_name(organization)?;
        check_name(name)?;
        revision.map(check_revision).transpose()?;
        Ok(Reference {
            repository: id.to_owned(),
            revision: revision.map(str::to_owned),
        })
    }

    /// `org/name[/tree/REV]`, and what browsers put behind it.
    fn of_address(text: &str) -> Result<Self, &'static str> {
        let text = text.split(['?', '#']).next().unwrap_or_default();
        let text = text.trim_end_matches('/');
        let mut parts = text.splitn(4, '/');
        let id: Vec<&str> = parts.by_ref().take(2).collect();
        let mut reference = Reference::of_id(&id.join("/"))?;
        match (parts.next(), parts.next()) {
            (None, _) => {}
            (Some("tree"), Some(revision)) => {
                let revision = revision.replace("%2F", "/");
                check_revision(&revision)?;
                reference.revision = Some(revision);
            }
            _ => return Err("this is no address of a model, but of something in it"),
        }
        Ok(reference)
    }

    /// The same at another revision.
    ///
    /// # Errors
    ///
    /// Where `revision` can be none.
    pub fn at(self, revision: &str) -> Result<Self, HubError> {
        check_revision(revision).map_err(|reason| HubError::Name {
            text: revision.to_owned(),
            reason,
        })?;
        Ok(Reference {
            revision: Some(revision.to_owned()),
            ..self
        })
    }

    /// The revision, where one is named.
    pub fn named_revision(&self) -> Option<&str> {
        self.revision.as_deref()
    }

    /// The revision that is meant.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(MAIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIRROR: &str = "http://localhost:8080/mirror";

    fn parsed(text: &str) -> Option<(String, Option<String>)> {
        let reference = Reference::parse(text, MIRROR).unwrap()?;
        Some((reference.repository, reference.revision))
    }

    #[test]
    fn every_way_to_name_a_model() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        for (text, repository, revision) in [
            ("org/name", "org/name", None),
            ("org/Name-1.1B", "org/Name-1.1B", None),
            ("org/name@main", "org/name", Some("main")),
            ("org/name@refs/pr/3", "org/name", Some("refs/pr/3")),
            (&format!("a/b@{commit}"), "a/b", Some(commit)),
            ("hf://org/name", "org/name", None),
            ("hf://models/org/name@v1", "org/name", Some("v1")),
            ("https://huggingface.co/org/name", "org/name", None),
            ("https://huggingface.co/org/name/", "org/name", None),
            ("https://huggingface.co/org/name?a=b#c", "org/name", None),
            (
                "https://huggingface.co/org/name/tree/v1",
                "org/name",
                Some("v1"),
            ),
            (
                "https://huggingface.co/org/name/tree/refs%2Fpr%2F3",
                "org/name",
                Some("refs/pr/3"),
            ),
            ("http://localhost:8080/mirror/org/name", "org/name", None),
        ] {
            let expected = (repository.to_owned(), revision.map(str::to_owned));
            assert_eq!(parsed(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn paths_are_left_alone() {
        for path in [
            "name", "./a/b", "/a/b", "../b", "~/b", "a/b/c", "a/", "", "a/b c", "a/b.git", "a@b/c",
            "a/-b",
        ] {
            assert_eq!(parsed(path), None, "{path}");
        }
    }

    #[test]
    fn what_can_be_neither_is_refused() {
        for text in [
            "hf://name",
            "hf://org/name/file.gguf",
            "hf://datasets/org/name",
            "hf://org/../name",
            "https://example.com/org/name",
            "https://huggingface.co.example.com/org/name",
            "https://huggingface.co/org",
            "https://huggingface.co/org/name/blob/main/config.json",
            "https://huggingface.co/org/name/tree",
            "org/name@",
            "org/name@../x",
            "org/name@a b",
            "or--g/name@main",
        ] {
            let refused = Reference::parse(text, MIRROR);
            assert!(matches!(refused, Err(HubError::Name { .. })), "{text}");
        }
    }

    #[test]
    fn main_is_meant_where_nothing_is_named() {
        let reference = Reference::parse("a/b", MIRROR).unwrap().unwrap();
        assert_eq!(reference.revision(), "main");
        assert_eq!(reference.named_revision(), None);
        assert_eq!(reference.clone().at("v1").unwrap().revision(), "v1");
        assert!(reference.at("..").is_err());
    }
}
