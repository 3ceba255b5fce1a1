//! Why a matrix cannot be quantized or decomposed.

use neuroconv_format::codec::LayoutError;

/// What can be wrong with what this crate is given.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The shape or group size has no packed layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The number of weights does not fit the shape.
    #[error("a matrix of {rows} x {cols} does not have {found} weights")]
    Length {
        /// Output features.
        rows: usize,
        /// Input features.
        cols: usize,
        /// Weights given.
        found: usize,
    },
    /// A weight is NaN or infinite.
    #[error("the weight in row {row}, column {col} is `{value}`")]
    NotFinite {
        /// Row of the weight.
        row: usize,
        /// Column of the weight.
        col: usize,
        /// The weight.
        value: f32,
    },
    /// The weights of a group are too large for an f16 scale.
    #[error("row {row}, group {group} needs a scale beyond f16: its largest weight is `{largest}`")]
    ScaleOverflow {
        /// Row of the group.
        row: usize,
        /// Index of the group in its row.
        group: usize,
        /// Largest magnitude in the group.
        largest: f32,
    },
    /// The share of zeros asked for is no share.
    #[error("sparsity `{0}` is not at least 0 and below 1")]
    Sparsity(f64),
    /// The weight of the entropy is no weight.
    #[error("rate-distortion weight `{0}` is not finite and at least 0")]
    Lambda(f64),
    /// A square matrix was needed.
    #[error("{operation} needs a square matrix, found {rows} x {cols}")]
    NotSquare {
        /// The decomposition.
        operation: &'static str,
        /// Rows found.
        rows: usize,
        /// Columns found.
        cols: usize,
    },
    /// Sides of a linear system do not fit together.
    #[error("a system of {expected} equations has a right-hand side of {found} rows")]
    SystemSize {
        /// Rows of the matrix.
        expected: usize,
        /// Rows of the right-hand side.
        found: usize,
    },
    /// A matrix to decompose holds NaN or infinity.
    #[error("{operation} of a matrix with values that are not finite")]
    NotFiniteMatrix {
        /// The decomposition.
        operation: &'static str,
    },
    /// An iteration did not converge.
    #[error("{operation} did not converge")]
    NoConvergence {
        /// The decomposition.
        operation: &'static str,
    },
    /// A Cholesky factor does not exist.
    #[error("the matrix is not positive definite")]
    NotPositiveDefinite,
}

impl Error {
    /// An error of some rows, the first of which is `first` of the matrix.
    pub(crate) fn below(self, first: usize) -> Self {
        match self {
            Error::NotFinite { row, col, value } => Error::NotFinite {
                row: first + row,
                col,
                value,
            },
            Error::ScaleOverflow {
                row,
                group,
                largest,
            } => Error::ScaleOverflow {
                row: first + row,
                group,
                largest,
            },
            other => other,
        }
    }

    /// What to do about it, where there is something to do.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Error::NotFinite { .. } => "the checkpoint is damaged: convert it from another copy",
            Error::ScaleOverflow { .. } => "keep this tensor dense in the recipe",
            Error::Sparsity(_) => "for example `sparsity:0.5`",
            Error::Lambda(_) => "for example `rd:0.01`",
            Error::NotPositiveDefinite => "add more to its diagonal",
            _ => return None,
        };
        Some(hint.to_owned())
    }
}
