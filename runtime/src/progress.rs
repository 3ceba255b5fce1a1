//! How long work tells what it is doing. Owns the interface; whoever prints implements it.

/// Receives the advance of one stage after another.
pub trait Progress: Send + Sync {
    /// A stage begins that consists of `total` steps of `unit` (`"tensors"`, `"tokens"`).
    fn start(&self, stage: &str, total: u64, unit: &str);
    /// `steps` more steps of the running stage are done.
    fn advance(&self, steps: u64);
    /// The running stage is done.
    fn finish(&self);
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quiet;

impl Progress for Quiet {
    fn start(&self, _stage: &str, _total: u64, _unit: &str) {}
    fn advance(&self, _steps: u64) {}
    fn finish(&self) {}
}
