//! Takes a decoder's weights out of a source.
//!
//! Owns the check that each tensor has the shape of its description, and which tensors each
//! variant of a block needs.

use std::collections::BTreeMap;

use neuroconv_format::Tensor;
use neuroconv_recipes::{
    AttentionSpec, BlockSpec, LatentSpec, Mixer, MlaEncoder, MlaSpec, Mlp, ModelSpec, Norm, QkNorm,
    Role, TensorId,
};

use crate::attention::Attention;
use crate::decoder::{Decoder, Layer, MixerLayer, MlpLayer};
use crate::latent::LatentAttention;
use crate::linear::Linear;
use crate::mla::{Encoder, LatentDecoder, LinearEncoder, Mla, NormedEncoder};
use crate::mlp::GatedSilu;
use crate::norm::RmsNorm;
use crate::rope::Rope;
use crate::{Error, KvCodec, WeightSource};

impl Decoder {
    /// Loads every tensor of `src`, whose shapes must be those of its description.
    pub fn load(src: &dyn WeightSource) -> Result<Self, Error> {
        neuroconv_kernels::isa()?;
        let spec = src.spec().clone();
        spec.validate()?;
        let mut loader = Loader::new(src, &spec);
        let embed = loader.tensor(TensorId::model(Role::Embed))?;
        let layers = spec.layers.iter().enumerate();
        let layers = layers
            .map(|(index, layer)| loader.layer(index, &layer.mixer))
            .collect::<Result<Vec<_>, Error>>()?;
        let (final_norm, head) = loader.head(&spec)?;
        let bytes_per_token = loader.bytes + embed.size_bytes() / spec.vocab;
        let rope = Rope::new(&spec);
        Ok(Decoder {
            spec,
            rope,
            embed,
            layers,
            final_norm,
            head,
            bytes_per_token,
            kv: KvCodec::default(),
        })
    }
}

/// One layer of `src`, whose description is `spec`.
pub(crate) fn layer(
    src: &dyn WeightSource,
    spec: &ModelSpec,
    index: usize,
) -> Result<Layer, Error> {
    Loader::new(src, spec).layer(index, &spec.layers[index].mixer)
}

/// The final norm and the head of `src`, whose description is `spec`.
pub(crate) fn head(src: &dyn WeightSource, spec: &ModelSpec) -> Result<(RmsNorm, Linear), Error> {
    Loader::new(src, spec).head(spec)
}

/// Takes tensors out of a source, checks their shapes and counts what a token will read.
struct Loader<'s> {
    src: &'s dyn WeightSource,
    shapes: BTreeMap<TensorId, Vec<usize>>,
    block: BlockSpec,
    ffn: usize,
    eps: f64,
    bytes: usize,
}

impl<'s> Loader<'s> {
    fn new(src: &'s dyn WeightSource, spec: &ModelSpec) -> Self {
        let shapes = spec.tensors().into_iter().collect();
        Loader {
            src,
            shapes,
            block: spec.block,
            ffn: spec.ffn,
            eps: spec.norm_eps,
            bytes: 0,
        }
    }

    fn tensor(&self, id: TensorId) -> Result<Tensor, Error> {
        let expected = self.shapes.get(&id).ok_or(Error::NoTensor(id))?;
        let tensor = self.src.tensor(id)?;
        let found = tensor.shape();
        if found == *expected {
            Ok(tensor)
        } else {
            Err(Error::Shape {
                tensor: id,
                expected: expected.clone(),
                found,
            })
        }
    }

    fn vector(&mut self, id: TensorId) -> Result<Vec<f32>, Error> {
        match self.tensor(id)? {
            Tensor::Dense(dense) => {
                self.bytes += dense.bytes.len();
                Ok(dense.to_f32())
            }
            packed @ Tensor::Packed(_) => Err(Error::Codec {
                tensor: id,
                codec: packed.codec_name(),
            }),
        }
    }

    fn norm(&mut self, id: TensorId, norm: Norm) -> Result<RmsNorm, Error> {
        match norm {
            Norm::Rms => Ok(RmsNorm::new(self.vector(id)?, self.eps)),
        }
    }

    fn matrix(&mut self, id: TensorId, bias: Option<TensorId>) -> Result<Linear, Error> {
        let bias = bias.map(|id| self.vector(id)).transpose()?;
        let linear = Linear::new(id, self.tensor(id)?, bias)?;
        self.bytes += linear.weight_bytes();
        Ok(linear)
    }

    fn head(&mut self, spec: &ModelSpec) -> Result<(RmsNorm, Linear), Error> {
        let norm = self.norm(TensorId::model(Role::FinalNorm), spec.block.norm)?;
        let role = if spec.tied { Role::Embed } else { Role::Head };
        Ok((norm, self.matrix(TensorId::model(role), None)?))
    }

    fn layer(&mut self, index: usize, mixer: &Mixer) -> Result<Layer, Error> {
        let id = |role| TensorId::layer(index, role);
        let mixer_norm = self.norm(id(Role::AttnNorm), self.block.norm)?;
        let mixer = match mixer {
            Mixer::Attention(spec) => MixerLayer::Attention(self.attention(index, spec)?),
            Mixer::Mla(spec) => MixerLayer::Mla(self.mla(index, spec)?),
            Mixer::Latent(spec) => MixerLayer::Latent(self.latent(index, spec)?),
        };
        let mlp_norm = self.norm(id(Role::MlpNorm), self.block.norm)?;
        let bias = |role| self.block.mlp_bias.then_some(id(role));
        let (gate_bias, up_bias) = (bias(Role::GateBias), bias(Role::UpBias));
        let down_bias = bias(Role::DownBias);
        let mlp = match self.block.mlp {
            Mlp::GatedSilu => MlpLayer::GatedSilu(GatedSilu {
                gate: self.matrix(id(Role::Gate), gate_bias)?,
                up: self.matrix(id(Role::Up), up_bias)?,
                down: self.matrix(id(Role::Down), down_bias)?,
                ffn: self.ffn,
            }),
        };
        Ok(Layer {
            mixer_norm,
            mixer,
            mlp_norm,
            mlp,
        })
    }

    fn attention(&mut self, index: usize, spec: &AttentionSpec) -> Result<Attention, Error> {
        let id = |role| TensorId::layer(index, role);
        let qkv_bias = |role| spec.bias.qkv.then_some(id(role));
        let qk_norm = match spec.qk_norm {
            QkNorm::None => None,
            QkNorm::PerHead => {
                let q_norm = self.norm(id(Role::QNorm), self.block.norm)?;
                Some((q_norm, self.norm(id(Role::KNorm), self.block.norm)?))
            }
        };
        Ok(Attention {
            spec: spec.clone(),
            q: self.matrix(id(Role::Q), qkv_bias(Role::QBias))?,
            k: self.matrix(id(Role::K), qkv_bias(Role::KBias))?,
            v: self.matrix(id(Role::V), qkv_bias(Role::VBias))?,
            o: self.matrix(id(Role::O), spec.bias.o.then_some(id(Role::OBias)))?,
            qk_norm,
        })
    }

    /// A matrix as single precision, whatever it is stored as.
    fn floats(&mut self, id: TensorId) -> Result<Vec<f32>, Error> {
        Ok(neuroconv_quant::dequantize(&self.tensor(id)?))
    }

    fn mla(&mut self, index: usize, spec: &MlaSpec) -> Result<Mla, Error> {
        let id = |role| TensorId::layer(index, role);
        let with_bias = |loader: &mut Self, role, bias| loader.matrix(id(role), Some(id(bias)));
        let q = with_bias(self, Role::Q, Role::QBias)?;
        let kv_a = with_bias(self, Role::KvA, Role::KvABias)?;
        let encoder = match spec.encoder {
            MlaEncoder::Linear => Encoder::Linear(Box::new(LinearEncoder { q, kv_a })),
            MlaEncoder::Normed { .. } => Encoder::Normed(Box::new(NormedEncoder {
                q,
                k: with_bias(self, Role::K, Role::KBias)?,
                v: with_bias(self, Role::V, Role::VBias)?,
                q_norm: self.norm(id(Role::QNorm), self.block.norm)?,
                k_norm: self.norm(id(Role::KNorm), self.block.norm)?,
                q_rope: if spec.rope_dim > 0 {
                    self.floats(id(Role::QRope))?
                } else {
                    Vec::new()
                },
                kv_a,
            })),
        };
        let inv_freq = if spec.rope_dim > 0 {
            let stored = self.vector(id(Role::RopeFreq))?;
            stored.into_iter().map(f64::from).collect()
        } else {
            Vec::new()
        };
        let latent_norm = match spec.latent_norm {
            Some(eps) => Some(RmsNorm::new(self.vector(id(Role::KvANorm))?, eps)),
            None => None,
        };
        let (k_b, v_b) = (self.floats(id(Role::KB))?, self.floats(id(Role::VB))?);
        let decoder = LatentDecoder::new(spec, &k_b, v_b);
        self.bytes += decoder.bytes();
        Ok(Mla {
            spec: spec.clone(),
            encoder,
            latent_norm,
            inv_freq,
            decoder,
            o: with_bias(self, Role::O, Role::OBias)?,
        })
    }

    fn latent(&mut self, index: usize, spec: &LatentSpec) -> Result<LatentAttention, Error> {
        let id = |role| TensorId::layer(index, role);
        let qk_norm = match spec.qk_norm {
            QkNorm::None => None,
            QkNorm::PerHead => {
                let q_norm = self.norm(id(Role::QNorm), self.block.norm)?;
                Some((q_norm, self.norm(id(Role::KNorm), self.block.norm)?))
            }
        };
        Ok(LatentAttention {
            spec: spec.clone(),
            q: self.matrix(id(Role::Q), Some(id(Role::QBias)))?,
            kv_a: self.matrix(id(Role::KvA), Some(id(Role::KvABias)))?,
            k_b: self.matrix(id(Role::KB), Some(id(Role::KBias)))?,
            v_b: self.matrix(id(Role::VB), None)?,
            o: self.matrix(id(Role::O), Some(id(Role::OBias)))?,
            qk_norm,
        })
    }
}
