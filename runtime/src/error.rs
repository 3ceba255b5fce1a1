//! Everything that can go wrong while a model is opened or run.

use neuroconv_recipes::TensorId;

/// Why a model could not be opened or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model has no such tensor.
    #[error("the model has no tensor `{0}`")]
    NoTensor(TensorId),
}
