//! Levels -127..=127: the largest magnitude of a group sets the scale.

use half::f16;

use super::assign;

const LEVELS: (f32, f32) = (-127.0, 127.0);

/// Fits one group: the scale is the largest magnitude over 127, rounded to f16 to that side where
/// the squared error is less.
///
/// Panics when `w` and `levels` differ in length.
#[inline(always)]
pub fn fit(w: &[f32], levels: &mut [i8]) -> f16 {
    assert_eq!(w.len(), levels.len(), "a level for each weight");
    let largest = super::largest(w);
    let nearest = super::to_f16(f64::from(largest) / 127.0);
    if largest == 0.0 || nearest.is_infinite() {
        levels.fill(0);
        return nearest;
    }
    if f64::from(nearest) * 127.0 >= f64::from(largest) {
        assign(w, nearest, LEVELS, levels);
        return nearest;
    }
    // Rounded down, the largest weights may be cut off; matters most among f16's subnormals.
    let above = f16::from_bits(nearest.to_bits() + 1);
    assign(w, above, LEVELS, levels);
    if nearest.to_bits() == 0 {
        return above;
    }
    let error_above = crate::stats::squared_error(w, levels, above.to_f32());
    let mut cut = [0; 256];
    let cut = &mut cut[..w.len()];
    assign(w, nearest, LEVELS, cut);
    if error_above < crate::stats::squared_error(w, cut, nearest.to_f32()) {
        return above;
    }
    levels.copy_from_slice(cut);
    nearest
}
