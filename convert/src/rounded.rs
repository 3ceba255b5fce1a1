//! Sources whose weights were rounded before.
//!
//! Owns the decision whether a conversion may start from them. Rounding twice loses twice, and what was
//! lost the first time is in no figure, for the figures compare with the source as it is.

use neuroconv_runtime::Checkpoint;

use crate::Error;

/// Refuses a source whose weights were rounded before, unless that is allowed.
pub fn check_rounded(source: &Checkpoint, allow: bool) -> Result<(), Error> {
    match source.files().rounded() {
        Some(found) if !allow => Err(Error::Rounded {
            path: source.files().path().to_owned(),
            found,
        }),
        _ => Ok(()),
    }
}

/// What a report says of such a source.
pub(crate) fn warning(source: &Checkpoint) -> Option<String> {
    let found = source.files().rounded()?;
    Some(format!(
        "the weights of the source were rounded before ({found}): what that lost is in no figure"
    ))
}
