//! A model of which only the headers are here: enough for a plan.
//!
//! Owns a folder that looks like a snapshot of the cache: configuration and index as they are, weights with
//! their true sizes of which only the headers are written and the rest are holes. Whoever opens it must read
//! no weight. Opening reads two things that are no header: the shapes of packed matrices, which are fetched,
//! and whether a head that is stored apart is the embedding once more. Samples of both are fetched, and the
//! holes between them decide nothing unless all samples agree.

use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use fs_err::File;
use fs_err::os::unix::fs::FileExt as _;
use neuroconv_format::{ElementType, SafetensorsFile, TensorInfo, limits};
use neuroconv_recipes::{Role, SourceTensor, TensorId, resolve};
use neuroconv_runtime::{ModelFiles, Quiet};
use tempfile::TempDir;

use super::cache::Cached;
use super::client::Tries;
use super::download::Download;
use super::listing::Entry;
use super::select::{CONFIG, INDEX};
use super::{Found, Hub, HubError};

/// Bytes of a file that are fetched at first: most headers are smaller.
const GUESS: u64 = 16 << 10;
/// Places at which head and embedding are compared.
const SAMPLES: u64 = 8;
/// Bytes compared at each.
const SAMPLE_BYTES: u64 = 1 << 10;
/// Bytes of a tensor that may be the shape of another.
const SHAPE_BYTES: u64 = 64;
/// Files that are fetched whole whatever is asked.
const NEEDED: [&str; 3] = [CONFIG, "generation_config.json", INDEX];

/// A model without its weights, removed when dropped.
#[derive(Debug)]
pub struct Headers {
    _dir: TempDir,
    /// The folder to open.
    pub path: PathBuf,
    /// Bytes that were fetched for it.
    pub fetched: u64,
    /// Whether a head that is stored apart is taken for the embedding because samples of it are.
    pub sampled_head: bool,
}

/// Makes such a folder.
struct Maker<'a> {
    hub: &'a Hub,
    found: &'a Found,
    cached: Cached,
    path: PathBuf,
    fetched: u64,
    interrupted: &'a AtomicBool,
}

/// Fetches headers. With `all_small`, everything but weights is fetched too, for a tokenizer.
pub(super) fn fetch(
    hub: &Hub,
    found: &Found,
    all_small: bool,
    interrupted: &AtomicBool,
) -> Result<Headers, HubError> {
    let place = std::env::temp_dir();
    let dir = TempDir::with_prefix("neuroconv-headers-")
        .map_err(HubError::file("make a folder in", &place))?;
    let cached = Cached::new(dir.path(), &found.repository, true);
    let path = cached.snapshot(&found.commit);
    hub.cached(&found.repository).prepare()?;
    let mut maker = Maker {
        hub,
        found,
        cached: hub.cached(&found.repository),
        path: path.clone(),
        fetched: 0,
        interrupted,
    };
    for name in &found.selection.small {
        let whole = all_small || NEEDED.contains(&name.as_str());
        maker.small(name, whole)?;
    }
    let weights = found.weights(&path)?;
    for name in &weights {
        maker.weights(name)?;
    }
    for name in &weights {
        maker.shapes(name)?;
    }
    let sampled_head = maker.sample_head(&weights)?;
    Ok(Headers {
        _dir: dir,
        path,
        fetched: maker.fetched,
        sampled_head,
    })
}

impl Maker<'_> {
    fn entry(&self, name: &str) -> Result<&Entry, HubError> {
        self.found.entry(name)
    }

    /// A file of the true size, with nothing in it.
    fn create(&self, name: &str) -> Result<File, HubError> {
        let path = self.path.join(name);
        let create = || {
            fs_err::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
            fs_err::OpenOptions::new()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .open(&path)
        };
        let file = create().map_err(HubError::file("make", &path))?;
        let size = self.entry(name)?.size;
        file.set_len(size).map_err(HubError::file("size", &path))?;
        Ok(file)
    }

    /// A small file, through the cache where it is wanted whole.
    fn small(&mut self, name: &str, whole: bool) -> Result<(), HubError> {
        let file = self.create(name)?;
        if !whole {
            return Ok(());
        }
        self.fetched += self
            .hub
            .fetch_file(self.found, name, &Quiet, self.interrupted)?;
        let source = self.cached.snapshot(&self.found.commit).join(name);
        let bytes = fs_err::read(&source).map_err(HubError::file("read", &source))?;
        self.write(name, &file, &bytes, 0)
    }

    /// The header of a file of weights.
    fn weights(&mut self, name: &str) -> Result<(), HubError> {
        let file = self.create(name)?;
        let size = self.entry(name)?.size;
        let guess = GUESS.min(size);
        let mut start = self.range(name, 0..guess)?;
        let Some(prefix) = start.first_chunk::<8>() else {
            return Ok(());
        };
        // A length that makes no sense is told by whoever opens the file.
        let header = u64::from_le_bytes(*prefix);
        let end = header.saturating_add(8);
        if header <= limits::HEADER_BYTES && end <= size && end > guess {
            start.extend(self.range(name, guess..end)?);
        }
        // Weights that came along stay holes, so that tensors that are the same do not seem to differ.
        start.truncate(usize::try_from(end).unwrap_or(usize::MAX));
        self.write(name, &file, &start, 0)
    }

    /// The tensors that say the shapes of others, which opening reads too.
    fn shapes(&mut self, name: &str) -> Result<(), HubError> {
        // A file that cannot be opened is told by whoever opens the model.
        let Ok(open) = SafetensorsFile::open(self.path.join(name)) else {
            return Ok(());
        };
        let is_shape = |info: &&TensorInfo| {
            info.dtype == ElementType::I64 && info.range.end - info.range.start <= SHAPE_BYTES
        };
        for info in open.tensors().iter().filter(is_shape) {
            let bytes = self.range(name, info.range.clone())?;
            self.write(name, &self.create(name)?, &bytes, info.range.start)?;
        }
        Ok(())
    }

    fn write(&self, name: &str, file: &File, bytes: &[u8], at: u64) -> Result<(), HubError> {
        let path = self.path.join(name);
        file.write_all_at(bytes, at)
            .map_err(HubError::file("write", &path))
    }

    /// Fetches bytes of a file.
    fn range(&mut self, name: &str, range: Range<u64>) -> Result<Vec<u8>, HubError> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let mut tries = Tries::new(self.hub.client()?.patience());
        let bytes = loop {
            match self.try_range(name, range.clone()) {
                Err(error) if error.passes() => tries.again(error, self.interrupted)?,
                other => break other?,
            }
        };
        self.fetched += bytes.len() as u64;
        Ok(bytes)
    }

    fn try_range(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>, HubError> {
        let download = Download {
            client: self.hub.client()?,
            cached: &self.cached,
            repository: &self.found.repository,
            commit: &self.found.commit,
            path: name,
            entry: self.entry(name)?,
            progress: &Quiet,
            interrupted: self.interrupted,
        };
        let answer = download.ask(range.start, Some(range.end))?;
        let holds = match answer.response.status {
            206 => Download::range(&answer)
                .is_some_and(|(first, end, _)| (first, end) == (range.start, range.end)),
            // A server without ranges sends the whole, which begins with what is wanted.
            200 => range.start == 0,
            _ => false,
        };
        if !holds {
            return Err(download.other_range());
        }
        let wanted = range.end - range.start;
        let mut bytes = Vec::new();
        let mut body = answer.response.body.take(wanted);
        body.read_to_end(&mut bytes)
            .map_err(|error| download.client.broken(&answer.host, error))?;
        if (bytes.len() as u64) < wanted {
            return Err(HubError::Cut {
                host: answer.host,
                detail: format!("{} of {wanted} bytes have come", bytes.len()),
            });
        }
        Ok(bytes)
    }

    /// Fetches samples of embedding and head, where both are stored; whether all agree.
    fn sample_head(&mut self, weights: &[String]) -> Result<bool, HubError> {
        let Some((embed, head)) = self.embedding_and_head(weights) else {
            return Ok(false);
        };
        let len = embed.1.end - embed.1.start;
        if len != head.1.end - head.1.start {
            return Ok(false);
        }
        for sample in 0..SAMPLES {
            let from = (len / SAMPLES) * sample;
            let to = len.min(from + SAMPLE_BYTES);
            let mut bytes = Vec::new();
            for (name, range) in [&embed, &head] {
                let sample = self.range(name, range.start + from..range.start + to)?;
                self.write(name, &self.create(name)?, &sample, range.start + from)?;
                bytes.push(sample);
            }
            if bytes[0] != bytes[1] {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Where embedding and head are stored, if both are; nothing where the model cannot be resolved, which
    /// is told when it is opened.
    fn embedding_and_head(&self, weights: &[String]) -> Option<(Stored, Stored)> {
        let files = ModelFiles::open(&self.path).ok()?;
        let tensors: Vec<SourceTensor> = files
            .tensors()
            .map(|info| SourceTensor {
                name: info.name.clone(),
                shape: info.shape.clone(),
            })
            .collect();
        let resolved = resolve(files.config(), files.generation_config(), &tensors).ok()?;
        let stored = |role| {
            let id = TensorId::model(role);
            let name = &resolved.slots.iter().find(|slot| slot.id == id)?.source;
            weights.iter().find_map(|file| {
                let open = SafetensorsFile::open(self.path.join(file)).ok()?;
                let is_it = |info: &&TensorInfo| info.name == *name;
                let range = open.tensors().iter().find(is_it)?.range.clone();
                Some((file.clone(), range))
            })
        };
        Some((stored(Role::Embed)?, stored(Role::Head)?))
    }
}

/// A file and a range of its bytes.
type Stored = (String, Range<u64>);
