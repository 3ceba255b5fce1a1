//! A GGUF file as llama.cpp and its relatives load it.

mod metadata;
mod names;
mod tokenizer;
mod types;

use std::path::Path;

use fs_err::os::unix::fs::FileExt as _;
use neuroconv_format::gguf::{GgmlType, GgufLayout, PlannedGguf};
use neuroconv_runtime::{Progress, WeightSource};

use super::foreign::Foreign;
use super::latent::mla_of;
use super::side::Side;
use super::{ExportError, Plan};

pub use types::{GgufOptions, TernaryType};

/// A file that is going to be written.
pub(crate) struct GgufPlan {
    tensors: Vec<Foreign>,
    types: Vec<GgmlType>,
    layout: GgufLayout,
}

/// Plans the file of `model`, whose other files are `side`.
pub(crate) fn plan(
    model: &dyn WeightSource,
    side: &Side,
    options: GgufOptions,
) -> Result<Plan<GgufPlan>, ExportError> {
    let spec = model.spec();
    let tensors = match mla_of(spec, 0) {
        None => names::own(spec)?,
        Some(mla) => names::latent(spec, mla)?,
    };
    let (types, notes) = types::choose(&tensors, model, options)?;
    let mut metadata = metadata::model(spec, side, &types)?;
    tokenizer::add(&mut metadata, spec, side)?;
    let planned: Vec<PlannedGguf> = tensors
        .iter()
        .zip(&types)
        .map(|(tensor, &kind)| PlannedGguf {
            name: tensor.name.clone(),
            kind,
            shape: tensor.shape.clone(),
        })
        .collect();
    let layout = GgufLayout::new(&metadata, &planned)?;
    Ok(Plan {
        bytes: layout.file_size(),
        tensors: tensors.len(),
        notes,
        written: GgufPlan {
            tensors,
            types,
            layout,
        },
    })
}

impl GgufPlan {
    /// Writes the file `path`.
    pub(crate) fn write(
        &self,
        path: &Path,
        model: &dyn WeightSource,
        progress: &dyn Progress,
        check: &dyn Fn() -> Result<(), ExportError>,
    ) -> Result<(), ExportError> {
        let file = fs_err::File::create_new(path)?;
        file.set_len(self.layout.file_size())?;
        file.write_all_at(self.layout.header_bytes(), 0)?;
        for (tensor, &kind) in self.tensors.iter().zip(&self.types) {
            check()?;
            let bytes = types::bytes(tensor, kind, model)?;
            let range = self
                .layout
                .range(&tensor.name)
                .expect("the layout has every tensor");
            assert_eq!(
                bytes.len() as u64,
                range.end - range.start,
                "the header told the size"
            );
            file.write_all_at(&bytes, range.start)?;
            progress.advance(1);
        }
        Ok(file.sync_all()?)
    }
}
