//! Finished units as the source of a conversion's tensors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use neuroconv_format::manifest::FileRecord;
use neuroconv_format::{SafetensorsFile, SharedBytes};
use neuroconv_recipes::Recipe;

use super::work::{SCHEMA_VERSION, UnitRecord};
use super::{Unit, UnitError, unit_folder};
use crate::Error;
use crate::job::SourceFiles;
use crate::journal::{Record, Stats};
use crate::ours;
use crate::plan::{Plan, PlannedTensor};

/// The folders of units of what goes to `output`, in order; of several splits the one that is complete.
pub fn units_beside(output: &Path) -> Result<Vec<PathBuf>, Error> {
    let parent = output.parent().filter(|p| !p.as_os_str().is_empty());
    let name = output.file_name().unwrap_or_default().to_string_lossy();
    let prefix = format!("{name}.unit-");
    let mut counts = Vec::new();
    for entry in fs_err::read_dir(parent.unwrap_or(Path::new(".")))? {
        let found = entry?.file_name().to_string_lossy().into_owned();
        let numbers = found
            .strip_prefix(&prefix)
            .and_then(|n| n.split_once("-of-"));
        let unit = numbers.and_then(|(i, n)| format!("{i}/{n}").parse::<Unit>().ok());
        counts.extend(unit.map(|unit| unit.of));
    }
    counts.sort_unstable();
    counts.dedup();
    let folders = |of: usize| -> Vec<PathBuf> {
        let all = Unit::all(of).map(|unit| unit_folder(output, unit));
        all.filter(|folder| folder.is_dir()).collect()
    };
    let complete = counts.iter().find(|&&of| folders(of).len() == of);
    match complete.or(counts.last()) {
        Some(&of) => Ok(folders(of)),
        None => Err(UnitError::None {
            output: output.to_owned(),
        }
        .into()),
    }
}

/// The recipe that a unit was made by.
pub fn recipe_of(folder: &Path) -> Result<Recipe, Error> {
    let path = folder.join(ours::RECIPE);
    let text = fs_err::read_to_string(&path).map_err(|e| UnitError::NotAUnit {
        path: folder.to_owned(),
        reason: e.to_string(),
    })?;
    Ok(Recipe::parse(&text, &path.display().to_string())?)
}

/// Units that belong together.
#[derive(Debug)]
pub(crate) struct UnitFiles {
    folders: Vec<(PathBuf, SafetensorsFile)>,
    /// The folder and the record of each tensor.
    tensors: BTreeMap<String, (usize, Record)>,
}

/// A tensor as a unit wrote it.
pub(crate) struct UnitTensor {
    pub(crate) bytes: SharedBytes,
    /// In the order of its plan.
    pub(crate) parts: Vec<SharedBytes>,
    pub(crate) stats: Option<Stats>,
}

impl UnitFiles {
    /// Opens the units in `folders`, which must hold every tensor of `plan`, made by the same recipe of
    /// the same files by the same version of this program.
    pub(crate) fn open(
        plan: &Plan,
        hashes: &SourceFiles,
        folders: &[PathBuf],
    ) -> Result<Self, Error> {
        let mut units = UnitFiles {
            folders: Vec::new(),
            tensors: BTreeMap::new(),
        };
        let source = hashes.records();
        let (mut of, mut found) = (0, Vec::new());
        for path in folders {
            let record = UnitRecord::read(path)?;
            check(plan, &source, path, &record)?;
            of = record.of;
            found.push(record.unit.to_string());
            let file = SafetensorsFile::open(path.join(ours::WEIGHTS))?;
            units.folders.push((path.clone(), file));
            let own = units.folders.len() - 1;
            let tensors = record.tensors.into_iter();
            units
                .tensors
                .extend(tensors.map(|t| (t.name.clone(), (own, t))));
        }
        let missing = |t: &&PlannedTensor| !units.tensors.contains_key(&t.id.to_string());
        if let Some(tensor) = plan.tensors.iter().find(missing) {
            return Err(UnitError::Missing {
                tensor: tensor.id.to_string(),
                of,
                found: found.join(", "),
            }
            .into());
        }
        Ok(units)
    }

    /// The bytes of a tensor, checked against the hashes that were written down with them.
    pub(crate) fn read(&self, tensor: &PlannedTensor) -> Result<UnitTensor, Error> {
        let name = tensor.id.to_string();
        let (folder, record) = &self.tensors[&name];
        let (path, file) = &self.folders[*folder];
        let read = |name: &str, blake3: &str| -> Result<SharedBytes, Error> {
            let damaged = || UnitError::Damaged {
                path: path.clone(),
                tensor: name.to_owned(),
            };
            let info = file.tensors().iter().find(|info| info.name == name);
            let bytes = file.read(info.ok_or_else(damaged)?)?;
            if blake3::hash(&bytes).to_hex().as_str() != blake3 {
                return Err(damaged().into());
            }
            Ok(bytes.into())
        };
        let planned = tensor.packed().map_or(&[][..], |packed| &packed.parts);
        let parts = planned.iter().zip(&record.parts);
        let parts = parts.map(|(part, record)| read(&part.name(&name), &record.blake3));
        Ok(UnitTensor {
            bytes: read(&name, &record.blake3)?,
            parts: parts.collect::<Result<_, Error>>()?,
            stats: record.stats,
        })
    }
}

/// Refuses a unit of another conversion.
fn check(
    plan: &Plan,
    source: &[FileRecord],
    path: &Path,
    record: &UnitRecord,
) -> Result<(), UnitError> {
    let same = |what: &str, expected: &str, found: &str| {
        if expected == found {
            return Ok(());
        }
        Err(UnitError::Other {
            path: path.to_owned(),
            what: what.to_owned(),
            expected: expected.to_owned(),
            found: found.to_owned(),
        })
    };
    let version = SCHEMA_VERSION.to_string();
    same(
        "the version of its form",
        &version,
        &record.schema_version.to_string(),
    )?;
    same(
        "the version of this program",
        env!("CARGO_PKG_VERSION"),
        &record.tool,
    )?;
    same(
        "the hash of its recipe",
        &plan.work_sha256,
        &record.recipe_sha256,
    )?;
    for file in &record.source {
        let now = source.iter().find(|now| now.path == file.path);
        let now = now.map_or("missing", |now| &now.sha256);
        same(&format!("the hash of `{}`", file.path), now, &file.sha256)?;
    }
    Ok(())
}
