//! The cache that all programs of the hub's family share, as one repository sees it.
//!
//! ```text
//! CACHE/CACHEDIR.TAG
//! CACHE/.locks/models--org--name/HASH.lock
//! CACHE/models--org--name/refs/REVISION                     the commit
//! CACHE/models--org--name/trees/COMMIT.json                 the list of files
//! CACHE/models--org--name/blobs/HASH                        contents
//! CACHE/models--org--name/blobs/HASH.incomplete             the beginning of them
//! CACHE/models--org--name/snapshots/COMMIT/PATH             a link to the contents, or they themselves
//! ```
//!
//! Owns this layout and that nothing in it is ever seen half written. What stands in a snapshot is followed
//! wherever it leads: a blob may be a link itself. Every part of a path has been checked before.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;

use fs_err::File;
use hf_hub::{Cache, CacheRepo, Repo};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::HubError;
use super::client::NAP;
use super::listing::{Entry, Listing};
use super::names::is_commit;
use crate::staging::sync_dir;
use crate::weights::free;

/// The file that tells programs for backups that all this can be had again.
const TAG: &str = "CACHEDIR.TAG";
/// What stands in it: the first line is prescribed.
const TAG_TEXT: &str = "Signature: 8a477f597d28d172789f06886806bc55\n\
    # Models of a hub, which can be fetched again. Written by neuroconv.\n";
/// Bytes of a list of files that is read at most.
const LISTING_BYTES: u64 = 64 << 20;

/// A repository in the cache.
pub(crate) struct Cached {
    root: PathBuf,
    name: String,
    layout: CacheRepo,
    links: bool,
}

/// Held while contents are fetched, so that two programs do not fetch the same.
pub(crate) struct Lock {
    _file: File,
}

impl Cached {
    pub(crate) fn new(root: &Path, repository: &str, links: bool) -> Self {
        let repo = Repo::model(repository.to_owned());
        let name = repo.folder_name();
        Cached {
            layout: Cache::new(root.to_owned()).repo(repo),
            root: root.to_owned(),
            name,
            links,
        }
    }

    /// The folder of the cache.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    fn folder(&self) -> PathBuf {
        self.root.join(&self.name)
    }

    /// The folder of a commit.
    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.layout.pointer_path(commit)
    }

    /// Where contents go.
    pub(crate) fn blob(&self, entry: &Entry) -> PathBuf {
        self.layout.blob_path(entry.etag())
    }

    /// Where they are until they are complete.
    pub(crate) fn incomplete(&self, entry: &Entry) -> PathBuf {
        self.layout
            .blob_path(&format!("{}.incomplete", entry.etag()))
    }

    /// Makes the folders.
    pub(crate) fn prepare(&self) -> Result<(), HubError> {
        for folder in [
            self.folder().join("blobs"),
            self.folder().join("refs"),
            self.locks(),
        ] {
            fs_err::create_dir_all(&folder).map_err(HubError::file("make the folder", &folder))?;
        }
        let tag = self.root.join(TAG);
        if !tag.exists() {
            replace(&tag, TAG_TEXT.as_bytes())?;
        }
        Ok(())
    }

    /// Checks that so many bytes have room.
    pub(crate) fn check_space(&self, needed: u64) -> Result<(), HubError> {
        let path = self.root();
        let free = free(path)
            .map_err(|error| HubError::file("measure", path)(std::io::Error::other(error)))?;
        if needed > free {
            return Err(HubError::DiskSpace {
                path: path.to_owned(),
                needed,
                free,
            });
        }
        Ok(())
    }

    fn locks(&self) -> PathBuf {
        self.root.join(".locks").join(&self.name)
    }

    /// Waits until nobody else fetches `entry`, or the user has no more patience.
    pub(crate) fn lock(&self, entry: &Entry, interrupted: &AtomicBool) -> Result<Lock, HubError> {
        let path = self.locks().join(format!("{}.lock", entry.etag()));
        let mut options = fs_err::OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(HubError::file("open", &path))?;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK | Errno::INTR) if !interrupted.load(Ordering::Relaxed) => {
                    sleep(NAP);
                }
                other => {
                    other.map_err(HubError::file("lock", &path))?;
                    return Ok(Lock { _file: file });
                }
            }
        }
    }

    /// The commit that a revision was when it was last asked for.
    pub(crate) fn commit_of(&self, revision: &str) -> Option<String> {
        let text = fs_err::read_to_string(self.folder().join("refs").join(revision)).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// Remembers the commit of a revision, unless it is that commit.
    pub(crate) fn remember(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        if revision == commit || self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        replace(
            &self.folder().join("refs").join(revision),
            commit.as_bytes(),
        )
    }

    fn tree(&self, commit: &str) -> PathBuf {
        self.folder().join("trees").join(format!("{commit}.json"))
    }

    /// The list of files at a commit, if it was kept.
    pub(crate) fn listing(&self, commit: &str) -> Option<Listing> {
        let path = self.tree(commit);
        let size = fs_err::metadata(&path).ok()?.len();
        let bytes = (size <= LISTING_BYTES).then(|| fs_err::read(&path))?;
        Listing::parse(&bytes.ok()?)
    }

    /// Keeps the list of files at a commit.
    pub(crate) fn keep_listing(&self, commit: &str, listing: &Listing) -> Result<(), HubError> {
        let path = self.tree(commit);
        let bytes = listing.to_json().map_err(HubError::file("write", &path))?;
        replace(&path, &bytes)
    }

    /// Whether a file of a snapshot is there in full.
    pub(crate) fn has(&self, commit: &str, path: &str, entry: &Entry) -> bool {
        is_file_of(&self.snapshot(commit).join(path), entry.size)
    }

    /// Whether contents are there in full.
    pub(crate) fn has_blob(&self, entry: &Entry) -> bool {
        is_file_of(&self.blob(entry), entry.size)
    }

    /// Puts contents that are there into a snapshot; `fresh` ones belong to nobody else yet.
    pub(crate) fn put(
        &self,
        commit: &str,
        path: &str,
        entry: &Entry,
        fresh: bool,
    ) -> Result<(), HubError> {
        let target = self.snapshot(commit).join(path);
        let folder = parent(&target);
        fs_err::create_dir_all(folder).map_err(HubError::file("make the folder", folder))?;
        let blob = self.blob(entry);
        if !self.links && fresh {
            return fs_err::rename(&blob, &target).map_err(HubError::file("move", &blob));
        }
        let beside = unused_name(&target);
        if self.links {
            let up = "../".repeat(2 + path.matches('/').count());
            let to = format!("{up}blobs/{}", entry.etag());
            fs_err::os::unix::fs::symlink(to, &beside).map_err(HubError::file("link", &target))?;
        } else {
            fs_err::copy(&blob, &beside).map_err(HubError::file("copy", &blob))?;
        }
        fs_err::rename(&beside, &target).map_err(HubError::file("write", &target))
    }
}

fn is_file_of(path: &Path, size: u64) -> bool {
    fs_err::metadata(path).is_ok_and(|found| found.is_file() && found.len() == size)
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("."))
}

/// A hidden name beside `path` that no other process uses.
fn unused_name(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.tmp", std::process::id()))
}

/// Writes a small file so that it is there in full or not at all.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), HubError> {
    let folder = parent(path);
    fs_err::create_dir_all(folder).map_err(HubError::file("make the folder", folder))?;
    let beside = unused_name(path);
    let write = || {
        let mut file = File::create(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs_err::rename(&beside, path)
    };
    write().map_err(HubError::file("write", path))
}

/// Gives contents their name for good.
pub(crate) fn finish(incomplete: &Path, blob: &Path) -> Result<(), HubError> {
    let name = || {
        fs_err::rename(incomplete, blob)?;
        sync_dir(parent(blob)).map_err(std::io::Error::other)
    };
    name().map_err(HubError::file("finish", blob))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(etag: &str, size: u64) -> Entry {
        serde_json::from_str(&format!(r#"{{"size":{size},"blob_id":"{etag}"}}"#)).unwrap()
    }

    #[test]
    fn snapshots_hold_relative_links_at_any_depth() {
        let dir = tempfile::tempdir().unwrap();
        let (commit, etag) = ("0c".repeat(20), "0a".repeat(20));
        let entry = entry(&etag, 3);
        for (links, name) in [(true, "org/a"), (false, "org/b")] {
            let cached = Cached::new(dir.path(), name, links);
            cached.prepare().unwrap();
            fs_err::write(cached.blob(&entry), "abc").unwrap();
            assert!(cached.has_blob(&entry) && !cached.has(&commit, "a/b/c.txt", &entry));
            cached.put(&commit, "a/b/c.txt", &entry, false).unwrap();
            cached.put(&commit, "d.txt", &entry, true).unwrap();
            cached
                .put(&commit, "d.txt", &entry, false)
                .unwrap_or_else(|_| assert!(!links));
            for path in ["a/b/c.txt", "d.txt"] {
                let file = cached.snapshot(&commit).join(path);
                assert_eq!(file.is_symlink(), links, "{path}");
                assert_eq!(fs_err::read(&file).unwrap(), b"abc");
                assert!(cached.has(&commit, path, &entry), "{path}");
            }
            assert_eq!(
                cached.has_blob(&entry),
                links,
                "a fresh one is moved where there are no links"
            );
        }
        let target = dir.path().join("models--org--a/snapshots").join(&commit);
        let link = fs_err::read_link(target.join("a/b/c.txt")).unwrap();
        assert_eq!(link, Path::new(&format!("../../../../blobs/{etag}")));
        assert!(dir.path().join("CACHEDIR.TAG").is_file());
    }

    #[test]
    fn revisions_are_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let commit = "0c".repeat(20);
        let cached = Cached::new(dir.path(), "org/a", true);
        for revision in ["main", "refs/pr/1", &commit] {
            assert_eq!(cached.commit_of(revision), None);
            cached.remember(revision, &commit).unwrap();
        }
        assert_eq!(cached.commit_of("refs/pr/1"), Some(commit.clone()));
        let refs = dir.path().join("models--org--a/refs");
        assert_eq!(fs_err::read_to_string(refs.join("main")).unwrap(), commit);
        assert!(!refs.join(&commit).exists());
        fs_err::write(refs.join("main"), "../../x").unwrap();
        assert_eq!(cached.commit_of("main"), None);
    }

    #[test]
    fn a_download_that_has_no_room_does_not_begin() {
        let dir = tempfile::tempdir().unwrap();
        let cached = Cached::new(dir.path(), "org/a", true);
        cached.check_space(1).unwrap();
        let refused = cached.check_space(1 << 60);
        assert!(matches!(refused, Err(HubError::DiskSpace { needed, free, .. }) if free < needed));
    }

    #[test]
    fn a_file_of_another_size_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let cached = Cached::new(dir.path(), "org/a", true);
        cached.prepare().unwrap();
        let entry = entry(&"0a".repeat(20), 3);
        for (bytes, expected) in [("ab", false), ("abcd", false), ("abc", true)] {
            fs_err::write(cached.blob(&entry), bytes).unwrap();
            assert_eq!(cached.has_blob(&entry), expected, "{bytes}");
        }
    }
}
