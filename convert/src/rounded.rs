//! Sources whose weights were rounded before.
//!
//! Owns the decision whether a conversion may start from them. Rounding twice loses twice, and what was
//! lost the first time is in no figure, for the figures compare with the source as it is. Three levels
//! that stay three levels lose nothing.

use neuroconv_format::Codec;
use neuroconv_recipes::Threshold;
use neuroconv_runtime::{Checkpoint, Rounded};

use crate::Error;
use crate::plan::{Plan, PlannedTensor};

/// Refuses a plan that rounds what was rounded before, unless that is allowed.
pub fn check_rounded(source: &Checkpoint, plan: &Plan, allow: bool) -> Result<(), Error> {
    match source.files().rounded() {
        Some(rounded) if !allow && !is_exact(source, &plan.tensors, &rounded) => {
            Err(Error::Rounded {
                path: source.files().path().to_owned(),
                found: rounded.how,
            })
        }
        _ => Ok(()),
    }
}

/// What a report says of such a source.
pub(crate) fn warning(source: &Checkpoint, tensors: &[PlannedTensor]) -> Option<String> {
    let rounded = source.files().rounded()?;
    let how = &rounded.how;
    Some(if is_exact(source, tensors, &rounded) {
        format!("the weights of the source were rounded before ({how}); their levels are kept")
    } else {
        format!(
            "the weights of the source were rounded before ({how}): what that lost is in no figure"
        )
    })
}

/// Whether every matrix that was rounded has three levels and keeps them.
fn is_exact(source: &Checkpoint, tensors: &[PlannedTensor], rounded: &Rounded) -> bool {
    let keeps = |tensor: &PlannedTensor| {
        let plain = tensor.packed().is_some_and(|packed| {
            let nearest = packed.spec.threshold == Threshold::Mse && !packed.spec.shift;
            packed.layout.codec() == Codec::Ternary && nearest && packed.parts.is_empty()
        });
        plain && !tensor.converted && !tensor.rewritten
    };
    rounded.ternary
        && tensors
            .iter()
            .filter(|tensor| source.files().decodes(&tensor.source))
            .all(keeps)
}
