//! The quality a converted model must keep. Owns the numbers; `verify` judges by them.

use serde::{Deserialize, Serialize};

use crate::Error;

/// What a converted model may lose against its source. A limit that is `None` is not judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Perplexity over that of the source.
    pub max_ppl_ratio: Option<f64>,
    /// Mean Kullback-Leibler divergence from the source, in nats per token.
    pub max_kld: Option<f64>,
    /// Share of tokens whose likeliest continuation is that of the source, 0 to 1.
    pub min_top1: Option<f64>,
    /// 99th percentile of the divergence, in nats.
    pub max_p99_kld: Option<f64>,
}

impl Limits {
    /// The limits with their names, in the order of a recipe.
    pub fn named(&self) -> [(&'static str, Option<f64>); 4] {
        [
            ("max_ppl_ratio", self.max_ppl_ratio),
            ("max_kld", self.max_kld),
            ("min_top1", self.min_top1),
            ("max_p99_kld", self.max_p99_kld),
        ]
    }

    /// These limits, and those of `fallback` where there are none.
    #[must_use]
    pub fn or(self, fallback: Limits) -> Limits {
        Limits {
            max_ppl_ratio: self.max_ppl_ratio.or(fallback.max_ppl_ratio),
            max_kld: self.max_kld.or(fallback.max_kld),
            min_top1: self.min_top1.or(fallback.min_top1),
            max_p99_kld: self.max_p99_kld.or(fallback.max_p99_kld),
        }
    }

    /// Whether nothing at all is judged.
    pub fn is_empty(&self) -> bool {
        self.named().iter().all(|(_, limit)| limit.is_none())
    }

    /// Fails for a limit that is not a number, negative, or beyond what can be measured.
    pub fn check(&self) -> Result<(), Error> {
        for (key, limit) in self.named() {
            let Some(found) = limit else { continue };
            let (ok, expected) = match key {
                "min_top1" => ((0.0..=1.0).contains(&found), "a share from 0 to 1"),
                "max_ppl_ratio" => (
                    found.is_finite() && found > 0.0,
                    "a finite number greater than 0",
                ),
                _ => (
                    found.is_finite() && found >= 0.0,
                    "a finite number, 0 or more",
                ),
            };
            if !ok {
                return Err(Error::BadLimit {
                    key,
                    expected,
                    found,
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_nothing_could_miss_or_meet_are_refused() {
        let ratio = |v| Limits {
            max_ppl_ratio: Some(v),
            ..Limits::default()
        };
        let kld = |v| Limits {
            max_kld: Some(v),
            ..Limits::default()
        };
        let top1 = |v| Limits {
            min_top1: Some(v),
            ..Limits::default()
        };
        let tail = |v| Limits {
            max_p99_kld: Some(v),
            ..Limits::default()
        };
        for good in [
            ratio(1.0),
            kld(0.0),
            top1(0.0),
            top1(1.0),
            tail(3.0),
            Limits::default(),
        ] {
            assert_eq!(good.check(), Ok(()));
        }
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0] {
            for limits in [ratio(bad), kld(bad), top1(bad), tail(bad)] {
                assert!(
                    matches!(limits.check(), Err(Error::BadLimit { .. })),
                    "{limits:?}"
                );
            }
        }
        assert!(ratio(0.0).check().is_err() && top1(1.01).check().is_err());
        let error = kld(-1.0).check().unwrap_err();
        assert_eq!(
            error.to_string(),
            "limit `max_kld`: expected a finite number, 0 or more, found `-1`"
        );
    }

    #[test]
    fn own_limits_come_first() {
        let own = Limits {
            max_kld: Some(0.5),
            ..Limits::default()
        };
        let base = Limits {
            max_kld: Some(0.1),
            min_top1: Some(0.9),
            ..Limits::default()
        };
        assert_eq!(
            own.or(base),
            Limits {
                max_kld: Some(0.5),
                min_top1: Some(0.9),
                ..Limits::default()
            }
        );
        assert!(Limits::default().is_empty() && !own.is_empty());
    }
}
