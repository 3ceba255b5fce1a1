//! Divergences counted in bins.

use serde::{Deserialize, Serialize};

use crate::report::finite;

/// Counts of divergences in bins of equal width on a logarithmic scale. What lies below or above
/// the scale is counted in the first or last bin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KldHistogram {
    /// Decimal logarithm at which the first bin begins.
    #[serde(serialize_with = "finite")]
    pub log10_min: f64,
    /// Width of a bin in decimal logarithms.
    #[serde(serialize_with = "finite")]
    pub log10_step: f64,
    /// Tokens per bin.
    pub counts: Vec<u64>,
}

impl Default for KldHistogram {
    fn default() -> Self {
        KldHistogram {
            log10_min: -7.0,
            log10_step: 0.25,
            counts: vec![0; Self::BINS],
        }
    }
}

impl KldHistogram {
    pub(super) const BINS: usize = 36;

    /// Counts one divergence.
    pub fn add(&mut self, kld: f64) {
        // The cast sends everything below the scale, zero's minus infinity too, to 0.
        let bin = ((kld.log10() - self.log10_min) / self.log10_step) as usize;
        self.counts[bin.min(Self::BINS - 1)] += 1;
    }
}
