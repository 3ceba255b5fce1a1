//! What to do when a model of a hub is not there: a sentence for every reason.

use super::HubError;

impl HubError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            HubError::Name { .. } => {
                "a model of a hub is `org/name`, `org/name@REVISION`, or its address in a browser"
            }
            HubError::Setting { .. } => "correct the variable, or unset it",
            HubError::Unreachable { .. } => {
                "check the network, HTTPS_PROXY and HF_ENDPOINT; `--offline` takes what is in the cache"
            }
            HubError::Timeout { .. } | HubError::Cut { .. } => {
                "the same command goes on from what has come; HF_HUB_DOWNLOAD_TIMEOUT and \
                 HF_HUB_ETAG_TIMEOUT set how many seconds are waited"
            }
            HubError::Answer { .. } | HubError::TooLarge { .. } | HubError::Redirects { .. } => {
                "HF_ENDPOINT or a proxy may not lead to a hub"
            }
            HubError::Unencrypted { .. } => "nothing was sent there; ask whoever runs the endpoint",
            HubError::BadToken { .. } => {
                "log in again, or correct HF_TOKEN; without a token public models can be had"
            }
            HubError::NoRepository { token: false, .. } => {
                "check the spelling; a private model needs a token in HF_TOKEN, or a login"
            }
            HubError::NoRepository { token: true, .. } => {
                "check the spelling, and that the token may read this model"
            }
            HubError::Gated { .. } => return Some(self.gated()),
            HubError::NoRevision { .. } => "a revision is a branch, a tag, a commit, or refs/pr/N",
            HubError::TooManyRequests { .. } => {
                "wait some minutes, then give the same command again; with a token more is allowed"
            }
            HubError::Status { .. } => {
                "give the same command again later; it goes on from what has come"
            }
            HubError::BadName { .. } | HubError::TooManyFiles { .. } => {
                "nothing of it was written; do not use this repository"
            }
            HubError::Size { .. } | HubError::Hash { .. } => {
                "the file was not taken; give the same command again, and if it happens again, suspect a \
                 proxy or the endpoint"
            }
            HubError::OfflineRevision { .. } | HubError::OfflineFiles { .. } => {
                "give the same command once without --offline and HF_HUB_OFFLINE"
            }
            HubError::Pickle { .. } => {
                "look for a revision or a copy with safetensors; where none is, load the model in \
                 transformers and save it, which writes them"
            }
            HubError::OnlyGguf { .. } => {
                "download one of them and name the file, or name the repository it was made from"
            }
            HubError::DiskSpace { .. } => {
                "make room, or name a cache on another disk with HF_HUB_CACHE"
            }
            HubError::Forbidden { .. } => "look at its page, or ask its owner",
            HubError::NoFile { .. } => "its list and its files do not agree; name another revision",
            HubError::NoModel { .. } => "docs/formats-read.md says what is read",
            HubError::Interrupted { .. } | HubError::File { .. } => return None,
        };
        Some(hint.to_owned())
    }

    fn gated(&self) -> String {
        match self {
            HubError::Gated {
                host,
                repository,
                token: false,
            } => format!(
                "accept them at https://{host}/{repository}, then put a token into HF_TOKEN, or log in"
            ),
            HubError::Gated {
                host, repository, ..
            } => format!(
                "accept them at https://{host}/{repository} with the account that the token belongs to"
            ),
            _ => String::new(),
        }
    }
}
