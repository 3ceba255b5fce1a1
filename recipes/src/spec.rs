//! The resolved description of one model: everything a decoder needs to know besides the
//! weights. Stored in the manifest, so the runtime never sees a foreign name.
//!
//! Every enum here is the closed vocabulary of a TOML file in `arch/`.

use serde::{Deserialize, Serialize};

use crate::latent::{LatentSpec, MlaSpec};
use crate::role::{Role, TensorId};

/// A decoder-only model, resolved from its configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// Name of the architecture file that resolved it, for people; no code branches on it.
    pub arch: String,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of token ids.
    pub vocab: usize,
    /// Width of the feed-forward block.
    pub ffn: usize,
    /// Longest position the source promises to handle.
    pub max_positions: usize,
    /// Added to the mean square inside each norm.
    pub norm_eps: f64,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// What all layers share.
    pub block: BlockSpec,
    /// Rotary position embedding.
    pub rope: RopeSpec,
    /// The layers, first to last.
    pub layers: Vec<LayerSpec>,
    /// Token ids with a meaning of their own.
    pub special: SpecialTokens,
}

/// The shape of a block, the same in every layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockSpec {
    /// Kind of norm.
    pub norm: Norm,
    /// Where the norms stand.
    pub order: Order,
    /// Kind of feed-forward block.
    pub mlp: Mlp,
    /// Whether gate, up and down carry biases.
    pub mlp_bias: bool,
}

/// Kinds of norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Norm {
    /// `x / sqrt(mean(x²) + eps) * gain`.
    Rms,
}

/// Where norms stand in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// `x + mixer(norm(x))`, then `x + mlp(norm(x))`.
    Pre,
}

/// Kinds of feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mlp {
    /// `down(silu(gate(x)) * up(x))`.
    GatedSilu,
}

/// One layer: what mixes tokens in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerSpec {
    /// What mixes tokens.
    pub mixer: Mixer,
}

/// Ways of mixing tokens. Mamba-2 and gated delta nets become variants when they run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Mixer {
    /// Softmax attention with grouped key/value heads.
    Attention(AttentionSpec),
    /// Multi-head latent attention.
    Mla(MlaSpec),
    /// Softmax attention whose keys and values are rebuilt from a latent.
    Latent(LatentSpec),
}

impl Mixer {
    /// Numbers that each token adds to the cache of one layer.
    pub fn cached_numbers(&self) -> usize {
        match self {
            Mixer::Attention(a) => 2 * a.kv_heads * a.head_dim,
            Mixer::Mla(a) => a.rank + a.rope_dim,
            Mixer::Latent(a) => a.rank,
        }
    }
}

/// Softmax attention of one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionSpec {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head; even where `rope` is true.
    pub head_dim: usize,
    /// Whether queries and keys are rotated in this layer.
    pub rope: bool,
    /// Norm of queries and keys before rotation.
    pub qk_norm: QkNorm,
    /// Which projections carry a bias.
    pub bias: Biases,
    /// A token attends to itself and the `window - 1` before it; `None` is all before it.
    pub window: Option<usize>,
}

/// Norms on queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QkNorm {
    /// None.
    None,
    /// RMS norm over each head, one gain vector of `head_dim` shared by the heads.
    PerHead,
}

/// Which attention projections carry a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Biases {
    /// Query, key and value projections.
    pub qkv: bool,
    /// Output projection.
    pub o: bool,
}

/// Rotary position embedding of a model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RopeSpec {
    /// Base of the frequencies: pair `i` of `d/2` turns by `theta^(-2i/d)` per position.
    pub theta: f64,
    /// Which channels form a pair.
    pub layout: RopeLayout,
    /// Change to the frequencies for longer contexts.
    pub scaling: RopeScaling,
}

/// Which channels of a head form a rotated pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RopeLayout {
    /// Channel `i` with `i + head_dim/2`.
    Half,
    /// Channel `2i` with `2i + 1`.
    Interleaved,
}

/// Changes to rotary frequencies.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum RopeScaling {
    /// Plain frequencies.
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// Stretch of the context.
        factor: f64,
    },
    /// Llama 3's: low frequencies divided by `factor`, high ones kept, a smooth ramp between.
    Llama3 {
        /// Stretch of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_max_positions / low_freq_factor` are stretched.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_positions / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context the source was first trained with.
        original_max_positions: f64,
    },
}

impl RopeSpec {
    /// Angle per position of each of the `head_dim / 2` pairs, in radians.
    ///
    /// Llama 3's ramp follows its reference: with wavelength `2π/f`, the blend weight is
    /// `(original/wavelength - low) / (high - low)`.
    pub fn inv_freq(&self, head_dim: usize) -> Vec<f64> {
        let pairs = head_dim / 2;
        (0..pairs)
            .map(|i| {
                let plain = self.theta.powf(-2.0 * i as f64 / head_dim as f64);
                match self.scaling {
                    RopeScaling::None => plain,
                    RopeScaling::Linear { factor } => plain / factor,
                    RopeScaling::Llama3 {
                        factor,
                        low_freq_factor,
                        high_freq_factor,
                        original_max_positions,
                    } => {
                        let wavelength = std::f64::consts::TAU / plain;
                        if wavelength < original_max_positions / high_freq_factor {
                            plain
                        } else if wavelength > original_max_positions / low_freq_factor {
                            plain / factor
                        } else {
                            let smooth = (original_max_positions / wavelength - low_freq_factor)
                                / (high_freq_factor - low_freq_factor);
                            (1.0 - smooth) * plain / factor + smooth * plain
                        }
                    }
                }
            })
            .collect()
    }
}

/// Token ids with a meaning of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpecialTokens {
    /// Begins a text.
    pub bos: Option<u32>,
    /// Any of these ends a text.
    pub eos: Vec<u32>,
}

impl ModelSpec {
    /// Every tensor the model consists of with its shape (rows, columns; or one length),
    /// in storage order. A tied head is not listed.
    pub fn tensors(&self) -> Vec<(TensorId, Vec<usize>)> {
        let mut out = vec![(TensorId::model(Role::Embed), vec![self.vocab, self.hidden])];
        for (i, layer) in self.layers.iter().enumerate() {
            let mut push = |role, shape| out.push((TensorId::layer(i, role), shape));
            push(Role::AttnNorm, vec![self.hidden]);
            match &layer.mixer {
                Mixer::Attention(a) => {
                    let (q, kv) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
                    push(Role::Q, vec![q, self.hidden]);
                    push(Role::K, vec![kv, self.hidden]);
                    push(Role::V, vec![kv, self.hidden]);
                    push(Role::O, vec![self.hidden, q]);
                    if a.bias.qkv {
                        push(Role::QBias, vec![q]);
                        push(Role::KBias, vec![kv]);
                        push(Role::VBias, vec![kv]);
                    }
                    if a.bias.o {
                        push(Role::OBias, vec![self.hidden]);
                    }
                    match a.qk_norm {
                        QkNorm::None => {}
                        QkNorm::PerHead => {
                            push(Role::QNorm, vec![a.head_dim]);
                            push(Role::KNorm, vec![a.head_dim]);
                        }
                    }
                }
                Mixer::Mla(a) => a
                    .tensors(self.hidden)
                    .into_iter()
                    .for_each(|(role, shape)| push(role, shape)),
                Mixer::Latent(a) => a
                    .tensors(self.hidden)
                    .into_iter()
                    .for_each(|(role, shape)| push(role, shape)),
            }
            push(Role::MlpNorm, vec![self.hidden]);
            match self.block.mlp {
                Mlp::GatedSilu => {
                    push(Role::Gate, vec![self.ffn, self.hidden]);
                    push(Role::Up, vec![self.ffn, self.hidden]);
                    push(Role::Down, vec![self.hidden, self.ffn]);
                }
            }
            if self.block.mlp_bias {
                push(Role::GateBias, vec![self.ffn]);
                push(Role::UpBias, vec![self.ffn]);
                push(Role::DownBias, vec![self.hidden]);
            }
        }
        out.push((TensorId::model(Role::FinalNorm), vec![self.hidden]));
        if !self.tied {
            out.push((TensorId::model(Role::Head), vec![self.vocab, self.hidden]));
        }
        out.sort_by_key(|(id, _)| *id);
        out
    }

    /// Number of parameters, a tied head counted once.
    pub fn parameters(&self) -> u64 {
        self.tensors()
            .iter()
            .map(|(_, shape)| shape.iter().map(|&d| d as u64).product::<u64>())
            .sum()
    }
}
