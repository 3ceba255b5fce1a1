//! Verification as a whole: the reference against recorded logits, the runtime against the
//! reference, and errors that must be noticed.

#![expect(
    clippy::unwrap_used,
    reason = "what a test needs and does not get ends the test"
)]

mod damage;
mod golden;
mod latent;
mod models;
mod negative;
mod whole;
