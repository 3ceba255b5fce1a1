//! Which engine can run which model: the rules, told before any work.
//!
//! A rule says what the engine's own code computes, as far as it was read or run. Which pairs were run
//! stands in `docs/interop.md` and in [`Engine::tested`].

use std::fmt;

use neuroconv_recipes::stock::stock_latent;
use neuroconv_recipes::{
    LayerSpec, Mixer, MlaEncoder, MlaSpec, ModelSpec, QkNorm, RopeScaling, architecture,
};
use serde::Serialize;

/// A program that loads exports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Engine {
    /// The Python library.
    Transformers,
    /// The server; never run here.
    Vllm,
    /// The C++ program and its relatives.
    LlamaCpp,
}

/// How well an engine can run a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fit {
    /// It computes the same function.
    Exact,
    /// It computes another function, fitted to be near; why.
    Fitted(&'static str),
    /// It cannot.
    Refused {
        /// What it lacks.
        reason: String,
        /// What to do.
        hint: Option<String>,
    },
}

/// What is known of latent attention beside its shape; `None` is not known yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LatentFacts {
    /// Whether every layer rotates by the table that engines build themselves.
    pub stock_table: Option<bool>,
}

/// What is told of one engine and one model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EngineVerdict {
    /// The engine, as flags name it.
    pub engine: &'static str,
    /// `exact`, `fitted` or `refused`.
    pub verdict: &'static str,
    /// Why it is not exact.
    pub reason: Option<String>,
    /// Whether exports of such models were loaded by it and compared.
    pub tested: bool,
}

impl EngineVerdict {
    /// What is told of every engine.
    pub fn all(spec: &ModelSpec, facts: LatentFacts) -> Vec<Self> {
        let of = |engine: Engine| {
            let (verdict, reason) = match engine.fit(spec, facts) {
                Fit::Exact => ("exact", None),
                Fit::Fitted(why) => ("fitted", Some(why.to_owned())),
                Fit::Refused { reason, hint } => {
                    let hint = hint.map_or_else(String::new, |hint| format!("; {hint}"));
                    ("refused", Some(reason + &hint))
                }
            };
            EngineVerdict {
                engine: engine.name(),
                verdict,
                reason,
                tested: verdict != "refused" && engine.tested(spec),
            }
        };
        Engine::ALL.map(of).to_vec()
    }

    /// Engine, verdict, why, and whether it was tried: a row of a table.
    pub fn row(&self) -> [String; 4] {
        [
            self.engine.to_owned(),
            self.verdict.to_owned(),
            self.reason.clone().unwrap_or_default(),
            if self.tested { "yes" } else { "no" }.to_owned(),
        ]
    }
}

impl Engine {
    /// Every engine.
    pub const ALL: [Engine; 3] = [Engine::Transformers, Engine::Vllm, Engine::LlamaCpp];

    /// The name in flags and tables.
    pub const fn name(self) -> &'static str {
        match self {
            Engine::Transformers => "transformers",
            Engine::Vllm => "vllm",
            Engine::LlamaCpp => "llamacpp",
        }
    }

    /// How well the engine runs `spec`.
    pub fn fit(self, spec: &ModelSpec, facts: LatentFacts) -> Fit {
        let Some(first) = spec.layers.first() else {
            return refused("it has no layers", None);
        };
        let kind = |mixer: &Mixer| match mixer {
            Mixer::Attention(_) => 0,
            Mixer::Mla(_) => 1,
            Mixer::Latent(_) => 2,
        };
        if spec
            .layers
            .iter()
            .any(|l| kind(&l.mixer) != kind(&first.mixer))
        {
            return refused(
                "some layers have latent attention and some have not",
                Some("convert every layer: leave out `--keep-layers`"),
            );
        }
        match &first.mixer {
            Mixer::Attention(_) => self.fit_attention(spec),
            Mixer::Mla(mla) => self.fit_mla(spec, mla, facts),
            Mixer::Latent(_) => refused(
                "keys and values rebuilt from a latent, with every rotation kept, are our own",
                Some("convert with `--mode mla --stock-rope`"),
            ),
        }
    }

    fn fit_attention(self, spec: &ModelSpec) -> Fit {
        match self {
            Engine::Transformers | Engine::Vllm => Fit::Exact,
            Engine::LlamaCpp => attention_as_gguf(spec),
        }
    }

    fn fit_mla(self, spec: &ModelSpec, mla: &MlaSpec, facts: LatentFacts) -> Fit {
        let differs = |layer: &LayerSpec| match &layer.mixer {
            Mixer::Mla(other) => other != mla,
            Mixer::Attention(_) | Mixer::Latent(_) => true,
        };
        if spec.layers.iter().any(differs) {
            return refused("the layers have latents of different widths", None);
        }
        if matches!(mla.encoder, MlaEncoder::Normed { .. }) {
            return refused(
                "its latent attention has no norms of queries and keys",
                None,
            );
        }
        if mla.rope_dim == 0 {
            let hint = "convert with `--rope-dim` of 2 or more";
            return refused(
                "its latent attention always rotates some channels",
                Some(hint),
            );
        }
        if spec.block.mlp_bias {
            return refused("its feed-forward blocks have no biases there", None);
        }
        let scaling = match (self, spec.rope.scaling) {
            (_, RopeScaling::None) | (Engine::Transformers, _) => None,
            (_, RopeScaling::Linear { .. }) => Some("linear rope scaling"),
            (_, RopeScaling::Llama3 { .. }) => Some("llama3 rope scaling"),
        };
        if let Some(scaling) = scaling {
            return refused(&format!("its latent attention has no {scaling}"), None);
        }
        if facts.stock_table == Some(false) {
            return refused(
                "it builds the rotary frequencies itself, and this model chose its own",
                Some("convert with `--stock-rope`"),
            );
        }
        match self {
            Engine::Transformers => Fit::Exact,
            Engine::Vllm | Engine::LlamaCpp => Fit::Fitted(
                "it norms the latent and has no biases there: both are made good by a fit on \
                 calibration text",
            ),
        }
    }

    /// Whether exports of models like `spec` were loaded by this engine and compared, see
    /// `docs/interop.md`.
    pub fn tested(self, spec: &ModelSpec) -> bool {
        let latent = |layer: &LayerSpec| !matches!(layer.mixer, Mixer::Attention(_));
        if spec.layers.iter().any(latent) {
            return stock_latent().tested.iter().any(|name| name == self.name());
        }
        architecture(&spec.arch).is_ok_and(|arch| arch.tested_with(self.name()))
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Engine::Transformers => "transformers",
            Engine::Vllm => "vLLM",
            Engine::LlamaCpp => "llama.cpp",
        })
    }
}

fn refused(reason: &str, hint: Option<&str>) -> Fit {
    Fit::Refused {
        reason: reason.to_owned(),
        hint: hint.map(ToOwned::to_owned),
    }
}

/// Grouped-query attention as GGUF files can describe it.
fn attention_as_gguf(spec: &ModelSpec) -> Fit {
    let rules = architecture(&spec.arch).ok().and_then(|arch| arch.gguf());
    if rules.is_none() {
        let reason = format!(
            "its files have no family `{}` that is written here",
            spec.arch
        );
        return refused(&reason, None);
    }
    let mut first = None;
    for (index, layer) in spec.layers.iter().enumerate() {
        let Mixer::Attention(attention) = &layer.mixer else {
            return refused("it mixes kinds of attention", None);
        };
        let first = *first.get_or_insert(attention);
        if attention.window.is_some() {
            let reason = format!("layer {index} attends through a window, which is not written");
            return refused(&reason, None);
        }
        if !attention.rope {
            return refused(&format!("layer {index} is not rotated"), None);
        }
        if attention != first {
            return refused("the layers have heads of different shapes", None);
        }
        let square = attention.heads * attention.head_dim == spec.hidden;
        if attention.bias.qkv && attention.qk_norm == QkNorm::PerHead {
            return refused("norms and biases of queries do not go together there", None);
        }
        if attention.bias.qkv && !square {
            return refused(
                "models with biases of queries have heads as wide as the model",
                None,
            );
        }
    }
    Fit::Exact
}
