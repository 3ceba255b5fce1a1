//! Why a model is not exported.

use std::path::PathBuf;

use neuroconv_recipes::TensorId;

use super::Engine;

/// Why an export stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The engine cannot carry the model.
    #[error("{engine} cannot run this model: {reason}")]
    Refused {
        /// The engine.
        engine: Engine,
        /// What it lacks.
        reason: String,
        /// What to do.
        hint: Option<String>,
    },
    /// The asked form of the weights does not hold what is stored.
    #[error("weights do not fit `{packing}`: {reason}")]
    Packing {
        /// The form.
        packing: &'static str,
        /// Why not.
        reason: String,
    },
    /// A number is too large for the element type of the export.
    #[error("tensor `{tensor}` has a number that is too large for {dtype}")]
    TooLarge {
        /// The tensor, as the export calls it.
        tensor: String,
        /// The element type.
        dtype: String,
    },
    /// The tokenizer has no counterpart.
    #[error("`{path}`: {reason}")]
    Tokenizer {
        /// The tokenizer's file.
        path: PathBuf,
        /// What is unknown about it.
        reason: String,
    },
    /// The source's configuration cannot be read.
    #[error("`{path}`: {reason}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The layer has too few different activations to fit anything to.
    #[error("layer {layer}: the activations of the calibration text do not determine a fit")]
    Degenerate {
        /// The layer.
        layer: usize,
    },
    /// The model was made of tensors that are not there.
    #[error("tensor `{0}` is in no export of this kind")]
    NoTensor(TensorId),
    /// Stopped from outside.
    #[error("interrupted: nothing was written under the final name")]
    Interrupted,
    /// The model could not be read.
    #[error(transparent)]
    Runtime(#[from] neuroconv_runtime::Error),
    /// The file would not be valid.
    #[error(transparent)]
    Format(#[from] neuroconv_format::Error),
    /// A name is unknown.
    #[error(transparent)]
    Recipe(#[from] neuroconv_recipes::Error),
    /// A fit on calibration text failed.
    #[error(transparent)]
    Fit(#[from] crate::mla::Error),
    /// Reading or writing failed; the message names the path.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl ExportError {
    /// What to do about it, where there is something to do.
    pub fn hint(&self) -> Option<String> {
        match self {
            ExportError::Refused { hint, .. } => hint.clone(),
            ExportError::Packing { .. } => {
                Some("`--weights dense` writes every weight as a plain number".to_owned())
            }
            ExportError::TooLarge { .. } => {
                Some("`--dtype bf16` or `f32` has the range".to_owned())
            }
            ExportError::Tokenizer { .. } => {
                Some("the checkpoint form (`--to hf`) copies the tokenizer as it is".to_owned())
            }
            ExportError::Degenerate { .. } => {
                Some("give a longer calibration text with `--calib`".to_owned())
            }
            ExportError::Runtime(error) => error.hint(),
            ExportError::Format(error) => error.hint(),
            ExportError::Recipe(error) => error.hint(),
            ExportError::Config { .. }
            | ExportError::NoTensor(_)
            | ExportError::Interrupted
            | ExportError::Fit(_)
            | ExportError::Io(_) => None,
        }
    }
}
