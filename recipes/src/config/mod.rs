//! From `config.json` to a [`ModelSpec`]: every number range-checked once, and every setting
//! that would change the arithmetic either honoured or refused by name.

mod layers;
pub(crate) mod reader;
mod rope;
#[cfg(test)]
mod tests;

use std::ops::RangeInclusive;

use serde_json::Value;

use crate::Error;
use crate::arch::{ArchSpec, CountElse, CountRule, Flag, Key, find};
use crate::spec::{
    AttentionSpec, Biases, BlockSpec, LayerSpec, Mixer, Mlp, ModelSpec, SpecialTokens,
};
use crate::validate::{FFN, HEAD_DIM, HEADS, HIDDEN, LAYERS, NORM_EPS, POSITIONS, VOCAB, within};
use reader::{Reader, print};

const CONFIG: &str = "config.json";
const GENERATION: &str = "generation_config.json";

/// Settings that other models compute with and this runtime does not, with the number that
/// makes each of them void. Null, false and empty values are void for all.
const FOREIGN: [(&str, Option<f64>); 26] = [
    ("add_cross_attention", None),
    ("alibi", None),
    ("attention_multiplier", None),
    ("attn_logit_softcapping", None),
    ("auto_map", None),
    ("clip_qkv", None),
    ("embedding_multiplier", Some(1.0)),
    ("final_logit_softcapping", None),
    ("is_encoder_decoder", None),
    ("logit_scale", Some(1.0)),
    ("logits_scaling", Some(1.0)),
    ("n_routed_experts", Some(0.0)),
    ("num_experts", Some(0.0)),
    ("num_local_experts", Some(0.0)),
    ("num_nextn_predict_layers", Some(0.0)),
    ("partial_rotary_factor", Some(1.0)),
    ("per_layer_config", None),
    ("pruned_heads", None),
    ("quantization_config", None),
    ("query_pre_attn_scalar", None),
    ("residual_multiplier", Some(1.0)),
    ("text_config", None),
    ("use_bidirectional_attention", None),
    ("use_qk_norm", None),
    ("vision_config", None),
    ("audio_config", None),
];

/// What the two configuration files say, before a tensor was looked at.
#[derive(Debug)]
pub(crate) struct ReadConfig {
    pub(crate) arch: &'static ArchSpec,
    /// `tied` is what the configuration claims.
    pub(crate) spec: ModelSpec,
    pub(crate) warnings: Vec<String>,
}

pub(crate) fn read(config: &Value, generation: Option<&Value>) -> Result<ReadConfig, Error> {
    let config = Reader::new(CONFIG, config)?;
    let generation = generation
        .map(|value| Reader::new(GENERATION, value))
        .transpose()?;
    let arch = identify(&config)?;
    for (key, void) in FOREIGN {
        refuse_unless_neutral(&config, key, void)?;
    }
    let keys = &arch.config;
    let hidden = required(&config, &keys.hidden, &HIDDEN)?;
    let heads = required(&config, &keys.heads, &HEADS)?;
    let kv_heads = derived(&config, &keys.kv_heads, &HEADS, hidden, heads)?;
    let head_dim = derived(&config, &keys.head_dim, &HEAD_DIM, hidden, heads)?;
    check_heads(&config, arch, heads, kv_heads, head_dim)?;
    let layers = required(&config, &keys.layers, &LAYERS)?;
    let vocab = required(&config, &keys.vocab, &VOCAB)?;
    let max_positions = required(&config, &keys.max_positions, &POSITIONS)?;
    check_activation(&config, arch.block.mlp)?;
    let rotated = layers::rotated(arch.block.rope_layers, &config, layers)?;
    let windows = layers::windows(arch.block.window, &config, &rotated, max_positions)?;
    let bias = Biases {
        qkv: flag(&config, &arch.block.bias.qkv)?,
        o: flag(&config, &arch.block.bias.o)?,
    };
    let mut warnings = Vec::new();
    let qk_norm = arch.block.qk_norm;
    let layer = |(rope, window)| LayerSpec {
        mixer: Mixer::Attention(AttentionSpec {
            heads,
            kv_heads,
            head_dim,
            rope,
            qk_norm,
            bias,
            window,
        }),
    };
    let spec = ModelSpec {
        arch: arch.name.clone(),
        hidden,
        vocab,
        ffn: required(&config, &keys.ffn, &FFN)?,
        max_positions,
        norm_eps: config
            .real(&keys.norm_eps.key, &NORM_EPS)?
            .or(keys.norm_eps.default)
            .ok_or_else(|| config.missing(&keys.norm_eps.key))?,
        tied: config
            .flag(&keys.tied.key)?
            .or(keys.tied.default)
            .ok_or_else(|| config.missing(&keys.tied.key))?,
        block: BlockSpec {
            norm: arch.block.norm,
            order: arch.block.order,
            mlp: arch.block.mlp,
            mlp_bias: flag(&config, &arch.block.bias.mlp)?,
        },
        rope: rope::read(arch, &config)?,
        layers: rotated.into_iter().zip(windows).map(layer).collect(),
        special: special_tokens(&config, generation.as_ref(), vocab, &mut warnings)?,
    };
    spec.validate()?;
    Ok(ReadConfig {
        arch,
        spec,
        warnings,
    })
}

/// The architecture by `architectures[0]`, or by `model_type` where there are none; both must
/// agree where both are there.
fn identify(config: &Reader<'_>) -> Result<&'static ArchSpec, Error> {
    let class = match config.list("architectures")? {
        None | Some([]) => None,
        Some([first, ..]) => Some(
            first
                .as_str()
                .ok_or_else(|| config.bad("architectures", "a list of strings", first))?,
        ),
    };
    let model_type = config.text("model_type")?;
    let Some(class) = class else {
        return find(model_type.ok_or(Error::NoArchitecture)?, |arch| {
            vec![arch.model_type.as_str()]
        });
    };
    let arch = find(class, |arch| {
        arch.classes.iter().map(String::as_str).collect()
    })?;
    match model_type {
        Some(found) if found != arch.model_type => Err(Error::Conflict {
            key: "architectures[0]".to_owned(),
            value: class.to_owned(),
            other_key: "model_type".to_owned(),
            other_value: crate::suggest::shown(found),
        }),
        _ => Ok(arch),
    }
}

/// Refuses `key` unless it is absent, null, false, empty or the number that makes it `void`.
fn refuse_unless_neutral(config: &Reader<'_>, key: &str, void: Option<f64>) -> Result<(), Error> {
    let Some(value) = config.get(key) else {
        return Ok(());
    };
    let neutral = match value {
        Value::Bool(on) => !on,
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Number(_) => void.is_some_and(|void| value.as_f64() == Some(void)),
        _ => false,
    };
    if neutral {
        return Ok(());
    }
    let supported = match void {
        Some(void) => format!("`{void}` or leaving it out"),
        None => "leaving it out".to_owned(),
    };
    Err(config.unsupported(key, value, &supported))
}

fn check_heads(
    config: &Reader<'_>,
    arch: &ArchSpec,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
) -> Result<(), Error> {
    let keys = &arch.config;
    if !heads.is_multiple_of(kv_heads) {
        let expected = format!("a divisor of {}, {heads}", keys.heads.key);
        return Err(config.bad(&keys.kv_heads.key, &expected, &Value::from(kv_heads)));
    }
    if !head_dim.is_multiple_of(2) {
        return Err(config.bad(&keys.head_dim.key, "an even number", &Value::from(head_dim)));
    }
    Ok(())
}

/// The activation must be the one the architecture's feed-forward block has.
fn check_activation(config: &Reader<'_>, mlp: Mlp) -> Result<(), Error> {
    let expected = match mlp {
        Mlp::GatedSilu => "silu",
    };
    match config.text("hidden_act")? {
        Some(found) if found != expected => {
            Err(config.unsupported("hidden_act", &Value::from(found), &format!("`{expected}`")))
        }
        _ => Ok(()),
    }
}

/// A count that stands in the file, or a default that is a number.
fn required(
    config: &Reader<'_>,
    key: &Key<CountElse>,
    range: &RangeInclusive<u64>,
) -> Result<usize, Error> {
    let default = match key.default {
        Some(CountElse::Value(value)) => usize::try_from(value).ok(),
        _ => None,
    };
    config
        .count(&key.key, range)?
        .or(default)
        .ok_or_else(|| config.missing(&key.key))
}

/// A count that may be computed from the residual width and the number of heads.
fn derived(
    config: &Reader<'_>,
    key: &Key<CountElse>,
    range: &RangeInclusive<u64>,
    hidden: usize,
    heads: usize,
) -> Result<usize, Error> {
    if let Some(count) = config.count(&key.key, range)? {
        return Ok(count);
    }
    match key.default {
        Some(CountElse::Rule(CountRule::Heads)) => Ok(heads),
        Some(CountElse::Rule(CountRule::HiddenPerHead)) => {
            let whole = hidden.is_multiple_of(heads).then_some(hidden / heads);
            let in_range = whole.filter(|&w| range.contains(&(w as u64)));
            in_range.ok_or_else(|| {
                let expected = format!(
                    "a number in {}, for {hidden} / {heads} gives none",
                    within(range)
                );
                config.bad(&key.key, &expected, &Value::Null)
            })
        }
        _ => required(config, key, range),
    }
}

fn flag(config: &Reader<'_>, flag: &Flag) -> Result<bool, Error> {
    match flag {
        Flag::Fixed(on) => Ok(*on),
        Flag::Key(key) => Ok(config.flag(key)?.unwrap_or(false)),
    }
}

/// The tokens that begin and end a text: those of `generation_config.json` first, then those of
/// config.json. Ids outside the vocabulary are left out with a warning.
fn special_tokens(
    config: &Reader<'_>,
    generation: Option<&Reader<'_>>,
    vocab: usize,
    warnings: &mut Vec<String>,
) -> Result<SpecialTokens, Error> {
    let mut special = SpecialTokens::default();
    for (file, reader) in [(GENERATION, generation), (CONFIG, Some(config))] {
        let Some(reader) = reader else { continue };
        let bos = token_ids(file, reader, "bos_token_id", vocab, warnings)?;
        special.bos = special.bos.or(bos.first().copied());
        for id in token_ids(file, reader, "eos_token_id", vocab, warnings)? {
            if !special.eos.contains(&id) {
                special.eos.push(id);
            }
        }
    }
    if special.eos.is_empty() {
        warnings.push("no token ends a text: generation stops only at its limit".to_owned());
    }
    Ok(special)
}

/// One id or a list of ids.
fn token_ids(
    file: &str,
    reader: &Reader<'_>,
    key: &str,
    vocab: usize,
    warnings: &mut Vec<String>,
) -> Result<Vec<u32>, Error> {
    let values = match reader.get(key) {
        None => return Ok(Vec::new()),
        Some(Value::Array(items)) if items.len() <= 256 => items.as_slice(),
        Some(one) => std::slice::from_ref(one),
    };
    let mut ids = Vec::new();
    for value in values {
        let id = value
            .as_i64()
            .ok_or_else(|| reader.bad(key, "a token id or a list of them", value))?;
        match u32::try_from(id) {
            Ok(id) if (id as usize) < vocab => ids.push(id),
            _ => warnings.push(format!(
                "{file}: `{key}` {} is no id of the vocabulary of {vocab} and is left out",
                print(value)
            )),
        }
    }
    Ok(ids)
}
