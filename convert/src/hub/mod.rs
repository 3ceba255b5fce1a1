//! Models of a Hugging Face hub: from a name to a folder that can be opened like any other.
//!
//! Owns what is asked of an endpoint and what goes into the cache that is shared with other programs
//! (`cache`). hf-hub gives the routes, the names of the cache's folders and the form of an answer; its
//! transfer keeps none of the rules that hold here (see `download`), so requests are made with the same
//! `ureq` behind the trait of `web`. Prints nothing, asks for nothing that was not named, and trusts no
//! name, size or hash that has not been checked.

mod cache;
mod client;
mod download;
mod error;
mod headers;
mod hint;
mod listing;
mod names;
mod reference;
mod select;
mod settings;
mod url;
mod web;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use neuroconv_runtime::Progress;

pub use error::HubError;
pub use headers::Headers;
pub use reference::Reference;
pub use settings::Settings;

use cache::Cached;
use client::Client;
use download::{Download, left_of};
use listing::{Entry, Listing};
use names::is_commit;
use select::{INDEX, Selection, Weights, select};
use web::Network;

/// A hub and the cache of its models.
pub struct Hub {
    settings: Settings,
    /// Nothing where nothing is fetched.
    client: Option<Client>,
}

/// A model that was found, at a commit.
#[derive(Clone, Debug)]
pub struct Found {
    /// `org/name`.
    pub repository: String,
    /// 40 hexadecimal digits.
    pub commit: String,
    listing: Listing,
    selection: Selection,
}

impl Found {
    /// Whether it is an artifact of this program, which is of no use without its weights.
    pub fn is_artifact(&self) -> bool {
        self.selection.artifact
    }

    fn entry(&self, path: &str) -> Result<&Entry, HubError> {
        self.listing
            .files
            .get(path)
            .ok_or_else(|| HubError::NoFile {
                repository: self.repository.clone(),
                file: path.to_owned(),
            })
    }

    /// The files of the model that are not in the cache.
    fn missing(&self, cached: &Cached) -> Result<Vec<String>, HubError> {
        let has = |name: &String| Ok(cached.has(&self.commit, name, self.entry(name)?));
        let mut missing = Vec::new();
        for name in &self.selection.small {
            if !has(name)? {
                missing.push(name.clone());
            }
        }
        // Without its index the names of the shards are not known, and the index is missing then.
        if self.selection.weights == Weights::Single || !missing.iter().any(|name| name == INDEX) {
            for name in self.weights(&cached.snapshot(&self.commit))? {
                if !has(&name)? {
                    missing.push(name);
                }
            }
        }
        Ok(missing)
    }

    /// The files of the weights, by the index in `snapshot` where there is one.
    fn weights(&self, snapshot: &Path) -> Result<Vec<String>, HubError> {
        let index = match self.selection.weights {
            Weights::Single => None,
            Weights::Shards => {
                let path = snapshot.join(INDEX);
                let bytes = fs_err::read(&path);
                Some(bytes.map_err(HubError::file("read", &path))?)
            }
        };
        let repository = &self.repository;
        self.selection
            .weights(repository, &self.listing, index.as_deref())
    }
}

/// Where a model is, and what has yet to come.
#[derive(Debug)]
pub enum Located {
    /// All of it is here, in this folder.
    Here(PathBuf),
    /// Some of it has to be fetched.
    There(Box<Found>),
}

impl Hub {
    /// A hub over the network.
    ///
    /// # Errors
    ///
    /// Where the certificates that are asked for cannot be read.
    pub fn new(settings: Settings) -> Result<Self, HubError> {
        let client = if settings.offline {
            None
        } else {
            let network = Network::new(&settings)?;
            Some(Client::new(Box::new(network), settings.clone()))
        };
        Ok(Hub { settings, client })
    }

    fn client(&self) -> Result<&Client, HubError> {
        self.client.as_ref().ok_or_else(|| HubError::Setting {
            variable: "HF_HUB_OFFLINE",
            reason: "something was to be fetched".to_owned(),
        })
    }

    fn cached(&self, repository: &str) -> Cached {
        Cached::new(&self.settings.cache, repository, self.settings.links)
    }

    /// Finds the commit that is meant. A commit that is complete in the cache is found without a request;
    /// any other revision takes one, and a list of files that is not in the cache another.
    ///
    /// # Errors
    ///
    /// Where the endpoint refuses, or, offline, where something is missing; where there is no model that is
    /// read.
    pub fn locate(
        &self,
        reference: &Reference,
        interrupted: &AtomicBool,
    ) -> Result<(String, Located), HubError> {
        let repository = &reference.repository;
        let cached = self.cached(repository);
        let commit = self.commit(reference, &cached, interrupted)?;
        let (listing, is_new) = match (cached.listing(&commit), &self.client) {
            (Some(listing), _) => (listing, false),
            (None, Some(client)) => {
                let listing = listing::files_at(client, repository, &commit, interrupted)?;
                (listing, true)
            }
            // Another program wrote it and keeps no lists: what is there is all there is.
            (None, None) => return self.unlisted(reference, &cached, commit),
        };
        let found = Found {
            // Refused before the cache is touched.
            selection: select(repository, &listing)?,
            repository: repository.clone(),
            commit: commit.clone(),
            listing,
        };
        let missing = found.missing(&cached)?;
        let kept = self.keep(reference, &found, is_new);
        if missing.is_empty() {
            // A complete model can be used where nothing can be written.
            return Ok((commit.clone(), Located::Here(cached.snapshot(&commit))));
        }
        kept?;
        if self.client.is_none() {
            return Err(HubError::OfflineFiles {
                repository: repository.clone(),
                commit,
                missing,
            });
        }
        Ok((commit, Located::There(Box::new(found))))
    }

    /// Remembers what the endpoint said.
    fn keep(&self, reference: &Reference, found: &Found, is_new: bool) -> Result<(), HubError> {
        if self.client.is_none() {
            return Ok(());
        }
        let cached = self.cached(&found.repository);
        cached.prepare()?;
        if is_new {
            cached.keep_listing(&found.commit, &found.listing)?;
        }
        cached.remember(reference.revision(), &found.commit)
    }

    fn commit(
        &self,
        reference: &Reference,
        cached: &Cached,
        interrupted: &AtomicBool,
    ) -> Result<String, HubError> {
        let revision = reference.revision();
        if is_commit(revision) {
            return Ok(revision.to_owned());
        }
        match &self.client {
            Some(client) => listing::commit_of(client, reference, interrupted),
            None => cached
                .commit_of(revision)
                .ok_or_else(|| HubError::OfflineRevision {
                    repository: reference.repository.clone(),
                    revision: revision.to_owned(),
                    cache: cached.root().to_owned(),
                }),
        }
    }

    /// A snapshot without a list of its files, as it is.
    fn unlisted(
        &self,
        reference: &Reference,
        cached: &Cached,
        commit: String,
    ) -> Result<(String, Located), HubError> {
        let path = cached.snapshot(&commit);
        if path.is_dir() {
            return Ok((commit, Located::Here(path)));
        }
        Err(HubError::OfflineRevision {
            repository: reference.repository.clone(),
            revision: reference.revision().to_owned(),
            cache: self.settings.cache.clone(),
        })
    }

    /// Fetches what is missing and gives the folder of the snapshot. Small files come first, so that what
    /// is no model is found out before its weights are fetched.
    ///
    /// # Errors
    ///
    /// Where a file cannot be had as it is listed, or there is no room. What came is kept, and the next call
    /// goes on from it.
    pub fn fetch(
        &self,
        found: &Found,
        progress: &dyn Progress,
        interrupted: &AtomicBool,
    ) -> Result<PathBuf, HubError> {
        let cached = self.cached(&found.repository);
        cached.prepare()?;
        let snapshot = cached.snapshot(&found.commit);
        if found.selection.small.iter().any(|name| name == INDEX) {
            self.fetch_file(found, INDEX, &neuroconv_runtime::Quiet, interrupted)?;
        }
        let missing = found.missing(&cached)?;
        let mut needed = 0;
        for name in &missing {
            let entry = found.entry(name)?;
            if !cached.has_blob(entry) {
                needed += entry.size - left_of(&cached, entry);
            }
        }
        cached.check_space(needed)?;
        progress.start("downloading", needed, "bytes");
        let fetch = |name: &String| {
            self.fetch_file(found, name, progress, interrupted)
                .map(|_| ())
        };
        let done = missing.iter().try_for_each(fetch);
        progress.finish();
        done.map(|()| snapshot)
    }

    /// Puts one file into the snapshot; bytes that were fetched for it.
    fn fetch_file(
        &self,
        found: &Found,
        path: &str,
        progress: &dyn Progress,
        interrupted: &AtomicBool,
    ) -> Result<u64, HubError> {
        let cached = self.cached(&found.repository);
        let entry = found.entry(path)?;
        let commit = &found.commit;
        if cached.has(commit, path, entry) {
            return Ok(0);
        }
        let _lock = cached.lock(entry, interrupted)?;
        let fresh = !cached.has_blob(entry);
        let mut fetched = 0;
        if fresh {
            fetched = entry.size - left_of(&cached, entry);
            let download = Download {
                client: self.client()?,
                cached: &cached,
                repository: &found.repository,
                commit,
                path,
                entry,
                progress,
                interrupted,
            };
            download.run()?;
        }
        cached.put(commit, path, entry, fresh)?;
        Ok(fetched)
    }

    /// Fetches no more than the headers of the weights, and the small files that a plan needs; with
    /// `all_small` the others too.
    ///
    /// # Errors
    ///
    /// As [`Hub::fetch`].
    pub fn headers(
        &self,
        found: &Found,
        all_small: bool,
        interrupted: &AtomicBool,
    ) -> Result<Headers, HubError> {
        headers::fetch(self, found, all_small, interrupted)
    }
}
