//! The one integration test binary of the workspace's root.

mod arrows;
mod cli;
