//! What a quantization costs: error, zeros, entropy.

use neuroconv_format::PackedTensor;
use neuroconv_format::codec::PANEL_ROWS;
use neuroconv_kernels::layout::unpack_row;

use crate::dequantize::kernel_codes;
use crate::fit::GroupFit;

/// What a fit did to a matrix. Padding counts nowhere.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct FitStats {
    /// Squared error over squared norm.
    pub rel_mse: f64,
    /// Share of levels that are zero.
    pub zeros: f64,
    /// Entropy of the levels in bits per weight.
    pub entropy_bits: f64,
}

/// Sums from which [`FitStats`] follow. Integers and sums in a fixed order, so that threads change
/// nothing.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    error: f64,
    energy: f64,
    counts: Counts,
}

/// How often each level occurs. Neighbours are counted apart: adding to one number many times over
/// would take turns.
#[derive(Clone, Debug)]
struct Counts([[u64; 256]; 4]);

impl Counts {
    #[inline(always)]
    fn add(&mut self, levels: &[i8]) {
        let (whole, rest) = levels.as_chunks::<4>();
        for levels in whole {
            for (counts, &level) in self.0.iter_mut().zip(levels) {
                let count = &mut counts[usize::from(level as u8)];
                *count = count.wrapping_add(1);
            }
        }
        for &level in rest {
            self.0[0][usize::from(level as u8)] += 1;
        }
    }

    fn merge(&mut self, other: &Counts) {
        let mine = self.0.as_flattened_mut().iter_mut();
        for (count, other) in mine.zip(other.0.as_flattened()) {
            *count += other;
        }
    }

    fn totals(&self) -> [u64; 256] {
        std::array::from_fn(|level| self.0.iter().map(|counts| counts[level]).sum())
    }
}

impl Tally {
    pub(crate) fn new() -> Self {
        Tally {
            error: 0.0,
            energy: 0.0,
            counts: Counts([[0; 256]; 4]),
        }
    }

    /// Counts one group: its weights, and the levels and scale that stand for them.
    #[inline(always)]
    pub(crate) fn add_group(&mut self, w: &[f32], levels: &[i8], fit: GroupFit) {
        let (scale, shift) = (fit.scale.to_f32(), fit.shift.to_f32());
        self.error += sum_pairs(w, levels, |w, level| {
            let error = f64::from(w) - f64::from(scale * f32::from(level) + shift);
            error * error
        });
        self.energy += energy(w);
        self.counts.add(levels);
    }

    /// Counts weights, and the levels and values that stand for them.
    pub(crate) fn add_values(&mut self, w: &[f32], levels: &[i8], values: &[f32]) {
        self.error += squared_distance(w, values);
        self.energy += energy(w);
        self.counts.add(levels);
    }

    pub(crate) fn merge(&mut self, other: &Tally) {
        self.error += other.error;
        self.energy += other.energy;
        self.counts.merge(&other.counts);
    }

    pub(crate) fn stats(&self) -> FitStats {
        let counts = self.counts.totals();
        FitStats {
            rel_mse: ratio(self.error, self.energy),
            zeros: counts[0] as f64 / counts.iter().sum::<u64>() as f64,
            entropy_bits: entropy_bits(&counts),
        }
    }
}

/// The zeros and the entropy of the codes of a packed matrix; `rel_mse` is left at zero.
pub fn code_stats(tensor: &PackedTensor) -> FitStats {
    let layout = tensor.layout;
    let kind = kernel_codes(layout.codec());
    let block_bytes = layout.block_bytes();
    let mut tally = Tally::new();
    let mut levels = vec![0; layout.group()];
    for row in 0..layout.rows() {
        let panel = row / PANEL_ROWS * layout.groups();
        for group in 0..layout.groups() {
            let block = &tensor.bytes[(panel + group) * block_bytes..][..block_bytes];
            let width = layout.group().min(layout.cols() - group * layout.group());
            let levels = &mut levels[..width];
            unpack_row(kind, block, row % PANEL_ROWS, levels);
            tally.counts.add(levels);
        }
    }
    tally.stats()
}

/// Shannon entropy, in bits per symbol, of symbols that occur as often as `counts` says.
pub(crate) fn entropy_bits(counts: &[u64]) -> f64 {
    let total = counts.iter().sum::<u64>() as f64;
    let term = |&count: &u64| {
        let share = count as f64 / total;
        -share * share.log2()
    };
    counts
        .iter()
        .filter(|&&count| count > 0)
        .map(term)
        .sum::<f64>()
        .max(0.0)
}

/// `Σ (w - scale * level)²`; the products are exact in single precision.
#[inline(always)]
pub(crate) fn squared_error(w: &[f32], levels: &[i8], scale: f32) -> f64 {
    sum_pairs(w, levels, |w, level| {
        let error = f64::from(w) - f64::from(scale * f32::from(level));
        error * error
    })
}

/// `Σ (original - approx)² / Σ original²`; 0 for two matrices of zeros, infinite where only the
/// original is zero.
///
/// Panics when the lengths differ.
pub fn relative_mse(original: &[f32], approx: &[f32]) -> f64 {
    assert_eq!(original.len(), approx.len(), "two versions of one matrix");
    ratio(squared_distance(original, approx), energy(original))
}

/// `Σ (a - b)²`.
#[inline(always)]
fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
    sum_pairs(a, b, |a, b| {
        let off = f64::from(a) - f64::from(b);
        off * off
    })
}

/// `Σ w²`.
#[inline(always)]
fn energy(w: &[f32]) -> f64 {
    sum(w, |w| f64::from(w) * f64::from(w))
}

fn ratio(error: f64, energy: f64) -> f64 {
    if error == 0.0 { 0.0 } else { error / energy }
}

/// `Σ term(value)`, see [`sum_pairs`].
#[inline(always)]
pub(crate) fn sum<A: Copy>(values: &[A], term: impl Fn(A) -> f64) -> f64 {
    sum_pairs(values, values, |value, _| term(value))
}

/// `Σ term(a, b)` over two slices of one length, in interleaved lanes: a fixed order that the
/// compiler makes SIMD of.
#[inline(always)]
pub(crate) fn sum_pairs<A: Copy, B: Copy>(a: &[A], b: &[B], term: impl Fn(A, B) -> f64) -> f64 {
    const LANES: usize = 8;
    let mut lanes = [0.0; LANES];
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a.iter().zip(b) {
        for l in 0..LANES {
            lanes[l] += term(a[l], b[l]);
        }
    }
    for (lane, (&a, &b)) in lanes.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *lane += term(a, b);
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

#[cfg(test)]
#[expect(
    clippy::float_cmp,
    reason = "the numbers compared are the same or wrong"
)]
mod tests {
    use super::*;

    #[test]
    fn entropy_of_known_distributions() {
        assert_eq!(entropy_bits(&[8, 0, 0]), 0.0);
        assert_eq!(entropy_bits(&[4, 4]), 1.0);
        assert_eq!(entropy_bits(&[1, 1, 1, 1, 0]), 2.0);
        assert!((entropy_bits(&[5, 5, 5]) - 3.0_f64.log2()).abs() < 1e-12);
    }

    #[test]
    fn a_tally_says_what_the_definitions_say() {
        let w = [1.0, -2.0, 0.1, 3.0, 0.0];
        let levels = [1, -1, 0, 1, 0];
        let mut tally = Tally::new();
        let fit = GroupFit {
            scale: half::f16::from_f32(2.0),
            shift: half::f16::ZERO,
            band: 0.5,
        };
        tally.add_group(&w, &levels, fit);
        let stats = tally.stats();
        let approx: Vec<f32> = levels.iter().map(|&l| 2.0 * f32::from(l)).collect();
        assert_eq!(stats.rel_mse, relative_mse(&w, &approx));
        assert!((stats.rel_mse - 2.01 / 14.01).abs() < 1e-8);
        assert_eq!(stats.zeros, 0.4);
        assert!((stats.entropy_bits - entropy_bits(&[1, 2, 2])).abs() < 1e-12);
        let mut twice = tally.clone();
        twice.merge(&tally);
        assert_eq!(twice.stats(), stats);
    }

    #[test]
    fn zeros_are_no_error() {
        assert_eq!(relative_mse(&[0.0; 3], &[0.0; 3]), 0.0);
        assert_eq!(relative_mse(&[], &[]), 0.0);
        assert_eq!(relative_mse(&[0.0], &[1.0]), f64::INFINITY);
        assert_eq!(relative_mse(&[1.0], &[0.0]), 1.0);
    }
}
