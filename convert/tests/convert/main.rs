//! Whole conversions of a tiny synthetic checkpoint.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../common/mod.rs"]
mod common;

mod artifact;
mod gather;
mod importance;
mod outliers;
mod output;
mod plan;
mod resume;
mod rounded;
mod units;
