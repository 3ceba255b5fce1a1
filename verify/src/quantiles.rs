//! Percentiles of a stream in bounded memory.
//!
//! Exact up to [`CAPACITY`] values. Beyond that every second of the sorted values is dropped and
//! the rest count double, as often as needed (the compaction of Munro and Paterson 1980, on one
//! buffer): each compaction moves a rank by at most one weight, so percentiles stay good to about
//! a millionth of the stream.

/// Values held at most.
pub const CAPACITY: usize = 1 << 20;

/// The values of a stream, thinned where there are too many.
#[derive(Clone, Debug)]
pub struct Quantiles {
    values: Vec<f64>,
    /// Values of the stream that each held value stands for.
    weight: u64,
    /// Values since the last that was taken.
    skipped: u64,
    capacity: usize,
    min: f64,
    max: f64,
}

impl Default for Quantiles {
    fn default() -> Self {
        Quantiles::with_capacity(CAPACITY)
    }
}

impl Quantiles {
    fn with_capacity(capacity: usize) -> Self {
        Quantiles {
            values: Vec::new(),
            weight: 1,
            skipped: 0,
            capacity,
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
        }
    }

    /// Takes one value.
    pub fn add(&mut self, value: f64) {
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        self.skipped += 1;
        if self.skipped < self.weight {
            return;
        }
        self.skipped = 0;
        self.values.push(value);
        if self.values.len() == self.capacity {
            self.values.sort_by(f64::total_cmp);
            let mut keep = false;
            self.values.retain(|_| {
                keep = !keep;
                keep
            });
            self.weight *= 2;
        }
    }

    /// The values at `shares` (0 to 1) of the stream, linear between neighbours; the least and
    /// the largest are always exact. NaN without values.
    pub fn at(&self, shares: &[f64]) -> Vec<f64> {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let one = |&share: &f64| {
            if self.min > self.max {
                f64::NAN
            } else if share <= 0.0 {
                self.min
            } else if share >= 1.0 {
                self.max
            } else {
                crate::stats::percentile(&sorted, share)
            }
        };
        shares.iter().map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: u64) -> impl Iterator<Item = f64> {
        (0..n).map(move |i| ((i * 7919 + 13) % n) as f64)
    }

    #[test]
    fn few_values_are_exact() {
        let mut q = Quantiles::default();
        noise(1001).for_each(|x| q.add(x));
        assert_eq!(
            q.at(&[0.0, 0.25, 0.5, 0.999, 1.0]),
            [0., 250., 500., 999., 1000.]
        );
        assert!(Quantiles::default().at(&[0.5])[0].is_nan());
    }

    #[test]
    fn many_values_need_no_more_memory_and_stay_near() {
        let (n, capacity) = (1_000_003, 4096);
        let mut q = Quantiles::with_capacity(capacity);
        for x in noise(n) {
            q.add(x);
            assert!(q.values.len() < capacity);
        }
        let shares = [0.0, 0.01, 0.1, 0.5, 0.9, 0.99, 1.0];
        for (share, found) in shares.iter().zip(q.at(&shares)) {
            let off = (found - share * (n - 1) as f64).abs() / n as f64;
            assert!(off < 5e-3, "{share}: {found}");
        }
        assert_eq!(q.at(&[0.0, 1.0]), [0.0, (n - 1) as f64]);
    }
}
