//! One group of weights to levels and a scale.
//!
//! Every fit takes the finite weights of one group, fills their levels and gives the scale. The
//! scale is rounded to f16 before the levels are chosen, so that what is stored is what was meant.
//! It is infinite where the weights are too large for f16; then the levels mean nothing.

pub mod int4;
pub mod int8;
pub mod ternary;

use half::f16;

/// Nearest f16, half to even; one rounding from single precision on every processor. Never -0.
fn to_f16(scale: f64) -> f16 {
    f16::from_f32(scale as f32 + 0.0)
}

/// The nearest integer, half to even, of a number below 2²² in magnitude; larger ones stay large.
///
/// Adding 1.5 · 2²³ leaves no bits for a fraction. Unlike `f32::round_ties_even` it needs no
/// instruction beyond SSE2, and loops over it become SIMD.
fn round(value: f32) -> f32 {
    const NO_FRACTION: f32 = 12_582_912.0;
    (value + NO_FRACTION) - NO_FRACTION
}
