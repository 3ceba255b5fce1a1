//! The one decoder: token ids to hidden states to logits, for every architecture.
//!
//! Owns the order of operations in a block. What varies between families stands in
//! [`ModelSpec`]; each `match` here lists every variant.

use neuroconv_format::Tensor;
use neuroconv_recipes::{ModelSpec, Order};

use crate::attention::Attention;
use crate::cache::{KvCache, LayerCache};
use crate::latent::LatentAttention;
use crate::linear::{Input, Linear};
use crate::mla::Mla;
use crate::mlp::GatedSilu;
use crate::norm::RmsNorm;
use crate::ops::add;
use crate::rope::{Positions, Rope};
use crate::{Error, KvCodec};

/// Tokens that run through the layers at once, which bounds the memory of a long prompt.
pub(crate) const CHUNK_TOKENS: usize = 512;

/// A model in memory, ready to run. Packed and half-precision weights stay as they are stored,
/// mapped weights stay mapped.
#[derive(Debug)]
pub struct Decoder {
    pub(crate) spec: ModelSpec,
    pub(crate) rope: Rope,
    pub(crate) embed: Tensor,
    pub(crate) layers: Vec<Layer>,
    pub(crate) final_norm: RmsNorm,
    pub(crate) head: Linear,
    pub(crate) bytes_per_token: usize,
    pub(crate) kv: KvCodec,
}

#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) mixer_norm: RmsNorm,
    pub(crate) mixer: MixerLayer,
    pub(crate) mlp_norm: RmsNorm,
    pub(crate) mlp: MlpLayer,
}

#[derive(Debug)]
pub(crate) enum MixerLayer {
    Attention(Attention),
    Mla(Mla),
    Latent(LatentAttention),
}

#[derive(Debug)]
pub(crate) enum MlpLayer {
    GatedSilu(GatedSilu),
}

impl Decoder {
    /// The description of the model.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// The same model with caches in another number format.
    #[must_use]
    pub fn with_kv(self, kv: KvCodec) -> Self {
        Decoder { kv, ..self }
    }

    /// The number format of its caches.
    pub fn kv(&self) -> KvCodec {
        self.kv
    }

    /// An empty cache for one sequence.
    pub fn new_cache(&self) -> KvCache {
        KvCache::new(&self.spec, self.kv)
    }

    /// The hidden states `[t, hidden]` after the final norm of `tokens` that follow those in
    /// `cache`, which takes them in. One token or a whole prompt. On an error the cache is as
    /// before.
    pub fn hidden(&self, tokens: &[u32], cache: &mut KvCache) -> Result<Vec<f32>, Error> {
        self.check(tokens, cache)?;
        // On a thread of the pool from the first product to the last: every one that is asked for from
        // outside would put that thread to sleep and wake another.
        Ok(rayon::scope(|_| {
            let mut hidden_td = Vec::with_capacity(tokens.len() * self.spec.hidden);
            for chunk in tokens.chunks(CHUNK_TOKENS) {
                hidden_td.extend(self.forward(chunk, cache));
            }
            hidden_td
        }))
    }

    /// The logits `[t, vocab]` of hidden states `[t, hidden]` from [`Decoder::hidden`]. Their
    /// memory is the caller's to bound: give few rows at a time where the vocabulary is large.
    pub fn logits(&self, hidden_td: &[f32]) -> Vec<f32> {
        self.head
            .forward(&mut Input::new(hidden_td, self.spec.hidden))
    }

    /// Bytes of weights that one decoded token reads.
    pub fn bytes_per_token(&self) -> usize {
        self.bytes_per_token
    }

    pub(crate) fn check(&self, tokens: &[u32], cache: &KvCache) -> Result<(), Error> {
        if tokens.is_empty() {
            return Err(Error::NoTokens);
        }
        check_tokens(tokens, self.spec.vocab)?;
        let (asked, limit) = (cache.len() + tokens.len(), self.spec.max_positions);
        if asked > limit {
            return Err(Error::Context { asked, limit });
        }
        if cache.fits(&self.spec) {
            Ok(())
        } else {
            Err(Error::ForeignCache)
        }
    }

    /// The rows `[t, hidden]` of the embedding; the ids are those of [`Decoder::check`].
    pub(crate) fn embedded(&self, tokens: &[u32]) -> Vec<f32> {
        embedding_rows(&self.embed, tokens, self.spec.hidden)
    }

    fn forward(&self, tokens: &[u32], cache: &mut KvCache) -> Vec<f32> {
        let hidden = self.spec.hidden;
        let positions = Positions::new(&self.rope, cache.len(), tokens.len());
        let mut x_td = self.embedded(tokens);
        for (index, layer) in self.layers.iter().enumerate() {
            match self.spec.block.order {
                Order::Pre => layer.forward(&mut x_td, hidden, cache.layer(index), &positions),
            }
        }
        cache.advance(tokens.len());
        self.final_norm.apply(&mut x_td);
        x_td
    }
}

/// Refuses tokens that the embedding has no row for.
pub(crate) fn check_tokens(tokens: &[u32], vocab: usize) -> Result<(), Error> {
    match tokens.iter().position(|&token| token as usize >= vocab) {
        Some(place) => Err(Error::TokenRange {
            token: tokens[place],
            place,
            vocab,
        }),
        None => Ok(()),
    }
}

/// The rows `[t, hidden]` of an embedding; each token has one.
pub(crate) fn embedding_rows(table: &Tensor, tokens: &[u32], hidden: usize) -> Vec<f32> {
    let mut x_td = vec![0.0; tokens.len() * hidden];
    for (x_d, &token) in x_td.chunks_mut(hidden).zip(tokens) {
        neuroconv_quant::dequantize_row(table, token as usize, x_d);
    }
    x_td
}

impl MixerLayer {
    /// `[t, hidden]` to `[t, hidden]` for the tokens after those in `cache`, which it takes in.
    pub(crate) fn forward(
        &self,
        x: &mut Input<'_>,
        cache: &mut LayerCache,
        positions: &Positions<'_>,
    ) -> Vec<f32> {
        let mixed_tk = self.mixed(x, cache, positions);
        let o = match self {
            MixerLayer::Attention(attention) => &attention.o,
            MixerLayer::Mla(mla) => &mla.o,
            MixerLayer::Latent(latent) => &latent.o,
        };
        o.forward(&mut Input::new(&mixed_tk, o.cols()))
    }

    /// What the output projection reads, `[t, heads * head_dim]`.
    pub(crate) fn mixed(
        &self,
        x: &mut Input<'_>,
        cache: &mut LayerCache,
        positions: &Positions<'_>,
    ) -> Vec<f32> {
        match self {
            MixerLayer::Attention(attention) => attention.mixed(x, cache, positions),
            MixerLayer::Mla(mla) => mla.mixed(x, cache, positions),
            MixerLayer::Latent(latent) => latent.mixed(x, cache, positions),
        }
    }
}

impl Layer {
    /// `x + mixer(norm(x))`, then `x + mlp(norm(x))`, in place.
    pub(crate) fn forward(
        &self,
        x_td: &mut [f32],
        hidden: usize,
        cache: &mut LayerCache,
        positions: &Positions<'_>,
    ) {
        self.mix(x_td, hidden, cache, positions);
        let normed_td = self.mlp_norm.of(x_td);
        let mut input = Input::new(&normed_td, hidden);
        let changed_td = match &self.mlp {
            MlpLayer::GatedSilu(mlp) => mlp.forward(&mut input),
        };
        add(x_td, &changed_td);
    }

    /// `x + mixer(norm(x))`, in place.
    pub(crate) fn mix(
        &self,
        x_td: &mut [f32],
        hidden: usize,
        cache: &mut LayerCache,
        positions: &Positions<'_>,
    ) {
        let normed_td = self.mixer_norm.of(x_td);
        let mut input = Input::new(&normed_td, hidden);
        let mixed_td = self.mixer.forward(&mut input, cache, positions);
        add(x_td, &mixed_td);
    }
}

#[cfg(test)]
mod tests {
    use neuroconv_format::{Codec, DType};
    use neuroconv_recipes::{Role, TensorId};

    use super::*;
    use crate::testing::{Model, dense, spec};

    fn tokens() -> Vec<u32> {
        (0..140).map(|i| (i * 17 + 3) % 50).collect()
    }

    /// Logits of `tokens` run in pieces that end at `cuts`.
    fn logits(decoder: &Decoder, tokens: &[u32], cuts: &[usize]) -> Vec<f32> {
        let mut cache = decoder.new_cache();
        let mut out = Vec::new();
        let mut start = 0;
        for &cut in cuts.iter().chain([&tokens.len()]) {
            let hidden_td = decoder.hidden(&tokens[start..cut], &mut cache).unwrap();
            out.extend(decoder.logits(&hidden_td));
            start = cut;
        }
        assert_eq!(cache.len(), tokens.len());
        out
    }

    fn every_storage() -> Vec<(String, Model)> {
        let model = Model::random(spec());
        let dense = [DType::F32, DType::F16, DType::BF16]
            .map(|dtype| (dtype.to_string(), model.clone().in_dtype(dtype)));
        let packed = Codec::ALL.map(|codec| (codec.to_string(), model.clone().packed(codec)));
        let corrected = Codec::ALL.map(|codec| {
            let name = format!("{codec} with corrections");
            (name, model.clone().corrected(codec))
        });
        let fine = Codec::ALL.map(|codec| {
            let name = format!("{codec}, sixteen bits, with corrections");
            (name, model.clone().corrected(codec).in_sixteen_bits())
        });
        let shifted = Codec::ALL.map(|codec| {
            let name = format!("{codec} with shifts");
            (name, model.clone().packed(codec).shifted())
        });
        let packed = packed
            .into_iter()
            .chain(corrected)
            .chain(fine)
            .chain(shifted);
        dense.into_iter().chain(packed).collect()
    }

    /// Exact, not close: kernels promise sums in one order for any number of rows, and attention
    /// computes each row alone.
    #[test]
    fn chunks_single_tokens_and_one_shot_give_the_same_bits() {
        let tokens = tokens();
        let every: Vec<usize> = (1..tokens.len()).collect();
        for (name, model) in every_storage() {
            let decoder = Decoder::load(&model).unwrap();
            let at_once = logits(&decoder, &tokens, &[]);
            assert!(at_once.iter().all(|l| l.is_finite()));
            for cuts in [&[1][..], &[16, 17, 33], &[127, 128, 130], &every] {
                let in_pieces = logits(&decoder, &tokens, cuts);
                assert!(at_once == in_pieces, "{name} {cuts:?}");
            }
        }
    }

    #[test]
    fn caches_of_fewer_bits_are_close_and_cut_as_freely() {
        let tokens = tokens();
        let decoder = Decoder::load(&Model::random(spec())).unwrap();
        let exact = logits(&decoder, &tokens, &[]);
        let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
        let mut decoder = decoder;
        for (kv, bound) in [(KvCodec::F16, 1e-3), (KvCodec::Int8, 2e-2)] {
            decoder = decoder.with_kv(kv);
            let found = logits(&decoder, &tokens, &[]);
            assert!(found == logits(&decoder, &tokens, &[1, 100, 130]), "{kv:?}");
            let off = norm(&mut found.iter().zip(&exact).map(|(a, b)| a - b));
            let relative = off / norm(&mut exact.iter().copied());
            assert!(relative > 0.0 && relative < bound, "{kv:?}: {relative}");
        }
    }

    #[test]
    fn truncating_the_cache_takes_tokens_back() {
        let decoder = Decoder::load(&Model::random(spec())).unwrap();
        let tokens = tokens();
        let mut cache = decoder.new_cache();
        let first = decoder.hidden(&tokens, &mut cache).unwrap();
        cache.truncate(10);
        let again = decoder.hidden(&tokens[10..], &mut cache).unwrap();
        assert_eq!(first[10 * decoder.spec().hidden..], again);
    }

    #[test]
    fn packed_weights_run_like_their_dequantized_values() {
        let tokens = tokens();
        let model = Model::random(spec());
        for (codec, packed, bound) in Codec::ALL.into_iter().flat_map(|codec| {
            let (packed, corrected) = (model.clone().packed(codec), model.clone().corrected(codec));
            let fine = corrected.clone().in_sixteen_bits();
            // Activations in eight bits: about 0.4 % per product; in sixteen, a 256th of that.
            let shifted = packed.clone().shifted();
            [
                (packed, 0.03),
                (corrected, 0.03),
                (shifted, 0.03),
                (fine, 1.2e-4),
            ]
            .map(|(model, bound)| (codec, model, bound))
        }) {
            let plain = packed.clone().dequantized();
            let packed = logits(&Decoder::load(&packed).unwrap(), &tokens, &[]);
            let plain = logits(&Decoder::load(&plain).unwrap(), &tokens, &[]);
            let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
            let off = norm(&mut packed.iter().zip(&plain).map(|(a, b)| a - b));
            let relative = off / norm(&mut plain.iter().copied());
            assert!(relative > 0.0 && relative < bound, "{codec}: {relative}");
        }
    }

    #[test]
    fn a_tied_head_is_the_embedding() {
        let untied = Model::random(spec());
        let mut same = untied.clone();
        let embed = same.tensors[&TensorId::model(Role::Embed)].clone();
        same.tensors.insert(TensorId::model(Role::Head), embed);
        let mut tied = untied.clone();
        tied.spec.tied = true;
        tied.tensors.remove(&TensorId::model(Role::Head));
        let run = |model: &Model| logits(&Decoder::load(model).unwrap(), &tokens(), &[]);
        assert_eq!(run(&same), run(&tied));
        assert_ne!(run(&untied), run(&tied));
    }

    #[test]
    fn a_token_reads_all_weights_and_one_embedding_row() {
        for (name, model) in every_storage() {
            let stored: usize = model
                .tensors
                .iter()
                .filter(|(id, _)| id.role != Role::Embed)
                .map(|(_, tensor)| tensor.size_bytes())
                .sum();
            let row = model.tensors[&TensorId::model(Role::Embed)].size_bytes() / 50;
            let decoder = Decoder::load(&model).unwrap();
            assert_eq!(decoder.bytes_per_token(), stored + row, "{name}");
        }
    }

    #[test]
    fn what_cannot_run_is_refused_and_leaves_the_cache() {
        let decoder = Decoder::load(&Model::random(spec())).unwrap();
        let mut cache = decoder.new_cache();
        decoder.hidden(&[3, 4], &mut cache).unwrap();
        assert!(matches!(
            decoder.hidden(&[], &mut cache),
            Err(Error::NoTokens)
        ));
        let range = decoder.hidden(&[0, 50], &mut cache);
        assert!(matches!(
            range,
            Err(Error::TokenRange {
                token: 50,
                place: 1,
                vocab: 50
            })
        ));
        let long = decoder.hidden(&[0; 159], &mut cache);
        assert!(matches!(
            long,
            Err(Error::Context {
                asked: 161,
                limit: 160
            })
        ));
        assert_eq!(cache.len(), 2);
        let mut other = spec();
        other.layers.pop();
        let mut foreign = Decoder::load(&Model::random(other)).unwrap().new_cache();
        assert!(matches!(
            decoder.hidden(&[0], &mut foreign),
            Err(Error::ForeignCache)
        ));
    }

    #[test]
    fn tensors_that_do_not_fit_are_named() {
        let good = Model::random(spec());
        let id = TensorId::layer(1, Role::Up);
        let mut missing = good.clone();
        missing.tensors.remove(&id);
        assert!(matches!(Decoder::load(&missing), Err(Error::NoTensor(found)) if found == id));
        let mut turned = good.clone();
        turned
            .tensors
            .insert(id, dense(DType::F32, vec![48, 72], &[0.0; 48 * 72]));
        let error = Decoder::load(&turned).unwrap_err();
        assert_eq!(
            error.to_string(),
            "tensor `blk.1.mlp_up` has shape [48, 72], expected [72, 48]"
        );
        let mut bytes = good.clone();
        bytes
            .tensors
            .insert(id, dense(DType::U8, vec![72, 48], &[0.0; 48 * 72]));
        assert!(matches!(Decoder::load(&bytes), Err(Error::Codec { .. })));
        let mut short = good;
        let Tensor::Dense(tensor) = dense(DType::F32, vec![72, 48], &[0.0; 5]) else {
            return;
        };
        short.tensors.insert(id, Tensor::Dense(tensor));
        assert!(matches!(Decoder::load(&short), Err(Error::Codec { .. })));
    }
}
