//! The one integration test binary of the workspace's root.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod arrows;
mod cli;
mod export;
mod gate;
mod hub;
mod imatrix;
mod mla;
mod place;
mod rewrite;
mod running;
mod size;
mod units;
