//! One decoder layer: its weights as f32, and its step.

use candle_core::{Result, Tensor};
use neuroconv_recipes::{Mlp, ModelSpec, Norm, Order, Role, TensorId};

use super::linear::Linear;
use super::mixer::Mix;
use super::weights::Weights;
use crate::Error;

/// The mean-square norm over the last dimension: `x / sqrt(mean(x²) + eps) * gain`.
pub(super) fn rms_norm(x: &Tensor, gain: &Tensor, eps: f64) -> Result<Tensor> {
    candle_nn::ops::rms_norm(&x.contiguous()?, gain, eps as f32)
}

/// The weights of one layer.
pub(super) struct Layer {
    eps: f64,
    attn_norm: Tensor,
    mix: Mix,
    mlp_norm: Tensor,
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Layer {
    /// Reads layer `index`, ready for windows of up to `positions` tokens.
    pub(super) fn load(
        weights: Weights<'_>,
        spec: &ModelSpec,
        index: usize,
        positions: usize,
    ) -> std::result::Result<Self, Error> {
        // Every choice of the description is taken apart here: a new one must be answered for.
        let (Norm::Rms, Order::Pre, Mlp::GatedSilu) =
            (spec.block.norm, spec.block.order, spec.block.mlp);
        let (hidden, ffn) = (spec.hidden, spec.ffn);
        let get = |role, shape: &[usize]| weights.get(TensorId::layer(index, role), shape);
        let linear = |role, shape, bias| {
            let bias = spec.block.mlp_bias.then_some(bias);
            Linear::load(weights, index, role, shape, bias)
        };
        Ok(Layer {
            eps: spec.norm_eps,
            attn_norm: get(Role::AttnNorm, &[hidden])?,
            mix: Mix::load(weights, spec, index, positions)?,
            mlp_norm: get(Role::MlpNorm, &[hidden])?,
            gate: linear(Role::Gate, [ffn, hidden], Role::GateBias)?,
            up: linear(Role::Up, [ffn, hidden], Role::UpBias)?,
            down: linear(Role::Down, [hidden, ffn], Role::DownBias)?,
        })
    }

    /// The residual stream of one window after this layer, from that before it; `[t, hidden]`.
    pub(super) fn forward(&self, x_td: &Tensor) -> Result<Tensor> {
        let normed = rms_norm(x_td, &self.attn_norm, self.eps)?;
        let x_td = (x_td + self.mix.forward(&normed)?)?;
        let normed = rms_norm(&x_td, &self.mlp_norm, self.eps)?;
        let gated = (self.gate.forward(&normed)?.silu()? * self.up.forward(&normed)?)?;
        x_td + self.down.forward(&gated)?
    }
}
