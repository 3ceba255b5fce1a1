//! One unit: its tensors rounded, and a folder that says of what.
//!
//! ```text
//! OUT.unit-2-of-4/model.safetensors       the tensors, at places of their own
//! OUT.unit-2-of-4/neuroconv/unit.json     what they were made of, and how well each fits
//! OUT.unit-2-of-4/neuroconv/recipe.toml   the recipe, as given
//! OUT.unit-2-of-4/neuroconv/SHA256SUMS    of the other files
//! ```

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use neuroconv_format::manifest::FileRecord;
use neuroconv_runtime::{Checkpoint, Progress};
use serde::{Deserialize, Serialize};

use super::{Unit, UnitError};
use crate::emit::{move_into_place, sync_tree};
use crate::execute::Run;
use crate::job::{JobId, SourceFiles, hash_file, sha256};
use crate::journal::Record;
use crate::plan::{Plan, REPORTS_BYTES};
use crate::staging::{Staging, sync_dir};
use crate::weights::WeightsFile;
use crate::{Error, folder, ours};

/// The version of `unit.json`.
pub(super) const SCHEMA_VERSION: u32 = 1;

/// What a unit was made of, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UnitRecord {
    pub(super) schema_version: u32,
    /// Version of this program.
    pub(super) tool: String,
    pub(super) unit: usize,
    pub(super) of: usize,
    /// Of the recipe without its limits, which only a merge judges by.
    pub(super) recipe_sha256: String,
    /// The files that its tensors were read from.
    pub(super) source: Vec<FileRecord>,
    /// Its tensors; places are those in the unit's file.
    pub(super) tensors: Vec<Record>,
}

impl UnitRecord {
    fn of(plan: &Plan, unit: Unit, hashes: &SourceFiles) -> Self {
        UnitRecord {
            schema_version: SCHEMA_VERSION,
            tool: env!("CARGO_PKG_VERSION").to_owned(),
            unit: unit.index,
            of: unit.of,
            recipe_sha256: plan.work_sha256.clone(),
            source: hashes.records(),
            tensors: Vec::new(),
        }
    }

    fn to_json(&self) -> String {
        let json = serde_json::to_string_pretty(self).expect("a record has string keys only");
        json + "\n"
    }

    /// What the folder `path` says of itself.
    pub(super) fn read(path: &Path) -> Result<Self, UnitError> {
        let refuse = |reason: String| UnitError::NotAUnit {
            path: path.to_owned(),
            reason,
        };
        let text = fs_err::read(path.join(ours::UNIT)).map_err(|e| refuse(e.to_string()))?;
        serde_json::from_slice(&text).map_err(|e| refuse(format!("`{}`: {e}", ours::UNIT)))
    }

    /// The same before anything was done.
    fn begun(mut self) -> Self {
        self.tensors.clear();
        self
    }
}

/// Where a unit of what goes to `output` goes.
pub fn unit_folder(output: &Path, unit: Unit) -> PathBuf {
    let mut name = OsString::from(output.file_name().unwrap_or_default());
    name.push(format!(".unit-{}-of-{}", unit.index, unit.of));
    output.with_file_name(name)
}

/// Rounds the tensors of `unit` and puts them into a folder beside `output`; gives that folder. A
/// finished unit of the same work is left as it is. A run that was killed or cancelled goes on where it
/// stopped.
pub fn convert_unit(
    plan: &Plan,
    source: &Checkpoint,
    unit: Unit,
    output: &Path,
    overwrite: bool,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<PathBuf, Error> {
    let part = plan.unit(unit)?;
    let target = unit_folder(output, unit);
    let total = part.tensors.len();
    let files = read_by(&part, source)?;
    let hashes = SourceFiles::hash(source.files().folder(), files, progress, cancel)?;
    let hashes = hashes.ok_or(Error::Interrupted {
        staging: None,
        done: 0,
        total,
        unit: "tensors",
    })?;
    let record = UnitRecord::of(&part, unit, &hashes);
    let staging = Staging::claim(&target, overwrite)?;
    let job = JobId::of_text(&record.to_json());
    if UnitRecord::read(&target).is_ok_and(|found| found.begun() == record) {
        staging.sweep(&job)?;
        return Ok(target);
    }
    staging.check_replaceable()?;
    let (work, _) = staging.enter(&job)?;
    let run = Run {
        plan: &part,
        source,
        calibration: &[],
        units: None,
        hashes: &hashes,
        staging: &staging,
        work: &work,
        progress,
        cancel,
    };
    match fill(&run, record) {
        Ok(()) => {}
        Err(error) if error.is_resumable() => return Err(error),
        Err(error) => {
            let _ = work.remove().and_then(|()| sync_dir(staging.parent()));
            return Err(error);
        }
    }
    move_into_place(&staging, &work.artifact(), &work.path().join("old"))?;
    sync_dir(staging.parent())?;
    work.remove()?;
    sync_dir(staging.parent())?;
    Ok(target)
}

/// Everything that stands in the folder.
fn fill(run: &Run<'_>, mut record: UnitRecord) -> Result<(), Error> {
    let (plan, folder) = (run.plan, run.work.artifact());
    run.work.clear_except(ours::WEIGHTS)?;
    let path = folder.join(ours::WEIGHTS);
    let weights = WeightsFile::open(path, plan.weights_bytes, REPORTS_BYTES)?;
    let (mut records, _) = run.tensors(&weights, None, None)?;
    weights.write_at(&plan.layout.header_bytes(), 0)?;
    weights.sync()?;
    run.hashes.check_unchanged()?;
    let names = plan.tensors.iter().map(|tensor| tensor.id.to_string());
    record.tensors = names.filter_map(|name| records.remove(&name)).collect();
    fs_err::create_dir_all(folder.join(ours::FOLDER))?;
    let recipe = plan.recipe_toml.as_bytes();
    folder::write(&folder.join(ours::RECIPE), recipe)?;
    let json = record.to_json();
    folder::write(&folder.join(ours::UNIT), json.as_bytes())?;
    let hash = hash_file(
        &folder.join(ours::WEIGHTS),
        run.progress,
        &AtomicBool::new(false),
    )?;
    let sums = BTreeMap::from([
        (ours::UNIT.to_owned(), sha256(json.as_bytes())),
        (ours::RECIPE.to_owned(), sha256(recipe)),
        (ours::WEIGHTS.to_owned(), hash.unwrap_or_default().0),
    ]);
    folder::write(&folder.join(ours::SUMS), ours::sums(&sums).as_bytes())?;
    sync_tree(&folder)
}

/// The files that the tensors of a plan are read from, and the configuration.
fn read_by(plan: &Plan, source: &Checkpoint) -> Result<Vec<PathBuf>, Error> {
    let files = source.files();
    let whole = !plan.rewrites.is_empty();
    let own = |tensor: &crate::plan::PlannedTensor| files.file_of(&tensor.source);
    let of_tensors: Option<Vec<PathBuf>> = plan.tensors.iter().map(own).collect();
    match of_tensors {
        Some(mut paths) if !whole => {
            if let neuroconv_runtime::SideContent::Stored(path) = files.config_file().content {
                paths.push(path);
            }
            Ok(paths)
        }
        // What a tensor is made of may stand anywhere.
        _ => Ok(files.all_files()?),
    }
}
