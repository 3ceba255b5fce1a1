//! One decoder layer: its weights as f32, and its step.

use candle_core::{Result, Tensor};
use neuroconv_recipes::{
    AttentionSpec, Mixer, Mlp, ModelSpec, Norm, Order, QkNorm, Role, TensorId,
};

use super::attention::attend;
use super::rope::Rotary;
use super::weights::Weights;
use crate::Error;

/// A projection `y = x Wᵀ + b`.
struct Linear {
    weight_nk: Tensor,
    bias_n: Option<Tensor>,
}

impl Linear {
    fn forward(&self, x_tk: &Tensor) -> Result<Tensor> {
        let y_tn = x_tk.matmul(&self.weight_nk.t()?)?;
        match &self.bias_n {
            Some(bias) => y_tn.broadcast_add(bias),
            None => Ok(y_tn),
        }
    }
}

/// The mean-square norm over the last dimension: `x / sqrt(mean(x²) + eps) * gain`.
pub(super) fn rms_norm(x: &Tensor, gain: &Tensor, eps: f64) -> Result<Tensor> {
    candle_nn::ops::rms_norm(&x.contiguous()?, gain, eps as f32)
}

/// The weights of one layer.
pub(super) struct Layer {
    attention: AttentionSpec,
    eps: f64,
    rotary: Option<Rotary>,
    attn_norm: Tensor,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    qk_norm: Option<(Tensor, Tensor)>,
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
        let Mixer::Attention(a) = &spec.layers[index].mixer;
        let (hidden, ffn) = (spec.hidden, spec.ffn);
        let (q_dim, kv_dim) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
        let get = |role, shape: &[usize]| weights.get(TensorId::layer(index, role), shape);
        let linear = |role, shape: [usize; 2], bias: Option<Role>| {
            let weight_nk = get(role, &shape)?;
            let bias_n = bias.map(|role| get(role, &shape[..1])).transpose()?;
            Ok::<_, Error>(Linear { weight_nk, bias_n })
        };
        let qkv_bias = |role| a.bias.qkv.then_some(role);
        let mlp_bias = |role| spec.block.mlp_bias.then_some(role);
        let qk_norm = match a.qk_norm {
            QkNorm::None => None,
            QkNorm::PerHead => Some((
                get(Role::QNorm, &[a.head_dim])?,
                get(Role::KNorm, &[a.head_dim])?,
            )),
        };
        let rotary = a
            .rope
            .then(|| Rotary::new(&spec.rope, a.head_dim, positions))
            .transpose();
        Ok(Layer {
            attention: a.clone(),
            eps: spec.norm_eps,
            rotary: rotary.map_err(|source| Error::Reference {
                place: format!("rotation of layer {index}"),
                source,
            })?,
            attn_norm: get(Role::AttnNorm, &[hidden])?,
            q: linear(Role::Q, [q_dim, hidden], qkv_bias(Role::QBias))?,
            k: linear(Role::K, [kv_dim, hidden], qkv_bias(Role::KBias))?,
            v: linear(Role::V, [kv_dim, hidden], qkv_bias(Role::VBias))?,
            o: linear(Role::O, [hidden, q_dim], a.bias.o.then_some(Role::OBias))?,
            qk_norm,
            mlp_norm: get(Role::MlpNorm, &[hidden])?,
            gate: linear(Role::Gate, [ffn, hidden], mlp_bias(Role::GateBias))?,
            up: linear(Role::Up, [ffn, hidden], mlp_bias(Role::UpBias))?,
            down: linear(Role::Down, [hidden, ffn], mlp_bias(Role::DownBias))?,
        })
    }

    /// The residual stream of one window after this layer, from that before it; `[t, hidden]`.
    pub(super) fn forward(&self, x_td: &Tensor) -> Result<Tensor> {
        let x_td = (x_td + self.mix(&rms_norm(x_td, &self.attn_norm, self.eps)?)?)?;
        let normed = rms_norm(&x_td, &self.mlp_norm, self.eps)?;
        let gated = (self.gate.forward(&normed)?.silu()? * self.up.forward(&normed)?)?;
        x_td + self.down.forward(&gated)?
    }

    fn mix(&self, x_td: &Tensor) -> Result<Tensor> {
        let len = x_td.dim(0)?;
        let a = &self.attention;
        let heads = |linear: &Linear, count: usize| {
            linear
                .forward(x_td)?
                .reshape((len, count, a.head_dim))?
                .transpose(0, 1)?
                .contiguous()
        };
        let (mut q, mut k) = (heads(&self.q, a.heads)?, heads(&self.k, a.kv_heads)?);
        if let Some((q_gain, k_gain)) = &self.qk_norm {
            q = rms_norm(&q, q_gain, self.eps)?;
            k = rms_norm(&k, k_gain, self.eps)?;
        }
        if let Some(rotary) = &self.rotary {
            q = rotary.rotate(&q)?;
            k = rotary.rotate(&k)?;
        }
        let v = heads(&self.v, a.kv_heads)?;
        self.o.forward(&attend(&q, &k, &v, a.window)?)
    }
}
