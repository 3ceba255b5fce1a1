//! Attention over a latent: what a converted layer consists of.
//!
//! Owns the shapes of the two latent mixers. How their weights are found is the business of a
//! conversion; what is computed from them, that of the runtime.

use serde::{Deserialize, Serialize};

use crate::role::Role;
use crate::spec::QkNorm;

/// Multi-head latent attention (`DeepSeek-V2`, 2024) with free rotary frequencies.
///
/// A token is remembered as `[latent; rope key]`, `rank + rope_dim` numbers shared by all heads.
/// The score of a query is `q_nope · K_B c + q_rope · k_rope`, its scale already in the query;
/// only the rope parts are rotated, by the frequencies in [`Role::RopeFreq`], channel `i` paired
/// with `i + rope_dim / 2`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MlaSpec {
    /// Query heads.
    pub heads: usize,
    /// Width of the unrotated part of a key and of a value, per head.
    pub head_dim: usize,
    /// Width of the latent.
    pub rank: usize,
    /// Width of the rotated key that all heads share; even, zero for none.
    pub rope_dim: usize,
    /// How queries and latent come out of the input.
    pub encoder: MlaEncoder,
    /// Added to the mean square in the norm that the latent goes through, where it has one; its gain
    /// is [`Role::KvANorm`]. A conversion makes none; other engines know nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latent_norm: Option<f64>,
}

/// How queries and the latent come out of a layer's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum MlaEncoder {
    /// By one affine map each.
    Linear,
    /// From normed queries and keys, for models that norm them: keys and values are formed in
    /// full, the keys normed per head, and the latent is an affine map of both.
    Normed {
        /// Key/value heads of the source; divides `heads`.
        kv_heads: usize,
    },
}

/// Grouped-query attention whose keys and values are rebuilt from a latent: all keys keep their
/// rotation, at the price of rebuilding them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatentSpec {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// Width of the latent.
    pub rank: usize,
    /// Norm of queries and rebuilt keys before rotation.
    pub qk_norm: QkNorm,
}

impl MlaSpec {
    /// The layer's tensors with their shapes.
    pub(crate) fn tensors(&self, hidden: usize) -> Vec<(Role, Vec<usize>)> {
        let MlaSpec {
            heads,
            head_dim,
            rank,
            rope_dim,
            encoder,
            latent_norm,
        } = *self;
        let cached = rank + rope_dim;
        let mut out = match encoder {
            MlaEncoder::Linear => {
                let q = heads * (head_dim + rope_dim);
                vec![
                    (Role::Q, vec![q, hidden]),
                    (Role::QBias, vec![q]),
                    (Role::KvA, vec![cached, hidden]),
                ]
            }
            MlaEncoder::Normed { kv_heads } => {
                let (q, kv) = (heads * head_dim, kv_heads * head_dim);
                let mut normed = vec![
                    (Role::Q, vec![q, hidden]),
                    (Role::QBias, vec![q]),
                    (Role::QNorm, vec![head_dim]),
                    (Role::K, vec![kv, hidden]),
                    (Role::KBias, vec![kv]),
                    (Role::KNorm, vec![head_dim]),
                    (Role::V, vec![kv, hidden]),
                    (Role::VBias, vec![kv]),
                    (Role::KvA, vec![cached, 2 * kv]),
                ];
                if rope_dim > 0 {
                    normed.push((Role::QRope, vec![heads * rope_dim, head_dim]));
                }
                normed
            }
        };
        out.extend([
            (Role::KvABias, vec![cached]),
            (Role::KB, vec![heads * head_dim, rank]),
            (Role::VB, vec![heads * head_dim, rank]),
            (Role::O, vec![hidden, heads * head_dim]),
            (Role::OBias, vec![hidden]),
        ]);
        if latent_norm.is_some() {
            out.push((Role::KvANorm, vec![rank]));
        }
        if rope_dim > 0 {
            out.push((Role::RopeFreq, vec![rope_dim / 2]));
        }
        out
    }
}

impl LatentSpec {
    /// The layer's tensors with their shapes.
    pub(crate) fn tensors(&self, hidden: usize) -> Vec<(Role, Vec<usize>)> {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut out = vec![
            (Role::Q, vec![q, hidden]),
            (Role::QBias, vec![q]),
            (Role::KvA, vec![self.rank, hidden]),
            (Role::KvABias, vec![self.rank]),
            (Role::KB, vec![kv, self.rank]),
            (Role::KBias, vec![kv]),
            (Role::VB, vec![kv, self.rank]),
            (Role::O, vec![hidden, q]),
            (Role::OBias, vec![hidden]),
        ];
        match self.qk_norm {
            QkNorm::None => {}
            QkNorm::PerHead => out.extend([
                (Role::QNorm, vec![self.head_dim]),
                (Role::KNorm, vec![self.head_dim]),
            ]),
        }
        out
    }
}
