//! The feed-forward block.

use crate::linear::{Input, Linear};
use crate::ops::silu_gate;

/// `down(silu(gate(x)) · up(x))` (Shazeer 2020, "GLU Variants Improve Transformer").
#[derive(Debug)]
pub(crate) struct GatedSilu {
    pub(crate) gate: Linear,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
    pub(crate) ffn: usize,
}

impl GatedSilu {
    /// `[t, hidden]` to `[t, hidden]`.
    pub(crate) fn forward(&self, x: &mut Input<'_>) -> Vec<f32> {
        let gated_tf = self.gated(x);
        self.down.forward(&mut Input::new(&gated_tf, self.ffn))
    }

    /// What the down projection reads, `[t, ffn]`.
    pub(crate) fn gated(&self, x: &mut Input<'_>) -> Vec<f32> {
        let [mut gate_tf, up_tf] = Linear::forward_all([&self.gate, &self.up], x);
        silu_gate(&mut gate_tf, &up_tf);
        gate_tf
    }
}
