//! The ranges every model description keeps to, wherever it comes from.
//!
//! Owns the limits; `config` applies them key by key so that a message can name the key, and
//! [`ModelSpec::validate`] applies them all to a description read from an untrusted manifest.
//! Within them no size computed from a description overflows 64 bits.

use std::fmt::Display;
use std::ops::RangeInclusive;

use crate::Error;
use crate::latent::{LatentSpec, MlaEncoder, MlaSpec};
use crate::spec::{AttentionSpec, Mixer, ModelSpec, RopeScaling};

/// Layers of a model.
pub(crate) const LAYERS: RangeInclusive<u64> = 1..=1024;
/// Width of the residual stream.
pub(crate) const HIDDEN: RangeInclusive<u64> = 1..=1 << 20;
/// Query heads, and key/value heads.
pub(crate) const HEADS: RangeInclusive<u64> = 1..=4096;
/// Width of one head.
pub(crate) const HEAD_DIM: RangeInclusive<u64> = 2..=4096;
/// Width of a latent.
const RANK: RangeInclusive<u64> = 1..=1 << 25;
/// Width of the rotated key that the heads of latent attention share.
const ROPE_DIM: RangeInclusive<u64> = 0..=1 << 24;
/// Token ids.
pub(crate) const VOCAB: RangeInclusive<u64> = 1..=1 << 24;
/// Width of the feed-forward block.
pub(crate) const FFN: RangeInclusive<u64> = 1..=1 << 22;
/// Positions of a context or a window.
pub(crate) const POSITIONS: RangeInclusive<u64> = 1..=1 << 24;
/// Addend inside a norm.
pub(crate) const NORM_EPS: RangeInclusive<f64> = 1e-12..=1.0;
/// Base of the rotary frequencies.
pub(crate) const THETA: RangeInclusive<f64> = 1.0..=1e12;
/// Stretch of rotary frequencies.
pub(crate) const FACTOR: RangeInclusive<f64> = 1.0..=1e6;
/// Bounds of the ramp between kept and stretched frequencies.
pub(crate) const FREQ_FACTOR: RangeInclusive<f64> = 1e-6..=1e6;
/// Context of the first training.
pub(crate) const ORIGINAL_POSITIONS: RangeInclusive<f64> = 1.0..=16_777_216.0;
/// Tokens that end a text.
const EOS_TOKENS: usize = 256;
/// Letters of an architecture's name.
const ARCH_LETTERS: usize = 64;

impl ModelSpec {
    /// Checks every number of a description that was not resolved here but read from a file.
    /// Afterwards [`ModelSpec::tensors`] and [`ModelSpec::parameters`] cannot overflow.
    pub fn validate(&self) -> Result<(), Error> {
        let named = (1..=ARCH_LETTERS).contains(&self.arch.len())
            && self
                .arch
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        check(
            named,
            "arch",
            "1 to 64 letters, digits, `-`, `_` or `.`",
            || crate::suggest::shown(&self.arch),
        )?;
        range("hidden", self.hidden as u64, &HIDDEN)?;
        range("vocab", self.vocab as u64, &VOCAB)?;
        range("ffn", self.ffn as u64, &FFN)?;
        range("max_positions", self.max_positions as u64, &POSITIONS)?;
        range("norm_eps", self.norm_eps, &NORM_EPS)?;
        range("layers", self.layers.len() as u64, &LAYERS)?;
        self.validate_rope()?;
        for (i, layer) in self.layers.iter().enumerate() {
            match &layer.mixer {
                Mixer::Attention(attention) => validate_attention(i, attention)?,
                Mixer::Mla(mla) => validate_mla(i, mla)?,
                Mixer::Latent(latent) => validate_latent(i, latent)?,
            }
        }
        self.validate_special()
    }

    fn validate_rope(&self) -> Result<(), Error> {
        range("rope.theta", self.rope.theta, &THETA)?;
        match self.rope.scaling {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor } => range("rope.scaling.factor", factor, &FACTOR),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_positions,
            } => {
                range("rope.scaling.factor", factor, &FACTOR)?;
                range(
                    "rope.scaling.low_freq_factor",
                    low_freq_factor,
                    &FREQ_FACTOR,
                )?;
                range(
                    "rope.scaling.high_freq_factor",
                    high_freq_factor,
                    &FREQ_FACTOR,
                )?;
                range(
                    "rope.scaling.original_max_positions",
                    original_max_positions,
                    &ORIGINAL_POSITIONS,
                )?;
                check(
                    high_freq_factor > low_freq_factor,
                    "rope.scaling.high_freq_factor",
                    "more than low_freq_factor",
                    || high_freq_factor.to_string(),
                )
            }
        }
    }

    fn validate_special(&self) -> Result<(), Error> {
        check(
            self.special.eos.len() <= EOS_TOKENS,
            "special.eos",
            "at most 256 tokens",
            || self.special.eos.len().to_string(),
        )?;
        for &id in self.special.bos.iter().chain(&self.special.eos) {
            check(
                (id as usize) < self.vocab,
                "special",
                "token ids below vocab",
                || id.to_string(),
            )?;
        }
        Ok(())
    }
}

fn validate_attention(layer: usize, a: &AttentionSpec) -> Result<(), Error> {
    let field = |name: &str| format!("layers.{layer}.{name}");
    range(&field("heads"), a.heads as u64, &HEADS)?;
    kv_groups(layer, a.heads, a.kv_heads)?;
    range(&field("head_dim"), a.head_dim as u64, &HEAD_DIM)?;
    check(
        a.head_dim.is_multiple_of(2),
        &field("head_dim"),
        "an even number",
        || a.head_dim.to_string(),
    )?;
    a.window
        .map_or(Ok(()), |w| range(&field("window"), w as u64, &POSITIONS))
}

fn validate_mla(layer: usize, a: &MlaSpec) -> Result<(), Error> {
    let field = |name: &str| format!("layers.{layer}.{name}");
    range(&field("heads"), a.heads as u64, &HEADS)?;
    range(&field("head_dim"), a.head_dim as u64, &HEAD_DIM)?;
    range(&field("rank"), a.rank as u64, &RANK)?;
    range(&field("rope_dim"), a.rope_dim as u64, &ROPE_DIM)?;
    check(
        a.rope_dim.is_multiple_of(2),
        &field("rope_dim"),
        "an even number",
        || a.rope_dim.to_string(),
    )?;
    if let Some(eps) = a.latent_norm {
        range(&field("latent_norm"), eps, &NORM_EPS)?;
    }
    match a.encoder {
        MlaEncoder::Linear => Ok(()),
        MlaEncoder::Normed { kv_heads } => kv_groups(layer, a.heads, kv_heads),
    }
}

fn validate_latent(layer: usize, a: &LatentSpec) -> Result<(), Error> {
    let field = |name: &str| format!("layers.{layer}.{name}");
    range(&field("heads"), a.heads as u64, &HEADS)?;
    range(&field("head_dim"), a.head_dim as u64, &HEAD_DIM)?;
    range(&field("rank"), a.rank as u64, &RANK)?;
    check(
        a.head_dim.is_multiple_of(2),
        &field("head_dim"),
        "an even number",
        || a.head_dim.to_string(),
    )?;
    kv_groups(layer, a.heads, a.kv_heads)
}

fn kv_groups(layer: usize, heads: usize, kv_heads: usize) -> Result<(), Error> {
    let field = format!("layers.{layer}.kv_heads");
    range(&field, kv_heads as u64, &HEADS)?;
    check(
        heads.is_multiple_of(kv_heads),
        &field,
        "a divisor of heads",
        || kv_heads.to_string(),
    )
}

/// Fails for anything outside `allowed`, NaN included.
fn range<T: Copy + PartialOrd + Display>(
    field: &str,
    value: T,
    allowed: &RangeInclusive<T>,
) -> Result<(), Error> {
    check(allowed.contains(&value), field, &within(allowed), || {
        value.to_string()
    })
}

/// How messages write a range.
pub(crate) fn within<T: Display>(allowed: &RangeInclusive<T>) -> String {
    format!("{}..={}", allowed.start(), allowed.end())
}

fn check(
    ok: bool,
    field: &str,
    expected: &str,
    found: impl FnOnce() -> String,
) -> Result<(), Error> {
    if ok {
        return Ok(());
    }
    Err(Error::InvalidSpec {
        field: field.to_owned(),
        expected: expected.to_owned(),
        found: found(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{config, resolved};
    use crate::spec::LayerSpec;

    #[test]
    fn every_field_of_a_forged_description_is_checked() {
        let good = resolved(&config()).spec;
        good.validate().unwrap();
        let forge = |field: &str, change: &dyn Fn(&mut ModelSpec)| {
            let mut spec = good.clone();
            change(&mut spec);
            match spec.validate() {
                Err(Error::InvalidSpec { field: found, .. }) => assert_eq!(found, field),
                other => panic!("{field}: {other:?}"),
            }
        };
        let attention = |spec: &mut ModelSpec, change: &dyn Fn(&mut AttentionSpec)| match &mut spec
            .layers[1]
            .mixer
        {
            Mixer::Attention(a) => change(a),
            other => panic!("{other:?}"),
        };
        forge("arch", &|s| s.arch = "a\nb".to_owned());
        forge("arch", &|s| s.arch = String::new());
        forge("hidden", &|s| s.hidden = usize::MAX);
        forge("vocab", &|s| s.vocab = 0);
        forge("ffn", &|s| s.ffn = 1 << 23);
        forge("max_positions", &|s| s.max_positions = 0);
        forge("norm_eps", &|s| s.norm_eps = f64::NAN);
        forge("layers", &|s| s.layers.clear());
        forge("layers", &|s| s.layers = vec![s.layers[0].clone(); 1025]);
        forge("rope.theta", &|s| s.rope.theta = f64::INFINITY);
        forge("rope.scaling.factor", &|s| {
            s.rope.scaling = RopeScaling::Linear { factor: 0.0 }
        });
        forge("rope.scaling.high_freq_factor", &|s| {
            s.rope.scaling = RopeScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: 4.0,
                high_freq_factor: 4.0,
                original_max_positions: 8192.0,
            };
        });
        forge("special", &|s| s.special.bos = Some(s.vocab as u32));
        forge("special.eos", &|s| s.special.eos = vec![0; 257]);
        forge("layers.1.heads", &|s| attention(s, &|a| a.heads = 5000));
        forge("layers.1.kv_heads", &|s| attention(s, &|a| a.kv_heads = 0));
        forge("layers.1.kv_heads", &|s| attention(s, &|a| a.kv_heads = 3));
        forge("layers.1.head_dim", &|s| attention(s, &|a| a.head_dim = 7));
        forge("layers.1.window", &|s| {
            attention(s, &|a| a.window = Some(0));
        });
    }

    #[test]
    fn every_field_of_a_forged_latent_layer_is_checked() {
        let good = resolved(&config()).spec;
        let mla = MlaSpec {
            heads: 4,
            head_dim: 8,
            rank: 12,
            rope_dim: 4,
            encoder: MlaEncoder::Normed { kv_heads: 2 },
            latent_norm: None,
        };
        let latent = LatentSpec {
            heads: 4,
            kv_heads: 2,
            head_dim: 8,
            rank: 12,
            qk_norm: crate::spec::QkNorm::None,
        };
        let judge = |mixer: Mixer| {
            let mut spec = good.clone();
            spec.layers[1].mixer = mixer;
            spec.validate()
        };
        judge(Mixer::Mla(mla.clone())).unwrap();
        judge(Mixer::Latent(latent.clone())).unwrap();
        let forge = |field: &str, mixer: Mixer| match judge(mixer) {
            Err(Error::InvalidSpec { field: found, .. }) => {
                assert_eq!(found, format!("layers.1.{field}"));
            }
            other => panic!("{field}: {other:?}"),
        };
        let with = |change: &dyn Fn(&mut MlaSpec)| {
            let mut changed = mla.clone();
            change(&mut changed);
            Mixer::Mla(changed)
        };
        forge("heads", with(&|a| a.heads = 0));
        forge("head_dim", with(&|a| a.head_dim = 1 << 20));
        forge("rank", with(&|a| a.rank = 0));
        forge("rope_dim", with(&|a| a.rope_dim = 3));
        forge("latent_norm", with(&|a| a.latent_norm = Some(f64::NAN)));
        forge(
            "kv_heads",
            with(&|a| a.encoder = MlaEncoder::Normed { kv_heads: 3 }),
        );
        let with = |change: &dyn Fn(&mut LatentSpec)| {
            let mut changed = latent.clone();
            change(&mut changed);
            Mixer::Latent(changed)
        };
        forge("rank", with(&|a| a.rank = usize::MAX));
        forge("head_dim", with(&|a| a.head_dim = 7));
        forge("kv_heads", with(&|a| a.kv_heads = 0));
    }

    #[test]
    fn the_largest_description_does_not_overflow() {
        let mut spec = resolved(&config()).spec;
        spec.hidden = *HIDDEN.end() as usize;
        spec.vocab = *VOCAB.end() as usize;
        spec.ffn = *FFN.end() as usize;
        spec.tied = false;
        match &mut spec.layers[0].mixer {
            Mixer::Attention(a) => (a.heads, a.kv_heads, a.head_dim) = (4096, 4096, 4096),
            other => panic!("{other:?}"),
        }
        let latent = MlaSpec {
            heads: 4096,
            head_dim: 4096,
            rank: *RANK.end() as usize,
            rope_dim: *ROPE_DIM.end() as usize,
            encoder: MlaEncoder::Normed { kv_heads: 4096 },
            latent_norm: Some(1e-6),
        };
        let latent = LayerSpec {
            mixer: Mixer::Mla(latent),
        };
        spec.layers = vec![spec.layers[0].clone(); 512];
        spec.layers.extend(vec![latent; 512]);
        spec.validate().unwrap();
        assert!(spec.parameters() > 1 << 56);
    }
}
