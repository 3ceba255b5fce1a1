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

/// Positions that lie together in memory, and by which the cache grows.
pub(crate) const PAGE: usize = 128;

/// The keys and values of one attention layer in single precision.
#[derive(Clone, Debug)]
pub(crate) struct LayerCache {
    head_dim: usize,
    /// Tokens held.
    pub(crate) len: usize,
    /// One per key/value head.
    pub(crate) heads: Vec<HeadCache>,
}

/// The keys and values of one head in whole pages, zero beyond the last token. Both lie so that
/// their products with queries and weights are dot products over contiguous memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct HeadCache {
    /// `[pages, PAGE, head_dim]`, normed and rotated.
    keys: Vec<f32>,
    /// `[pages, head_dim, PAGE]`.
    values: Vec<f32>,
    page_floats: usize,
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

    /// Bytes of the pages held, counted, not computed from a formula.
    pub fn bytes(&self) -> usize {
        let heads = self.layers.iter().flat_map(|layer| &layer.heads);
        heads
            .map(|head| size_of_val(&head.keys[..]) + size_of_val(&head.values[..]))
            .sum()
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
            layer.truncate(len);
        }
    }

    /// Whether the cache was made for a model of this shape.
    pub(crate) fn fits(&self, spec: &ModelSpec) -> bool {
        let layer_fits = |(layer, cache): (&LayerSpec, &LayerCache)| match &layer.mixer {
            Mixer::Attention(a) => (a.kv_heads, a.head_dim) == (cache.heads.len(), cache.head_dim),
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
        let head = HeadCache {
            page_floats: PAGE * head_dim,
            ..HeadCache::default()
        };
        LayerCache {
            head_dim,
            len: 0,
            heads: vec![head; kv_heads],
        }
    }

    /// Adds the keys and values of some tokens, each `[t, kv_heads, head_dim]`.
    pub(crate) fn append(&mut self, k_thd: &[f32], v_thd: &[f32]) {
        let width = self.heads.len() * self.head_dim;
        let start = self.len;
        self.len += k_thd.len() / width;
        let head_dim = self.head_dim;
        for (h, head) in self.heads.iter_mut().enumerate() {
            head.resize(self.len.div_ceil(PAGE));
            let columns = h * head_dim..(h + 1) * head_dim;
            let tokens = k_thd.chunks(width).zip(v_thd.chunks(width));
            for (position, (k_hd, v_hd)) in (start..).zip(tokens) {
                head.put(position, &k_hd[columns.clone()], &v_hd[columns.clone()]);
            }
        }
    }

    fn truncate(&mut self, len: usize) {
        let zeros = vec![0.0; self.head_dim];
        for head in &mut self.heads {
            head.resize(self.len.min(len).div_ceil(PAGE));
            for position in len..self.len.min(len.next_multiple_of(PAGE)) {
                head.put(position, &zeros, &zeros);
            }
        }
        self.len = self.len.min(len);
    }
}

impl HeadCache {
    /// The keys of a page, `[PAGE, head_dim]`.
    pub(crate) fn keys(&self, page: usize) -> &[f32] {
        &self.keys[page * self.page_floats..][..self.page_floats]
    }

    /// The values of a page, `[head_dim, PAGE]`.
    pub(crate) fn values(&self, page: usize) -> &[f32] {
        &self.values[page * self.page_floats..][..self.page_floats]
    }

    fn resize(&mut self, pages: usize) {
        self.keys.resize(pages * self.page_floats, 0.0);
        self.values.resize(pages * self.page_floats, 0.0);
    }

    fn put(&mut self, position: usize, k_d: &[f32], v_d: &[f32]) {
        self.keys[position * k_d.len()..][..k_d.len()].copy_from_slice(k_d);
        let page = position / PAGE * self.page_floats;
        for (d, &v) in v_d.iter().enumerate() {
            self.values[page + d * PAGE + position % PAGE] = v;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::spec;

    /// Keys and values of `t` tokens from `start` on, each number telling where it belongs.
    fn tokens(start: usize, t: usize) -> (Vec<f32>, Vec<f32>) {
        let key = |i: usize| (start * 16 + i) as f32;
        (
            (0..t * 16).map(key).collect(),
            (0..t * 16).map(|i| -key(i)).collect(),
        )
    }

    fn filled(spec: &ModelSpec, pieces: &[usize]) -> KvCache {
        let mut cache = KvCache::new(spec);
        for &t in pieces {
            let (k, v) = tokens(cache.len(), t);
            for layer in 0..spec.layers.len() {
                cache.layer(layer).append(&k, &v);
            }
            cache.advance(t);
        }
        cache
    }

    #[test]
    fn every_number_lies_in_its_place_however_it_came() {
        let spec = spec();
        for pieces in [&[300][..], &[1, 127, 2, 170], &[130, 170]] {
            let mut cache = filled(&spec, pieces);
            assert_eq!((cache.len(), cache.fits(&spec)), (300, true));
            for (position, head, d) in [(0, 0, 0), (127, 1, 7), (128, 0, 3), (299, 1, 0)] {
                let number = ((position * 2 + head) * 8 + d) as f32;
                let held = &cache.layer(1).heads[head];
                let (page, place) = (position / PAGE, position % PAGE);
                let found = (
                    held.keys(page)[place * 8 + d],
                    held.values(page)[d * PAGE + place],
                );
                assert_eq!(found, (number, -number));
            }
        }
    }

    #[test]
    fn memory_grows_by_pages_and_truncation_leaves_zeros() {
        let spec = spec();
        assert_eq!(
            (KvCache::new(&spec).bytes(), KvCache::new(&spec).is_empty()),
            (0, true)
        );
        let page_bytes = PAGE * KvCache::bytes_per_token(&spec);
        assert_eq!(KvCache::bytes_per_token(&spec), 2 * 2 * 2 * 8 * 4);
        let mut cache = filled(&spec, &[129]);
        assert_eq!(cache.bytes(), 2 * page_bytes);
        cache.truncate(100);
        assert_eq!((cache.len(), cache.bytes()), (100, page_bytes));
        let head = &cache.layer(0).heads[1];
        assert!(head.keys(0)[800..].iter().all(|&k| k == 0.0));
        let beyond = |v: &[f32]| v[100..].iter().all(|&v| v == 0.0) && v[99] != 0.0;
        assert!(head.values(0).chunks(PAGE).all(beyond));
        cache.truncate(500);
        assert_eq!((cache.len(), cache.layer(0).len), (100, 100));
        cache.clear();
        assert_eq!((cache.len(), cache.bytes(), cache.layer(0).len), (0, 0, 0));
    }
}
