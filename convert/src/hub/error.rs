//! What can go wrong between a name and a complete folder.
//!
//! Owns the reasons, and which of them pass by themselves; what to do is in [`super::hint`]. Texts of a server are cut and escaped by
//! whoever puts them here; a token is in none of them.

use std::io;
use std::path::{Path, PathBuf};

/// Why a model of a hub is not there.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// A name that no repository can have.
    #[error("`{text}`: {reason}")]
    Name {
        /// What was typed.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A variable of the environment that makes no sense.
    #[error("{variable}: {reason}")]
    Setting {
        /// Its name.
        variable: &'static str,
        /// What is wrong with its value.
        reason: String,
    },
    /// No connection at all.
    #[error("cannot reach {host}: {detail}")]
    Unreachable {
        /// The host.
        host: String,
        /// What the system says.
        detail: String,
    },
    /// A connection on which nothing comes.
    #[error("{host} sent nothing for {seconds} s")]
    Timeout {
        /// The host.
        host: String,
        /// How long was waited.
        seconds: f64,
    },
    /// A connection that ended too early.
    #[error("the connection to {host} broke off: {detail}")]
    Cut {
        /// The host.
        host: String,
        /// What the system says.
        detail: String,
    },
    /// Something that is no answer to what was asked.
    #[error("{host} gave no proper answer on {what}: {detail}")]
    Answer {
        /// The host.
        host: String,
        /// What was asked.
        what: String,
        /// What is wrong.
        detail: String,
    },
    /// More text than such an answer has.
    #[error("{host} sent more than {limit} bytes on {what}")]
    TooLarge {
        /// The host.
        host: String,
        /// What was asked.
        what: String,
        /// Bytes that are taken at most.
        limit: u64,
    },
    /// Redirected again and again.
    #[error("{host} redirected more than {limit} times on {what}")]
    Redirects {
        /// The endpoint.
        host: String,
        /// What was asked.
        what: String,
        /// Redirects that are followed.
        limit: usize,
    },
    /// A redirect that leaves encryption behind.
    #[error("{host} redirected to {to}, which is not encrypted, on {what}")]
    Unencrypted {
        /// The endpoint.
        host: String,
        /// The host that was named.
        to: String,
        /// What was asked.
        what: String,
    },
    /// The token is none of the endpoint's.
    #[error("{host} does not know the token that it was sent")]
    BadToken {
        /// The endpoint.
        host: String,
    },
    /// No such repository, as far as the endpoint tells.
    #[error("{host} has no model `{repository}`, or does not show it")]
    NoRepository {
        /// The endpoint.
        host: String,
        /// `org/name`.
        repository: String,
        /// Whether a token was sent.
        token: bool,
    },
    /// A repository whose conditions have not been accepted.
    #[error("`{repository}` is gated: {host} asks to accept its conditions first")]
    Gated {
        /// The endpoint.
        host: String,
        /// `org/name`.
        repository: String,
        /// Whether a token was sent.
        token: bool,
    },
    /// Refused for another reason.
    #[error("{host} refuses `{repository}`: {detail}")]
    Forbidden {
        /// The endpoint.
        host: String,
        /// `org/name`.
        repository: String,
        /// What the endpoint says.
        detail: String,
    },
    /// No such branch, tag or commit.
    #[error("`{repository}` has no revision `{revision}`")]
    NoRevision {
        /// `org/name`.
        repository: String,
        /// What was asked for.
        revision: String,
    },
    /// A file that is not there.
    #[error("`{repository}` has no file `{file}`")]
    NoFile {
        /// `org/name`.
        repository: String,
        /// The file.
        file: String,
    },
    /// More requests than the endpoint likes.
    #[error("{host} has had too many requests")]
    TooManyRequests {
        /// The endpoint.
        host: String,
        /// Seconds to wait, where it says so.
        wait: Option<u64>,
    },
    /// Any other status.
    #[error("{host} answered with status {status} on {what}")]
    Status {
        /// The host.
        host: String,
        /// The status.
        status: u16,
        /// What was asked.
        what: String,
    },
    /// A name or an identifier that is no part of a path.
    #[error("`{repository}` names {what} `{text}`: {reason}")]
    BadName {
        /// `org/name`.
        repository: String,
        /// What it is the name of.
        what: &'static str,
        /// The name, escaped.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// More files than a model has.
    #[error("`{repository}` lists more than {limit} files")]
    TooManyFiles {
        /// `org/name`.
        repository: String,
        /// Files that are taken at most.
        limit: usize,
    },
    /// A file of another size than was listed.
    #[error("`{repository}/{file}`: {expected} bytes are listed, {found} were sent")]
    Size {
        /// `org/name`.
        repository: String,
        /// The file.
        file: String,
        /// Bytes that the list says.
        expected: u64,
        /// Bytes of the answer.
        found: u64,
    },
    /// A file with other contents than was listed.
    #[error("`{repository}/{file}`: hash {expected} is listed, {found} was sent")]
    Hash {
        /// `org/name`.
        repository: String,
        /// The file.
        file: String,
        /// The hash that the list says.
        expected: String,
        /// The hash of what came.
        found: String,
    },
    /// A revision that the cache does not know.
    #[error(
        "`{repository}@{revision}` is not in the cache `{cache}`, and nothing is fetched offline"
    )]
    OfflineRevision {
        /// `org/name`.
        repository: String,
        /// What was asked for.
        revision: String,
        /// The cache.
        cache: PathBuf,
    },
    /// A snapshot with gaps.
    #[error(
        "`{repository}@{commit}` lacks {} in the cache, and nothing is fetched offline",
        some(missing)
    )]
    OfflineFiles {
        /// `org/name`.
        repository: String,
        /// The commit.
        commit: String,
        /// The files that are missing.
        missing: Vec<String>,
    },
    /// Weights in a form that can run code.
    #[error(
        "`{repository}` has its weights as pickle only (`{file}`), which can run code and is not read"
    )]
    Pickle {
        /// `org/name`.
        repository: String,
        /// One of the files.
        file: String,
    },
    /// GGUF files and no checkpoint.
    #[error("`{repository}` has GGUF files only: {}", some(files))]
    OnlyGguf {
        /// `org/name`.
        repository: String,
        /// The files.
        files: Vec<String>,
    },
    /// Nothing that could be converted.
    #[error("`{repository}` has no `{missing}`, so it is no checkpoint that is read")]
    NoModel {
        /// `org/name`.
        repository: String,
        /// What a checkpoint has.
        missing: &'static str,
    },
    /// Too little room.
    #[error("`{path}`: {needed} bytes needed for the download, {free} free")]
    DiskSpace {
        /// The cache.
        path: PathBuf,
        /// Bytes still to be fetched.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The user stopped the download.
    #[error("interrupted in the download{}", kept(.file.as_deref(), *.have))]
    Interrupted {
        /// The file that was being fetched.
        file: Option<String>,
        /// Bytes of it so far.
        have: u64,
    },
    /// What the system said about a file of ours.
    #[error("cannot {action} `{path}`: {source}")]
    File {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl HubError {
    /// Wraps what the system said about `path`.
    pub(crate) fn file<E: Into<io::Error>>(
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> HubError {
        move |source| HubError::File {
            action,
            path: path.to_owned(),
            source: source.into(),
        }
    }

    /// Whether the same request may go well a moment later.
    pub(crate) fn passes(&self) -> bool {
        match self {
            HubError::Timeout { .. } | HubError::Cut { .. } | HubError::TooManyRequests { .. } => {
                true
            }
            HubError::Status { status, .. } => *status >= 500,
            _ => false,
        }
    }
}

/// What an interruption leaves.
fn kept(file: Option<&str>, have: u64) -> String {
    file.map_or_else(String::new, |file| {
        format!(", {have} bytes of `{file}` are kept")
    })
}

/// The first three of `names`, and how many more there are.
fn some(names: &[String]) -> String {
    let shown: Vec<String> = names
        .iter()
        .take(3)
        .map(|name| format!("`{name}`"))
        .collect();
    match names.len().saturating_sub(shown.len()) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_cut() {
        let names: Vec<String> = ('a'..'g').map(String::from).collect();
        assert_eq!(some(&names[..2]), "`a`, `b`");
        assert_eq!(some(&names), "`a`, `b`, `c` and 3 more");
    }

    #[test]
    fn only_what_passes_is_tried_again() {
        let status = |status| HubError::Status {
            host: String::new(),
            status,
            what: String::new(),
        };
        assert!(status(503).passes() && !status(418).passes());
        let unreachable = HubError::Unreachable {
            host: String::new(),
            detail: String::new(),
        };
        assert!(!unreachable.passes());
    }
}
