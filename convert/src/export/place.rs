//! An export on its way to its final name: made in a hidden folder, looked at there, then moved.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use neuroconv_runtime::Quiet;
use serde_json::{Value, json};

use crate::emit::{move_into_place, sync_tree};
use crate::export::side::Side;
use crate::job::hash_file;
use crate::staging::{Staging, remove_tree, sync_dir};
use crate::{Error, ours};

/// A complete export in its hidden folder.
///
/// Dropping it removes the folder.
#[derive(Debug)]
pub struct StagedExport {
    staging: Staging,
    folder: PathBuf,
    path: PathBuf,
}

impl StagedExport {
    /// The hidden folder beside the target, and in it the place of the export: a folder, or the file
    /// `file`.
    pub(crate) fn open(staging: Staging, file: Option<&str>) -> Result<Self, Error> {
        let folder = staging.export_folder()?;
        let path = folder.join(file.unwrap_or("export"));
        if file.is_none() {
            fs_err::create_dir(&path)?;
        }
        Ok(StagedExport {
            staging,
            folder,
            path,
        })
    }

    /// The export as it will be, under a name that nobody looks for.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes what says where a folder comes from: the card, and the record of the export with hashes
    /// of all files.
    pub fn describe(&self, side: &Side, card: &str, record: &Value) -> Result<(), Error> {
        fs_err::write(self.path.join("README.md"), card)?;
        let record = json!({
            "tool": { "name": "neuroconv", "version": env!("CARGO_PKG_VERSION") },
            "source": side.provenance,
            "export": record,
        });
        fs_err::create_dir_all(self.path.join(ours::FOLDER))?;
        let text = serde_json::to_string_pretty(&record).unwrap_or_default() + "\n";
        fs_err::write(self.path.join(ours::EXPORT), text)?;
        let mut sums = BTreeMap::new();
        for (name, path) in ours::files(&self.path)? {
            if let Some((sha256, _)) = hash_file(&path, &Quiet, &AtomicBool::new(false))? {
                sums.insert(name, sha256);
            }
        }
        Ok(fs_err::write(
            self.path.join(ours::SUMS),
            ours::sums(&sums),
        )?)
    }

    /// Writes tokenizer, templates and licences of the model.
    pub(crate) fn write_side(&self, side: &Side) -> Result<(), Error> {
        for (name, bytes) in &side.files {
            let to = self.path.join(name);
            if let Some(folder) = to.parent() {
                fs_err::create_dir_all(folder)?;
            }
            fs_err::write(to, bytes)?;
        }
        Ok(())
    }

    /// Moves the export to its final name, every byte on disk before.
    pub fn emit(self) -> Result<PathBuf, Error> {
        sync_tree(&self.folder)?;
        move_into_place(&self.staging, &self.path, &self.folder.join("old"))?;
        let target = self.staging.target().to_owned();
        sync_dir(self.staging.parent())?;
        Ok(target)
    }
}

impl Drop for StagedExport {
    fn drop(&mut self) {
        // What is left is hidden, and swept away by the next export of this name.
        let _ = remove_tree(&self.folder);
    }
}
