//! Whether the runtime computes what the stored weights mean.
//!
//! Both sides have the same bytes: the runtime runs the codes, the reference runs f32 weights
//! decoded from them. It says nothing about quality. Asked twice. *Step by step*, the reference
//! begins each step where the runtime did and rounds activations as packed products define it, so
//! that only the order of sums may differ and the first wrong step has a name. *End to end*, the
//! reference keeps activations in full, so packed models differ by that rounding as well.

mod step;
mod walk;

use neuroconv_runtime::{Progress, WeightSource};
use serde::{Deserialize, Serialize};
use step::{StepSums, larger, merge, ratio};
use walk::Walk;

use crate::Error;
use crate::compare::check_tokens;
use crate::protocol::Window;
use crate::report::finite;
use crate::scorer::{ReferenceScorer, Scorer};
use crate::tally::Tally;

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
    /// Of one step, relative to what the step changes.
    #[serde(default, serialize_with = "finite")]
    pub step_rel_l2: f64,
    /// Of the worst channel of one step in its upper quartile over tokens, relative to what the
    /// step changes in a channel on average. A value between two levels of eight bits falls to
    /// either side in a few tokens; a wrong weight tells in most.
    #[serde(default, serialize_with = "finite")]
    pub step_channel: f64,
}

impl ParityLimits {
    /// For models whose matrices are all dense: both sides compute in f32 and differ in the
    /// order of sums.
    ///
    /// Measured on the nineteen golden models and two trained ones of 0.26 and 11 million
    /// parameters: at most 5e-5, 1.5e-6 and 3e-12, and 1e-6 in a channel of a step. The room is
    /// for deeper and wider models.
    pub const DENSE: ParityLimits = ParityLimits {
        max_abs_logit: 1e-2,
        rel_l2: 1e-4,
        kld_mean: 1e-8,
        step_rel_l2: 2e-5,
        step_channel: 1e-4,
    };

    /// For models with packed matrices: end to end, the runtime's activations carry 8 bits per
    /// group and the reference's do not. Step by step both do, and a value in the middle between
    /// two levels may fall to either side.
    ///
    /// Measured on the same models with bodies of each codec and an int8 vocabulary: at most
    /// 1.0, 0.052 and 3.8e-3 end to end, the worst from models of 64 channels; the one of 11
    /// million parameters gives 0.42, 0.011 and 4.7e-4. The limits are about twice the worst.
    /// Step by step both measures are mostly below 1e-6, and at most 7e-3 where the keys of a
    /// token that many attend to have a value between two levels.
    pub const PACKED: ParityLimits = ParityLimits {
        max_abs_logit: 3.0,
        rel_l2: 0.1,
        kld_mean: 1e-2,
        step_rel_l2: 5e-2,
        step_channel: 2e-2,
    };

    /// The limits for a model, by whether a tensor of it is packed.
    pub fn of(source: &dyn WeightSource) -> Result<Self, Error> {
        if source.has_packed()? {
            return Ok(ParityLimits::PACKED);
        }
        Ok(ParityLimits::DENSE)
    }
}

/// How far one step of the runtime is from the same step of the reference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// `embedding`, `layer 0` …, `final norm`, `head`.
    pub name: String,
    /// Root of the squared differences over those of what the step changes.
    #[serde(serialize_with = "finite")]
    pub rel_l2: f64,
    /// Upper quartile over tokens of the difference in the worst channel, over the root mean
    /// square of what the step changes; for the head, whose channels are many, a root mean square
    /// over tokens instead.
    #[serde(serialize_with = "finite")]
    pub channel: f64,
}

/// How far the runtime is from what the stored weights mean.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// Each step, in order.
    #[serde(default)]
    pub steps: Vec<Step>,
    /// The first step beyond its limits.
    #[serde(default)]
    pub first_bad: Option<String>,
    /// Whether everything is finite and within the limits.
    pub pass: bool,
}

impl Parity {
    /// Runs both over the windows. `reference` and `runtime` must read the same weights.
    pub fn measure(
        reference: &ReferenceScorer<'_>,
        runtime: &dyn Scorer,
        windows: &[Window],
        limits: ParityLimits,
        progress: &dyn Progress,
    ) -> Result<Self, Error> {
        let (vocab, other) = (reference.vocab(), runtime.vocab());
        if vocab != other {
            return Err(Error::Vocabulary {
                base: vocab,
                artifact: other,
            });
        }
        check_tokens(windows.iter(), vocab)?;
        let mut steps = Vec::new();
        let mut tally = Tally::default();
        let size = crate::compare::batch_size(windows.iter(), 2 * runtime.hidden_size());
        for batch in windows.chunks(size) {
            let mut walk = Walk::new(reference, runtime, batch, progress);
            walk.run(&mut tally)?;
            merge(&mut steps, walk.steps);
        }
        Parity::of(&tally, steps, limits)
    }

    /// Sums up a comparison of reference and runtime.
    fn of(tally: &Tally, steps: Vec<StepSums>, limits: ParityLimits) -> Result<Self, Error> {
        let not_finite = tally.not_finite + u64::from(tally.base_not_finite.is_some());
        let tokens = tally.tokens();
        if tokens == 0 {
            return Err(if not_finite == 0 {
                Error::TooLittleText {
                    scored: 0,
                    needed: 1,
                }
            } else {
                Error::NothingFinite {
                    windows: tally.lines.len(),
                }
            });
        }
        let max_abs_logit = tally.rows.max_abs;
        let rel_l2 = ratio(tally.rows.square_difference, tally.rows.square_base);
        let kld_mean = tally.lines.iter().map(|l| l.sums.kld).sum::<f64>() / tokens as f64;
        let steps: Vec<Step> = steps.into_iter().map(StepSums::step).collect();
        // Written so that a value that is not a number does not pass.
        let good = |s: &&Step| s.rel_l2 <= limits.step_rel_l2 && s.channel <= limits.step_channel;
        let first_bad = steps.iter().find(|s| !good(s)).map(|s| s.name.clone());
        let pass = not_finite == 0
            && first_bad.is_none()
            && max_abs_logit <= limits.max_abs_logit
            && rel_l2 <= limits.rel_l2
            && kld_mean <= limits.kld_mean;
        Ok(Parity {
            max_abs_logit,
            rel_l2,
            kld_mean,
            limits,
            steps,
            first_bad,
            pass,
        })
    }

    /// The largest differences of any step.
    pub fn worst_step(&self) -> (f64, f64) {
        let steps = self.steps.iter();
        steps.fold((0.0, 0.0), |(l2, channel), s| {
            (larger(l2, s.rel_l2), larger(channel, s.channel))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tally::WindowScores;

    const LIMITS: ParityLimits = ParityLimits {
        max_abs_logit: 0.5,
        rel_l2: 0.1,
        kld_mean: 0.01,
        step_rel_l2: 0.01,
        step_channel: 0.1,
    };

    fn parity(rows: &[([f32; 3], [f32; 3])]) -> Result<Parity, Error> {
        let mut scores = WindowScores::default();
        for (reference, runtime) in rows {
            scores.add(reference, runtime, None, 0, 0.0);
        }
        let mut tally = Tally::default();
        tally.add(0, 0, &scores);
        Parity::of(&tally, Vec::new(), LIMITS)
    }

    #[test]
    fn the_first_bad_step_is_named() {
        let same = [1.0, 2.0];
        let step = |name: &str, found: [f32; 2]| {
            let mut sums = StepSums::new(name.to_owned(), 2);
            sums.add(&[0.0, 2.0], &same, &found);
            sums
        };
        let mut scores = WindowScores::default();
        scores.add(&same, &same, None, 0, 0.0);
        let mut tally = Tally::default();
        tally.add(0, 0, &scores);
        for (bad, found) in [
            (None, same),
            (Some("b"), [1.0, 2.5]),
            (Some("b"), [f32::NAN, 2.0]),
        ] {
            let steps = vec![step("a", same), step("b", found), step("c", [0.0, 0.0])];
            let steps = if bad.is_none() {
                vec![step("a", same)]
            } else {
                steps
            };
            let found = Parity::of(&tally, steps, LIMITS).unwrap();
            assert_eq!(
                (found.first_bad.as_deref(), found.pass),
                (bad, bad.is_none())
            );
        }
        // The change is that of the step, not of the stream: 0.5 over 1, not over sqrt(5).
        assert!((step("b", [1.0, 2.5]).step().rel_l2 - 0.5).abs() < 1e-12);
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
