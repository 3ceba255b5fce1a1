//! Verification as a whole: the reference against recorded logits, the runtime against the
//! reference, and errors that must be noticed.

mod golden;
mod models;
mod negative;
mod whole;
