//! Keys and values, or latents, of the tokens seen so far.
//!
//! Grows with the tokens, never ahead of them to what a configuration promises.

use std::borrow::Cow;

use neuroconv_recipes::{LayerSpec, Mixer, ModelSpec};

use crate::plane::{KvCodec, Order, PAGE, Page, Plane};

/// The state of one running sequence.
#[derive(Clone, Debug)]
pub struct KvCache {
    layers: Vec<LayerCache>,
    len: usize,
}

/// What one attention layer remembers.
#[derive(Clone, Debug)]
pub(crate) struct LayerCache {
    shape: CacheShape,
    /// Tokens held.
    pub(crate) len: usize,
    /// One per key/value head.
    pub(crate) heads: Vec<HeadCache>,
}

/// The widths of what a layer remembers of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CacheShape {
    /// Key/value heads.
    pub(crate) heads: usize,
    /// Width of a key.
    pub(crate) key_dim: usize,
    /// Width of a value.
    pub(crate) value_dim: usize,
    /// Whether a value is the beginning of its key, and not stored once more.
    pub(crate) shared: bool,
}

impl CacheShape {
    /// What a mixer remembers of a token: keys and values, or a latent that stands for both.
    pub(crate) fn of(mixer: &Mixer) -> Self {
        let latent = |key_dim, value_dim| CacheShape {
            heads: 1,
            key_dim,
            value_dim,
            shared: true,
        };
        match mixer {
            Mixer::Attention(a) => CacheShape::of_heads(a.kv_heads, a.head_dim, a.head_dim),
            Mixer::Mla(a) => latent(a.rank + a.rope_dim, a.rank),
            Mixer::Latent(a) => latent(a.rank, a.rank),
        }
    }

    /// Keys and values of their own.
    pub(crate) fn of_heads(heads: usize, key_dim: usize, value_dim: usize) -> Self {
        CacheShape {
            heads,
            key_dim,
            value_dim,
            shared: false,
        }
    }
}

/// The keys and values of one head in whole pages, zero beyond the last token. Both lie so that
/// their products with queries and weights are dot products over contiguous memory.
#[derive(Clone, Debug)]
pub(crate) struct HeadCache {
    /// `[pages, PAGE, key_dim]`, normed and rotated.
    keys: Plane,
    /// `[pages, value_dim, PAGE]`; none where values are part of the keys.
    values: Option<Plane>,
}

impl KvCache {
    /// An empty cache for one sequence of such a model.
    pub fn new(spec: &ModelSpec, codec: KvCodec) -> Self {
        let layers = spec.layers.iter();
        let layers = layers.map(|layer| LayerCache::new(CacheShape::of(&layer.mixer), codec));
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
            .map(|head| head.keys.bytes() + head.values.as_ref().map_or(0, Plane::bytes))
            .sum()
    }

    /// Bytes that each token adds to the cache of such a model, measured: the bytes of a cache that
    /// was filled, by the tokens in it.
    pub fn bytes_per_token(spec: &ModelSpec, codec: KvCodec) -> usize {
        let mut cache = KvCache::new(spec, codec);
        for layer in &mut cache.layers {
            let CacheShape {
                heads,
                key_dim,
                value_dim,
                ..
            } = layer.shape;
            let zeros = |width: usize| vec![0.0; PAGE * heads * width];
            layer.append(&zeros(key_dim), &zeros(value_dim));
        }
        cache.bytes() / PAGE
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
        let layer_fits =
            |(layer, cache): (&LayerSpec, &LayerCache)| CacheShape::of(&layer.mixer) == cache.shape;
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
    pub(crate) fn new(shape: CacheShape, codec: KvCodec) -> Self {
        LayerCache {
            shape,
            len: 0,
            heads: vec![HeadCache::new(shape, codec); shape.heads],
        }
    }

    pub(crate) fn shape(&self) -> CacheShape {
        self.shape
    }

    /// Adds the keys `[t, heads, key_dim]` and values `[t, heads, value_dim]` of some tokens.
    /// There are no values where they are part of the keys.
    pub(crate) fn append(&mut self, k_thd: &[f32], v_thd: &[f32]) {
        let (shape, start) = (self.shape, self.len);
        let t = k_thd.len() / (shape.heads * shape.key_dim);
        self.len += t;
        for (h, head) in self.heads.iter_mut().enumerate() {
            head.resize(self.len.div_ceil(PAGE));
            let keys = k_thd.chunks(shape.key_dim).skip(h).step_by(shape.heads);
            for (position, k_d) in (start..).zip(keys) {
                head.keys.put(position, k_d);
            }
            let values = v_thd.chunks(shape.value_dim).skip(h).step_by(shape.heads);
            if let Some(plane) = &mut head.values {
                for (position, v_d) in (start..).zip(values) {
                    plane.put(position, v_d);
                }
            }
        }
    }

    fn truncate(&mut self, len: usize) {
        let shape = self.shape;
        let (no_key, no_value) = (vec![0.0; shape.key_dim], vec![0.0; shape.value_dim]);
        for head in &mut self.heads {
            head.resize(self.len.min(len).div_ceil(PAGE));
            for position in len..self.len.min(len.next_multiple_of(PAGE)) {
                head.keys.put(position, &no_key);
                if let Some(values) = &mut head.values {
                    values.put(position, &no_value);
                }
            }
        }
        self.len = self.len.min(len);
    }
}

impl HeadCache {
    fn new(shape: CacheShape, codec: KvCodec) -> Self {
        let CacheShape {
            key_dim,
            value_dim,
            shared,
            ..
        } = shape;
        let split = if shared { value_dim } else { key_dim };
        let values = || Plane::new(codec, Order::Columns, value_dim, value_dim);
        HeadCache {
            keys: Plane::new(codec, Order::Rows, key_dim, split),
            values: (!shared).then(values),
        }
    }

    /// The keys of a page, `[PAGE, key_dim]`.
    pub(crate) fn keys(&self, page: usize) -> Page<'_> {
        self.keys.page(page)
    }

    /// The keys of the first `len` positions, `[len, key_dim]`.
    pub(crate) fn rows(&self, len: usize) -> Cow<'_, [f32]> {
        self.keys.floats(0..len)
    }

    /// The values of a page, `[value_dim, PAGE]`; brought into this order where they are part of
    /// the keys.
    pub(crate) fn values(&self, shape: CacheShape, page: usize) -> Page<'_> {
        if let Some(values) = &self.values {
            return values.page(page);
        }
        let mut values = vec![0.0; PAGE * shape.value_dim];
        let keys = self.keys.floats(page * PAGE..(page + 1) * PAGE);
        for (position, k_d) in keys.chunks(shape.key_dim).enumerate() {
            for (d, &v) in k_d[..shape.value_dim].iter().enumerate() {
                values[d * PAGE + position] = v;
            }
        }
        Page::F32(Cow::Owned(values))
    }

    fn resize(&mut self, pages: usize) {
        self.keys.resize(pages);
        if let Some(values) = &mut self.values {
            values.resize(pages);
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

    fn floats(page: Page<'_>) -> Vec<f32> {
        match page {
            Page::F32(numbers) => numbers.into_owned(),
            Page::F16(numbers) => numbers.iter().map(|x| x.to_f32()).collect(),
        }
    }

    fn filled(spec: &ModelSpec, pieces: &[usize]) -> KvCache {
        let mut cache = KvCache::new(spec, KvCodec::F32);
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
                let shape = cache.layer(1).shape();
                let held = &cache.layer(1).heads[head];
                let (page, place) = (position / PAGE, position % PAGE);
                let values = floats(held.values(shape, page));
                let found = (held.rows(300)[position * 8 + d], values[d * PAGE + place]);
                assert_eq!(found, (number, -number));
            }
        }
    }

    #[test]
    fn memory_grows_by_pages_and_truncation_leaves_zeros() {
        let spec = spec();
        assert_eq!(
            (
                KvCache::new(&spec, KvCodec::F32).bytes(),
                KvCache::new(&spec, KvCodec::F32).is_empty()
            ),
            (0, true)
        );
        let page_bytes = PAGE * KvCache::bytes_per_token(&spec, KvCodec::F32);
        assert_eq!(
            KvCache::bytes_per_token(&spec, KvCodec::F32),
            2 * 2 * 2 * 8 * 4
        );
        assert_eq!(
            KvCache::bytes_per_token(&spec, KvCodec::F16),
            2 * 2 * 2 * 8 * 2
        );
        assert_eq!(
            KvCache::bytes_per_token(&spec, KvCodec::Int8),
            2 * 2 * 2 * (8 + 4)
        );
        let mut cache = filled(&spec, &[129]);
        assert_eq!(cache.bytes(), 2 * page_bytes);
        cache.truncate(100);
        assert_eq!((cache.len(), cache.bytes()), (100, page_bytes));
        let shape = cache.layer(0).shape();
        let head = &cache.layer(0).heads[1];
        assert!(head.rows(PAGE)[800..].iter().all(|&k| k == 0.0));
        let beyond = |v: &[f32]| v[100..].iter().all(|&v| v == 0.0) && v[99] != 0.0;
        assert!(floats(head.values(shape, 0)).chunks(PAGE).all(beyond));
        cache.truncate(500);
        assert_eq!((cache.len(), cache.layer(0).len), (100, 100));
        cache.clear();
        assert_eq!((cache.len(), cache.bytes(), cache.layer(0).len), (0, 0, 0));
    }

    #[test]
    fn a_latent_is_held_once_and_read_both_ways() {
        let shape = CacheShape {
            heads: 1,
            key_dim: 3,
            value_dim: 2,
            shared: true,
        };
        let mut layer = LayerCache::new(shape, KvCodec::F32);
        let rows: Vec<f32> = (0..130 * 3).map(|i| i as f32).collect();
        layer.append(&rows[..60], &[]);
        layer.append(&rows[60..], &[]);
        let head = &layer.heads[0];
        assert_eq!((layer.len, head.values.is_none()), (130, true));
        assert_eq!(head.rows(130), rows);
        let values = floats(head.values(shape, 1));
        assert_eq!(values[..3], [384.0, 387.0, 0.0]);
        assert_eq!(values[PAGE..PAGE + 3], [385.0, 388.0, 0.0]);
        layer.truncate(129);
        assert_eq!(floats(layer.heads[0].values(shape, 1))[..2], [384.0, 0.0]);
    }
}
