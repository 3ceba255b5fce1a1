//! Fetching the contents of one file, so that they count only when they are what was listed.
//!
//! Owns resuming and checking. hf-hub's own transfer appends whatever comes to what is there, compares
//! neither size nor hash, and waits for ever, so it is not used. Here bytes go into `HASH.incomplete`, which
//! a later run goes on with: appended is only what a status 206 says begins where the file ends. Size and
//! hash (SHA-256 of large files, git's SHA-1 of others) are compared and the bytes synced before the file
//! gets its name.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use fs_err::File;
use neuroconv_runtime::Progress;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::HubError;
use super::cache::{Cached, finish};
use super::client::{Answer, Asked, Client, Tries};
use super::listing::Entry;
use super::names::shown;
use super::url::encoded;

/// Bytes read at a time.
const BLOCK_BYTES: usize = 1 << 18;

/// What the download of a file needs to know.
pub(crate) struct Download<'a> {
    pub(crate) client: &'a Client,
    pub(crate) cached: &'a Cached,
    pub(crate) repository: &'a str,
    pub(crate) commit: &'a str,
    pub(crate) path: &'a str,
    pub(crate) entry: &'a Entry,
    pub(crate) progress: &'a dyn Progress,
    pub(crate) interrupted: &'a AtomicBool,
}

/// The hash that a file is listed with, of what came so far.
enum Hasher {
    Sha256(Sha256),
    Git(Sha1),
}

impl Hasher {
    fn new(entry: &Entry) -> Self {
        if entry.is_large() {
            Hasher::Sha256(Sha256::new())
        } else {
            let start = format!("blob {}\0", entry.size);
            Hasher::Git(Sha1::new_with_prefix(start.as_bytes()))
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hash) => hash.update(bytes),
            Hasher::Git(hash) => hash.update(bytes),
        }
    }

    fn finish(self) -> String {
        match self {
            Hasher::Sha256(hash) => format!("{:x}", hash.finalize()),
            Hasher::Git(hash) => format!("{:x}", hash.finalize()),
        }
    }
}

/// A file that is not complete.
struct Partial<'a> {
    download: &'a Download<'a>,
    path: PathBuf,
    file: File,
    hasher: Hasher,
    /// Bytes so far.
    have: u64,
    /// Bytes that an earlier run left.
    inherited: u64,
    /// Bytes that were told to the progress; starting over tells nothing twice.
    told: u64,
}

impl Download<'_> {
    /// Fetches the contents, or what is missing of them. Whoever calls holds the lock.
    pub(crate) fn run(&self) -> Result<(), HubError> {
        let mut partial = Partial::open(self)?;
        let mut tries = Tries::new(self.client.patience());
        loop {
            let before = partial.have;
            match partial.go_on() {
                Ok(()) if partial.have == self.entry.size => match partial.take() {
                    Ok(()) => return Ok(()),
                    // What an earlier run left may be at fault.
                    Err(HubError::Hash { .. }) if partial.inherited > 0 => partial.start_over()?,
                    Err(error) => {
                        partial.start_over()?;
                        return Err(error);
                    }
                },
                Ok(()) => tries.again(partial.cut(), self.interrupted)?,
                Err(error) => {
                    let came = partial.have > before;
                    if came {
                        tries.forget();
                    }
                    // A network that was there a moment ago may come back.
                    let lost = matches!(error, HubError::Unreachable { .. }) && partial.told > 0;
                    if !(error.passes() || lost) {
                        return Err(error);
                    }
                    tries.again(error, self.interrupted)?;
                }
            }
            self.check_interrupt(partial.have)?;
        }
    }

    fn check_interrupt(&self, have: u64) -> Result<(), HubError> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(HubError::Interrupted {
                file: Some(self.path.to_owned()),
                have,
            });
        }
        Ok(())
    }

    fn asked(&self) -> Asked<'_> {
        Asked {
            repository: self.repository,
            revision: self.commit,
            file: Some(self.path),
        }
    }

    /// Asks for the bytes from `from` on, up to and without `to` where that is given.
    pub(crate) fn ask(&self, from: u64, to: Option<u64>) -> Result<Answer, HubError> {
        let range = match to {
            Some(to) => Some(format!("bytes={from}-{}", to - 1)),
            None if from > 0 => Some(format!("bytes={from}-")),
            None => None,
        };
        let path = format!(
            "/{}/resolve/{}/{}",
            self.repository,
            self.commit,
            encoded(self.path)
        );
        let answer = self
            .client
            .file(&self.client.url(&path), range.as_deref(), self.asked())?;
        self.check_said(&answer)?;
        Ok(answer)
    }

    /// What the endpoint says of the file, where it says it, is what it listed.
    fn check_said(&self, answer: &Answer) -> Result<(), HubError> {
        let said = &answer.said;
        let quoted = |text: &String| text.trim_start_matches("W/").trim_matches('"').to_owned();
        let differs = |found: &Option<String>, expected: &str| {
            found.as_ref().map(quoted).filter(|found| found != expected)
        };
        if let Some(found) = differs(&said.commit, self.commit) {
            let detail = format!("it is of the commit `{}`", shown(&found));
            return Err(self.client.answer(self.asked(), &detail));
        }
        if let Some(found) = differs(&said.etag, self.entry.etag()) {
            let detail = format!(
                "`{}` is listed, its tag is `{}`",
                self.entry.etag(),
                shown(&found)
            );
            return Err(self.client.answer(self.asked(), &detail));
        }
        if let Some(found) = differs(&said.size, &self.entry.size.to_string()) {
            return Err(self.size(found.parse().unwrap_or(0)));
        }
        Ok(())
    }

    /// The range that an answer holds: first byte, byte after the last, and the whole where it is told.
    pub(crate) fn range(answer: &Answer) -> Option<(u64, u64, Option<u64>)> {
        let header = answer.response.headers.get("content-range")?;
        let (range, whole) = header.trim().strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let whole = if whole == "*" {
            None
        } else {
            Some(whole.parse().ok()?)
        };
        let last: u64 = last.parse().ok()?;
        Some((first.parse().ok()?, last.checked_add(1)?, whole))
    }

    /// An answer that holds other bytes than were asked for.
    pub(crate) fn other_range(&self) -> HubError {
        self.client.answer(
            self.asked(),
            "it holds another range of bytes than was asked for",
        )
    }

    fn size(&self, found: u64) -> HubError {
        HubError::Size {
            repository: self.repository.to_owned(),
            file: self.path.to_owned(),
            expected: self.entry.size,
            found,
        }
    }
}

impl<'a> Partial<'a> {
    /// Opens what an earlier run left, or begins.
    fn open(download: &'a Download<'a>) -> Result<Self, HubError> {
        let path = download.cached.incomplete(download.entry);
        let mut options = fs_err::OpenOptions::new();
        let file = options
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path);
        let mut partial = Partial {
            download,
            file: file.map_err(HubError::file("open", &path))?,
            path,
            hasher: Hasher::new(download.entry),
            have: 0,
            inherited: 0,
            told: 0,
        };
        let found = partial
            .file
            .metadata()
            .map_err(partial.fault("measure"))?
            .len();
        if found > download.entry.size {
            partial.start_over()?;
        } else {
            partial.inherit(found)?;
        }
        Ok(partial)
    }

    fn fault(&self, action: &'static str) -> impl FnOnce(std::io::Error) -> HubError {
        let path = self.path.clone();
        move |source| HubError::file(action, &path)(source)
    }

    /// Hashes what an earlier run left.
    fn inherit(&mut self, found: u64) -> Result<(), HubError> {
        let mut block = vec![0; BLOCK_BYTES];
        while self.have < found {
            let read = self.file.read(&mut block).map_err(self.fault("read"))?;
            if read == 0 {
                break;
            }
            self.hasher.update(&block[..read]);
            self.have += read as u64;
            self.download.check_interrupt(self.have)?;
        }
        self.inherited = self.have;
        self.told = self.have;
        Ok(())
    }

    /// Forgets what came.
    fn start_over(&mut self) -> Result<(), HubError> {
        self.file.set_len(0).map_err(self.fault("shorten"))?;
        self.file
            .seek(SeekFrom::Start(0))
            .map_err(self.fault("write"))?;
        self.hasher = Hasher::new(self.download.entry);
        (self.have, self.inherited) = (0, 0);
        Ok(())
    }

    /// One request for what is missing. Comes back when its answer ends, be it complete or not.
    fn go_on(&mut self) -> Result<(), HubError> {
        let download = self.download;
        let size = download.entry.size;
        if self.have == size {
            return Ok(());
        }
        let answer = download.ask(self.have, None)?;
        match answer.response.status {
            206 => {
                let range = Download::range(&answer);
                let fits = |(first, _, whole): (u64, u64, Option<u64>)| {
                    first == self.have && whole.is_none_or(|whole| whole == size)
                };
                if !range.is_some_and(fits) {
                    self.start_over()?;
                    return Ok(());
                }
            }
            416 => {
                self.start_over()?;
                return Ok(());
            }
            _ => {
                let told = answer.response.headers.get("content-length");
                let told = told.and_then(|text| text.parse().ok());
                if let Some(found) = told.filter(|found| *found != size) {
                    return Err(download.size(found));
                }
                if self.have > 0 {
                    self.start_over()?;
                }
            }
        }
        self.receive(answer)
    }

    fn receive(&mut self, answer: Answer) -> Result<(), HubError> {
        let mut body = answer.response.body;
        let mut block = vec![0; BLOCK_BYTES];
        loop {
            self.download.check_interrupt(self.have)?;
            let read = body.read(&mut block);
            let read =
                read.map_err(
                    |error| match self.download.client.broken(&answer.host, error) {
                        HubError::Cut { .. } => self.cut(),
                        error => error,
                    },
                )?;
            if read == 0 {
                return Ok(());
            }
            let size = self.download.entry.size;
            if self.have + read as u64 > size {
                self.start_over()?;
                return Err(self.download.size(size + 1));
            }
            self.file
                .write_all(&block[..read])
                .map_err(self.fault("write"))?;
            self.hasher.update(&block[..read]);
            self.have += read as u64;
            self.download
                .progress
                .advance(self.have.saturating_sub(self.told));
            self.told = self.told.max(self.have);
        }
    }

    /// Compares what came with what was listed, and gives it its name.
    fn take(&mut self) -> Result<(), HubError> {
        let download = self.download;
        let hasher = std::mem::replace(&mut self.hasher, Hasher::new(download.entry));
        let found = hasher.finish();
        if found != download.entry.etag() {
            return Err(HubError::Hash {
                repository: download.repository.to_owned(),
                file: download.path.to_owned(),
                expected: download.entry.etag().to_owned(),
                found,
            });
        }
        self.file.sync_all().map_err(self.fault("sync"))?;
        finish(&self.path, &download.cached.blob(download.entry))
    }

    fn cut(&self) -> HubError {
        HubError::Cut {
            host: self.download.client.host().to_owned(),
            detail: format!(
                "{} of {} bytes of `{}/{}` have come",
                self.have,
                self.download.entry.size,
                self.download.repository,
                shown(self.download.path)
            ),
        }
    }
}

/// Bytes of an earlier run that need not be fetched again.
pub(crate) fn left_of(cached: &Cached, entry: &Entry) -> u64 {
    let path: &Path = &cached.incomplete(entry);
    let found = fs_err::metadata(path).map_or(0, |found| found.len());
    if found > entry.size { 0 } else { found }
}
