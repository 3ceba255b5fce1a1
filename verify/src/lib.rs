//! The proof that an artifact works: parity, perplexity, divergence, the gate and its report.
//!
//! Two kinds of check, never mixed. *Parity* asks whether the runtime computes what is stored:
//! it compares with [`mod@reference`], a second forward pass that shares no arithmetic with the
//! runtime, over the same weights. *Quality* asks how far the artifact is from its original on
//! text. Owns the measurements and the verdict; knows nothing of how an artifact was made.

pub mod audit;
pub mod baseline;
pub mod compare;
pub mod drift;
pub mod error;
pub mod evaluate;
pub mod gate;
pub mod greedy;
mod layer_inputs;
pub mod logit_cache;
pub mod metrics;
mod parallel;
pub mod parity;
pub mod protocol;
pub mod quantiles;
pub mod reference;
pub mod render;
pub mod report;
pub mod run;
mod schedule;
pub mod score;
pub mod scorer;
pub mod stats;
pub mod tally;
#[cfg(test)]
mod testing;
pub mod yardstick;
mod zeros;

pub use error::Error;
pub use evaluate::{Evaluation, evaluate};
pub use gate::{Check, CheckClass, CheckStatus, Judgement, Verdict, advice, judge};
pub use metrics::Metrics;
pub use parity::{Parity, ParityLimits};
pub use protocol::{EvalText, Protocol, Window, windows};
pub use report::Report;
pub use run::{Verification, VerifyOptions, verify};
pub use schedule::check_texts;
pub use scorer::{ReferenceScorer, RuntimeScorer, Scorer};
pub use stats::Interval;
pub use yardstick::Yardstick;
pub use zeros::zeros_warning;
