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

/// Adding it to a number below 2²² in magnitude leaves no bits for a fraction: the number is
/// rounded half to even, and the low bits of the sum hold the integer. Unlike
/// `f32::round_ties_even` this needs no instruction beyond SSE2, so loops over it become SIMD.
const NO_FRACTION: f32 = 12_582_912.0;

/// The nearest integer from `low` to `high`, both integers; half to even.
fn round(value: f32, low: f32, high: f32) -> f32 {
    (value.clamp(low, high) + NO_FRACTION) - NO_FRACTION
}

/// Fills in the nearest levels from `low` to `high` under a scale that is not zero.
fn assign(w: &[f32], scale: f16, (low, high): (f32, f32), levels: &mut [i8]) {
    let scale = scale.to_f32();
    for (level, w) in levels.iter_mut().zip(w) {
        *level = ((w / scale).clamp(low, high) + NO_FRACTION).to_bits() as i8;
    }
}
