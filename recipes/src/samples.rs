//! A small configuration and its tensors, for the tests of this crate.

use serde_json::{Value, json};

use crate::arch::architectures;
use crate::config;
use crate::resolve::{Resolved, SourceTensor, resolve};

/// A plain grouped-query model of two layers.
pub(crate) fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 32,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": false,
        "bos_token_id": 1,
        "eos_token_id": 2
    })
}

/// The same for another class, with what every class of this crate requires.
pub(crate) fn config_of(class: &str) -> Value {
    let arch = architectures()
        .iter()
        .find(|a| a.classes.iter().any(|c| c == class))
        .unwrap();
    let mut config = config();
    config["architectures"] = json!([class]);
    config["model_type"] = json!(arch.model_type);
    config["head_dim"] = json!(4);
    config["sliding_window"] = Value::Null;
    config["no_rope_layer_interval"] = json!(2);
    config
}

/// The tensors `config` asks for, the head last when untied.
pub(crate) fn tensors(config: &Value) -> Vec<SourceTensor> {
    let read = config::read(config, None).unwrap();
    let named = |(id, shape)| SourceTensor {
        name: read.arch.source_name(id).unwrap(),
        shape,
    };
    read.spec.tensors().into_iter().map(named).collect()
}

/// `config` with exactly its tensors.
pub(crate) fn resolved(config: &Value) -> Resolved {
    resolve(config, None, &tensors(config)).unwrap()
}
