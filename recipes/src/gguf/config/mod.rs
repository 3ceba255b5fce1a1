//! From the metadata of a GGUF file to the configuration that the same model has as a checkpoint.
//!
//! Owns which keys are understood. A key of the model that is not, and says something, is refused: it
//! may change what the model computes.

use std::ops::RangeInclusive;

use serde_json::{Map, Value, json};

use crate::Error;
use crate::arch::{ArchSpec, Flag, find};
use crate::config::reader::Reader;
use crate::gguf::keys;
use crate::resolve::SourceTensor;
use crate::role::{Role, TensorId};
use crate::spec::{RopeLayout, RopeScaling, RopeSpec};
use crate::validate::{FACTOR, HEAD_DIM, HEADS, HIDDEN, NORM_EPS, POSITIONS, THETA};

/// What messages call the metadata.
const FILE: &str = "GGUF metadata";
/// Keys after the architecture's name that mean nothing to the arithmetic.
const HARMLESS: [&str; 2] = [keys::VOCAB, ".rope.scaling.finetuned"];
/// Keys of tokens that end a text, the first of them first.
const ENDS: [&str; 3] = [
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.eom_token_id",
];
/// The key of the token that begins a text.
const BEGIN: &str = "tokenizer.ggml.bos_token_id";
/// Context of models with Llama 3's frequencies before these were changed, where no key says it.
const LLAMA3_POSITIONS: f64 = 8192.0;
/// Ramp of Llama 3's frequencies, low and high.
const LLAMA3_RAMP: (f64, f64) = (1.0, 4.0);
/// How far factors of frequencies may be from what the settings give: they are computed in single
/// precision, the powers included.
const FACTOR_TOLERANCE: f64 = 1e-5;

/// A model of a GGUF file in the words of a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct GgufConfig {
    /// The architecture.
    pub arch: &'static ArchSpec,
    /// Width of a head.
    pub head_dim: usize,
    /// What `config.json` would say.
    pub config: Value,
    /// What people should know, though nothing is wrong.
    pub warnings: Vec<String>,
}

/// Reads the metadata.
///
/// `metadata` holds the keys of the model and of special tokens as JSON, a number that is not finite as
/// its text; `tensors` what the file lists, under its own names; `factors` the values of the tensor
/// [`keys::ROPE_FACTORS`] where there is one.
pub fn config(
    metadata: &Map<String, Value>,
    tensors: &[SourceTensor],
    factors: Option<&[f32]>,
) -> Result<GgufConfig, Error> {
    let value = Value::Object(metadata.clone());
    let reader = Reader::new(FILE, &value)?;
    let name = reader
        .text(keys::ARCHITECTURE)?
        .ok_or_else(|| reader.missing(keys::ARCHITECTURE))?;
    let arch = find(name, |arch| {
        let rules = arch.gguf().filter(|rules| rules.read);
        rules.map(|rules| rules.arch.as_str()).into_iter().collect()
    })?;
    let file = File {
        reader,
        name,
        arch,
        tensors,
    };
    file.config(factors)
}

struct File<'a> {
    reader: Reader<'a>,
    /// The value of `general.architecture`, which keys begin with.
    name: &'a str,
    arch: &'static ArchSpec,
    tensors: &'a [SourceTensor],
}

impl File<'_> {
    fn config(&self, factors: Option<&[f32]>) -> Result<GgufConfig, Error> {
        self.refuse_unknown()?;
        let c = &self.arch.config;
        let hidden = self.needed(keys::HIDDEN, &HIDDEN)?;
        let heads = self.needed(keys::HEADS, &HEADS)?;
        let kv_heads = self.count(keys::KV_HEADS, &HEADS)?.unwrap_or(heads);
        let head_dim = match self.count(keys::KEY_LENGTH, &HEAD_DIM)? {
            Some(width) => width,
            None => hidden / heads,
        };
        for key in [keys::VALUE_LENGTH, keys::ROPE_DIM] {
            self.equals(key, head_dim)?;
        }
        let positions = self.needed(keys::POSITIONS, &POSITIONS)?;
        let theta = self.real(keys::ROPE_THETA, &THETA)?.unwrap_or(10_000.0);
        let eps = self.real(keys::NORM_EPS, &NORM_EPS)?;
        let eps = eps.ok_or_else(|| self.reader.missing(&self.key(keys::NORM_EPS)))?;
        let mut warnings = Vec::new();
        if let Some(window) = self.count(keys::WINDOW, &POSITIONS)?
            && window < positions
        {
            warnings.push(format!(
                "the window of {window} tokens in the metadata is not used, as in llama.cpp"
            ));
        }
        let mut config = json!({
            "architectures": [self.arch.classes[0]],
            "model_type": self.arch.model_type,
            "hidden_act": "silu",
            // Void where an architecture does not have it, required where it does.
            "sliding_window": null,
        });
        let layers = self.needed(keys::LAYERS, &crate::validate::LAYERS)?;
        for (key, count) in [
            (&c.hidden.key, hidden),
            (&c.layers.key, layers),
            (&c.heads.key, heads),
            (&c.kv_heads.key, kv_heads),
            (&c.head_dim.key, head_dim),
            (&c.ffn.key, self.needed(keys::FFN, &crate::validate::FFN)?),
            (&c.vocab.key, self.vocab()?),
            (&c.max_positions.key, positions),
        ] {
            config[key] = json!(count);
        }
        config[&c.norm_eps.key] = json!(eps);
        config[&c.rope_theta.key] = json!(theta);
        config[&c.tied.key] = json!(!self.has(Role::Head));
        for (flag, roles) in [
            (&self.arch.block.bias.qkv, [Role::QBias, Role::VBias]),
            (&self.arch.block.bias.o, [Role::OBias, Role::OBias]),
            (&self.arch.block.bias.mlp, [Role::GateBias, Role::DownBias]),
        ] {
            if let (Flag::Key(key), true) = (flag, roles.iter().any(|role| self.has(*role))) {
                config[key] = json!(true);
            }
        }
        if let Some(scaling) = self.scaling(theta, head_dim, factors)? {
            config["rope_scaling"] = scaling;
        }
        self.special(&mut config);
        Ok(GgufConfig {
            arch: self.arch,
            head_dim,
            config,
            warnings,
        })
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.name)
    }

    fn count(&self, key: &str, range: &RangeInclusive<u64>) -> Result<Option<usize>, Error> {
        let key = self.key(key);
        // Some converters write a number for every layer; all must be the same here.
        match self.reader.get(&key) {
            Some(Value::Array(items)) if items.windows(2).all(|pair| pair[0] == pair[1]) => {
                let first = items.first().cloned().unwrap_or(Value::Null);
                let one = json!({ key.clone(): first });
                Reader::new(FILE, &one)?.count(&key, range)
            }
            _ => self.reader.count(&key, range),
        }
    }

    fn needed(&self, key: &str, range: &RangeInclusive<u64>) -> Result<usize, Error> {
        let count = self.count(key, range)?;
        count.ok_or_else(|| self.reader.missing(&self.key(key)))
    }

    fn real(&self, key: &str, range: &RangeInclusive<f64>) -> Result<Option<f64>, Error> {
        self.reader.real(&self.key(key), range)
    }

    /// Refuses a width that is there and not that of a head.
    fn equals(&self, key: &str, head_dim: usize) -> Result<(), Error> {
        match self.count(key, &HEAD_DIM)? {
            Some(found) if found != head_dim => {
                let found = Value::from(found);
                let supported = format!("the width of a key head, {head_dim}");
                Err(self.reader.unsupported(&self.key(key), &found, &supported))
            }
            _ => Ok(()),
        }
    }

    /// Rows of the embedding: the key is not always written.
    fn vocab(&self) -> Result<usize, Error> {
        let name = Role::Embed.gguf_name().unwrap_or_default();
        let embed = self.tensors.iter().find(|tensor| tensor.name == name);
        embed
            .and_then(|tensor| tensor.shape.first().copied())
            .ok_or_else(|| self.reader.missing(name))
    }

    /// Whether the file has a tensor of this role, in the first layer or outside of layers.
    fn has(&self, role: Role) -> bool {
        let layer = role.is_per_layer().then_some(0);
        let name = TensorId { layer, role }.gguf_name();
        self.tensors
            .iter()
            .any(|tensor| Some(&tensor.name) == name.as_ref())
    }

    /// `rope_scaling` of the configuration.
    fn scaling(
        &self,
        theta: f64,
        head_dim: usize,
        factors: Option<&[f32]>,
    ) -> Result<Option<Value>, Error> {
        let kind_key = self.key(keys::ROPE_SCALING);
        let kind = self.reader.text(&kind_key)?.unwrap_or("none");
        let factor = self.real(keys::ROPE_FACTOR, &FACTOR)?;
        let linear = match (kind, factor) {
            ("none", _) | ("linear", None) => None,
            ("linear", Some(factor)) => Some(factor),
            (other, _) => {
                let found = Value::from(other);
                return Err(self
                    .reader
                    .unsupported(&kind_key, &found, "`none` or `linear`"));
            }
        };
        let all_one = |factors: &[f32]| factors.iter().all(|f| f.to_bits() == 1_f32.to_bits());
        let factors = factors.filter(|factors| !all_one(factors));
        match (linear, factors) {
            (None, None) => Ok(None),
            (Some(factor), None) => Ok(Some(json!({ "rope_type": "linear", "factor": factor }))),
            (None, Some(factors)) => self.llama3(theta, head_dim, factors).map(Some),
            (Some(_), Some(_)) => {
                let found = Value::from("factors beside a linear change");
                Err(self
                    .reader
                    .unsupported(keys::ROPE_FACTORS, &found, "one of them"))
            }
        }
    }

    /// Llama 3's settings, where they give the `factors` that frequencies are divided by.
    fn llama3(&self, theta: f64, head_dim: usize, factors: &[f32]) -> Result<Value, Error> {
        let factor = factors.iter().copied().fold(1.0_f32, f32::max);
        let original = self.real(keys::ROPE_ORIGINAL, &(1.0..=1e9))?;
        let scaling = RopeScaling::Llama3 {
            factor: f64::from(factor),
            low_freq_factor: LLAMA3_RAMP.0,
            high_freq_factor: LLAMA3_RAMP.1,
            original_max_positions: original.unwrap_or(LLAMA3_POSITIONS),
        };
        let plain = RopeSpec {
            theta,
            layout: RopeLayout::Half,
            scaling: RopeScaling::None,
        };
        let expected: Vec<f64> = plain
            .inv_freq(head_dim)
            .iter()
            .zip(RopeSpec { scaling, ..plain }.inv_freq(head_dim))
            .map(|(plain, scaled)| plain / scaled)
            .collect();
        let close = |(found, expected): (&f32, &f64)| {
            (f64::from(*found) / expected - 1.0).abs() <= FACTOR_TOLERANCE
        };
        if factors.len() != expected.len() || !factors.iter().zip(&expected).all(close) {
            let found = Value::from(format!("{} factors up to {factor}", factors.len()));
            let supported = "factors that Llama 3's settings give";
            return Err(self
                .reader
                .unsupported(keys::ROPE_FACTORS, &found, supported));
        }
        let RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_positions,
        } = scaling
        else {
            unreachable!("made above");
        };
        Ok(json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_positions as u64,
        }))
    }

    /// Tokens that begin and end a text; ids outside the vocabulary are left to the reader of the
    /// configuration.
    fn special(&self, config: &mut Value) {
        if let Some(begin) = self.reader.get(BEGIN) {
            config["bos_token_id"] = begin.clone();
        }
        let mut ends: Vec<&Value> = Vec::new();
        for end in ENDS.iter().filter_map(|key| self.reader.get(key)) {
            if !ends.contains(&end) {
                ends.push(end);
            }
        }
        match ends.as_slice() {
            [] => {}
            [end] => config["eos_token_id"] = (*end).clone(),
            ends => config["eos_token_id"] = json!(ends),
        }
    }

    /// Refuses keys of the model that are not read here, unless their value says nothing.
    fn refuse_unknown(&self) -> Result<(), Error> {
        const READ: [&str; 15] = [
            keys::POSITIONS,
            keys::HIDDEN,
            keys::LAYERS,
            keys::FFN,
            keys::HEADS,
            keys::KV_HEADS,
            keys::KEY_LENGTH,
            keys::VALUE_LENGTH,
            keys::NORM_EPS,
            keys::WINDOW,
            keys::ROPE_DIM,
            keys::ROPE_THETA,
            keys::ROPE_SCALING,
            keys::ROPE_FACTOR,
            keys::ROPE_ORIGINAL,
        ];
        for key in self.reader.keys() {
            let Some(rest) = key.strip_prefix(self.name).filter(|r| r.starts_with('.')) else {
                continue;
            };
            let value = self.reader.get(key).unwrap_or(&Value::Null);
            if !READ.contains(&rest) && !HARMLESS.contains(&rest) && !says_nothing(rest, value) {
                return Err(self.reader.unsupported(key, value, "leaving it out"));
            }
        }
        Ok(())
    }
}

/// Whether a value is the one that has no effect: no, zero, or one where something is multiplied.
fn says_nothing(key: &str, value: &Value) -> bool {
    let multiplies =
        key.ends_with("scale") || key.ends_with("factor") || key.ends_with("scale_linear");
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(if multiplies { 1.0 } else { 0.0 }),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
