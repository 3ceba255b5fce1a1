//! Why a layer cannot be converted.

use neuroconv_recipes::TensorId;

/// What stops the arithmetic of a conversion.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor of the source could not be read.
    #[error("tensor `{tensor}`: cannot be read")]
    Read {
        /// The tensor.
        tensor: TensorId,
        /// Why.
        source: Box<neuroconv_runtime::Error>,
    },
    /// A layer attends to a window only: its cache is bounded already.
    #[error("layer {layer}: sliding-window attention is not converted")]
    SlidingWindow {
        /// The layer.
        layer: usize,
    },
    /// A layer does not rotate its keys.
    #[error("layer {layer}: attention without rotary embedding is not converted")]
    NoRotation {
        /// The layer.
        layer: usize,
    },
    /// A layer attends to a latent already.
    #[error("layer {layer}: has a latent already")]
    HasLatent {
        /// The layer.
        layer: usize,
    },
    /// An eigendecomposition did not converge: its input holds values that are not finite.
    #[error("an eigendecomposition did not converge")]
    NoConvergence,
    /// A decomposition failed: the calibration text makes a matrix that is not finite.
    #[error(transparent)]
    Decomposition(#[from] neuroconv_quant::Error),
    /// The number of rotated channels asked for cannot be had.
    #[error("rope dimension {rope}: expected an even number of at most {most}")]
    RopeDim {
        /// Channels asked for.
        rope: usize,
        /// The most this layer has: every pair of every key/value head.
        most: usize,
    },
    /// The stock frequency table needs a rope dimension that divides the head.
    #[error(
        "the stock frequency table needs a rope dimension that divides {head_dim}, found {rope}"
    )]
    StockRopeDim {
        /// Channels asked for.
        rope: usize,
        /// Width of one head.
        head_dim: usize,
    },
    /// No balance of keys and values was given to try.
    #[error("no balance of values against keys to try")]
    NoBalance,
    /// The caller stopped between two layers.
    #[error("stopped between two layers")]
    Stopped,
    /// Too little calibration text.
    #[error("calibration needs at least {least} windows, found {found}")]
    FewWindows {
        /// Windows given.
        found: usize,
        /// Windows needed.
        least: usize,
    },
    /// Windows of calibration text that differ in length or are empty.
    #[error("calibration window {index} has {found} tokens, expected {expected} and at least one")]
    WindowLength {
        /// The window.
        index: usize,
        /// Tokens it has.
        found: usize,
        /// Tokens of the first.
        expected: usize,
    },
    /// A token that the embedding has no row for.
    #[error("calibration token `{token}` is not below the vocabulary of {vocab}")]
    Token {
        /// The token.
        token: u32,
        /// Rows of the embedding.
        vocab: usize,
    },
}

impl Error {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Read { source, .. } => source.hint(),
            Error::SlidingWindow { layer }
            | Error::NoRotation { layer }
            | Error::HasLatent { layer } => {
                Some(format!("keep the layer as it is: --keep-layers {layer}"))
            }
            Error::NoConvergence | Error::Decomposition(_) => Some(
                "the checkpoint or the calibration text is damaged; check it with `eval`"
                    .to_owned(),
            ),
            Error::RopeDim { most, .. } => Some(format!("ask for --rope-dim {most} or less")),
            Error::StockRopeDim { head_dim, .. } => {
                Some(format!("ask for --rope-dim {head_dim} or {}", head_dim / 2))
            }
            Error::FewWindows { .. } => Some(
                "name a longer text with --calib, or shorter windows with --calib-ctx".to_owned(),
            ),
            Error::WindowLength { .. }
            | Error::Token { .. }
            | Error::NoBalance
            | Error::Stopped => None,
        }
    }
}
