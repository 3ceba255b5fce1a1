//! Activations in eight bits: what packed weights are multiplied with.

use rayon::prelude::*;

/// Rows below this many elements are quantized without other threads.
const PARALLEL_ELEMENTS: usize = 1 << 15;

/// Rows of activations, each group of columns with its own scale: `x ≈ scale * code`.
#[derive(Clone, Debug)]
pub struct Activations {
    rows: usize,
    cols: usize,
    group: usize,
    /// `[rows, groups * group / 4]`: four codes each, in memory order; padding is zero.
    words: Vec<i32>,
    /// `[rows, groups]`.
    scales: Vec<f32>,
    /// `[rows, groups]`: the sum of the codes of a group.
    sums: Vec<i32>,
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
    pub fn groups(&self) -> usize {
        self.cols.div_ceil(self.group)
    }

    /// The codes of row `t`, padded to whole groups, four to a word.
    pub(crate) fn words(&self, t: usize) -> &[i32] {
        let stride = self.groups() * self.group / 4;
        &self.words[t * stride..(t + 1) * stride]
    }

    /// The codes of row `t`, padded with zeros to whole groups.
    pub fn codes(&self, t: usize) -> &[i8] {
        bytemuck::cast_slice(self.words(t))
    }

    /// The scale of each group of row `t`; NaN where an input of the group was not finite.
    pub fn scales(&self, t: usize) -> &[f32] {
        &self.scales[t * self.groups()..(t + 1) * self.groups()]
    }

    /// The sum of the codes of each group of row `t`.
    pub fn sums(&self, t: usize) -> &[i32] {
        &self.sums[t * self.groups()..(t + 1) * self.groups()]
    }
}

/// Quantizes `x_tk`, `[rows, cols]` row-major, per row and group of `group` columns.
///
/// The scale is the group's largest magnitude over 127, a code is `x * (127 / largest)` rounded
/// half to even. A group of zeros, or of magnitudes below about 4e-37, has scale zero. A group
/// with a value that is not finite has the scale NaN, so that what is computed from it is NaN.
/// The result does not depend on the instruction set.
///
/// Panics when `x_tk` is not `rows * cols` long or `group` is no multiple of 32.
pub fn quantize_activations(x_tk: &[f32], rows: usize, cols: usize, group: usize) -> Activations {
    assert!(
        cols > 0 && group > 0 && group.is_multiple_of(32),
        "{cols} columns in groups of {group}"
    );
    assert_eq!(x_tk.len(), rows * cols, "activations of {rows} x {cols}");
    let groups = cols.div_ceil(group);
    let stride = groups * group / 4;
    let mut words = vec![0_i32; rows * stride];
    let mut scales = vec![0.0; rows * groups];
    let mut sums = vec![0; rows * groups];
    let row = |x: &[f32], words: &mut [i32], scales: &mut [f32], sums: &mut [i32]| {
        let codes: &mut [i8] = bytemuck::cast_slice_mut(words);
        let groups = x.chunks(group).zip(codes.chunks_mut(group));
        for ((x, codes), (scale, sum)) in groups.zip(scales.iter_mut().zip(sums)) {
            (*scale, *sum) = quantize_group(x, codes);
        }
    };
    if rows > 1 && x_tk.len() >= PARALLEL_ELEMENTS && rayon::current_num_threads() > 1 {
        x_tk.par_chunks(cols)
            .zip(words.par_chunks_mut(stride))
            .zip(
                scales
                    .par_chunks_mut(groups)
                    .zip(sums.par_chunks_mut(groups)),
            )
            .for_each(|((x, words), (scales, sums))| row(x, words, scales, sums));
    } else {
        x_tk.chunks(cols)
            .zip(words.chunks_mut(stride))
            .zip(scales.chunks_mut(groups).zip(sums.chunks_mut(groups)))
            .for_each(|((x, words), (scales, sums))| row(x, words, scales, sums));
    }
    Activations {
        rows,
        cols,
        group,
        words,
        scales,
        sums,
    }
}

/// Fills the codes of one group; gives its scale and the sum of its codes.
fn quantize_group(x: &[f32], codes: &mut [i8]) -> (f32, i32) {
    /// Adding it leaves the integer nearest to a small number, half to even, in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const INFINITY: u32 = f32::INFINITY.to_bits();
    // As integers, magnitudes are ordered as they are as numbers, NaN above infinity.
    let largest = x
        .iter()
        .fold(0, |largest, x| largest.max(x.to_bits() & 0x7fff_ffff));
    if largest >= INFINITY {
        return (f32::NAN, 0);
    }
    let largest = f32::from_bits(largest);
    let inverse = 127.0 / largest;
    if !inverse.is_finite() {
        return (0.0, 0);
    }
    let mut sum = 0;
    for (code, x) in codes.iter_mut().zip(x) {
        let rounded = (x * inverse + ROUND).to_bits() as i32 - ROUND.to_bits() as i32;
        *code = rounded as i8;
        sum += rounded;
    }
    (largest / 127.0, sum)
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
        let a = quantize_activations(&x, 2, 100, 32);
        for t in 0..2 {
            let row = &x[t * 100..(t + 1) * 100];
            for (g, x) in row.chunks(32).enumerate() {
                let largest = x.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
                assert_eq!(a.scales(t)[g], largest / 127.0);
                let codes = &a.codes(t)[g * 32..(g + 1) * 32];
                for (code, x) in codes.iter().zip(x) {
                    assert_eq!(f32::from(*code), (x * (127.0 / largest)).round_ties_even());
                    assert!((f32::from(*code) * a.scales(t)[g] - x).abs() <= largest / 253.0);
                }
                assert!(codes[x.len()..].iter().all(|&code| code == 0));
                assert_eq!(
                    a.sums(t)[g],
                    codes.iter().map(|&c| i32::from(c)).sum::<i32>()
                );
            }
        }
        let ties = quantize_activations(&[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5], 1, 7, 32);
        assert_eq!(&ties.codes(0)[..7], [127, 0, 2, 2, 0, -2, -2]);
    }

    #[test]
    fn zero_tiny_and_extreme_groups_are_harmless() {
        for value in [0.0, -0.0, f32::from_bits(1), 1e-38] {
            let a = quantize_activations(&[value; 40], 1, 40, 32);
            assert_eq!((a.scales(0), a.sums(0)), (&[0.0, 0.0][..], &[0, 0][..]));
        }
        for value in [f32::MAX, f32::MIN, 1e-36] {
            let a = quantize_activations(&[value, value / 4.0], 1, 2, 32);
            let codes = if value > 0.0 { [127, 32] } else { [-127, -32] };
            assert_eq!(&a.codes(0)[..2], codes);
        }
    }

    #[test]
    fn a_value_that_is_not_finite_makes_its_group_nan_and_no_other() {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = vec![1.0; 96];
            x[40] = bad;
            let a = quantize_activations(&x, 1, 96, 32);
            let nan: Vec<bool> = a.scales(0).iter().map(|s| s.is_nan()).collect();
            assert_eq!(nan, [false, true, false]);
        }
    }

    #[test]
    fn threads_change_nothing() {
        let (rows, cols) = (40, 1000);
        let x: Vec<f32> = (0..rows * cols).map(|i| (i as f32 * 0.7).sin()).collect();
        let many = quantize_activations(&x, rows, cols, 64);
        for t in 0..rows {
            let one = quantize_activations(&x[t * cols..(t + 1) * cols], 1, cols, 64);
            assert_eq!(
                (one.codes(0), one.scales(0)),
                (many.codes(t), many.scales(t))
            );
            assert_eq!(one.sums(0), many.sums(t));
        }
    }
}
