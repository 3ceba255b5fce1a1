//! The paths for x86-64.
//!
//! Every entry point may run only where its instruction set was detected; they are reachable only
//! through a [`crate::Isa`], which is the proof of that.
#![expect(
    unsafe_code,
    reason = "SIMD loads and stores, and calls of functions with target features"
)]
