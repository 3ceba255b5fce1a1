//! What a repository holds at a commit: every file with its size and the hash of its contents.
//!
//! Owns the two answers of the endpoint that tell it, the file in the cache that keeps it, in the form that
//! the hub's own client reads and writes, and the checks of all names and hashes in both.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use hf_hub::api::RepoInfo;
use hf_hub::{Repo, RepoType};
use serde::{Deserialize, Serialize};
use serde_json::ser::PrettyFormatter;

use super::client::{Asked, Client};
use super::names::{check_path, is_commit, is_hex, shown};
use super::{HubError, Reference};

/// Files of a repository at most.
const FILES: usize = 10_000;
/// Pages of a list at most.
const PAGES: usize = 100;
/// The form of the kept list that is known.
const FORMAT: u32 = 1;

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Bytes.
    pub(crate) size: u64,
    /// SHA-1 that git knows it by; of a large file, that of the note that stands for it.
    blob_id: String,
    /// SHA-256 of a large file.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    lfs_sha256: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    lfs_size: Option<u64>,
    /// Kept for other clients.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    xet_hash: Option<String>,
}

impl Entry {
    /// The name of its contents in the cache: their hash.
    pub(crate) fn etag(&self) -> &str {
        self.lfs_sha256.as_deref().unwrap_or(&self.blob_id)
    }

    /// Whether the hash is the SHA-256 of the contents; else it is git's SHA-1 of them.
    pub(crate) fn is_large(&self) -> bool {
        self.lfs_sha256.is_some()
    }

    fn check(&self) -> Result<(), &'static str> {
        let sha256 = |text: &Option<String>| text.as_ref().is_none_or(|text| is_hex(text, 64));
        if !is_hex(&self.blob_id, 40) || !sha256(&self.lfs_sha256) || !sha256(&self.xet_hash) {
            return Err("its hash is none");
        }
        if self.lfs_size.is_some_and(|size| size != self.size) {
            return Err("it has two sizes");
        }
        Ok(())
    }
}

/// The files of a repository at a commit, by path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Listing {
    pub(crate) files: BTreeMap<String, Entry>,
}

/// The kept form.
#[derive(Serialize, Deserialize)]
struct Kept {
    format_version: u32,
    files: BTreeMap<String, Entry>,
}

/// One line of the endpoint's answer.
#[derive(Deserialize)]
struct Line {
    r#type: String,
    path: String,
    #[serde(default)]
    size: u64,
    oid: String,
    lfs: Option<Large>,
    #[serde(rename = "xetHash")]
    xet_hash: Option<String>,
}

#[derive(Deserialize)]
struct Large {
    oid: String,
    size: u64,
}

impl Listing {
    /// Reads the kept form; nothing where it is of a later version or damaged, for it can be had again.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let kept: Kept = serde_json::from_slice(bytes).ok()?;
        let proper =
            |(path, entry): (&String, &Entry)| check_path(path).is_ok() && entry.check().is_ok();
        let known = kept.format_version == FORMAT && kept.files.len() <= FILES;
        (known && kept.files.iter().all(proper)).then_some(Listing { files: kept.files })
    }

    /// Writes the kept form.
    pub(crate) fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut out = Vec::new();
        let kept = Kept {
            format_version: FORMAT,
            files: self.files.clone(),
        };
        let format = PrettyFormatter::with_indent(b" ");
        kept.serialize(&mut serde_json::Serializer::with_formatter(
            &mut out, format,
        ))?;
        Ok(out)
    }

    fn take(&mut self, line: Line, repository: &str) -> Result<(), HubError> {
        if line.r#type != "file" {
            return Ok(());
        }
        let bad = |reason| HubError::BadName {
            repository: repository.to_owned(),
            what: "a file",
            text: shown(&line.path),
            reason,
        };
        let entry = Entry {
            size: line.lfs.as_ref().map_or(line.size, |large| large.size),
            blob_id: line.oid,
            lfs_size: line.lfs.as_ref().map(|large| large.size),
            lfs_sha256: line.lfs.map(|large| large.oid),
            xet_hash: line.xet_hash,
        };
        check_path(&line.path)
            .and_then(|()| entry.check())
            .map_err(bad)?;
        if self.files.insert(line.path.clone(), entry).is_some() {
            return Err(bad("it is listed twice"));
        }
        if self.files.len() > FILES {
            return Err(HubError::TooManyFiles {
                repository: repository.to_owned(),
                limit: FILES,
            });
        }
        Ok(())
    }
}

/// The commit that a revision stands for now: one request.
pub(crate) fn commit_of(
    client: &Client,
    reference: &Reference,
    interrupted: &AtomicBool,
) -> Result<String, HubError> {
    let Reference { repository, .. } = reference;
    let revision = reference.revision();
    let asked = Asked {
        repository,
        revision,
        file: None,
    };
    let repo = Repo::with_revision(repository.clone(), RepoType::Model, revision.to_owned());
    let url = client.url(&format!("/api/{}", repo.api_url()));
    let (bytes, _) = client.json(&url, asked, interrupted)?;
    let info: RepoInfo = serde_json::from_slice(&bytes)
        .map_err(|_| client.answer(asked, "it describes no repository"))?;
    if is_commit(&info.sha) {
        return Ok(info.sha);
    }
    Err(HubError::BadName {
        repository: repository.clone(),
        what: "the commit",
        text: shown(&info.sha),
        reason: "a commit has 40 hexadecimal digits",
    })
}

/// The files at a commit: one request for each page.
pub(crate) fn files_at(
    client: &Client,
    repository: &str,
    commit: &str,
    interrupted: &AtomicBool,
) -> Result<Listing, HubError> {
    let asked = Asked {
        repository,
        revision: commit,
        file: None,
    };
    let mut listing = Listing::default();
    let first = format!("/api/models/{repository}/tree/{commit}?recursive=true&expand=false");
    let mut url = client.url(&first);
    for _ in 0..PAGES {
        let (bytes, next) = client.json(&url, asked, interrupted)?;
        let lines: Vec<Line> = serde_json::from_slice(&bytes)
            .map_err(|_| client.answer(asked, "it is no list of files"))?;
        for line in lines {
            listing.take(line, repository)?;
        }
        let Some(next) = next else {
            return Ok(listing);
        };
        let page = url.join(&next).filter(|page| client.is_endpoint(page));
        url = page.ok_or_else(|| client.answer(asked, "its list goes on at another server"))?;
    }
    Err(client.answer(asked, "its list does not end"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(path: &str, oid: &str) -> Line {
        let text = format!(r#"{{"type":"file","path":{path:?},"oid":"{oid}","size":3}}"#);
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn lists_are_kept_as_the_client_of_the_hub_keeps_them() {
        let (sha1, sha256) = ("0a".repeat(20), "0b".repeat(32));
        let mut listing = Listing::default();
        listing.take(line("a.json", &sha1), "o/n").unwrap();
        let large = format!(
            r#"{{"type":"file","path":"m.safetensors","oid":"{sha1}","size":9,
                 "lfs":{{"oid":"{sha256}","size":9,"pointerSize":130}},"xetHash":"{sha256}"}}"#
        );
        listing
            .take(serde_json::from_str(&large).unwrap(), "o/n")
            .unwrap();
        listing
            .take(
                Line {
                    r#type: "directory".to_owned(),
                    ..line("d", &sha1)
                },
                "o/n",
            )
            .unwrap();
        assert_eq!(listing.files["a.json"].etag(), sha1);
        assert_eq!(listing.files["m.safetensors"].etag(), sha256);
        let text = String::from_utf8(listing.to_json().unwrap()).unwrap();
        let expected = format!(
            "{{\n \"format_version\": 1,\n \"files\": {{\n  \"a.json\": {{\n   \"size\": 3,\n   \
             \"blob_id\": \"{sha1}\"\n  }},\n  \"m.safetensors\": {{\n   \"size\": 9,\n   \"blob_id\": \
             \"{sha1}\",\n   \"lfs_sha256\": \"{sha256}\",\n   \"lfs_size\": 9,\n   \"xet_hash\": \
             \"{sha256}\"\n  }}\n }}\n}}"
        );
        assert_eq!(text, expected);
        assert_eq!(Listing::parse(text.as_bytes()), Some(listing));
        assert_eq!(
            Listing::parse(text.replace("a.json", "../a").as_bytes()),
            None
        );
        assert_eq!(
            Listing::parse(text.replace("\": 1,", "\": 2,").as_bytes()),
            None
        );
        assert_eq!(Listing::parse(b"{"), None);
    }

    #[test]
    fn names_and_hashes_are_checked() {
        let sha1 = "0a".repeat(20);
        for (path, oid) in [
            ("../a", sha1.as_str()),
            ("/etc/passwd", &sha1),
            ("a", "../../../etc/passwd"),
            ("a", &"0A".repeat(20)),
            ("a", ""),
        ] {
            let mut listing = Listing::default();
            let refused = listing.take(line(path, oid), "o/n");
            assert!(
                matches!(refused, Err(HubError::BadName { .. })),
                "{path} {oid}"
            );
        }
        let mut listing = Listing::default();
        listing.take(line("a", &sha1), "o/n").unwrap();
        assert!(listing.take(line("a", &sha1), "o/n").is_err());
        for n in 1..FILES {
            listing.take(line(&n.to_string(), &sha1), "o/n").unwrap();
        }
        let refused = listing.take(line("b", &sha1), "o/n");
        assert!(matches!(refused, Err(HubError::TooManyFiles { .. })));
    }
}
