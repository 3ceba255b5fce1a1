//! Importance matrices: what they weigh in a plan.
//!
//! Owns the agreement of names and widths. Matrices that are rounded by themselves weigh their
//! columns by it; those that are rounded with calibration text know more already, whole second
//! moments instead of their diagonal.

use std::sync::Arc;

use neuroconv_format::gguf::imatrix::{Imatrix, Importance};
use neuroconv_recipes::TensorId;

use crate::plan::{Plan, Storage};

/// Share of the mean importance that a column has at least: text that never used a column does not
/// make it worthless.
const FLOOR: f32 = 1e-3;

/// Why an importance matrix does not fit a plan. Names are those of the file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum ImportanceError {
    #[error("importance matrix: `{name}` is no matrix of this model")]
    Unknown { name: String },
    #[error("importance matrix: `{name}` is missing, which weighs tensor `{tensor}`")]
    Missing { name: String, tensor: TensorId },
    #[error("importance matrix: `{name}` is for {found} matrices that take turns, expected 1")]
    Several { name: String, found: usize },
    #[error("importance matrix: `{name}` was made of no tokens")]
    NoTokens { name: String },
    #[error(
        "importance matrix: `{name}` has {found} columns, expected {expected} of tensor `{tensor}`"
    )]
    Width {
        name: String,
        tensor: TensorId,
        expected: usize,
        found: usize,
    },
    #[error("tensor `{tensor}`: importance matrices have no place for what it reads")]
    NoPlace { tensor: TensorId },
    #[error(
        "recipe `{recipe}` rounds its matrices with calibration text, which leaves nothing for an \
         importance matrix to weigh"
    )]
    Contradiction { recipe: String },
}

impl ImportanceError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            ImportanceError::Contradiction { .. } => {
                "leave it out, for the text tells more, or add `--method rtn`"
            }
            ImportanceError::NoPlace { .. } => {
                "make it from the model that this one was made from, before its attention was converted"
            }
            ImportanceError::Unknown { .. }
            | ImportanceError::Missing { .. }
            | ImportanceError::Several { .. }
            | ImportanceError::NoTokens { .. }
            | ImportanceError::Width { .. } => {
                "make it from this very model, with enough text to reach every matrix"
            }
        };
        Some(hint.to_owned())
    }
}

impl Plan {
    /// Weighs the columns of matrices that are rounded by themselves as `imatrix` says. Each such
    /// matrix of a layer must have its entry, and each entry its matrix.
    pub fn weigh(&mut self, imatrix: &Imatrix) -> Result<(), ImportanceError> {
        for (name, entry) in &imatrix.entries {
            let tensor = TensorId::from_gguf(name)
                .and_then(|id| self.tensors.iter_mut().find(|tensor| tensor.id == id));
            let Some(tensor) = tensor.filter(|tensor| tensor.shape.len() == 2) else {
                return Err(ImportanceError::Unknown { name: name.clone() });
            };
            let weights = weights(name, entry, tensor.id, tensor.shape[1])?;
            if let Storage::Packed(packed) = &mut tensor.storage
                && !packed.how.learns()
            {
                packed.importance = Some(weights);
                tensor.reason += "; columns weighed by importance";
            }
        }
        let by_itself = |tensor: &&crate::PlannedTensor| {
            tensor.id.layer.is_some() && tensor.packed().is_some_and(|p| !p.how.learns())
        };
        let mut any = false;
        for tensor in self.tensors.iter().filter(by_itself) {
            let weighed = tensor.packed().is_some_and(|p| p.importance.is_some());
            if let (false, Some(name)) = (weighed, tensor.id.gguf_name()) {
                let tensor = tensor.id;
                return Err(ImportanceError::Missing { name, tensor });
            }
            any |= weighed;
        }
        if !any {
            return Err(ImportanceError::Contradiction {
                recipe: self.recipe.clone(),
            });
        }
        for name in &imatrix.ignored {
            let warning =
                format!("importance matrix: `{name}` is neither sums nor counts, not read");
            self.warnings.push(warning);
        }
        Ok(())
    }
}

/// What each of `columns` weighs.
fn weights(
    name: &str,
    entry: &Importance,
    tensor: TensorId,
    columns: usize,
) -> Result<Arc<[f32]>, ImportanceError> {
    let name = || name.to_owned();
    if entry.matrices() != 1 {
        return Err(ImportanceError::Several {
            name: name(),
            found: entry.matrices(),
        });
    }
    if entry.columns() != columns {
        return Err(ImportanceError::Width {
            name: name(),
            tensor,
            expected: columns,
            found: entry.columns(),
        });
    }
    if entry.counts == [0.0] {
        return Err(ImportanceError::NoTokens { name: name() });
    }
    let total: f64 = entry.sums.iter().map(|&h| f64::from(h)).sum();
    if total == 0.0 {
        return Ok(vec![1.0; columns].into());
    }
    // Of mean 1, so that no product with weights leaves single precision.
    let unit = columns as f64 / total;
    let weight = |&h: &f32| ((f64::from(h) * unit) as f32).max(FLOOR);
    Ok(entry.sums.iter().map(weight).collect())
}
