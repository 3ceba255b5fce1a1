//! How many bits each matrix gets: what every way to store it would cost, measured, and the
//! choice that costs least at a size.
//!
//! Two things are measured in one pass over the source, layer by layer. For every matrix and every
//! way to store it: the error of its outputs for calibration text. For every matrix once: the
//! residual streams after the last layer when that matrix alone is rounded, from which whoever
//! knows models as a whole tells the loss. A loss grows as the error of the outputs that causes it,
//! so both together estimate the loss of every choice. Knows nothing of quality itself.

mod choose;
mod measure;
mod options;
#[cfg(test)]
mod tests;

pub use choose::{Allocation, Allocator};
pub use measure::{Measured, MeasuredMatrix, Probe, StorageOption, measure};
pub use options::Options;
