//! Importance matrices of other programs: read before a conversion, written after it.

use std::io::Write as _;
use std::path::Path;

use neuroconv_convert::StagedArtifact;
use neuroconv_format::gguf::Imatrix;
use neuroconv_recipes::{ImportanceFile, Recipe};

use crate::args::ImportanceArgs;
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
        imatrix.add(&Imatrix::open(path)?).map_err(|matrix| {
            Misuse::new(
                format!(
                    "`{}`: `{matrix}` has another shape than before",
                    path.display()
                ),
                "add importance matrices of one model only",
            )
        })?;
        let other = importance_file(path)?;
        importance.file = format!("{} + {}", importance.file, other.file);
        importance.sha256 = format!("{} + {}", importance.sha256, other.sha256);
    }
    recipe.importance = Some(importance);
    Ok(Some(imatrix))
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
    let parent = folder(path);
    if !parent.is_dir() {
        return Err(Misuse::new(
            format!("`{}`: there is no such folder", parent.display()),
            "make the folder first",
        )
        .into());
    }
    Ok(())
}

/// Writes what the source gave to its matrices, under the final name only when it is complete.
pub(crate) fn save(
    path: &Path,
    staged: &StagedArtifact,
    text: &CalibrationText,
) -> anyhow::Result<()> {
    let size = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let imatrix = Imatrix {
        datasets: text
            .record
            .iter()
            .map(|record| record.text.clone())
            .collect(),
        chunks: size(text.windows.len()),
        chunk_tokens: size(text.record.as_ref().map_or(0, |record| record.ctx)),
        entries: staged.importance()?,
        ignored: Vec::new(),
    };
    let bytes = imatrix.to_bytes()?;
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let mut file = fs_err::File::create(&partial)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    Ok(fs_err::rename(&partial, path)?)
}

fn folder(path: &Path) -> &Path {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}
