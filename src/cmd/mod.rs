//! One file per command: resolves what was typed, calls the libraries, prints through `ui`.

pub(crate) mod bench;
pub(crate) mod convert;
pub(crate) mod demo;
pub(crate) mod diff;
pub(crate) mod eval;
pub(crate) mod export;
pub(crate) mod gate;
pub(crate) mod generate;
pub(crate) mod imatrix;
pub(crate) mod inspect;
pub(crate) mod merge;
mod outcome;
pub(crate) mod plan;
pub(crate) mod schema;
pub(crate) mod verify;

use neuroconv_runtime::{Source, open_source, open_source_unchecked};

use crate::hub::Model;

/// Opens a model.
fn open(model: &Model) -> anyhow::Result<Source> {
    model.in_context(open_source(&model.path))
}

/// Opens a model to run it at once; its weights are still to be checked.
fn open_unchecked(model: &Model) -> anyhow::Result<Source> {
    model.in_context(open_source_unchecked(&model.path))
}
