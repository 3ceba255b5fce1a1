//! Grouped-query attention over keys and values that are rebuilt from a latent.
//!
//! Only the latent is remembered. Every pass rebuilds the keys of all tokens before it, norms and
//! rotates them as the source would have, so nothing about positions is approximated; the price
//! is `4 · rank · kv_heads · head_dim` operations per remembered token and pass.

use neuroconv_recipes::LatentSpec;

use crate::attention::{attend, scale_by};
use crate::cache::{CacheShape, LayerCache};
use crate::linear::{Input, Linear};
use crate::norm::RmsNorm;
use crate::plane::KvCodec;
use crate::rope::Positions;

/// Attention of one layer with a latent cache and exact positions.
#[derive(Debug)]
pub(crate) struct LatentAttention {
    pub(crate) spec: LatentSpec,
    pub(crate) q: Linear,
    /// Input to latent.
    pub(crate) kv_a: Linear,
    /// Latent to keys.
    pub(crate) k_b: Linear,
    /// Latent to values.
    pub(crate) v_b: Linear,
    pub(crate) o: Linear,
    /// Norms of the heads of queries and keys.
    pub(crate) qk_norm: Option<(RmsNorm, RmsNorm)>,
}

impl LatentAttention {
    /// From `[t, hidden]` to what the output projection reads, `[t, heads, head_dim]`, for the tokens
    /// after those in `cache`, which it takes in.
    pub(crate) fn mixed(
        &self,
        x: &mut Input<'_>,
        cache: &mut LayerCache,
        positions: &Positions<'_>,
    ) -> Vec<f32> {
        let LatentSpec {
            heads,
            kv_heads,
            head_dim,
            rank,
            ..
        } = self.spec;
        let mut q_thd = self.q.forward(x);
        cache.append(&self.kv_a.forward(x), &[]);
        let c_sr = cache.heads[0].rows(cache.len);
        let mut latents = Input::new(&c_sr, rank);
        let mut k_shd = self.k_b.forward(&mut latents);
        let v_shd = self.v_b.forward(&mut latents);
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            q_norm.apply(&mut q_thd);
            k_norm.apply(&mut k_shd);
        }
        if let Some(rotation) = positions.rotations().of(head_dim) {
            rotation.apply(&mut q_thd, heads, head_dim);
        }
        if let Some(rotation) = positions.all_rotations().of(head_dim) {
            rotation.apply(&mut k_shd, kv_heads, head_dim);
        }
        scale_by(&mut q_thd, 1.0 / (head_dim as f32).sqrt());
        let shape = CacheShape::of_heads(kv_heads, head_dim, head_dim);
        let mut rebuilt = LayerCache::new(shape, KvCodec::F32);
        rebuilt.append(&k_shd, &v_shd);
        attend(&q_thd, &rebuilt, heads, None)
    }
}
