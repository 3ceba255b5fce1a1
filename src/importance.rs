//! Files of importance matrices: read and added up before a conversion, written after sums were made.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use neuroconv_convert::{Error as ConvertError, StagedArtifact};
use neuroconv_format::gguf::Imatrix;
use neuroconv_recipes::{ImportanceFile, Recipe};

use crate::args::{ImportanceArgs, PlaceArgs};
use crate::calibration::CalibrationText;
use crate::failure::Misuse;

/// Reads the files that weigh the columns, and records them in the recipe.
pub(crate) fn read(args: &ImportanceArgs, recipe: &mut Recipe) -> anyhow::Result<Option<Imatrix>> {
    let [first, others @ ..] = args.imatrix.as_slice() else {
        return match &recipe.importance {
            None => Ok(None),
            Some(importance) => Err(Misuse::new(
                format!(
                    "recipe `{}` weighs columns by the importance matrix `{}`",
                    recipe.name, importance.file
                ),
                "name the file with --imatrix, or remove `[importance]` from the recipe",
            )
            .into()),
        };
    };
    let mut imatrix = Imatrix::open(first)?;
    let mut importance = importance_file(first)?;
    for path in others {
        add(&mut imatrix, &Imatrix::open(path)?, path)?;
        let other = importance_file(path)?;
        importance.file = format!("{} + {}", importance.file, other.file);
        importance.sha256 = format!("{} + {}", importance.sha256, other.sha256);
    }
    recipe.importance = Some(importance);
    Ok(Some(imatrix))
}

/// Adds `other`, which was read from `path`.
fn add(imatrix: &mut Imatrix, other: &Imatrix, path: &Path) -> Result<(), Misuse> {
    imatrix.add(other).map_err(|matrix| {
        Misuse::new(
            format!(
                "`{}`: `{matrix}` has another shape than before",
                path.display()
            ),
            "add importance matrices of one model only",
        )
    })
}

/// Adds up the files of parts of a text. Parts are of the same matrices, and no part counts twice.
pub(crate) fn sum_of_parts(paths: &[PathBuf]) -> anyhow::Result<Imatrix> {
    let mut sum: Option<Imatrix> = None;
    let mut seen: BTreeMap<String, &Path> = BTreeMap::new();
    for path in paths {
        let sha256 = neuroconv_format::sha256_file(path)?;
        if let Some(same) = seen.insert(sha256, path) {
            return Err(Misuse::new(
                format!("`{}` is `{}` once more", path.display(), same.display()),
                "name every part once",
            )
            .into());
        }
        let part = Imatrix::open(path)?;
        match &mut sum {
            None => sum = Some(part),
            Some(sum) => {
                check_same(sum, &part, path)?;
                add(sum, &part, path)?;
            }
        }
    }
    let sum = sum.unwrap_or_default();
    // A sum that left single precision would make a file that nobody reads.
    let mut entries = sum.entries.iter();
    if let Some((matrix, _)) =
        entries.find(|(_, entry)| !entry.sums.iter().all(|sum| sum.is_finite()))
    {
        return Err(Misuse::new(
            format!("the sums of `{matrix}` are too large for a file"),
            "leave out parts whose sums are out of all proportion",
        )
        .into());
    }
    Ok(sum)
}

/// Refuses the file of a part whose matrices or windows are others.
fn check_same(sum: &Imatrix, part: &Imatrix, path: &Path) -> Result<(), Misuse> {
    let path = path.display();
    let lacks = |a: &Imatrix, b: &Imatrix| {
        let mut names = a.entries.keys();
        names.find(|name| !b.entries.contains_key(*name)).cloned()
    };
    let why = if let Some(matrix) = lacks(sum, part) {
        format!("`{path}`: `{matrix}` is missing, which the files before have")
    } else if let Some(matrix) = lacks(part, sum) {
        format!("`{path}`: `{matrix}` is in none of the files before")
    } else if sum.chunk_tokens != part.chunk_tokens {
        format!(
            "`{path}`: windows of {} tokens, expected {} as in the files before",
            part.chunk_tokens, sum.chunk_tokens
        )
    } else {
        return Ok(());
    };
    Err(Misuse::new(
        why,
        "merge parts that were made of one model with the same flags",
    ))
}

fn importance_file(path: &Path) -> anyhow::Result<ImportanceFile> {
    let name = path.file_name().unwrap_or(path.as_os_str());
    Ok(ImportanceFile {
        file: name.to_string_lossy().into_owned(),
        sha256: neuroconv_format::sha256_file(path)?,
    })
}

/// Refuses what could not be written in the end, before hours of work.
pub(crate) fn check_save(
    args: &ImportanceArgs,
    overwrite: bool,
    learns: bool,
) -> anyhow::Result<()> {
    let Some(path) = &args.save_imatrix else {
        return Ok(());
    };
    if !learns {
        return Err(Misuse::new(
            "--save-imatrix: nothing is learned from calibration text here, so there is no importance",
            "convert with calibration text, as `int4` and `ternary` do by default",
        )
        .into());
    }
    if path.is_dir() || (path.exists() && !overwrite) {
        return Err(Misuse::new(
            format!("`{}` exists already", path.display()),
            "choose another name for --save-imatrix, or replace it with `--overwrite`",
        )
        .into());
    }
    Ok(check_folder(path)?)
}

/// Refuses a place that a file could not take in the end, before any work.
pub(crate) fn check_place(place: &PlaceArgs) -> anyhow::Result<()> {
    let path = &place.output;
    if path.is_dir() {
        return Err(Misuse::new(
            format!("`{}` is a folder", path.display()),
            "give the file by name, as in `-o importance.gguf`",
        )
        .into());
    }
    if path.symlink_metadata().is_ok() && !place.overwrite {
        return Err(taken(path).into());
    }
    Ok(check_folder(path)?)
}

fn taken(path: &Path) -> ConvertError {
    ConvertError::OutputExists {
        path: path.to_owned(),
    }
}

fn check_folder(path: &Path) -> Result<(), Misuse> {
    let parent = folder(path);
    if parent.is_dir() {
        return Ok(());
    }
    Err(Misuse::new(
        format!("`{}`: there is no such folder", parent.display()),
        "make the folder first",
    ))
}

/// Writes what the source gave to its matrices.
pub(crate) fn save(
    path: &Path,
    staged: &StagedArtifact,
    text: &CalibrationText,
) -> anyhow::Result<()> {
    let texts = text.record.iter();
    let imatrix = Imatrix {
        datasets: texts.map(|record| record.text.clone()).collect(),
        chunks: size(text.windows.len()),
        chunk_tokens: size(text.record.as_ref().map_or(0, |record| record.ctx)),
        entries: staged.importance()?,
        ignored: Vec::new(),
    };
    write(path, &imatrix, true)
}

/// A count as a file has it.
pub(crate) fn size(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Writes a file, under the final name only when all of it is on the disk. One that came there in the
/// meantime stays, unless it is to be replaced.
pub(crate) fn write(path: &Path, imatrix: &Imatrix, overwrite: bool) -> anyhow::Result<()> {
    let bytes = imatrix.to_bytes()?;
    let parent = folder(path);
    let mut file = tempfile::Builder::new()
        .prefix(".neuroconv-imatrix-")
        // What the user's mask leaves of it, as for any other file.
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(parent)?;
    file.write_all(&bytes)?;
    file.as_file().sync_all()?;
    let renamed = if overwrite {
        file.persist(path)
    } else {
        file.persist_noclobber(path)
    };
    if let Err(failed) = renamed {
        return Err(match failed.error.kind() {
            ErrorKind::AlreadyExists => taken(path).into(),
            _ => failed.error.into(),
        });
    }
    Ok(fs_err::File::open(parent)?.sync_all()?)
}

fn folder(path: &Path) -> &Path {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}
