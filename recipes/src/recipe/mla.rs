//! What a recipe says about turning attention into latent attention, and the model that comes of
//! it.
//!
//! Owns the arithmetic of cache sizes: which rank a budget means, what is too large, which layers
//! cannot be converted. Knows no weights.

use serde::Deserialize;

use crate::Error;
use crate::latent::{LatentSpec, MlaEncoder, MlaSpec};
use crate::spec::{AttentionSpec, Mixer, ModelSpec, QkNorm};

/// Rotated channels where none are asked for and the head is at least as wide.
const DEFAULT_ROPE_DIM: usize = 64;
/// Share of the source's cache where neither a rank nor a budget is given.
const DEFAULT_BUDGET: f64 = 0.5;
/// What `auto` rounds ranks up to.
const RANK_STEP: usize = 16;

/// How attention becomes latent attention.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MlaRecipe {
    /// What the latent stands for.
    #[serde(default)]
    pub mode: MlaMode,
    /// Width of the latent; `None` takes it from the budget.
    pub rank: Option<Rank>,
    /// Width of the shared rotated key.
    pub rope_dim: Option<usize>,
    /// Share of the weighted variance of keys and values that `auto` keeps at least.
    #[serde(default = "retain_variance")]
    pub retain_variance: f64,
    /// Numbers cached per token and layer, as a share of the source's.
    pub kv_budget: Option<f64>,
    /// Layers that stay as they are, counted from 0.
    #[serde(default)]
    pub keep_layers: Vec<usize>,
    /// Divergence from the source, in nats per token, that all converted layers together may
    /// cost; the layers that cost most stay as they are.
    pub max_layers_kld: Option<f64>,
    /// Whether the rotated key takes the frequencies that stock `DeepSeek` models compute instead
    /// of the layer's own best.
    #[serde(default)]
    pub stock_rope: bool,
    /// Whether a cache larger than the source's is accepted.
    #[serde(default)]
    pub allow_growth: bool,
    /// Whether the latent is as wide as it can be, whatever rank or budget say: a measurement, not
    /// something to ask for.
    #[serde(skip)]
    pub full_rank: bool,
}

fn retain_variance() -> f64 {
    0.95
}

/// What the latent stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MlaMode {
    /// Multi-head latent attention: a latent without positions and one rotated key.
    #[default]
    Mla,
    /// Keys and values are rebuilt from the latent, and all keys keep their rotation.
    Latent,
}

/// Width of the latent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Rank {
    /// This many numbers.
    Fixed(usize),
    /// The fewest that keep the variance asked for and pass the gate.
    Auto(Auto),
}

/// The word `auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Auto {
    /// Found by measurement.
    #[serde(rename = "auto")]
    Auto,
}

impl Rank {
    /// Found by measurement.
    pub const AUTO: Rank = Rank::Auto(Auto::Auto);
}

impl MlaMode {
    /// The name in recipes.
    pub const fn name(self) -> &'static str {
        match self {
            MlaMode::Mla => "mla",
            MlaMode::Latent => "latent",
        }
    }
}

impl Default for MlaRecipe {
    fn default() -> Self {
        MlaRecipe {
            mode: MlaMode::Mla,
            rank: None,
            rope_dim: None,
            retain_variance: retain_variance(),
            kv_budget: None,
            keep_layers: Vec::new(),
            max_layers_kld: None,
            stock_rope: false,
            allow_growth: false,
            full_rank: false,
        }
    }
}

impl MlaRecipe {
    /// Fails for settings that no model could meet; `place` says in messages where they stand.
    pub fn check(&self, place: &str) -> Result<(), Error> {
        let bad = |key, expected, found: String| {
            Err(Error::RecipeValue {
                place: place.to_owned(),
                key,
                expected,
                found,
            })
        };
        if self.rank == Some(Rank::Fixed(0)) {
            return bad("rank", "a number from 1, or `auto`", "0".to_owned());
        }
        if let Some(rope) = self.rope_dim.filter(|r| !r.is_multiple_of(2)) {
            return bad("rope_dim", "an even number", rope.to_string());
        }
        if !(self.retain_variance > 0.0 && self.retain_variance <= 1.0) {
            let found = self.retain_variance.to_string();
            return bad("retain_variance", "a share above 0, at most 1", found);
        }
        if let Some(share) = self.kv_budget.filter(|b| !(*b > 0.0 && *b <= 1.0)) {
            return bad("kv_budget", "a share above 0, at most 1", share.to_string());
        }
        if matches!(self.rank, Some(Rank::Fixed(_))) && self.kv_budget.is_some() {
            let found = "both".to_owned();
            return bad("kv_budget", "a rank or a budget, not both", found);
        }
        if let Some(kld) = self
            .max_layers_kld
            .filter(|k| !(k.is_finite() && *k >= 0.0))
        {
            let expected = "a finite number, 0 or more";
            return bad("max_layers_kld", expected, kld.to_string());
        }
        if self.mode == MlaMode::Latent && (self.rope_dim.is_some() || self.stock_rope) {
            let found = "mode = \"latent\"".to_owned();
            return bad("rope_dim", "no rotated key of its own in this mode", found);
        }
        Ok(())
    }

    /// The description of the model after conversion, and what the user should know. Where the
    /// rank is `auto`, the largest that `auto` may come to.
    pub fn converted(&self, source: &ModelSpec) -> Result<(ModelSpec, Vec<String>), Error> {
        let (mut spec, mut notices) = (source.clone(), Vec::new());
        if let Some(&layer) = self.keep_layers.iter().find(|&&l| l >= spec.layers.len()) {
            return Err(Error::MlaNoSuchLayer {
                layer,
                layers: spec.layers.len(),
            });
        }
        for (index, layer) in spec.layers.iter_mut().enumerate() {
            if self.keep_layers.contains(&index) {
                continue;
            }
            let attention = convertible(index, &layer.mixer)?;
            let (mixer, notice) = self.mixer(index, attention)?;
            if let Some(notice) = notice.filter(|notice| !notices.contains(notice)) {
                notices.push(notice);
            }
            layer.mixer = mixer;
        }
        if spec.layers == source.layers {
            return Err(Error::MlaNothingLeft);
        }
        Ok((spec, notices))
    }

    /// The same conversion with a latent of full rank.
    #[must_use]
    pub fn at_full_rank(&self) -> MlaRecipe {
        MlaRecipe {
            full_rank: true,
            ..self.clone()
        }
    }

    /// What becomes of one layer.
    fn mixer(&self, layer: usize, a: &AttentionSpec) -> Result<(Mixer, Option<String>), Error> {
        let keys = a.kv_heads * a.head_dim;
        let source = 2 * keys;
        let budget = (source as f64 * self.kv_budget.unwrap_or(DEFAULT_BUDGET)) as usize;
        let asked = match self.rank {
            Some(Rank::Fixed(rank)) => Some(rank),
            Some(Rank::Auto(_)) | None => None,
        };
        let rope_dim = match (self.mode, self.rope_dim) {
            (MlaMode::Latent, _) => 0,
            (MlaMode::Mla, Some(rope)) => rope,
            (MlaMode::Mla, None) if asked.is_some() => DEFAULT_ROPE_DIM.min(a.head_dim),
            (MlaMode::Mla, None) => a.head_dim.min(budget / 2) / 2 * 2,
        };
        if rope_dim > keys {
            return Err(Error::MlaRopeDim {
                layer,
                asked: rope_dim,
                most: keys,
            });
        }
        if self.stock_rope && (rope_dim == 0 || !a.head_dim.is_multiple_of(rope_dim)) {
            return Err(Error::MlaStockRope {
                layer,
                asked: rope_dim,
                head_dim: a.head_dim,
            });
        }
        let most = source - rope_dim;
        if self.full_rank {
            return Ok((self.built(a, most, rope_dim), None));
        }
        let rank = asked.unwrap_or_else(|| budget.saturating_sub(rope_dim).max(1));
        if rank + rope_dim >= source && !self.allow_growth {
            return Err(Error::MlaCacheGrows {
                layer,
                rank,
                rope_dim,
                source_numbers: source,
            });
        }
        let notice = (rank > most)
            .then(|| format!("rank {rank} is more than keys and values have: {most} is used"));
        Ok((self.built(a, rank.min(most), rope_dim), notice))
    }

    fn built(&self, a: &AttentionSpec, rank: usize, rope_dim: usize) -> Mixer {
        let AttentionSpec {
            heads,
            kv_heads,
            head_dim,
            qk_norm,
            ..
        } = *a;
        match self.mode {
            MlaMode::Latent => Mixer::Latent(LatentSpec {
                heads,
                kv_heads,
                head_dim,
                rank,
                qk_norm,
            }),
            MlaMode::Mla => Mixer::Mla(MlaSpec {
                heads,
                head_dim,
                rank,
                rope_dim,
                encoder: match qk_norm {
                    QkNorm::None => MlaEncoder::Linear,
                    QkNorm::PerHead => MlaEncoder::Normed { kv_heads },
                },
                latent_norm: None,
            }),
        }
    }

    /// The ranks that `auto` tries, smallest first: from the least that keeps the variance, up
    /// to `ceiling`, by half more each time.
    pub fn auto_ranks(least: usize, ceiling: usize) -> Vec<usize> {
        let mut ranks = Vec::new();
        let mut rank = least.next_multiple_of(RANK_STEP);
        while rank < ceiling {
            ranks.push(rank);
            rank = (rank + rank / 2).next_multiple_of(RANK_STEP);
        }
        ranks.push(ceiling);
        ranks
    }
}

/// The attention of a layer that can be converted.
fn convertible(layer: usize, mixer: &Mixer) -> Result<&AttentionSpec, Error> {
    let refused = |reason| Err(Error::MlaUnsupported { layer, reason });
    match mixer {
        Mixer::Attention(a) if a.window.is_some() => {
            refused("its sliding window bounds the cache already")
        }
        Mixer::Attention(a) if !a.rope => refused("its keys are not rotated"),
        Mixer::Attention(a) => Ok(a),
        Mixer::Mla(_) | Mixer::Latent(_) => refused("it has a latent already"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{config, config_of, resolved};

    /// 4 heads, 2 key/value heads of 8: 32 numbers per token and layer.
    fn source() -> ModelSpec {
        let mut spec = resolved(&config()).spec;
        for layer in &mut spec.layers {
            match &mut layer.mixer {
                Mixer::Attention(a) => (a.heads, a.kv_heads, a.head_dim) = (4, 2, 8),
                other => panic!("{other:?}"),
            }
        }
        spec
    }

    fn shape(recipe: &MlaRecipe) -> (usize, usize) {
        match &recipe.converted(&source()).unwrap().0.layers[0].mixer {
            Mixer::Mla(a) => (a.rank, a.rope_dim),
            Mixer::Latent(a) => (a.rank, 0),
            Mixer::Attention(_) => panic!("not converted"),
        }
    }

    fn fixed(rank: usize) -> MlaRecipe {
        MlaRecipe {
            rank: Some(Rank::Fixed(rank)),
            ..MlaRecipe::default()
        }
    }

    #[test]
    fn a_budget_is_met_and_a_rank_is_taken() {
        assert_eq!(shape(&MlaRecipe::default()), (8, 8));
        let quarter = MlaRecipe {
            kv_budget: Some(0.25),
            ..MlaRecipe::default()
        };
        assert_eq!(shape(&quarter), (4, 4));
        assert_eq!(shape(&fixed(12)), (12, 8));
        let latent = MlaRecipe {
            mode: MlaMode::Latent,
            ..MlaRecipe::default()
        };
        assert_eq!(shape(&latent), (16, 0));
    }

    #[test]
    fn growth_is_refused_with_the_numbers_unless_it_is_wanted() {
        let error = fixed(512).converted(&source()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "layer 0: rank 512 and rope dimension 8 would cache 520 numbers per token, the source 32"
        );
        assert!(error.hint().is_some());
        let forced = MlaRecipe {
            allow_growth: true,
            ..fixed(512)
        };
        assert_eq!(shape(&forced), (24, 8));
        let (_, notices) = forced.converted(&source()).unwrap();
        assert_eq!(
            notices,
            ["rank 512 is more than keys and values have: 24 is used"]
        );
    }

    #[test]
    fn layers_that_cannot_be_converted_are_named_unless_they_are_kept() {
        let mut spec = source();
        match &mut spec.layers[1].mixer {
            Mixer::Attention(a) => a.window = Some(4),
            other => panic!("{other:?}"),
        }
        let error = fixed(8).converted(&spec).unwrap_err();
        assert!(error.to_string().starts_with("layer 1: "), "{error}");
        let keeping = MlaRecipe {
            keep_layers: vec![1],
            ..fixed(8)
        };
        let (converted, _) = keeping.converted(&spec).unwrap();
        assert_eq!(converted.layers[1], spec.layers[1]);
        assert_ne!(converted.layers[0], spec.layers[0]);
        converted.validate().unwrap();
        let all = MlaRecipe {
            keep_layers: vec![0, 1],
            ..fixed(8)
        };
        assert_eq!(all.converted(&spec), Err(Error::MlaNothingLeft));
        let far = MlaRecipe {
            keep_layers: vec![2],
            ..fixed(8)
        };
        assert!(matches!(
            far.converted(&spec),
            Err(Error::MlaNoSuchLayer { layer: 2, .. })
        ));
        assert!(matches!(
            fixed(4).converted(&converted),
            Err(Error::MlaUnsupported { layer: 0, .. })
        ));
    }

    #[test]
    fn norms_of_queries_and_keys_are_never_dropped() {
        let spec = resolved(&config_of("Qwen3ForCausalLM")).spec;
        let (converted, _) = fixed(2).converted(&spec).unwrap();
        assert!(matches!(
            &converted.layers[0].mixer,
            Mixer::Mla(a) if matches!(a.encoder, MlaEncoder::Normed { .. })
        ));
        let ids: Vec<String> = converted
            .tensors()
            .iter()
            .map(|(id, _)| id.to_string())
            .collect();
        assert!(ids.contains(&"blk.0.attn_k_norm".to_owned()));
    }

    #[test]
    fn settings_that_contradict_are_refused() {
        let bad = [
            fixed(0),
            MlaRecipe {
                rope_dim: Some(3),
                ..fixed(8)
            },
            MlaRecipe {
                kv_budget: Some(0.5),
                ..fixed(8)
            },
            MlaRecipe {
                kv_budget: Some(f64::NAN),
                ..MlaRecipe::default()
            },
            MlaRecipe {
                retain_variance: 0.0,
                ..fixed(8)
            },
            MlaRecipe {
                max_layers_kld: Some(-1.0),
                ..fixed(8)
            },
            MlaRecipe {
                mode: MlaMode::Latent,
                rope_dim: Some(4),
                ..fixed(8)
            },
        ];
        for recipe in bad {
            assert!(recipe.check("test").is_err(), "{recipe:?}");
        }
        let wide = MlaRecipe {
            rope_dim: Some(18),
            ..fixed(2)
        };
        assert!(matches!(
            wide.converted(&source()),
            Err(Error::MlaRopeDim { most: 16, .. })
        ));
        let stock = MlaRecipe {
            rope_dim: Some(6),
            stock_rope: true,
            ..fixed(2)
        };
        assert!(matches!(
            stock.converted(&source()),
            Err(Error::MlaStockRope { .. })
        ));
    }

    #[test]
    fn auto_ends_at_its_ceiling() {
        assert_eq!(MlaRecipe::auto_ranks(10, 64), [16, 32, 48, 64]);
        assert_eq!(MlaRecipe::auto_ranks(100, 64), [64]);
    }
}
