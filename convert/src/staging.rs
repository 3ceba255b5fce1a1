//! Where work happens until the artifact is complete: a hidden folder beside the target.
//!
//! ```text
//! PARENT/.NAME.neuroconv.lock            held while a run works on NAME
//! PARENT/.NAME.neuroconv-<job16>/        job16: first 16 hex digits of the job's hash
//!     journal                            what is finished
//!     converted/                         converted attention, layer by layer
//!     rounded/                           matrices rounded with calibration text, layer by layer
//!     artifact/                          becomes PARENT/NAME in one rename
//! ```
//!
//! Owns the lock, the names, what may be overwritten and what is swept away. The job in the
//! name makes resuming automatic and safe: another recipe, source or version is another folder.
//! Does not know what is written inside.

use std::ffi::{OsStr, OsString};
use std::fs::TryLockError;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use fs_err::os::unix::fs::OpenOptionsExt as _;
use rustix::fs::OFlags;

use crate::Error;
use crate::job::JobId;
use crate::ours;

/// Unsynced weights after which data and journal are synced.
const SYNC_BYTES: u64 = 64 << 20;

/// The claim on one output name: locked from [`Staging::open`] until dropped.
#[derive(Debug)]
pub struct Staging {
    target: PathBuf,
    parent: PathBuf,
    name: OsString,
    overwrite: bool,
    pub(crate) sync_bytes: u64,
    _lock: Lock,
}

impl Staging {
    /// Claims `output`: checks that it may be written and takes the lock. Reads no weights.
    ///
    /// With `overwrite`, an existing complete artifact or an empty folder is replaced when the
    /// new artifact is emitted, and stays untouched until then. Anything else is never replaced.
    ///
    /// An existing output with leftovers of its own job beside it was finished by a run that was
    /// killed while cleaning up; whether this run is the same is for `execute` to find out.
    pub fn open(output: &Path, overwrite: bool) -> Result<Self, Error> {
        let staging = Staging::claim(output, overwrite)?;
        staging.check_target()?;
        Ok(staging)
    }

    /// The same whatever stands at `output`.
    pub(crate) fn claim(output: &Path, overwrite: bool) -> Result<Self, Error> {
        let bad_name = || Error::OutputName {
            path: output.to_owned(),
        };
        let name = output.file_name().ok_or_else(bad_name)?.to_owned();
        let parent = match output.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        fs_err::create_dir_all(&parent)?;
        let lock = Lock::take(&parent.join(hidden(&name, ".lock")))?;
        Ok(Staging {
            target: parent.join(&name),
            parent,
            name,
            overwrite,
            sync_bytes: SYNC_BYTES,
            _lock: lock,
        })
    }

    /// Syncs data and journal after every `bytes` of weights instead of the default 64 MiB.
    /// Less is lost when the machine fails, and more time is spent waiting for the disk.
    #[must_use]
    pub fn sync_every(mut self, bytes: u64) -> Self {
        self.sync_bytes = bytes;
        self
    }

    /// The final path of the artifact.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// The folder that holds the target and the staging folder.
    pub(crate) fn parent(&self) -> &Path {
        &self.parent
    }

    /// The hidden folder in which an export is made; nothing of an earlier one is left in it.
    pub(crate) fn export_folder(&self) -> Result<PathBuf, Error> {
        let folder = self.parent.join(hidden(&self.name, "-export"));
        if folder.symlink_metadata().is_ok() {
            remove_tree(&folder)?;
        }
        fs_err::create_dir(&folder)?;
        Ok(folder)
    }

    /// Whether something stands at the final path, be it a dangling link.
    pub(crate) fn target_exists(&self) -> bool {
        self.target.symlink_metadata().is_ok()
    }

    fn exists_error(&self) -> Error {
        Error::OutputExists {
            path: self.target.clone(),
        }
    }

    /// Checks again, right before the move, that nothing foreign would be replaced.
    pub(crate) fn check_replaceable(&self) -> Result<(), Error> {
        match (self.target_exists(), self.overwrite) {
            (false, _) => Ok(()),
            (true, true) => ours::check(&self.target),
            (true, false) => Err(self.exists_error()),
        }
    }

    /// Removes what a run of `job` left that was killed while it cleaned up.
    pub(crate) fn sweep(&self, job: &JobId) -> Result<bool, Error> {
        let own = self.folder(job);
        let leftovers = own.symlink_metadata().is_ok();
        if leftovers {
            remove_tree(&own)?;
            sync_dir(&self.parent)?;
        }
        Ok(leftovers)
    }

    fn check_target(&self) -> Result<(), Error> {
        let unfinished_cleanup =
            ours::job(&self.target).is_some_and(|job| self.folder(&job).symlink_metadata().is_ok());
        if unfinished_cleanup && !self.overwrite {
            return Ok(());
        }
        self.check_replaceable()
    }

    fn folder(&self, job: &JobId) -> PathBuf {
        self.parent
            .join(hidden(&self.name, &format!("-{}", job.short())))
    }

    /// The staging folders of this name, whatever their job.
    fn folders(&self) -> Result<Vec<PathBuf>, Error> {
        let prefix = hidden(&self.name, "-");
        let mut found = Vec::new();
        for entry in fs_err::read_dir(&self.parent)? {
            let entry = entry?;
            let file_name = entry.file_name();
            let job = file_name
                .as_encoded_bytes()
                .strip_prefix(prefix.as_encoded_bytes());
            if job.is_some_and(JobId::is_short) {
                found.push(entry.path());
            }
        }
        found.sort();
        Ok(found)
    }

    /// Makes or finds the folder of `job` and sweeps away those of other jobs; the returned
    /// notes say so.
    pub(crate) fn enter(&self, job: &JobId) -> Result<(WorkDir, Vec<String>), Error> {
        let own = self.folder(job);
        if self.target_exists() && ours::job(&self.target).as_ref() == Some(job) {
            // The output is finished, so whatever this job left behind is of no use.
            if self.sweep(job)? && !self.overwrite {
                return Err(Error::AlreadyFinished {
                    path: self.target.clone(),
                });
            }
        }
        if self.target_exists() && !self.overwrite {
            return Err(self.exists_error());
        }
        let mut notes = Vec::new();
        for folder in self.folders()? {
            if folder != own {
                remove_tree(&folder)?;
                notes.push(format!(
                    "`{}` was left by an unfinished run with another recipe, source or version: \
                     removed, starting afresh",
                    folder.display()
                ));
            }
        }
        Ok((WorkDir::open(own)?, notes))
    }
}

/// The staging folder of one job.
#[derive(Debug)]
pub(crate) struct WorkDir {
    path: PathBuf,
}

impl WorkDir {
    fn open(path: PathBuf) -> Result<Self, Error> {
        match path.symlink_metadata() {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(Error::StagingForeign { path }),
            Err(_) => std::fs::DirBuilder::new()
                .mode(0o700)
                .create(&path)
                .map_err(Error::file("create the folder", &path))?,
        }
        let work = WorkDir { path };
        if work
            .artifact()
            .symlink_metadata()
            .is_ok_and(|found| !found.is_dir())
        {
            return Err(Error::StagingForeign {
                path: work.artifact(),
            });
        }
        fs_err::create_dir_all(work.artifact())?;
        Ok(work)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.path.join("journal")
    }

    pub(crate) fn artifact(&self) -> PathBuf {
        self.path.join("artifact")
    }

    /// Where matrices rounded with calibration text wait to be stored.
    pub(crate) fn rounded(&self) -> PathBuf {
        self.path.join("rounded")
    }

    /// Where converted attention waits to be stored.
    pub(crate) fn converted(&self) -> PathBuf {
        self.path.join("converted")
    }

    /// Removes everything in the artifact folder but the file `keep`.
    pub(crate) fn clear_except(&self, keep: &str) -> Result<(), Error> {
        for entry in fs_err::read_dir(self.artifact())? {
            let entry = entry?;
            if entry.file_name() != OsStr::new(keep) {
                remove_tree(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Removes the folder with all it holds.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        remove_tree(&self.path)
    }
}

/// `.NAME.neuroconv` and `suffix`.
fn hidden(name: &OsStr, suffix: &str) -> OsString {
    let mut out = OsString::from(".");
    out.push(name);
    out.push(".neuroconv");
    out.push(suffix);
    out
}

/// Removes a file, a link or a folder with all it holds, never following a link.
pub(crate) fn remove_tree(path: &Path) -> Result<(), Error> {
    if fs_err::symlink_metadata(path)?.is_dir() {
        fs_err::remove_dir_all(path)?;
    } else {
        fs_err::remove_file(path)?;
    }
    Ok(())
}

/// Makes the entries of a folder durable.
pub(crate) fn sync_dir(path: &Path) -> Result<(), Error> {
    fs_err::File::open(path)?.sync_all()?;
    Ok(())
}

/// A lock file, held while it lives and removed afterwards.
#[derive(Debug)]
struct Lock {
    path: PathBuf,
    _file: fs_err::File,
}

impl Lock {
    fn take(path: &Path) -> Result<Self, Error> {
        loop {
            let mut options = fs_err::OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
            let file = options.open(path)?;
            match file.file().try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::Locked {
                        path: path.to_owned(),
                    });
                }
                Err(TryLockError::Error(e)) => return Err(Error::file("lock", path)(e)),
            }
            // Between opening and locking, the run that held the lock may have removed the file.
            let held = file.metadata()?;
            let there = path.symlink_metadata();
            if there.is_ok_and(|m| (m.dev(), m.ino()) == (held.dev(), held.ino())) {
                return Ok(Lock {
                    path: path.to_owned(),
                    _file: file,
                });
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Removed while still held; a file that stays behind is harmless.
        let _ = fs_err::remove_file(&self.path);
    }
}
