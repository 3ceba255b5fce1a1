//! `config.json` of an exported checkpoint: the source's, with what changed and nothing else.

use neuroconv_format::DType;
use neuroconv_recipes::stock::StockClass;
use neuroconv_recipes::{MlaSpec, ModelSpec, RopeScaling};
use serde_json::{Map, Value, json};

use super::names::LatentForm;

/// Keys that are left out: custom code, the place it came from, and what this program marks its own
/// artifacts with.
const LEFT_OUT: [&str; 3] = ["auto_map", "_name_or_path", "quantization_config"];

/// The source's configuration without what no export carries on.
pub(crate) fn kept(source: &Map<String, Value>) -> Map<String, Value> {
    let mut config = source.clone();
    for key in LEFT_OUT {
        config.shift_remove(key);
    }
    config
}

/// Sets what every export states anew: the element type, both spellings of the rotation, and whether
/// the head is the embedding.
pub(crate) fn restate(config: &mut Map<String, Value>, spec: &ModelSpec, dtype: DType) {
    let name = match dtype {
        DType::F32 => "float32",
        DType::F16 => "float16",
        DType::BF16 | DType::U8 => "bfloat16",
    };
    config.insert("dtype".to_owned(), name.into());
    config.insert("torch_dtype".to_owned(), name.into());
    config.insert("rope_theta".to_owned(), spec.rope.theta.into());
    let mut scaling = scaling(spec.rope.scaling);
    let stated = if scaling.is_empty() {
        Value::Null
    } else {
        Value::Object(scaling.clone())
    };
    config.insert("rope_scaling".to_owned(), stated);
    if scaling.is_empty() {
        scaling.insert("rope_type".to_owned(), "default".into());
    }
    scaling.insert("rope_theta".to_owned(), spec.rope.theta.into());
    config.insert("rope_parameters".to_owned(), scaling.into());
    config.insert("tie_word_embeddings".to_owned(), spec.tied.into());
}

/// The change to the frequencies as `transformers` spells it; empty where there is none.
fn scaling(scaling: RopeScaling) -> Map<String, Value> {
    let object = match scaling {
        RopeScaling::None => json!({}),
        RopeScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_positions,
        } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_positions as u64,
        }),
    };
    match object {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// The configuration of latent attention in `class`; of the source's keys, those of tokens and of
/// training survive.
pub(crate) fn latent(
    source: &Map<String, Value>,
    spec: &ModelSpec,
    mla: &MlaSpec,
    class: &StockClass,
    form: LatentForm,
) -> Map<String, Value> {
    const KEPT: [&str; 6] = [
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "initializer_range",
        "use_cache",
        "transformers_version",
    ];
    let mut config = Map::new();
    let mut set = |key: &str, value: Value| {
        config.insert(key.to_owned(), value);
    };
    set("architectures", json!([class.class]));
    set("model_type", class.name.as_str().into());
    for (key, value) in [
        ("hidden_size", spec.hidden),
        ("intermediate_size", spec.ffn),
        ("num_hidden_layers", spec.layers.len()),
        ("num_attention_heads", mla.heads),
        ("num_key_value_heads", mla.heads),
        ("vocab_size", spec.vocab),
        ("max_position_embeddings", spec.max_positions),
        ("kv_lora_rank", mla.rank),
        ("qk_rope_head_dim", mla.rope_dim),
        ("qk_nope_head_dim", mla.head_dim),
        ("v_head_dim", mla.head_dim),
        ("head_dim", mla.rope_dim),
    ] {
        set(key, value.into());
    }
    let copied = form.queries.map(|_| spec.hidden + 1);
    set("q_lora_rank", copied.into());
    set("rms_norm_eps", spec.norm_eps.into());
    set("hidden_act", "silu".into());
    set("attention_bias", form.biases.into());
    set("attention_dropout", 0.0.into());
    set("rope_interleave", true.into());
    if let Some(key) = &class.dense {
        set(key, spec.layers.len().into());
    }
    for (key, value) in &class.config {
        set(key, value.clone());
    }
    for key in KEPT {
        if let Some(value) = source.get(key) {
            set(key, value.clone());
        }
    }
    config
}
