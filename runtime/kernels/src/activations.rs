//! Activations in eight or sixteen bits: what packed weights are multiplied with.

use std::sync::OnceLock;

use rayon::prelude::*;

/// Rows below this many elements are quantized without other threads.
const PARALLEL_ELEMENTS: usize = 1 << 15;

/// What a code of sixteen bits counts its high plane in: `code = 255 * high + low`, both planes
/// from -127 to 127, so that either may stand where a code of eight bits does.
pub(crate) const PLANE_BASE: i32 = 255;

/// How finely activations are quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActivationBits {
    /// Codes from -127 to 127.
    Eight,
    /// Codes from -32512 to 32512, in two planes.
    Sixteen,
}

impl ActivationBits {
    /// Both.
    pub const ALL: [ActivationBits; 2] = [ActivationBits::Eight, ActivationBits::Sixteen];

    /// Planes of codes.
    pub const fn planes(self) -> usize {
        match self {
            ActivationBits::Eight => 1,
            ActivationBits::Sixteen => 2,
        }
    }

    /// The largest code.
    const fn largest(self) -> f32 {
        match self {
            ActivationBits::Eight => 127.0,
            ActivationBits::Sixteen => (PLANE_BASE * 127 + 127) as f32,
        }
    }
}

/// Rows of activations, each group of columns with its own scale: `x ≈ scale * code`.
#[derive(Clone, Debug)]
pub struct Activations {
    rows: usize,
    cols: usize,
    group: usize,
    /// Groups of one row: asked for too often to be divided for.
    groups: usize,
    bits: ActivationBits,
    /// `[rows, planes, groups * group / 4]`: four codes each, in memory order; padding is zero. Of two
    /// planes, the high one comes first.
    words: Vec<i32>,
    /// `[rows, groups]`.
    scales: Vec<f32>,
    /// `[rows, planes, groups]`: the sum of the codes of a group.
    sums: Vec<i32>,
    /// Codes of sixteen bits without planes, made when first asked for.
    whole: OnceLock<Vec<i16>>,
}

impl Activations {
    /// Rows, that is tokens.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// Columns without padding.
    pub fn cols(&self) -> usize {
        self.cols
    }
    /// Columns that share a scale.
    pub fn group(&self) -> usize {
        self.group
    }
    /// Groups of one row.
    #[inline]
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// How finely they are quantized.
    #[inline]
    pub fn bits(&self) -> ActivationBits {
        self.bits
    }

    /// The codes of a plane of row `t`, padded to whole groups, four to a word.
    #[inline]
    pub(crate) fn words(&self, t: usize, plane: usize) -> &[i32] {
        let stride = self.groups() * self.group / 4;
        let at = t * self.bits.planes() + plane;
        &self.words[at * stride..(at + 1) * stride]
    }

    /// The codes of a plane of row `t`, padded with zeros to whole groups.
    pub(crate) fn codes(&self, t: usize, plane: usize) -> &[i8] {
        bytemuck::cast_slice(self.words(t, plane))
    }

    /// The codes of row `t` in one number each, padded with zeros to whole groups.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "x86 only"))]
    pub(crate) fn whole_codes(&self, t: usize) -> &[i16] {
        let stride = self.groups * self.group;
        let whole = self.whole.get_or_init(|| {
            let mut whole = vec![0_i16; self.rows * stride];
            for (t, whole) in whole.chunks_mut(stride).enumerate() {
                for plane in 0..self.bits.planes() {
                    for (whole, &code) in whole.iter_mut().zip(self.codes(t, plane)) {
                        *whole = *whole * PLANE_BASE as i16 + i16::from(code);
                    }
                }
            }
            whole
        });
        &whole[t * stride..(t + 1) * stride]
    }

    /// The code of column `k` of row `t`.
    pub fn code(&self, t: usize, k: usize) -> i32 {
        joined((0..self.bits.planes()).map(|plane| i32::from(self.codes(t, plane)[k])))
    }

    /// The scale of each group of row `t`; NaN where an input of the group was not finite.
    #[inline]
    pub fn scales(&self, t: usize) -> &[f32] {
        &self.scales[t * self.groups()..(t + 1) * self.groups()]
    }

    /// The sum of the codes of each group of a plane of row `t`.
    #[inline]
    pub(crate) fn sums(&self, t: usize, plane: usize) -> &[i32] {
        let at = t * self.bits.planes() + plane;
        &self.sums[at * self.groups()..(at + 1) * self.groups()]
    }

    /// The sum of the codes of group `g` of row `t`.
    #[inline]
    pub fn sum(&self, t: usize, g: usize) -> i32 {
        joined((0..self.bits.planes()).map(|plane| self.sums(t, plane)[g]))
    }
}

/// What numbers of the planes, the highest first, come to together.
///
/// Sums of level times code fit 32 bits for every group of up to 256 columns: levels go up to 127
/// and codes to 32512, and `256 * 127 * 32512 < 2^30`. Each plane alone is far below that.
#[inline]
pub(crate) fn joined(planes: impl Iterator<Item = i32>) -> i32 {
    planes.fold(0, |high, low| high * PLANE_BASE + low)
}

/// Quantizes `x_tk`, `[rows, cols]` row-major, per row and group of `group` columns.
///
/// With codes up to `m`, which is 127 or 32512, the scale is the group's largest magnitude over `m`,
/// and a code is `x * (m / largest)` rounded half to even. A group of zeros, or of magnitudes so small
/// (4e-37 or 1e-34) that the factor overflows, has scale zero. A group with a value that is not finite has the scale NaN, so that what is computed from it is NaN.
/// The result does not depend on the instruction set.
///
/// Panics when `x_tk` is not `rows * cols` long or `group` is no multiple of 32.
pub fn quantize_activations(
    x_tk: &[f32],
    rows: usize,
    cols: usize,
    group: usize,
    bits: ActivationBits,
) -> Activations {
    assert!(
        cols > 0 && group > 0 && group.is_multiple_of(32),
        "{cols} columns in groups of {group}"
    );
    assert_eq!(x_tk.len(), rows * cols, "activations of {rows} x {cols}");
    let groups = cols.div_ceil(group);
    let (words_per_row, sums_per_row) =
        (bits.planes() * groups * group / 4, bits.planes() * groups);
    let mut words = vec![0_i32; rows * words_per_row];
    let mut scales = vec![0.0; rows * groups];
    let mut sums = vec![0; rows * sums_per_row];
    let row = |x: &[f32], words: &mut [i32], scales: &mut [f32], sums: &mut [i32]| {
        let codes: &mut [i8] = bytemuck::cast_slice_mut(words);
        match bits {
            ActivationBits::Eight => {
                let groups = x.chunks(group).zip(codes.chunks_mut(group));
                for ((x, codes), (scale, sum)) in groups.zip(scales.iter_mut().zip(sums)) {
                    (*scale, *sum) = quantize_group(x, codes);
                }
            }
            ActivationBits::Sixteen => {
                let (high, low) = codes.split_at_mut(groups * group);
                let (high_sums, low_sums) = sums.split_at_mut(groups);
                let codes = high.chunks_mut(group).zip(low.chunks_mut(group));
                let sums = high_sums.iter_mut().zip(low_sums);
                let groups = x.chunks(group).zip(scales);
                for (((x, scale), (high, low)), (high_sum, low_sum)) in groups.zip(codes).zip(sums)
                {
                    (*scale, *high_sum, *low_sum) = quantize_group_in_planes(x, high, low);
                }
            }
        }
    };
    if rows > 1 && x_tk.len() >= PARALLEL_ELEMENTS && rayon::current_num_threads() > 1 {
        x_tk.par_chunks(cols)
            .zip(words.par_chunks_mut(words_per_row))
            .zip(
                scales
                    .par_chunks_mut(groups)
                    .zip(sums.par_chunks_mut(sums_per_row)),
            )
            .for_each(|((x, words), (scales, sums))| row(x, words, scales, sums));
    } else {
        x_tk.chunks(cols)
            .zip(words.chunks_mut(words_per_row))
            .zip(scales.chunks_mut(groups).zip(sums.chunks_mut(sums_per_row)))
            .for_each(|((x, words), (scales, sums))| row(x, words, scales, sums));
    }
    Activations {
        rows,
        cols,
        group,
        groups,
        bits,
        words,
        scales,
        sums,
        whole: OnceLock::new(),
    }
}

/// Fills the codes of one group; gives its scale and the sum of its codes.
fn quantize_group(x: &[f32], codes: &mut [i8]) -> (f32, i32) {
    let (scale, inverse) = match scale(x, ActivationBits::Eight) {
        (scale, Some(inverse)) => (scale, inverse),
        (scale, None) => return (scale, 0),
    };
    let mut sum = 0;
    for (code, x) in codes.iter_mut().zip(x) {
        let rounded = nearest(x * inverse);
        *code = rounded as i8;
        sum += rounded;
    }
    (scale, sum)
}

/// Fills the codes of one group in two planes; gives its scale and the sum of each plane.
fn quantize_group_in_planes(x: &[f32], high: &mut [i8], low: &mut [i8]) -> (f32, i32, i32) {
    /// Quotients are at least 1/510 away from a tie, far more than their rounding.
    const SHARE: f32 = 1.0 / PLANE_BASE as f32;
    let (scale, inverse) = match scale(x, ActivationBits::Sixteen) {
        (scale, Some(inverse)) => (scale, inverse),
        (scale, None) => return (scale, 0, 0),
    };
    let (mut high_sum, mut low_sum) = (0, 0);
    for ((high, low), x) in high.iter_mut().zip(low).zip(x) {
        let code = nearest(x * inverse);
        let share = nearest(code as f32 * SHARE);
        let rest = code - PLANE_BASE * share;
        (*high, *low) = (share as i8, rest as i8);
        high_sum += share;
        low_sum += rest;
    }
    (scale, high_sum, low_sum)
}

/// The integer nearest to a number below 2^22, half to even.
fn nearest(x: f32) -> i32 {
    /// Adding it leaves that integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    (x + ROUND).to_bits() as i32 - ROUND.to_bits() as i32
}

/// The scale of a group, and what its numbers are multiplied with to be rounded; none where all
/// codes are zero.
fn scale(x: &[f32], bits: ActivationBits) -> (f32, Option<f32>) {
    const INFINITY: u32 = f32::INFINITY.to_bits();
    // As integers, magnitudes are ordered as they are as numbers, NaN above infinity.
    let largest = x
        .iter()
        .fold(0, |largest, x| largest.max(x.to_bits() & 0x7fff_ffff));
    if largest >= INFINITY {
        return (f32::NAN, None);
    }
    let largest = f32::from_bits(largest);
    let inverse = bits.largest() / largest;
    if !inverse.is_finite() {
        return (0.0, None);
    }
    (largest / bits.largest(), Some(inverse))
}

#[cfg(test)]
#[expect(
    clippy::float_cmp,
    reason = "the numbers compared are the same or wrong"
)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_the_nearest_half_to_even() {
        let mut x: Vec<f32> = (0..200)
            .map(|i| ((i * 37 % 199) as f32 - 99.0) * 0.37)
            .collect();
        x[3] = 40.0;
        for (bits, most) in [
            (ActivationBits::Eight, 127.0),
            (ActivationBits::Sixteen, 32512.0),
        ] {
            let a = quantize_activations(&x, 2, 100, 32, bits);
            for t in 0..2 {
                let row = &x[t * 100..(t + 1) * 100];
                for (g, x) in row.chunks(32).enumerate() {
                    let largest = x.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
                    assert_eq!(a.scales(t)[g], largest / most);
                    let codes: Vec<i32> = (0..32).map(|k| a.code(t, g * 32 + k)).collect();
                    for (&code, x) in codes.iter().zip(x) {
                        assert_eq!(code as f32, (x * (most / largest)).round_ties_even());
                        let off = (code as f32 * a.scales(t)[g] - x).abs();
                        assert!(off <= largest / (1.99 * most));
                    }
                    assert!(codes[x.len()..].iter().all(|&code| code == 0));
                    assert_eq!(a.sum(t, g), codes.iter().sum::<i32>());
                    for plane in 0..bits.planes() {
                        let codes = &a.codes(t, plane)[g * 32..(g + 1) * 32];
                        assert!(!codes.contains(&-128));
                        let sum = codes.iter().map(|&c| i32::from(c)).sum::<i32>();
                        assert_eq!(a.sums(t, plane)[g], sum);
                    }
                }
            }
        }
        let x = [127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5];
        let ties = quantize_activations(&x, 1, 7, 32, ActivationBits::Eight);
        assert_eq!(&ties.codes(0, 0)[..7], [127, 0, 2, 2, 0, -2, -2]);
    }

    #[test]
    fn every_code_of_sixteen_bits_has_its_planes() {
        let most = 32512;
        let x: Vec<f32> = (-most..=most).map(|code| code as f32).collect();
        for x in x.chunks(255) {
            let mut group = x.to_vec();
            group.push(most as f32);
            let a = quantize_activations(&group, 1, group.len(), 256, ActivationBits::Sixteen);
            assert_eq!(a.scales(0), [1.0]);
            for (k, x) in group.iter().enumerate() {
                assert_eq!(a.code(0, k) as f32, *x);
                let planes = [0, 1].map(|plane| a.codes(0, plane)[k]);
                assert!(!planes.contains(&-128), "{x}");
            }
        }
    }

    #[test]
    fn zero_tiny_and_extreme_groups_are_harmless() {
        for bits in ActivationBits::ALL {
            for value in [0.0, -0.0, f32::from_bits(1), 1e-38] {
                let a = quantize_activations(&[value; 40], 1, 40, 32, bits);
                assert_eq!((a.scales(0), a.sum(0, 0)), (&[0.0, 0.0][..], 0));
            }
            for value in [f32::MAX, f32::MIN, 1e-33] {
                let a = quantize_activations(&[value, value / 4.0], 1, 2, 32, bits);
                let codes = match bits {
                    ActivationBits::Eight => [127, 32],
                    ActivationBits::Sixteen => [32512, 8128],
                };
                let sign = value.signum() as i32;
                assert_eq!([0, 1].map(|k| sign * a.code(0, k)), codes);
            }
        }
    }

    #[test]
    fn a_value_that_is_not_finite_makes_its_group_nan_and_no_other() {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for bits in ActivationBits::ALL {
                let mut x = vec![1.0; 96];
                x[40] = bad;
                let a = quantize_activations(&x, 1, 96, 32, bits);
                let nan: Vec<bool> = a.scales(0).iter().map(|s| s.is_nan()).collect();
                assert_eq!(nan, [false, true, false]);
            }
        }
    }

    #[test]
    fn threads_change_nothing() {
        let (rows, cols) = (40, 1000);
        let x: Vec<f32> = (0..rows * cols).map(|i| (i as f32 * 0.7).sin()).collect();
        for bits in ActivationBits::ALL {
            let many = quantize_activations(&x, rows, cols, 64, bits);
            for t in 0..rows {
                let one = quantize_activations(&x[t * cols..(t + 1) * cols], 1, cols, 64, bits);
                assert_eq!(one.scales(0), many.scales(t));
                for plane in 0..bits.planes() {
                    assert_eq!(one.codes(0, plane), many.codes(t, plane));
                    assert_eq!(one.sums(0, plane), many.sums(t, plane));
                }
            }
        }
    }
}
