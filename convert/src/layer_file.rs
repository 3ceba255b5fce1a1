//! One finished layer on disk: a safetensors file and a report.
//!
//! Owns the promise that a layer's file is whole when it stands under its name: it is written
//! beside it, synced and renamed, after the report. Does not know what the tensors mean.

use std::path::{Path, PathBuf};

use neuroconv_format::writer::{PlannedTensor, SafetensorsLayout};
use neuroconv_format::{DType, SharedBytes};
use serde::Serialize;

use crate::Error;
use crate::folder;
use crate::staging::sync_dir;

/// One tensor of a layer.
pub(crate) struct LayerTensor {
    pub(crate) name: String,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: SharedBytes,
}

/// Where the tensors of a layer lie in `dir`.
pub(crate) fn weights_path(dir: &Path, layer: usize) -> PathBuf {
    dir.join(format!("layer-{layer}.safetensors"))
}

/// Where the report on a layer lies in `dir`.
pub(crate) fn report_path(dir: &Path, layer: usize) -> PathBuf {
    dir.join(format!("layer-{layer}.json"))
}

/// Writes a layer into `dir`.
pub(crate) fn keep(
    dir: &Path,
    layer: usize,
    tensors: &[LayerTensor],
    report: &impl Serialize,
) -> Result<(), Error> {
    let json = serde_json::to_vec_pretty(report).expect("a report has finite numbers");
    folder::write(&report_path(dir, layer), &json)?;
    let partial = dir.join(format!("layer-{layer}.partial"));
    folder::write(&partial, &bytes(tensors)?)?;
    fs_err::File::open(&partial)?.sync_all()?;
    fs_err::rename(&partial, weights_path(dir, layer))?;
    sync_dir(dir)
}

/// A whole safetensors file.
fn bytes(tensors: &[LayerTensor]) -> Result<Vec<u8>, Error> {
    let planned = tensors.iter().map(|t| PlannedTensor {
        name: t.name.clone(),
        dtype: t.dtype,
        shape: t.shape.clone(),
    });
    let layout = SafetensorsLayout::new(planned.collect())?;
    let mut file = layout.header_bytes();
    file.resize(layout.file_size() as usize, 0);
    for tensor in tensors {
        let range = layout.range(&tensor.name).expect("it was laid out for it");
        file[range.start as usize..range.end as usize].copy_from_slice(&tensor.bytes);
    }
    Ok(file)
}
