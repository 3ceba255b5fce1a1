//! Keys and values of the tokens seen so far.
//!
//! Grows with the tokens, never ahead of them to what a configuration promises.

use neuroconv_recipes::{LayerSpec, Mixer, ModelSpec};

/// The state of one running sequence.
#[derive(Clone, Debug)]
pub struct KvCache {
    layers: Vec<LayerCache>,
    len: usize,
}

/// The keys and values of one attention layer in single precision.
#[derive(Clone, Debug)]
pub(crate) struct LayerCache {
    head_dim: usize,
    /// Per key/value head `[len, head_dim]`, keys normed and rotated.
    pub(crate) keys: Vec<Vec<f32>>,
    /// Per key/value head `[len, head_dim]`.
    pub(crate) values: Vec<Vec<f32>>,
}

impl KvCache {
    pub(crate) fn new(spec: &ModelSpec) -> Self {
        let layers = spec.layers.iter().map(|layer| match &layer.mixer {
            Mixer::Attention(a) => LayerCache::new(a.kv_heads, a.head_dim),
        });
        KvCache {
            layers: layers.collect(),
            len: 0,
        }
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of the keys and values held, counted, not computed from a formula.
    pub fn bytes(&self) -> usize {
        let floats = |planes: &[Vec<f32>]| planes.iter().map(Vec::len).sum::<usize>();
        let layer = |layer: &LayerCache| floats(&layer.keys) + floats(&layer.values);
        self.layers.iter().map(layer).sum::<usize>() * size_of::<f32>()
    }

    /// Bytes that each token adds to the cache of such a model.
    pub fn bytes_per_token(spec: &ModelSpec) -> usize {
        let floats = spec.layers.iter().map(|layer| match &layer.mixer {
            Mixer::Attention(a) => 2 * a.kv_heads * a.head_dim,
        });
        floats.sum::<usize>() * size_of::<f32>()
    }

    /// Forgets all tokens and keeps the memory.
    pub fn clear(&mut self) {
        self.truncate(0);
    }

    /// Forgets the tokens from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        for layer in &mut self.layers {
            for plane in layer.keys.iter_mut().chain(&mut layer.values) {
                plane.truncate(self.len * layer.head_dim);
            }
        }
    }

    /// Whether the cache was made for a model of this shape.
    pub(crate) fn fits(&self, spec: &ModelSpec) -> bool {
        let layer_fits = |(layer, cache): (&LayerSpec, &LayerCache)| match &layer.mixer {
            Mixer::Attention(a) => (a.kv_heads, a.head_dim) == (cache.keys.len(), cache.head_dim),
        };
        self.layers.len() == spec.layers.len()
            && spec.layers.iter().zip(&self.layers).all(layer_fits)
    }

    pub(crate) fn layer(&mut self, index: usize) -> &mut LayerCache {
        &mut self.layers[index]
    }

    /// Says that every layer has taken `t` more tokens.
    pub(crate) fn advance(&mut self, t: usize) {
        self.len += t;
    }
}

impl LayerCache {
    pub(crate) fn new(kv_heads: usize, head_dim: usize) -> Self {
        LayerCache {
            head_dim,
            keys: vec![Vec::new(); kv_heads],
            values: vec![Vec::new(); kv_heads],
        }
    }

    /// Adds the keys and values of some tokens, each `[t, kv_heads, head_dim]`.
    pub(crate) fn append(&mut self, k_thd: &[f32], v_thd: &[f32]) {
        append_plane(&mut self.keys, k_thd, self.head_dim);
        append_plane(&mut self.values, v_thd, self.head_dim);
    }
}

fn append_plane(planes: &mut [Vec<f32>], x_thd: &[f32], head_dim: usize) {
    let heads = planes.len();
    for (head, plane) in planes.iter_mut().enumerate() {
        for x_hd in x_thd.chunks(heads * head_dim) {
            plane.extend_from_slice(&x_hd[head * head_dim..(head + 1) * head_dim]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::spec;

    #[test]
    fn heads_are_kept_apart_and_truncation_forgets_the_end() {
        let spec = spec();
        let layers = spec.layers.len();
        let mut cache = KvCache::new(&spec);
        assert!(cache.fits(&spec));
        assert_eq!((cache.bytes(), cache.is_empty()), (0, true));
        let k: Vec<f32> = (0..3 * 2 * 8).map(|i| i as f32).collect();
        for layer in 0..layers {
            cache.layer(layer).append(&k, &k);
        }
        cache.advance(3);
        assert_eq!(cache.bytes(), layers * 2 * 3 * 2 * 8 * 4);
        assert_eq!(cache.bytes(), 3 * KvCache::bytes_per_token(&spec));
        assert_eq!(cache.layer(0).keys[1][8..16], k[24..32]);
        cache.truncate(2);
        assert_eq!(
            (cache.len(), cache.bytes()),
            (2, layers * 2 * 2 * 2 * 8 * 4)
        );
        cache.truncate(5);
        assert_eq!(cache.len(), 2);
        cache.clear();
        assert_eq!((cache.len(), cache.bytes()), (0, 0));
    }
}
