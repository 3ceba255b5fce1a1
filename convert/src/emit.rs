//! From a staged artifact to one under its final name, or to none.
//!
//! Owns the last steps, whose order is what makes the promise: the final name holds nothing,
//! or what stood there before, or the complete artifact whose weights were measured.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use neuroconv_format::artifact::{Artifact, Validate};
use neuroconv_format::gguf::imatrix::Importance;
use neuroconv_format::manifest::{Manifest, VerdictStatus};
use neuroconv_runtime::Progress;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::Error;
use crate::calibrated::RoundedLayers;
use crate::folder;
use crate::job::{hash_file, sha256};
use crate::ours;
use crate::pass::ConvertedLayers;
use crate::staging::{Staging, WorkDir, remove_tree, sync_dir};

/// A complete artifact in its staging folder, marked `unverified`.
///
/// Dropping it keeps the folder: the same conversion finds its work there.
#[derive(Debug)]
pub struct StagedArtifact {
    pub(crate) staging: Staging,
    pub(crate) work: WorkDir,
    pub(crate) manifest: Manifest,
    pub(crate) layers: Option<ConvertedLayers>,
    pub(crate) rounded: Option<RoundedLayers>,
    pub(crate) weights_sha256: String,
    pub(crate) notes: Vec<String>,
    pub(crate) resumed: usize,
}

/// What the gate adds to an artifact.
#[derive(Clone, Debug)]
pub struct Emission {
    /// The verdict; only [`VerdictStatus::Pass`] and [`VerdictStatus::Waived`] are emitted.
    pub verdict: VerdictStatus,
    /// Ids of the checks that the user waived.
    pub waived: Vec<String>,
    /// `report.json`, whose hash goes into the manifest.
    pub report_json: Vec<u8>,
    /// `report.md`.
    pub report_md: Option<Vec<u8>>,
    /// `report.html`.
    pub report_html: Option<Vec<u8>>,
    /// `junit.xml`.
    pub junit_xml: Option<Vec<u8>>,
    /// The model card, `README.md`.
    pub card: String,
}

impl StagedArtifact {
    /// The staged folder; the runtime opens it like any artifact.
    pub fn path(&self) -> PathBuf {
        self.work.artifact()
    }

    /// The path it will have.
    pub fn target(&self) -> &Path {
        self.staging.target()
    }

    /// The manifest as staged.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The converted attention in single precision, if any was.
    pub fn converted(&self) -> Option<&ConvertedLayers> {
        self.layers.as_ref()
    }

    /// How large the source's inputs of matrices are that were rounded with calibration text, by the
    /// names of these matrices in GGUF files; empty where none was.
    pub fn importance(&self) -> Result<BTreeMap<String, Importance>, Error> {
        let layers = self.rounded.as_ref();
        layers.map_or_else(|| Ok(BTreeMap::new()), RoundedLayers::importance)
    }

    /// SHA-256 of the weights before anything was measured. [`StagedArtifact::emit`] refuses
    /// other weights.
    pub fn weights_sha256(&self) -> &str {
        &self.weights_sha256
    }

    /// Tensors that an earlier run had finished and this one took over.
    pub fn resumed(&self) -> usize {
        self.resumed
    }

    /// What the user should know about this run: resumed, or started afresh.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Completes the artifact, moves it to its final name in one step and returns that name.
    ///
    /// Every file and folder is on disk before the move. Where the file system can neither
    /// refuse to replace nor exchange, a plain rename is used: it fails on a folder that
    /// appeared meanwhile, and for an instant an overwritten name holds nothing.
    pub fn emit(self, emission: &Emission, progress: &dyn Progress) -> Result<PathBuf, Error> {
        if !matches!(
            emission.verdict,
            VerdictStatus::Pass | VerdictStatus::Waived
        ) {
            return Err(Error::NotPassed {
                verdict: emission.verdict,
            });
        }
        let artifact = self.work.artifact();
        progress.start("emit", self.manifest.size.weights_bytes, "bytes");
        self.complete(emission, &artifact)?;
        Artifact::open(&artifact, Validate::Structure)?;
        let sums = self.hash_all(&artifact, progress)?;
        folder::write(&artifact.join(ours::SUMS), ours::sums(&sums).as_bytes())?;
        sync_tree(&artifact)?;
        // These advances are no bytes: they mark the points between the last steps.
        progress.advance(0);
        move_into_place(&self.staging, &artifact, &self.work.path().join("old"))?;
        progress.advance(0);
        sync_dir(self.staging.parent())?;
        self.work.remove()?;
        progress.advance(0);
        sync_dir(self.staging.parent())?;
        progress.finish();
        Ok(self.staging.target().to_owned())
    }

    /// Removes everything staged; the final name stays as it was.
    pub fn reject(self) -> Result<(), Error> {
        self.work.remove()?;
        sync_dir(self.staging.parent())
    }

    fn complete(&self, emission: &Emission, artifact: &Path) -> Result<(), Error> {
        let ours = artifact.join(ours::FOLDER);
        folder::write(&ours.join("report.json"), &emission.report_json)?;
        for (name, bytes) in [
            ("report.md", &emission.report_md),
            ("report.html", &emission.report_html),
            ("junit.xml", &emission.junit_xml),
        ] {
            if let Some(bytes) = bytes {
                folder::write(&ours.join(name), bytes)?;
            }
        }
        folder::write(&artifact.join("README.md"), emission.card.as_bytes())?;
        let mut manifest = self.manifest.clone();
        manifest.verdict.status = emission.verdict;
        manifest.verdict.report_sha256 = Some(sha256(&emission.report_json));
        manifest.verdict.waived.clone_from(&emission.waived);
        folder::write_manifest(&manifest, artifact)
    }

    /// Hashes all files but the list of hashes, and refuses weights that were not measured.
    fn hash_all(
        &self,
        artifact: &Path,
        progress: &dyn Progress,
    ) -> Result<BTreeMap<String, String>, Error> {
        let mut sums = BTreeMap::new();
        let never = AtomicBool::new(false);
        for (name, path) in ours::files(artifact)? {
            if name == ours::SUMS {
                continue;
            }
            let Some((found, _)) = hash_file(&path, progress, &never)? else {
                continue;
            };
            if name == ours::WEIGHTS && found != self.weights_sha256 {
                let expected = self.weights_sha256.clone();
                return Err(Error::WeightsChanged {
                    path,
                    expected,
                    found,
                });
            }
            sums.insert(name, found);
        }
        Ok(sums)
    }
}

/// The move of `new` to the final name, in one step. What stood there is where `new` was, or at `old`.
pub(crate) fn move_into_place(staging: &Staging, new: &Path, old: &Path) -> Result<(), Error> {
    let target = staging.target();
    let exists = staging.target_exists();
    let flags = if exists {
        RenameFlags::EXCHANGE
    } else {
        RenameFlags::NOREPLACE
    };
    staging.check_replaceable()?;
    match renameat_with(CWD, new, CWD, target, flags) {
        // An exchange leaves what was there in the staging folder, which goes away.
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => Err(Error::OutputExists {
            path: target.to_owned(),
        }),
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => replace(new, target, old, exists),
        Err(e) => Err(Error::file("move the result to", target)(e)),
    }
}

/// Moves `new` to `target`, and what stood there to `old`: for file systems that cannot
/// exchange. A folder is never renamed over one that is not empty, so nothing is lost.
fn replace(new: &Path, target: &Path, old: &Path, exists: bool) -> Result<(), Error> {
    if exists {
        if old.symlink_metadata().is_ok() {
            remove_tree(old)?;
        }
        fs_err::rename(target, old)?;
    }
    if let Err(error) = fs_err::rename(new, target) {
        if exists {
            fs_err::rename(old, target)?;
        }
        return Err(error.into());
    }
    Ok(())
}

/// Makes every file and folder below `root` durable, the folders after what they hold.
pub(crate) fn sync_tree(root: &Path) -> Result<(), Error> {
    for entry in fs_err::read_dir(root)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        } else {
            fs_err::File::open(entry.path())?.sync_all()?;
        }
    }
    sync_dir(root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_an_exchange_the_old_folder_is_kept_when_the_new_one_cannot_move() {
        let dir = tempfile::tempdir().unwrap();
        let [new, target, old] = ["new", "target", "old"].map(|name| dir.path().join(name));
        for (folder, text) in [(&target, "1"), (&new, "2")] {
            fs_err::create_dir(folder).unwrap();
            fs_err::write(folder.join("file"), text).unwrap();
        }
        let read = || fs_err::read_to_string(target.join("file")).unwrap();
        assert!(replace(&dir.path().join("missing"), &target, &old, true).is_err());
        assert_eq!(read(), "1");
        assert!(
            replace(&new, &target, &old, false).is_err(),
            "a folder appeared meanwhile"
        );
        assert_eq!(read(), "1");
        replace(&new, &target, &old, true).unwrap();
        assert_eq!(read(), "2");
    }
}
