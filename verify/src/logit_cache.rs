//! The original's logits, kept exactly between runs.
//!
//! Owns a folder of files, one per window, under a hash of the model's weights and description;
//! a window's file is called after a hash of its tokens and of what is scored. So another model,
//! text or protocol never meets the wrong numbers. A file holds single-precision numbers as the
//! original gave them, and the hash of its own bytes: a damaged one counts as missing.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use neuroconv_format::Tensor;
use neuroconv_runtime::WeightSource;
use sha2::{Digest, Sha256};

use crate::Error;
use crate::protocol::Window;

const HASH_BYTES: usize = 32;
/// Numbers recordings, so that no two have a file in common.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// The cached logits of one model.
#[derive(Debug)]
pub struct LogitCache {
    dir: PathBuf,
    vocab: usize,
}

impl LogitCache {
    /// The cache of `model` in `root`; reads all its weights once to know them again. `engine`
    /// names what computes the logits: another one rounds in another order.
    pub fn open(root: &Path, model: &dyn WeightSource, engine: &str) -> Result<Self, Error> {
        let spec = model.spec();
        let mut hash = Sha256::new();
        hash.update(b"neuroconv logits 1\n");
        hash.update(engine);
        hash.update(format!("{spec:?}"));
        for (id, shape) in spec.tensors() {
            hash.update(format!("{id} {shape:?}\n"));
            match model.tensor(id)? {
                Tensor::Dense(t) => hash.update(&t.bytes[..]),
                Tensor::Packed(t) => {
                    hash.update(&t.bytes[..]);
                    for (part, bytes) in t.corrections.parts().unwrap_or_default() {
                        hash.update(format!("{part:?}\n"));
                        hash.update(&bytes[..]);
                    }
                }
            }
        }
        let dir = root.join(format!("{:x}", hash.finalize()));
        fs_err::create_dir_all(&dir).map_err(Error::Cache)?;
        Ok(LogitCache {
            dir,
            vocab: spec.vocab,
        })
    }

    fn path(&self, window: &Window) -> PathBuf {
        let mut hash = Sha256::new();
        hash.update(format!("{:?}\n", window.scored));
        for token in &window.tokens {
            hash.update(token.to_le_bytes());
        }
        self.dir.join(format!("{:x}.f32", hash.finalize()))
    }

    fn bytes(&self, window: &Window) -> u64 {
        let rows = window.scored.len() as u64;
        rows * self.vocab as u64 * size_of::<f32>() as u64 + HASH_BYTES as u64
    }

    /// Whether the logits of `window` are there, whole and undamaged.
    pub fn has(&self, window: &Window) -> bool {
        self.check(window).unwrap_or(false)
    }

    fn check(&self, window: &Window) -> std::io::Result<bool> {
        let mut file = fs_err::File::open(self.path(window))?;
        if file.metadata()?.len() != self.bytes(window) {
            return Ok(false);
        }
        let mut hash = Sha256::new();
        let mut left = self.bytes(window) - HASH_BYTES as u64;
        let mut block = vec![0; 1 << 20];
        while left > 0 {
            let size = left.min(block.len() as u64) as usize;
            file.read_exact(&mut block[..size])?;
            hash.update(&block[..size]);
            left -= size as u64;
        }
        let mut stored = [0; HASH_BYTES];
        file.read_exact(&mut stored)?;
        Ok(hash.finalize()[..] == stored)
    }

    /// Reads the logits of a window that [`LogitCache::has`] found.
    pub fn read(&self, window: &Window) -> Result<Reader, Error> {
        Ok(Reader {
            file: fs_err::File::open(self.path(window)).map_err(Error::Cache)?,
            vocab: self.vocab,
        })
    }

    /// Records the logits of a window.
    pub fn record(&self, window: &Window) -> Result<Recorder, Error> {
        let path = self.path(window);
        // Equal windows may be recorded at the same time, each under a name of its own.
        let (process, next) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let part = path.with_extension(format!("part{process}-{next}"));
        Ok(Recorder {
            file: fs_err::File::create(&part).map_err(Error::Cache)?,
            hash: Sha256::new(),
            part,
            path,
        })
    }
}

/// The logits of one window, read from the first row on.
#[derive(Debug)]
pub struct Reader {
    file: fs_err::File,
    vocab: usize,
}

impl Reader {
    /// The next `rows` rows.
    pub fn next(&mut self, rows: usize) -> Result<Vec<f32>, Error> {
        let mut bytes = vec![0; rows * self.vocab * size_of::<f32>()];
        self.file.read_exact(&mut bytes).map_err(Error::Cache)?;
        let (floats, _) = bytes.as_chunks();
        Ok(floats.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }
}

/// The logits of one window, being written under a name of their own.
#[derive(Debug)]
pub struct Recorder {
    file: fs_err::File,
    hash: Sha256,
    part: PathBuf,
    path: PathBuf,
}

impl Recorder {
    /// Adds rows.
    pub fn write(&mut self, logits: &[f32]) -> Result<(), Error> {
        let bytes: Vec<u8> = logits.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.hash.update(&bytes);
        self.file.write_all(&bytes).map_err(Error::Cache)
    }

    /// Adds the hash and gives the file its name.
    pub fn finish(mut self) -> Result<(), Error> {
        let hash = self.hash.finalize();
        self.file
            .write_all(&hash)
            .and_then(|()| fs_err::rename(&self.part, &self.path))
            .map_err(Error::Cache)
    }
}
