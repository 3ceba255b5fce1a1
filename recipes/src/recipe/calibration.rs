//! What a conversion learned from, as a recipe records it.

use serde::Deserialize;

/// What was read for calibration. Part of the recipe, because other text gives other weights.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Name of the text, for people.
    pub text: String,
    /// SHA-256 of the text in hex.
    pub sha256: String,
    /// Tokens used.
    pub tokens: usize,
    /// Tokens per window.
    pub ctx: usize,
}

/// The importance matrix that weighed plain rounding. Part of the recipe, because another gives other
/// weights.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportanceFile {
    /// Name of the file, for people.
    pub file: String,
    /// SHA-256 of the file in hex.
    pub sha256: String,
}
