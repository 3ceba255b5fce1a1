//! As much of addresses as a client of a hub needs.

use std::fmt::{self, Write as _};

use ureq::http::Uri;

/// An address with a host, `http` or `https`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Url {
    encrypted: bool,
    /// Host and port as written.
    authority: String,
    /// From the first slash on; may be empty.
    path: String,
}

impl Url {
    /// Reads an address; `None` where it is of another kind, or has a password in it.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let encrypted = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let uri: Uri = text.parse().ok()?;
        let authority = uri.authority().filter(|a| !a.as_str().contains('@'))?;
        let rest = rest.split('#').next().unwrap_or_default();
        let path = rest.get(authority.as_str().len()..).unwrap_or_default();
        Some(Url {
            encrypted,
            authority: authority.as_str().to_ascii_lowercase(),
            path: path.to_owned(),
        })
    }

    /// Whether nobody on the way can read along.
    pub(crate) fn is_encrypted(&self) -> bool {
        self.encrypted
    }

    /// Host and port.
    pub(crate) fn host(&self) -> &str {
        &self.authority
    }

    /// Whether both lead to the same server, so that what is meant for one may be sent to the other.
    pub(crate) fn same_server(&self, other: &Self) -> bool {
        self.encrypted == other.encrypted && self.authority == other.authority
    }

    /// This address with `path` behind it, which starts with a slash and is encoded.
    pub(crate) fn with(&self, path: &str) -> Self {
        Url {
            path: format!("{}{path}", self.path),
            ..self.clone()
        }
    }

    /// Where an answer from here that names `target` leads.
    pub(crate) fn join(&self, target: &str) -> Option<Self> {
        if target.contains("://") {
            return Url::parse(target);
        }
        if let Some(rest) = target.strip_prefix("//") {
            let scheme = if self.encrypted { "https" } else { "http" };
            return Url::parse(&format!("{scheme}://{rest}"));
        }
        let path = if target.starts_with('/') {
            target.to_owned()
        } else {
            let before = self.path.split('?').next().unwrap_or_default();
            let folder = before.rsplit_once('/').map_or("", |(folder, _)| folder);
            format!("{folder}/{target}")
        };
        Url::parse(
            &Url {
                path,
                ..self.clone()
            }
            .to_string(),
        )
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.encrypted { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority, self.path)
    }
}

/// A path as it stands in an address.
pub(crate) fn encoded(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        for text in [
            "https://huggingface.co",
            "http://localhost:8080/a/b?c=d",
            "https://[::1]:4/x",
        ] {
            assert_eq!(Url::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(
            Url::parse("HTTPS://Hub.example/A").unwrap().to_string(),
            "https://hub.example/A"
        );
        for bad in [
            "huggingface.co",
            "ftp://a/b",
            "https://",
            "https://user:secret@a/b",
            "https://a b/",
            "/x",
        ] {
            assert_eq!(Url::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn redirects_lead_where_browsers_go() {
        let from = Url::parse("https://a:1/x/y?q=/z").unwrap();
        for (target, expected) in [
            ("/z?t=1", "https://a:1/z?t=1"),
            ("z", "https://a:1/x/z"),
            ("//b/z", "https://b/z"),
            ("http://c:2/z", "http://c:2/z"),
        ] {
            assert_eq!(from.join(target).unwrap().to_string(), expected, "{target}");
        }
        assert_eq!(from.join("file:///etc/passwd"), None);
    }

    #[test]
    fn another_port_or_scheme_is_another_server() {
        let url = |text: &str| Url::parse(text).unwrap();
        let hub = url("https://hub.example");
        assert!(hub.same_server(&url("https://HUB.example/a/b")));
        for other in [
            "http://hub.example",
            "https://hub.example:444",
            "https://hub.example.evil",
            "https://ub.example",
        ] {
            assert!(!hub.same_server(&url(other)), "{other}");
        }
    }

    #[test]
    fn names_are_encoded() {
        assert_eq!(encoded("a/b c#d?é%"), "a/b%20c%23d%3F%C3%A9%25");
    }
}
