//! Levels -1, 0, 1: a threshold on magnitudes and the mean magnitude above it.
//!
//! For the support `S` of the weights that are kept, squared error is least with the scale
//! `α = Σ_S h|w| / Σ_S h` (`h`: importance, else 1), and is then `Σ h w² - (Σ_S h|w|)² / Σ_S h`.
//! Whatever the scale, a weight is better kept than dropped where `|w| > α/2`, so the best support
//! is one of the `n` sets of the largest magnitudes: sorting and prefix sums find the optimum
//! exactly. Without importance most weights need no sorting, see `Doubtful`.

use half::f16;

use super::GroupFit;
use crate::Threshold;
use crate::error::Error;
use crate::stats::{self, entropy_bits};

/// How the weights of one row are told from zero, its row-wide part worked out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// The support of least squared error in each group.
    Mse,
    /// Magnitudes above 0.7 of the group's mean magnitude (Ternary Weight Networks).
    Twn,
    /// Magnitudes above this.
    Above(f32),
    /// In each group the support of the least `error / energy + weight * entropy in bits`.
    RateDistortion(f64),
}

impl Rule {
    /// The rule for one row of weights.
    ///
    /// [`Threshold::EntropyMax`] makes the three levels equally frequent, so it is a sparsity of
    /// one third. Sparsities are quantiles over the row, not over each group, so that groups may
    /// differ.
    pub fn for_row(threshold: Threshold, row: &[f32]) -> Result<Rule, Error> {
        match threshold {
            Threshold::Mse => Ok(Rule::Mse),
            Threshold::Twn => Ok(Rule::Twn),
            Threshold::EntropyMax => Ok(Rule::Above(quantile(row, 1.0 / 3.0))),
            Threshold::Sparsity(share) if (0.0..1.0).contains(&share) => {
                Ok(Rule::Above(quantile(row, share)))
            }
            Threshold::Sparsity(share) => Err(Error::Sparsity(share)),
            Threshold::Rd(weight) if weight >= 0.0 && weight.is_finite() => {
                Ok(Rule::RateDistortion(weight))
            }
            Threshold::Rd(weight) => Err(Error::Lambda(weight)),
        }
    }
}

/// The magnitude that `share` of the weights do not exceed; zero for none.
fn quantile(w: &[f32], share: f64) -> f32 {
    let below = (share * w.len() as f64).round() as usize;
    let mut magnitudes: Vec<u32> = w.iter().map(|w| magnitude(*w)).collect();
    match below {
        0 => 0.0,
        _ => f32::from_bits(*magnitudes.select_nth_unstable(below - 1).1),
    }
}

/// Fits one group under `rule`; `importance` weighs the squared error of each weight.
///
/// Panics when the lengths differ.
pub fn fit(w: &[f32], importance: Option<&[f32]>, rule: Rule, levels: &mut [i8]) -> f16 {
    fit_with_threshold(w, importance, rule, levels).0
}

/// [`fit`] with the threshold it came to, in scales.
#[inline(always)]
pub(super) fn fit_with_band(
    w: &[f32],
    importance: Option<&[f32]>,
    rule: Rule,
    levels: &mut [i8],
) -> GroupFit {
    let (scale, threshold) = fit_with_threshold(w, importance, rule, levels);
    let band = match rule {
        Rule::Mse => super::NEAREST,
        _ if scale.to_f32() > 0.0 => threshold / scale.to_f32(),
        _ => super::NEAREST,
    };
    GroupFit {
        scale,
        shift: f16::ZERO,
        band,
    }
}

/// Turns of levels, and scale and shift, at most.
const SHIFT_TURNS: usize = 15;

/// Fits one group with a shift: turns of [`fit`] on the shifted weights, and of the scale and shift
/// of least squared error for its levels, as long as the error falls.
///
/// Panics when the lengths differ.
pub(super) fn fit_shifted(
    w: &[f32],
    importance: Option<&[f32]>,
    rule: Rule,
    levels: &mut [i8],
) -> GroupFit {
    let h = |i: usize| importance.map_or(1.0, |h| f64::from(h[i]));
    let mut best = fit_with_band(w, importance, rule, levels);
    let mut least = weighted_error(w, &h, levels, best);
    let mut now = best;
    let mut trial = levels.to_vec();
    for _ in 0..SHIFT_TURNS {
        now = regressed(w, &h, &trial, now);
        let moved: Vec<f32> = w.iter().map(|w| w - now.shift.to_f32()).collect();
        let next = fit_with_band(&moved, importance, rule, &mut trial);
        now = GroupFit {
            shift: now.shift,
            ..next
        };
        let error = weighted_error(w, &h, &trial, now);
        // NaN comes from a shift beyond f16.
        if error.is_nan() || error >= least {
            break;
        }
        (best, least) = (now, error);
        levels.copy_from_slice(&trial);
    }
    best
}

fn weighted_error(w: &[f32], h: &impl Fn(usize) -> f64, levels: &[i8], fit: GroupFit) -> f64 {
    let terms = w.iter().zip(levels).enumerate();
    terms
        .map(|(i, (&w, &level))| h(i) * f64::from(w - fit.value(level)).powi(2))
        .sum()
}

/// Scale and shift of least weighted error for given levels.
fn regressed(w: &[f32], h: &impl Fn(usize) -> f64, levels: &[i8], now: GroupFit) -> GroupFit {
    let sum = |f: &dyn Fn(usize) -> f64| (0..w.len()).map(|i| h(i) * f(i)).sum::<f64>();
    let (t, x) = (|i: usize| f64::from(levels[i]), |i: usize| f64::from(w[i]));
    let (h0, ht, htt) = (sum(&|_| 1.0), sum(&t), sum(&|i| t(i) * t(i)));
    let (hw, htw) = (sum(&x), sum(&|i| t(i) * x(i)));
    let determinant = h0 * htt - ht * ht;
    if determinant <= 1e-12 * h0 * htt {
        return now;
    }
    let scale = (h0 * htw - ht * hw) / determinant;
    GroupFit {
        scale: super::to_f16(scale),
        shift: super::to_f16((hw - scale * ht) / h0),
        band: now.band,
    }
}

/// Scale and threshold.
#[inline(always)]
fn fit_with_threshold(
    w: &[f32],
    importance: Option<&[f32]>,
    rule: Rule,
    levels: &mut [i8],
) -> (f16, f32) {
    assert_eq!(w.len(), levels.len(), "a level for each weight");
    match importance {
        None if rule == Rule::Mse => {
            let scale = super::to_f16(Doubtful::of(w).best_scale());
            let threshold = scale.to_f32() / 2.0;
            keep(w, scale, threshold, levels);
            (scale, threshold)
        }
        None => fit_weighted(w, |_| 1.0, rule, levels),
        Some(h) => {
            assert_eq!(w.len(), h.len(), "an importance for each weight");
            fit_weighted(w, |i| f64::from(h[i]), rule, levels)
        }
    }
}

fn fit_weighted(w: &[f32], h: impl Fn(usize) -> f64, rule: Rule, levels: &mut [i8]) -> (f16, f32) {
    let (scale, threshold) = match rule {
        Rule::Mse => {
            let scale = super::to_f16(best_scale(&descending(w), &h));
            (scale, scale.to_f32() / 2.0)
        }
        Rule::Twn => {
            let mean = w.iter().map(|w| f64::from(w.abs())).sum::<f64>() / w.len().max(1) as f64;
            with_mean_above(w, &h, (0.7 * mean) as f32)
        }
        Rule::Above(threshold) => with_mean_above(w, &h, threshold),
        Rule::RateDistortion(weight) => {
            let threshold = rate_distortion_threshold(&descending(w), w, &h, weight);
            with_mean_above(w, &h, threshold)
        }
    };
    keep(w, scale, threshold, levels);
    (scale, threshold)
}

/// The signs of the weights beyond `threshold`; none where the scale is zero.
#[inline(always)]
fn keep(w: &[f32], scale: f16, threshold: f32, levels: &mut [i8]) {
    let dead = scale.to_bits() == 0;
    let threshold = if dead { f32::INFINITY } else { threshold };
    for (level, &w) in levels.iter_mut().zip(w) {
        *level = i8::from(w > threshold) - i8::from(w < -threshold);
    }
}

/// The weighted mean magnitude of what exceeds `threshold`, beside the threshold.
fn with_mean_above(w: &[f32], h: &impl Fn(usize) -> f64, threshold: f32) -> (f16, f32) {
    let (mut sum, mut mass) = (0.0, 0.0);
    for (i, w) in w.iter().enumerate().filter(|(_, w)| w.abs() > threshold) {
        sum += h(i) * f64::from(w.abs());
        mass += h(i);
    }
    let mean = if mass > 0.0 { sum / mass } else { 0.0 };
    (super::to_f16(mean), threshold)
}

fn magnitude(w: f32) -> u32 {
    w.to_bits() & 0x7fff_ffff
}

/// Magnitude in the high half, index in the low: largest first, of equals the first index last.
fn descending(w: &[f32]) -> Vec<u64> {
    let mut keys: Vec<u64> = w
        .iter()
        .zip(0_u64..)
        .map(|(w, i)| u64::from(magnitude(*w)) << 32 | i)
        .collect();
    keys.sort_unstable_by(|a, b| b.cmp(a));
    keys
}

fn unpack(key: u64) -> (f64, usize) {
    (
        f64::from(f32::from_bits((key >> 32) as u32)),
        (key & 0xffff_ffff) as usize,
    )
}

/// The scale of the support of least squared error.
fn best_scale(sorted: &[u64], h: &impl Fn(usize) -> f64) -> f64 {
    let (mut sum, mut mass) = (0.0, 0.0);
    let (mut best_gain, mut scale) = (0.0, 0.0);
    for &key in sorted {
        let (w, i) = unpack(key);
        sum += h(i) * w;
        mass += h(i);
        if sum * sum > best_gain * mass {
            best_gain = sum * sum / mass;
            scale = sum / mass;
        }
    }
    scale
}

/// Weights of equal importance, divided into those that the best support has for sure, those that it
/// has not, and those in doubt.
///
/// The best scale `α` is the mean of the magnitudes beyond `α/2`. That mean, `f(α)`, grows with `α`.
/// So whatever bound `α` has from below or above, `f` of the bound is one too, and every turn brings
/// the two nearer to each other. Few weights of a group stay between their halves: only these are
/// sorted.
struct Doubtful {
    /// Sum and number of the magnitudes that are kept for sure.
    sum: f64,
    count: f64,
    /// The magnitudes in doubt, largest first.
    magnitudes: Vec<f32>,
}

/// Turns of the bounds at most. More would leave fewer weights to sort, and cost more than they save.
const BOUND_TURNS: usize = 4;
/// By how much bounds are widened, relatively, since they come from sums in single precision.
const BOUND_SLACK: f32 = 1e-4;

impl Doubtful {
    #[inline(always)]
    fn of(w: &[f32]) -> Self {
        let largest = super::largest(w);
        let (mut low, mut high) = (0.0_f32, largest * (0.5 + BOUND_SLACK));
        for _ in 0..BOUND_TURNS {
            let next = mean_beyond(w, low) * (0.5 - BOUND_SLACK);
            if next <= low {
                break;
            }
            low = next;
        }
        for _ in 0..BOUND_TURNS {
            let next = mean_beyond(w, high) * (0.5 + BOUND_SLACK);
            if next >= high {
                break;
            }
            high = next;
        }
        // Which of the three a weight is cannot be foreseen, so nothing here branches on it.
        let is_sure = |w: &f32| if w.abs() > high { 1.0 } else { 0.0 };
        let sure = stats::sum(w, |w| f64::from(w.abs() * is_sure(&w)));
        let count = w.iter().map(is_sure).sum::<f32>();
        let mut magnitudes = vec![0.0; w.len()];
        let mut doubtful = 0;
        for magnitude in w.iter().map(|w| w.abs()) {
            magnitudes[doubtful] = magnitude;
            doubtful += usize::from(magnitude > low) * usize::from(magnitude <= high);
        }
        magnitudes.truncate(doubtful);
        magnitudes.sort_unstable_by(|a, b| b.total_cmp(a));
        Doubtful {
            sum: sure,
            count: f64::from(count),
            magnitudes,
        }
    }

    /// The scale of the support of least squared error.
    fn best_scale(&self) -> f64 {
        let (mut sum, mut count) = (self.sum, self.count);
        let (mut best_sum, mut best_count) = (sum, count);
        for &magnitude in &self.magnitudes {
            sum += f64::from(magnitude);
            count += 1.0;
            if sum * sum * best_count > best_sum * best_sum * count {
                (best_sum, best_count) = (sum, count);
            }
        }
        if best_count > 0.0 {
            best_sum / best_count
        } else {
            0.0
        }
    }
}

/// The mean of the magnitudes beyond `threshold`; zero where there are none.
#[inline(always)]
fn mean_beyond(w: &[f32], threshold: f32) -> f32 {
    const LANES: usize = 8;
    let (mut sums, mut counts) = ([0.0_f32; LANES], [0.0_f32; LANES]);
    let (whole, rest) = w.as_chunks::<LANES>();
    let mut last = [0.0; LANES];
    last[..rest.len()].copy_from_slice(rest);
    for w in whole.iter().chain([&last]) {
        for (l, w) in w.iter().enumerate() {
            let magnitude = w.abs();
            let counts_as = if magnitude > threshold { 1.0 } else { 0.0 };
            sums[l] += magnitude * counts_as;
            counts[l] += counts_as;
        }
    }
    let count = counts.iter().sum::<f32>();
    if count > 0.0 {
        sums.iter().sum::<f32>() / count
    } else {
        0.0
    }
}

/// The magnitude above which weights are kept for the least `error / energy + weight * entropy`.
fn rate_distortion_threshold(
    sorted: &[u64],
    w: &[f32],
    h: &impl Fn(usize) -> f64,
    weight: f64,
) -> f32 {
    let energy: f64 = w
        .iter()
        .enumerate()
        .map(|(i, &w)| h(i) * f64::from(w) * f64::from(w))
        .sum();
    let (mut sum, mut mass) = (0.0, 0.0);
    let mut counts = [w.len() as u64, 0, 0];
    // Nothing kept: the whole energy is lost, the entropy is zero.
    let (mut best_cost, mut threshold) = (1.0, f32::INFINITY);
    for (k, &key) in sorted.iter().enumerate() {
        let (magnitude, i) = unpack(key);
        if magnitude == 0.0 {
            break;
        }
        sum += h(i) * magnitude;
        mass += h(i);
        counts[0] -= 1;
        counts[if w[i] > 0.0 { 1 } else { 2 }] += 1;
        let next = sorted.get(k + 1).map_or(0.0, |&key| unpack(key).0);
        // Equal magnitudes are kept or dropped together.
        if next >= magnitude || mass <= 0.0 {
            continue;
        }
        let cost = 1.0 - sum * sum / mass / energy + weight * entropy_bits(&counts);
        if cost < best_cost {
            (best_cost, threshold) = (cost, next as f32);
        }
    }
    threshold
}
