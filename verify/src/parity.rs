//! Whether the runtime computes what the stored weights mean.
//!
//! Both sides have the same bytes: the runtime runs the codes, the reference runs f32 weights
//! decoded from them. What may differ is rounding, and for packed weights the runtime's 8-bit
//! activations. It says nothing about quality.

use neuroconv_runtime::{Progress, WeightSource};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::compare::Comparison;
use crate::protocol::Window;
use crate::report::finite;
use crate::scorer::Scorer;
use crate::stats::{Sum, pooled_mean};

/// Largest differences that rounding explains.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ParityLimits {
    /// Of two logits.
    #[serde(serialize_with = "finite")]
    pub max_abs_logit: f64,
    /// Of all logits: `sqrt(Σ difference² / Σ reference²)`.
    #[serde(serialize_with = "finite")]
    pub rel_l2: f64,
    /// Mean divergence of the runtime from the reference, in nats.
    #[serde(serialize_with = "finite")]
    pub kld_mean: f64,
}

impl ParityLimits {
    /// For models whose matrices are all dense: both sides compute in f32 and differ in the
    /// order of sums.
    ///
    /// Measured on the nineteen golden models and two trained ones of 0.26 and 11 million
    /// parameters: at most 5e-5, 1.5e-6 and 3e-12. The room is for deeper and wider models.
    pub const DENSE: ParityLimits = ParityLimits {
        max_abs_logit: 1e-2,
        rel_l2: 1e-4,
        kld_mean: 1e-8,
    };

    /// For models with packed matrices: the runtime's activations carry 8 bits per group.
    ///
    /// Measured on the same models with bodies of each codec and an int8 vocabulary: at most
    /// 1.0, 0.052 and 3.8e-3, the worst from models of 64 channels; the one of 11 million
    /// parameters gives 0.42, 0.011 and 4.7e-4. The limits are about twice the worst.
    pub const PACKED: ParityLimits = ParityLimits {
        max_abs_logit: 3.0,
        rel_l2: 0.1,
        kld_mean: 1e-2,
    };

    /// The limits for a model, by whether a tensor of it is packed.
    pub fn of(source: &dyn WeightSource) -> Result<Self, Error> {
        for (id, _) in source.spec().tensors() {
            if matches!(source.tensor(id)?, neuroconv_format::Tensor::Packed(_)) {
                return Ok(ParityLimits::PACKED);
            }
        }
        Ok(ParityLimits::DENSE)
    }
}

/// How far the runtime is from what the stored weights mean.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Parity {
    /// Largest difference of two logits.
    #[serde(serialize_with = "finite")]
    pub max_abs_logit: f64,
    /// `sqrt(Σ difference² / Σ reference²)` over all logits of all scored tokens.
    #[serde(serialize_with = "finite")]
    pub rel_l2: f64,
    /// Mean divergence of the runtime from the reference, in nats.
    #[serde(serialize_with = "finite")]
    pub kld_mean: f64,
    /// What rounding explains.
    pub limits: ParityLimits,
    /// Whether everything is finite and within the limits.
    pub pass: bool,
}

impl Parity {
    /// Runs both over the windows. `reference` and `runtime` must read the same weights.
    pub fn measure(
        reference: &dyn Scorer,
        runtime: &dyn Scorer,
        windows: &[Window],
        limits: ParityLimits,
        progress: &dyn Progress,
    ) -> Result<Self, Error> {
        Parity::of(
            &Comparison::run(reference, runtime, windows, progress)?,
            limits,
        )
    }

    /// Sums up a comparison of reference and runtime.
    pub fn of(comparison: &Comparison, limits: ParityLimits) -> Result<Self, Error> {
        let windows = &comparison.windows;
        let not_finite: u64 = windows
            .iter()
            .map(|w| w.base_not_finite + w.not_finite)
            .sum();
        let klds: Vec<Sum> = windows
            .iter()
            .map(|w| Sum {
                total: w.tokens.iter().map(|t| t.kld).sum(),
                count: w.tokens.len() as u64,
            })
            .collect();
        let tokens: u64 = klds.iter().map(|s| s.count).sum();
        if tokens == 0 {
            return Err(if not_finite == 0 {
                Error::TooLittleText {
                    scored: 0,
                    needed: 1,
                }
            } else {
                Error::NothingFinite {
                    windows: windows.len(),
                }
            });
        }
        let max_abs_logit = windows.iter().map(|w| w.max_abs_logit).fold(0.0, f64::max);
        let difference: f64 = windows.iter().map(|w| w.square_difference).sum();
        let reference: f64 = windows.iter().map(|w| w.square_base).sum();
        let rel_l2 = if difference == 0.0 {
            0.0
        } else {
            (difference / reference).sqrt()
        };
        let kld_mean = pooled_mean(&klds).value;
        // Written so that a value that is not a number does not pass.
        let pass = not_finite == 0
            && max_abs_logit <= limits.max_abs_logit
            && rel_l2 <= limits.rel_l2
            && kld_mean <= limits.kld_mean;
        Ok(Parity {
            max_abs_logit,
            rel_l2,
            kld_mean,
            limits,
            pass,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::WindowScores;

    const LIMITS: ParityLimits = ParityLimits {
        max_abs_logit: 0.5,
        rel_l2: 0.1,
        kld_mean: 0.01,
    };

    fn parity(rows: &[([f32; 3], [f32; 3])]) -> Result<Parity, Error> {
        let mut scores = WindowScores::default();
        for (reference, runtime) in rows {
            scores.add(reference, runtime, 0);
        }
        Parity::of(
            &Comparison {
                windows: vec![scores],
                ..Comparison::default()
            },
            LIMITS,
        )
    }

    #[test]
    fn differences_are_measured_and_limited() {
        let same = ([1.0, 2.0, 2.0], [1.0, 2.0, 2.0]);
        let p = parity(&[same]).unwrap();
        assert_eq!(
            (p.max_abs_logit, p.rel_l2, p.kld_mean, p.pass),
            (0.0, 0.0, 0.0, true)
        );
        let p = parity(&[same, ([1.0, 2.0, 2.0], [1.0, 2.0, 1.75])]).unwrap();
        assert!((p.rel_l2 - (0.0625f64 / 18.0).sqrt()).abs() < 1e-12);
        assert_eq!((p.max_abs_logit, p.pass), (0.25, true));
        // A shift of all logits changes no probability and is still no rounding.
        let p = parity(&[([1.0, 2.0, 2.0], [2.0, 3.0, 3.0])]).unwrap();
        assert!(p.kld_mean < 1e-12 && !p.pass);
    }

    #[test]
    fn what_is_not_finite_never_passes() {
        let same = ([1.0, 2.0, 2.0], [1.0, 2.0, 2.0]);
        assert!(
            !parity(&[same, ([1.0; 3], [1.0, f32::NAN, 1.0])])
                .unwrap()
                .pass
        );
        assert!(
            !parity(&[same, ([1.0, f32::INFINITY, 1.0], [1.0; 3])])
                .unwrap()
                .pass
        );
        let nothing = parity(&[([f32::NAN; 3], [f32::NAN; 3])]);
        assert!(matches!(nothing, Err(Error::NothingFinite { .. })));
        assert!(matches!(parity(&[]), Err(Error::TooLittleText { .. })));
    }
}
