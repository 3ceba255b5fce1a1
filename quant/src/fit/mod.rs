//! One group of weights to levels, a scale and perhaps a shift.
//!
//! Every fit takes the finite weights of one group, fills their levels and gives the scale. The
//! scale is rounded to f16 before the levels are chosen, so that what is stored is what was meant.
//! It is infinite where the weights are too large for f16; then the levels mean nothing.

pub mod int4;
pub mod int8;
mod places;
pub mod search;
pub mod ternary;

use half::f16;

use crate::levels::Levels;

/// What a group is fitted with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid {
    /// The levels there are.
    pub levels: Levels,
    /// How ternary levels are told from zero.
    pub rule: ternary::Rule,
    /// Whether a shift is added to every weight of the group.
    pub shift: bool,
}

/// What stands for a group beside its levels: a weight is `scale · level + shift`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupFit {
    /// Distance of neighbouring levels.
    pub scale: f16,
    /// The weight that level 0 stands for.
    pub shift: f16,
    /// Weights nearer to the shift than this many scales have level 0.
    pub band: f32,
}

/// The band of nearest levels.
pub(crate) const NEAREST: f32 = 0.5;

impl GroupFit {
    fn nearest(scale: f16) -> Self {
        GroupFit {
            scale,
            shift: f16::ZERO,
            band: NEAREST,
        }
    }

    /// The weight that `level` stands for.
    pub fn value(self, level: i8) -> f32 {
        self.scale.to_f32() * f32::from(level) + self.shift.to_f32()
    }

    /// The level of a weight; zero where the scale is.
    pub(crate) fn level(self, levels: Levels, w: f32) -> i8 {
        let x = (w - self.shift.to_f32()) / self.scale.to_f32();
        if !x.is_finite() || x.abs() <= self.band {
            return 0;
        }
        let (low, high) = levels.range();
        let nearest = round(x, f32::from(low), f32::from(high)) as i8;
        if nearest == 0 {
            x.signum() as i8
        } else {
            nearest
        }
    }
}

/// Fits one group; `importance` weighs the squared error of each weight.
///
/// Without importance and shift, ternary levels are the exact optimum of their rule.
///
/// Panics when the lengths differ.
#[inline(always)]
pub fn fit(w: &[f32], importance: Option<&[f32]>, grid: &Grid, levels: &mut [i8]) -> GroupFit {
    match (grid.levels, importance, grid.shift) {
        (Levels::Ternary, _, false) => ternary::fit_with_band(w, importance, grid.rule, levels),
        (Levels::Ternary, _, true) => ternary::fit_shifted(w, importance, grid.rule, levels),
        (Levels::Int4, None, false) => GroupFit::nearest(int4::fit(w, levels)),
        (Levels::Int8, None, false) => GroupFit::nearest(int8::fit(w, levels)),
        (Levels::Nine | Levels::Int4 | Levels::Int8, _, shifted) => {
            search::fit(w, importance, grid.levels, shifted, levels)
        }
    }
}

/// Nearest f16, half to even; one rounding from single precision on every processor. Never -0.
pub(crate) fn to_f16(scale: f64) -> f16 {
    f16::from_f32(scale as f32 + 0.0)
}

/// The largest magnitude. As integers, magnitudes are ordered as they are as numbers.
#[inline(always)]
fn largest(w: &[f32]) -> f32 {
    let bits = w.iter().map(|w| w.to_bits() & (u32::MAX >> 1));
    f32::from_bits(bits.fold(0, u32::max))
}

/// Adding it to a number below 2²² in magnitude leaves no bits for a fraction: the number is
/// rounded half to even, and the low bits of the sum hold the integer. Unlike
/// `f32::round_ties_even` this needs no instruction beyond SSE2, so loops over it become SIMD.
const NO_FRACTION: f32 = 12_582_912.0;

/// The nearest integer from `low` to `high`, both integers; half to even.
#[inline(always)]
fn round(value: f32, low: f32, high: f32) -> f32 {
    (value.clamp(low, high) + NO_FRACTION) - NO_FRACTION
}

/// Fills in the nearest levels from `low` to `high` under a scale that is not zero.
#[inline(always)]
fn assign(w: &[f32], scale: f16, (low, high): (f32, f32), levels: &mut [i8]) {
    let scale = scale.to_f32();
    for (level, w) in levels.iter_mut().zip(w) {
        *level = ((w / scale).clamp(low, high) + NO_FRACTION).to_bits() as i8;
    }
}
