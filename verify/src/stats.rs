//! Intervals and percentiles.
//!
//! Windows are the independent unit: tokens of one window share their context, so errors taken
//! over tokens come out too small. Every interval is the delete-one-window jackknife with
//! Student's t at one less degree of freedom than windows (Efron and Tibshirani 1993, ch. 11).

use serde::{Deserialize, Serialize};

use crate::report::finite;

/// A value with its 95 % interval. The ends are `null` where fewer than two windows were scored.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The estimate.
    #[serde(serialize_with = "finite")]
    pub value: f64,
    /// Lower end.
    #[serde(serialize_with = "finite")]
    pub lo: Option<f64>,
    /// Upper end.
    #[serde(serialize_with = "finite")]
    pub hi: Option<f64>,
}

impl Interval {
    /// The interval of `exp(x)`, from that of `x`.
    #[must_use]
    pub fn exp(self) -> Self {
        self.map(f64::exp)
    }

    /// The interval with its ends moved into the range a quantity can have.
    #[must_use]
    pub fn within(self, min: f64, max: f64) -> Self {
        // `clamp` keeps NaN.
        Interval {
            lo: self.lo.map(|x| x.clamp(min, max)),
            hi: self.hi.map(|x| x.clamp(min, max)),
            ..self
        }
    }

    fn map(self, f: impl Fn(f64) -> f64) -> Self {
        Interval {
            value: f(self.value),
            lo: self.lo.map(&f),
            hi: self.hi.map(&f),
        }
    }
}

/// How sure an interval is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Level {
    /// 95 %: what reports state and verdicts rest on.
    #[default]
    Final,
    /// 99.9 %: for a look before the end. Such rare odds leave the error of the final look as it
    /// is (Haybittle 1971, Peto et al. 1976).
    Interim,
}

impl Level {
    fn student_t(self, freedom: usize) -> f64 {
        match self {
            Level::Final => student_t(freedom),
            Level::Interim => student_t_expanded(3.290_526_731_491_9, freedom),
        }
    }
}

/// A statistic of all units with its delete-one jackknife interval, from its value and its
/// values with one unit left out at a time. No ends for fewer than two units.
pub fn jackknife(value: f64, without: &[f64], level: Level) -> Interval {
    if without.len() < 2 {
        return Interval {
            value,
            lo: None,
            hi: None,
        };
    }
    let reach = level.student_t(without.len() - 1) * jackknife_error(without);
    Interval {
        value,
        lo: Some(value - reach),
        hi: Some(value + reach),
    }
}

/// The standard error of a statistic from its values with one unit left out at a time:
/// `sqrt((n-1)/n Σ (θᵢ - mean θ)²)`.
pub fn jackknife_error(leave_one_out: &[f64]) -> f64 {
    let n = leave_one_out.len() as f64;
    let mean = leave_one_out.iter().sum::<f64>() / n;
    let squares: f64 = leave_one_out.iter().map(|x| (x - mean).powi(2)).sum();
    ((n - 1.0) / n * squares).sqrt()
}

/// The 97.5 % quantile of Student's t: a table for few degrees of freedom, then the expansion
/// in their inverse to third order (Abramowitz and Stegun 26.7.5), good to 0.0005 from 11 on.
fn student_t(freedom: usize) -> f64 {
    const FEW: [f64; 10] = [
        12.706_205, 4.302_653, 3.182_446, 2.776_445, 2.570_582, 2.446_912, 2.364_624, 2.306_004,
        2.262_157, 2.228_139,
    ];
    if let Some(&t) = freedom.checked_sub(1).and_then(|i| FEW.get(i)) {
        return t;
    }
    student_t_expanded(1.959_963_984_540_054, freedom)
}

/// The quantile of Student's t whose normal counterpart is `z`, by the expansion.
fn student_t_expanded(z: f64, freedom: usize) -> f64 {
    let v = freedom as f64;
    z + (z.powi(3) + z) / (4.0 * v)
        + (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / (96.0 * v.powi(2))
        + (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / (384.0 * v.powi(3))
}

/// The quantile `share` (0 to 1) of ascending values, linear between neighbours: with n values
/// it lies at place `share * (n - 1)` counted from 0. NaN without values.
pub fn percentile(ascending: &[f64], share: f64) -> f64 {
    let Some(last) = ascending.len().checked_sub(1) else {
        return f64::NAN;
    };
    let place = share.clamp(0.0, 1.0) * last as f64;
    let (low, part) = (place.floor() as usize, place.fract());
    let high = (low + 1).min(last);
    ascending[low] + part * (ascending[high] - ascending[low])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The mean of the values, one unit each.
    fn mean(values: &[f64]) -> Interval {
        let (sum, n) = (values.iter().sum::<f64>(), values.len() as f64);
        let without: Vec<f64> = values.iter().map(|x| (sum - x) / (n - 1.0)).collect();
        jackknife(sum / n, &without, Level::Final)
    }

    /// Equal windows: the jackknife of a mean is the textbook standard error `s / sqrt(n)`.
    #[test]
    fn jackknife_of_a_mean_is_the_textbook_error() {
        // Mean 5, sample variance 32/7, so the error is sqrt(4/7), and t(7) is 2.3646.
        let found = mean(&[2., 4., 4., 4., 5., 5., 7., 9.]);
        let reach = 2.364_624 * (4.0_f64 / 7.0).sqrt();
        assert!((found.value - 5.0).abs() < 1e-12);
        assert!((found.lo.unwrap() - (5.0 - reach)).abs() < 1e-9);
        assert!((found.hi.unwrap() - (5.0 + reach)).abs() < 1e-9);
    }

    #[test]
    fn one_unit_has_no_interval() {
        assert_eq!(
            jackknife(3.0, &[f64::NAN], Level::Final),
            Interval {
                value: 3.0,
                lo: None,
                hi: None
            }
        );
    }

    #[test]
    fn an_interim_look_must_be_surer() {
        let values = [0.9, 1.0, 1.1, 1.0, 0.8, 1.2, 1.05, 0.95];
        let without: Vec<f64> = values.iter().map(|x| (8.0 - x) / 7.0).collect();
        let width = |level| {
            let found = jackknife(1.0, &without, level);
            found.hi.unwrap() - found.lo.unwrap()
        };
        assert!(width(Level::Interim) > 1.6 * width(Level::Final));
        // t at 99.95 %: 3.850 with 20 degrees of freedom, 3.373 with 120.
        for (freedom, t) in [(15, 4.073), (20, 3.850), (120, 3.373)] {
            let found = Level::Interim.student_t(freedom);
            assert!((found - t).abs() < 5e-3, "{freedom}: {found}");
        }
    }

    #[test]
    fn quantiles_of_t_are_those_of_the_tables() {
        let known = [
            (1, 12.706),
            (10, 2.228),
            (11, 2.201),
            (15, 2.131),
            (20, 2.086),
            (30, 2.042),
            (120, 1.980),
        ];
        for (freedom, t) in known {
            assert!(
                (student_t(freedom) - t).abs() < 1e-3,
                "{freedom}: {}",
                student_t(freedom)
            );
        }
        assert!((student_t(1_000_000) - 1.95997).abs() < 1e-4);
    }

    #[test]
    fn percentiles_interpolate() {
        let values = [1.0, 2.0, 4.0, 8.0, 16.0];
        for (share, expected) in [
            (0.0, 1.0),
            (0.5, 4.0),
            (0.9, 12.8),
            (0.25, 2.0),
            (0.1, 1.4),
            (1.0, 16.0),
        ] {
            assert!(
                (percentile(&values, share) - expected).abs() < 1e-12,
                "{share}"
            );
        }
        assert!((percentile(&[3.0], 0.99) - 3.0).abs() < 1e-12);
        assert!(percentile(&[], 0.5).is_nan());
    }

    #[test]
    fn ends_stay_in_range_and_nan_stays_nan() {
        let wide = Interval {
            value: 0.9,
            lo: Some(-0.1),
            hi: Some(1.2),
        };
        assert_eq!(
            wide.within(0.0, 1.0),
            Interval {
                value: 0.9,
                lo: Some(0.0),
                hi: Some(1.0)
            }
        );
        let nan = Interval {
            value: 0.0,
            lo: Some(f64::NAN),
            hi: None,
        }
        .within(0.0, 1.0);
        assert!(nan.lo.unwrap().is_nan());
    }
}
