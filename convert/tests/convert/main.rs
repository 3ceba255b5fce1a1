//! Whole conversions of a tiny synthetic checkpoint.

#[path = "../common/mod.rs"]
mod common;

mod artifact;
mod output;
mod plan;
mod resume;
