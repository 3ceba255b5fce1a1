//! The arithmetic of ternary, INT4 and INT8: fits, packing, error statistics; and the linear
//! algebra behind conversions.
//!
//! Owns how a matrix becomes levels and scales and what that costs in error. Does not know where
//! weights come from or what becomes of them.

#![expect(
    clippy::inline_always,
    reason = "what rounds a group is compiled once more for wide registers, see `quantize`"
)]

mod dequantize;
mod error;
pub mod fit;
pub mod gptq;
mod group;
mod levels;
pub mod linalg;
mod pack;
mod quantize;
mod stats;

pub use dequantize::{activation_bits, dequantize, dequantize_row, packed_view, residual};
pub use error::Error;
pub use group::choose_group;
pub use levels::Levels;
pub use neuroconv_recipes::Threshold;
pub use quantize::{QuantizeSpec, quantize, quantize_stored};
pub use stats::{FitStats, code_stats, relative_mse};
