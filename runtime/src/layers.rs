//! The decoder taken apart: one window from layer to layer, and what each matrix reads there, for
//! whoever looks between them.
//!
//! Owns no arithmetic: the steps are those of [`Decoder::hidden`] in the same order and with the
//! same results, bit for bit. Carrying many windows through one layer before the next reads each
//! layer's weights once, however many windows there are.

use neuroconv_recipes::{Mixer, MlaEncoder, ModelSpec, Role, TensorId};

use crate::cache::LayerCache;
use crate::decoder::{CHUNK_TOKENS, Decoder, Layer, MlpLayer, check_tokens, embedding_rows};
use crate::linear::{Input, Linear};
use crate::norm::RmsNorm;
use crate::rope::{Positions, Rope};
use crate::{Error, KvCache, KvCodec, WeightSource};

impl Decoder {
    /// The embedded rows `[t, hidden]` of a window that begins at position 0.
    pub fn embed(&self, tokens: &[u32]) -> Result<Vec<f32>, Error> {
        self.check(tokens, &self.new_cache())?;
        Ok(self.embedded(tokens))
    }

    /// Takes the residual stream `[t, hidden]` of a window that begins at position 0 through
    /// layer `index`.
    ///
    /// Panics where there is no such layer.
    pub fn layer(&self, index: usize, x_td: &mut [f32]) {
        let hidden = self.spec.hidden;
        let mut cache = self.new_cache();
        for (chunk, x_td) in x_td.chunks_mut(CHUNK_TOKENS * hidden).enumerate() {
            let positions = Positions::new(&self.rope, chunk * CHUNK_TOKENS, x_td.len() / hidden);
            self.layers[index].forward(x_td, hidden, cache.layer(index), &positions);
        }
    }

    /// Takes the residual stream `[t, hidden]` after the last layer through the final norm.
    pub fn finish(&self, x_td: &mut [f32]) {
        self.final_norm.apply(x_td);
    }
}

/// The rows `[t, hidden]` of the embedding of `src` for each window of tokens.
pub fn embed(
    src: &dyn WeightSource,
    windows: &[impl AsRef<[u32]>],
) -> Result<Vec<Vec<f32>>, Error> {
    let table = src.tensor(TensorId::model(Role::Embed))?;
    let window = |tokens: &[u32]| {
        check_tokens(tokens, src.spec().vocab)?;
        Ok(embedding_rows(&table, tokens, src.spec().hidden))
    };
    windows
        .iter()
        .map(|tokens| window(tokens.as_ref()))
        .collect()
}

/// The final norm and the head of a model without its layers.
#[derive(Debug)]
pub struct Head {
    norm: RmsNorm,
    head: Linear,
}

impl Head {
    /// Loads the end of `src`.
    pub fn load(src: &dyn WeightSource) -> Result<Self, Error> {
        neuroconv_kernels::isa()?;
        let (norm, head) = crate::load::head(src, src.spec())?;
        Ok(Head { norm, head })
    }

    /// Width of the residual stream.
    pub fn hidden_size(&self) -> usize {
        self.head.cols()
    }

    /// Number of token ids.
    pub fn vocab(&self) -> usize {
        self.head.rows()
    }

    /// Takes the residual stream `[t, hidden]` after the last layer through the final norm.
    pub fn norm(&self, x_td: &mut [f32]) {
        self.norm.apply(x_td);
    }

    /// The logits `[t, vocab]` of hidden states `[t, hidden]` after the final norm. Their memory is
    /// the caller's to bound.
    pub fn project(&self, hidden_td: &[f32]) -> Vec<f32> {
        self.head
            .forward(&mut Input::new(hidden_td, self.hidden_size()))
    }

    /// The logits `[t, vocab]` of the residual stream `[t, hidden]` after the last layer. Their
    /// memory is the caller's to bound.
    pub fn logits(&self, x_td: &[f32]) -> Vec<f32> {
        self.project(&self.norm.of(x_td))
    }
}

/// One layer of a model without the others.
#[derive(Debug)]
pub struct OneLayer {
    index: usize,
    spec: ModelSpec,
    rope: Rope,
    layer: Layer,
}

impl OneLayer {
    /// Loads layer `index` of `src`.
    pub fn load(src: &dyn WeightSource, index: usize) -> Result<Self, Error> {
        neuroconv_kernels::isa()?;
        let spec = src.spec().clone();
        spec.validate()?;
        Ok(OneLayer {
            index,
            rope: Rope::new(&spec),
            layer: crate::load::layer(src, &spec, index)?,
            spec,
        })
    }

    /// The description of the model.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Takes the residual stream `[t, hidden]` of a window that begins at position 0 through the
    /// layer.
    pub fn run(&self, x_td: &mut [f32]) {
        self.extend(x_td, &mut KvCache::new(&self.spec, KvCodec::default()));
    }

    /// Takes the residual stream `[t, hidden]` of tokens that follow those which the layer's part of
    /// `cache` holds through the layer; that part takes them in.
    ///
    /// Panics where the cache was made for another model.
    pub fn extend(&self, x_td: &mut [f32], cache: &mut KvCache) {
        assert!(cache.fits(&self.spec), "a cache for this model");
        self.each_chunk(x_td, cache, |layer, x_td, cache, positions| {
            layer.forward(x_td, self.spec.hidden, cache, positions);
        });
    }

    /// What the matrix of a role reads when the residual stream `[t, hidden]` of a window passes:
    /// `[t, columns]`. `None` for a matrix that does not read activations of a layer as they are.
    pub fn input(&self, role: Role, x_td: &[f32]) -> Option<Vec<f32>> {
        let place = Place::of(role, &self.spec.layers[self.index].mixer)?;
        let mut seen = Vec::new();
        let mut x_td = x_td.to_vec();
        let mut cache = KvCache::new(&self.spec, KvCodec::default());
        self.each_chunk(&mut x_td, &mut cache, |layer, x_td, cache, positions| {
            seen.extend(layer.input(place, x_td, self.spec.hidden, cache, positions));
        });
        Some(seen)
    }

    fn each_chunk(
        &self,
        x_td: &mut [f32],
        cache: &mut KvCache,
        mut step: impl FnMut(&Layer, &mut [f32], &mut LayerCache, &Positions<'_>),
    ) {
        let hidden = self.spec.hidden;
        let cache = cache.layer(self.index);
        for x_td in x_td.chunks_mut(CHUNK_TOKENS * hidden) {
            let positions = Positions::new(&self.rope, cache.len, x_td.len() / hidden);
            step(&self.layer, x_td, cache, &positions);
        }
    }
}

/// Where in a layer activations are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Mixer,
    MixerOutput,
    Mlp,
    MlpOutput,
}

impl Place {
    fn of(role: Role, mixer: &Mixer) -> Option<Self> {
        match role {
            Role::Q => Some(Place::Mixer),
            Role::K | Role::V => match mixer {
                Mixer::Attention(_) | Mixer::Mla(_) => Some(Place::Mixer),
                Mixer::Latent(_) => None,
            },
            Role::KvA => match mixer {
                Mixer::Mla(mla) if matches!(mla.encoder, MlaEncoder::Normed { .. }) => None,
                Mixer::Mla(_) | Mixer::Latent(_) => Some(Place::Mixer),
                Mixer::Attention(_) => None,
            },
            Role::O => Some(Place::MixerOutput),
            Role::Gate | Role::Up => Some(Place::Mlp),
            Role::Down => Some(Place::MlpOutput),
            Role::QRope
            | Role::KB
            | Role::VB
            | Role::RopeFreq
            | Role::Embed
            | Role::Head
            | Role::FinalNorm
            | Role::AttnNorm
            | Role::QNorm
            | Role::KNorm
            | Role::MlpNorm
            | Role::QBias
            | Role::KBias
            | Role::VBias
            | Role::OBias
            | Role::KvABias
            | Role::KvANorm
            | Role::GateBias
            | Role::UpBias
            | Role::DownBias => None,
        }
    }
}

impl Layer {
    fn input(
        &self,
        place: Place,
        x_td: &mut [f32],
        hidden: usize,
        cache: &mut LayerCache,
        positions: &Positions<'_>,
    ) -> Vec<f32> {
        match place {
            Place::Mixer => self.mixer_norm.of(x_td),
            Place::MixerOutput => {
                let normed_td = self.mixer_norm.of(x_td);
                self.mixer
                    .mixed(&mut Input::new(&normed_td, hidden), cache, positions)
            }
            Place::Mlp => {
                self.mix(x_td, hidden, cache, positions);
                self.mlp_norm.of(x_td)
            }
            Place::MlpOutput => {
                self.mix(x_td, hidden, cache, positions);
                let normed_td = self.mlp_norm.of(x_td);
                match &self.mlp {
                    MlpLayer::GatedSilu(mlp) => mlp.gated(&mut Input::new(&normed_td, hidden)),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use neuroconv_recipes::{Role, TensorId};

    use crate::testing::{Model, spec};
    use crate::{Decoder, Error, OneLayer, WeightSource as _};

    #[test]
    fn layer_by_layer_gives_the_same_bits_as_in_one_go() {
        let model = Model::random(spec());
        let decoder = Decoder::load(&model).unwrap();
        let tokens: Vec<u32> = (0..140).map(|i| (i * 17 + 3) % 50).collect();
        let mut x_td = decoder.embed(&tokens).unwrap();
        for index in 0..decoder.spec().layers.len() {
            decoder.layer(index, &mut x_td);
        }
        decoder.finish(&mut x_td);
        assert!(x_td == decoder.hidden(&tokens, &mut decoder.new_cache()).unwrap());
        let mut again_td = decoder.embed(&tokens).unwrap();
        for index in 0..decoder.spec().layers.len() {
            OneLayer::load(&model, index).unwrap().run(&mut again_td);
        }
        decoder.finish(&mut again_td);
        assert!(x_td == again_td);
        assert!(matches!(decoder.embed(&[]), Err(Error::NoTokens)));
        assert!(matches!(
            decoder.embed(&[50]),
            Err(Error::TokenRange { .. })
        ));
    }
    /// The last two matrices of a layer applied to what they are said to read, added to the residual
    /// stream, are what the layer gives.
    #[test]
    fn inputs_are_what_the_matrices_read() {
        let model = Model::random(spec());
        let decoder = Decoder::load(&model).unwrap();
        let tokens: Vec<u32> = (0..600).map(|i| (i * 17 + 3) % 50).take(140).collect();
        let x_td = decoder.embed(&tokens).unwrap();
        let layer = OneLayer::load(&model, 0).unwrap();
        let mut expected_td = x_td.clone();
        layer.run(&mut expected_td);
        let hidden = decoder.spec().hidden;
        let mut found_td = x_td.clone();
        let values =
            |role| neuroconv_quant::dequantize(&model.tensor(TensorId::layer(0, role)).unwrap());
        for (role, bias) in [(Role::O, Role::OBias), (Role::Down, Role::DownBias)] {
            let (w, bias_d) = (values(role), values(bias));
            let read = layer.input(role, &x_td).unwrap();
            let cols = w.len() / hidden;
            for (y_d, x_k) in found_td.chunks_mut(hidden).zip(read.chunks(cols)) {
                for ((y, w_k), bias) in y_d.iter_mut().zip(w.chunks(cols)).zip(&bias_d) {
                    *y += bias + w_k.iter().zip(x_k).map(|(w, x)| w * x).sum::<f32>();
                }
            }
        }
        let off = found_td
            .iter()
            .zip(&expected_td)
            .map(|(a, b)| (a - b).abs());
        assert!(off.fold(0.0, f32::max) < 1e-4);
        assert_eq!(layer.input(Role::K, &x_td), layer.input(Role::Q, &x_td));
        assert_ne!(layer.input(Role::Up, &x_td), layer.input(Role::Q, &x_td));
        assert_eq!(layer.input(Role::KB, &x_td), None);
    }
}
