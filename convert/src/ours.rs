//! What an existing output is: an artifact of this program, and of which job.
//!
//! Owns `neuroconv/SHA256SUMS`, the list of all files of an artifact, because it is what tells
//! a folder that may be replaced from one that holds somebody's work.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use neuroconv_format::artifact::Artifact;
use neuroconv_format::gguf::GgufFile;
use neuroconv_format::manifest::Manifest;

use crate::Error;
use crate::job::JobId;

/// Folder of everything that is ours in an artifact.
pub(crate) const FOLDER: &str = "neuroconv";
/// The manifest.
pub(crate) const MANIFEST: &str = "neuroconv/manifest.json";
/// The resolved recipe.
pub(crate) const RECIPE: &str = "neuroconv/recipe.toml";
/// What an export was made of.
pub(crate) const EXPORT: &str = "neuroconv/export.json";
/// What a unit of a conversion was made of.
pub(crate) const UNIT: &str = "neuroconv/unit.json";
/// The key by which a GGUF file of ours is known; its value is the version of this program.
pub(crate) const GGUF_KEY: &str = "neuroconv.version";
/// The hashes of all other files.
pub(crate) const SUMS: &str = "neuroconv/SHA256SUMS";
/// The weights.
pub(crate) const WEIGHTS: &str = "model.safetensors";

/// Refuses whatever may not be replaced: everything but an empty folder, an artifact, an export or a
/// unit in which each file is listed, and a GGUF file that this program wrote.
pub(crate) fn check(target: &Path) -> Result<(), Error> {
    let foreign = |path: PathBuf| Error::OutputForeign {
        path: target.to_owned(),
        foreign: path,
    };
    if !fs_err::symlink_metadata(target)?.is_dir() {
        let ours = GgufFile::open(target).is_ok_and(|f| f.metadata().get(GGUF_KEY).is_some());
        return if ours {
            Ok(())
        } else {
            Err(foreign(target.to_owned()))
        };
    }
    let known = Artifact::is_artifact(target)
        || target.join(EXPORT).is_file()
        || target.join(UNIT).is_file();
    let listed = match fs_err::read_to_string(target.join(SUMS)) {
        Ok(sums) if known => listed(&sums),
        _ => BTreeSet::new(),
    };
    match files(target)?
        .into_keys()
        .find(|path| path != SUMS && !listed.contains(path))
    {
        Some(path) => Err(foreign(target.join(path))),
        None => Ok(()),
    }
}

/// The job of the artifact at `target`, if there is a readable one.
pub(crate) fn job(target: &Path) -> Option<JobId> {
    let path = target.join(MANIFEST);
    Some(JobId::of(
        &Manifest::parse(&fs_err::read(&path).ok()?, &path).ok()?,
    ))
}

/// The paths in a list of hashes.
fn listed(sums: &str) -> BTreeSet<String> {
    sums.lines()
        .filter_map(|line| Some(line.split_once("  ")?.1.to_owned()))
        .collect()
}

/// The list of hashes of `files`, path to SHA-256, as `sha256sum -c` reads it.
pub(crate) fn sums(files: &BTreeMap<String, String>) -> String {
    let mut out = String::new();
    for (path, sha256) in files {
        let _ = writeln!(out, "{sha256}  {path}");
    }
    out
}

/// All files below `root`, relative path (with `/`) to full path; a link is a file.
pub(crate) fn files(root: &Path) -> Result<BTreeMap<String, PathBuf>, Error> {
    let mut found = BTreeMap::new();
    let mut pending = vec![(String::new(), root.to_owned())];
    while let Some((prefix, folder)) = pending.pop() {
        for entry in fs_err::read_dir(folder)? {
            let entry = entry?;
            let relative = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if entry.file_type()?.is_dir() {
                pending.push((relative + "/", entry.path()));
            } else {
                found.insert(relative, entry.path());
            }
        }
    }
    Ok(found)
}
