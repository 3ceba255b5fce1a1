//! From a checkpoint to a staged, and then an emitted, artifact.
//!
//! Owns the plan (the fate of every tensor, from headers alone), its execution, the staging
//! folder with lock and journal, and emission under the final name; and models of a hub, fetched into the
//! cache that other programs share ([`hub`]). Knows nothing of quality:
//! it is told the verdict, and emits nothing without one.
//!
//! ```no_run
//! use std::{path::Path, sync::atomic::AtomicBool};
//! use neuroconv_convert::{Emission, Error, Staging, execute, plan};
//! use neuroconv_runtime::{Checkpoint, Quiet};
//!
//! # fn convert(emission: &Emission) -> Result<(), Error> {
//! let source = Checkpoint::open(Path::new("model"))?;
//! let plan = plan(&source, &neuroconv_recipes::builtin("int4")?)?;
//! let staging = Staging::open(Path::new("out/model-int4"), false)?;
//! let staged = execute(&plan, &source, &[], staging, &Quiet, &AtomicBool::new(false))?;
//! // … open `staged.path()`, measure, judge, and write down the verdict …
//! staged.emit(emission, &Quiet)?;
//! # Ok(())
//! # }
//! ```

pub mod allocate;
pub mod calibrated;
pub mod card;
mod dense;
mod emit;
mod error;
mod execute;
pub mod export;
mod folder;
mod folding;
mod gather;
pub mod hub;
mod importance;
mod job;
mod journal;
mod layer_file;
pub mod mla;
mod origin;
mod ours;
mod outliers;
pub mod pass;
mod passage;
mod pipeline;
pub mod plan;
mod rounded;
mod staging;
mod trial;
pub mod unit;
mod weights;

pub use calibrated::{LayerRounding, MatrixRounding};
pub use card::Card;
pub use emit::{Emission, StagedArtifact};
pub use error::Error;
pub use execute::{execute, merge};
pub use folding::norms_to_fold;
pub use gather::gather_importance;
pub use importance::ImportanceError;
pub use outliers::Survey;
pub use pass::{ConvertedLayers, ConvertedModel, LayerReport, convert_attention};
pub use plan::{Plan, PlannedSource, PlannedTensor, plan};
pub use rounded::check_rounded;
pub use staging::Staging;
pub use trial::first_layers;
