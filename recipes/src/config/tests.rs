//! Tests of configuration reading.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::samples::{config as sample, config_of};

/// The sample with some keys replaced; null stands for null, not for absence.
pub(super) fn with(changes: &Value) -> Value {
    change(sample(), changes)
}

pub(super) fn change(mut config: Value, changes: &Value) -> Value {
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

pub(super) fn without(mut config: Value, key: &str) -> Value {
    config.as_object_mut().unwrap().remove(key);
    config
}

pub(super) fn spec(config: &Value) -> ModelSpec {
    read(config, None).unwrap_or_else(|e| panic!("{e}")).spec
}

pub(super) fn refused(config: &Value) -> String {
    read(config, None).unwrap_err().to_string()
}

fn attention(config: &Value) -> AttentionSpec {
    match spec(config).layers.remove(0).mixer {
        Mixer::Attention(attention) => attention,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_architecture_is_known_by_class_or_type() {
    assert_eq!(spec(&without(sample(), "architectures")).arch, "llama");
    assert_eq!(spec(&without(sample(), "model_type")).arch, "llama");
    assert_eq!(spec(&config_of("Qwen3ForCausalLM")).arch, "qwen3");
    let nameless = without(without(sample(), "model_type"), "architectures");
    assert_eq!(read(&nameless, None).unwrap_err(), Error::NoArchitecture);
    assert_eq!(
        refused(&with(&json!({ "model_type": "mistral" }))),
        "config.json: `architectures[0]` is `LlamaForCausalLM`, but `model_type` is `mistral`"
    );
    let error = read(
        &with(&json!({ "architectures": ["LLamaForCausalLm"] })),
        None,
    )
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "architecture `LLamaForCausalLm` is not supported"
    );
    let hint = error.hint().unwrap();
    assert!(
        hint.starts_with("did you mean `LlamaForCausalLM`?"),
        "{hint}"
    );
    assert!(hint.contains("`SmolLM3ForCausalLM`"), "{hint}");
    assert!(refused(&with(&json!({ "architectures": [7] }))).contains("a list of strings"));
    assert_eq!(refused(&json!([1])), "config.json: expected a JSON object");
}

#[test]
fn a_missing_key_is_named_with_its_file() {
    for key in [
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
        "rms_norm_eps",
    ] {
        let expected = format!("config.json: `{key}` is missing");
        assert_eq!(refused(&without(sample(), key)), expected);
        assert_eq!(refused(&with(&json!({ key: null }))), expected);
    }
    let strict = without(config_of("MistralForCausalLM"), "sliding_window");
    assert_eq!(refused(&strict), "config.json: `sliding_window` is missing");
    let strict = without(config_of("SmolLM3ForCausalLM"), "no_rope_layer_interval");
    assert_eq!(
        refused(&strict),
        "config.json: `no_rope_layer_interval` is missing"
    );
}

#[test]
fn absent_keys_mean_what_the_architecture_says() {
    assert_eq!(
        attention(&without(sample(), "num_key_value_heads")).kv_heads,
        4
    );
    assert_eq!(attention(&sample()).head_dim, 4);
    assert_eq!(attention(&with(&json!({ "head_dim": 6 }))).head_dim, 6);
    assert_eq!(
        attention(&without(config_of("Qwen3ForCausalLM"), "head_dim")).head_dim,
        128
    );
    assert!(!spec(&without(sample(), "tie_word_embeddings")).tied);
    assert!(
        spec(&without(
            config_of("SmolLM3ForCausalLM"),
            "tie_word_embeddings"
        ))
        .tied
    );
    assert_eq!(
        spec(&without(sample(), "rope_theta")).rope.theta.to_bits(),
        10_000_f64.to_bits()
    );
    assert_eq!(
        refused(&with(&json!({ "hidden_size": 18 }))),
        "config.json: `head_dim`: expected a number in 2..=4096, for 18 / 4 gives none, found `null`"
    );
}

#[test]
fn integers_are_bounded_and_written_as_integers() {
    let big = 1_u64 << 62;
    for (key, bad) in [
        ("num_hidden_layers", json!(1025)),
        ("num_hidden_layers", json!(0)),
        ("hidden_size", json!(big)),
        ("hidden_size", json!(-16)),
        ("hidden_size", json!(16.0)),
        ("hidden_size", json!("16")),
        ("num_attention_heads", json!(4097)),
        ("num_key_value_heads", json!(0)),
        ("num_key_value_heads", json!(3)),
        ("vocab_size", json!((1 << 24) + 1)),
        ("max_position_embeddings", json!((1 << 24) + 1)),
        ("intermediate_size", json!((1 << 22) + 1)),
        ("head_dim", json!(5)),
        ("head_dim", json!(0)),
        ("rms_norm_eps", json!(0.0)),
        ("rms_norm_eps", json!("1e-5")),
        ("rope_theta", json!(-1.0)),
        ("tie_word_embeddings", json!("false")),
        ("attention_bias", json!(1)),
        ("eos_token_id", json!("</s>")),
        ("hidden_act", json!(3)),
        ("rope_scaling", json!([1])),
        ("layer_types", json!({})),
    ] {
        match read(&with(&json!({ key: bad })), None) {
            Err(Error::BadValue {
                file: "config.json",
                key: named,
                ..
            }) => assert_eq!(named, key),
            other => panic!("{key} = {bad}: {other:?}"),
        }
    }
    assert_eq!(
        refused(&with(&json!({ "num_key_value_heads": 3 }))),
        "config.json: `num_key_value_heads`: expected a divisor of num_attention_heads, 4, found `3`"
    );
}

#[test]
fn foreign_arithmetic_is_refused_by_name() {
    for (key, void) in FOREIGN {
        for neutral in [Value::Null, json!(false), json!([]), json!({})] {
            spec(&with(&json!({ key: neutral })));
        }
        if let Some(void) = void {
            spec(&with(&json!({ key: void })));
        }
        for set in [json!(0.5), json!(true), json!({ "a": 1 }), json!("x")] {
            match read(&with(&json!({ key: set })), None) {
                Err(Error::Unsupported { key: named, .. }) => assert_eq!(named, key),
                other => panic!("{key} = {set}: {other:?}"),
            }
        }
    }
    let error = read(&with(&json!({ "hidden_act": "gelu" })), None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "config.json: `hidden_act` is `gelu`, supported is only `silu`"
    );
    assert!(error.hint().is_some());
}

#[test]
fn biases_follow_the_configuration() {
    let plain = spec(&sample());
    assert!(!plain.block.mlp_bias && !attention(&sample()).bias.qkv);
    let biased = with(&json!({ "attention_bias": true, "mlp_bias": true }));
    assert!(spec(&biased).block.mlp_bias);
    assert_eq!(attention(&biased).bias, Biases { qkv: true, o: true });
    assert_eq!(
        attention(&config_of("Qwen2ForCausalLM")).bias,
        Biases {
            qkv: true,
            o: false
        }
    );
}

#[test]
fn texts_end_at_any_of_several_tokens() {
    let both = |config: &Value, generation: &Value| read(config, Some(generation)).unwrap();
    let special = both(
        &sample(),
        &json!({ "eos_token_id": [7, 2], "bos_token_id": 3 }),
    )
    .spec
    .special;
    assert_eq!(
        special,
        SpecialTokens {
            bos: Some(3),
            eos: vec![7, 2]
        }
    );
    let outside = with(&json!({ "eos_token_id": [2, 99], "bos_token_id": -1 }));
    let ReadConfig { spec, warnings, .. } = both(&outside, &json!({}));
    assert_eq!(
        spec.special,
        SpecialTokens {
            bos: None,
            eos: vec![2]
        }
    );
    assert_eq!(warnings.len(), 2);
    assert!(warnings[1].contains("`eos_token_id` 99"), "{warnings:?}");
    let endless = without(sample(), "eos_token_id");
    assert!(both(&endless, &json!({})).warnings[0].contains("generation stops only"));
    let error = read(&sample(), Some(&json!({ "eos_token_id": true }))).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("generation_config.json: `eos_token_id`"),
        "{error}"
    );
    let error = read(&sample(), Some(&json!(3))).unwrap_err();
    assert_eq!(
        error,
        Error::NotAnObject {
            file: "generation_config.json"
        }
    );
}

/// Any JSON a configuration could hold in place of a sensible value.
fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-3_i64..40).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z_0-9]{0,12}".prop_map(Value::from),
        Just(json!("llama3")),
        Just(json!("linear")),
        Just(json!("sliding_attention")),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        let key = prop_oneof![
            "rope_type",
            "type",
            "factor",
            "rope_theta",
            "low_freq_factor",
            "[a-z]{1,6}"
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..5)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

proptest! {
    /// Whatever stands in a configuration, reading it ends in a sound description or an error.
    #[test]
    fn no_configuration_panics(
        class in prop::sample::select(vec![
            "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "SmolLM3ForCausalLM",
        ]),
        changes in prop::collection::vec((prop::sample::select(vec![
            "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
            "intermediate_size", "vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_theta",
            "rope_scaling", "rope_parameters", "tie_word_embeddings", "sliding_window", "use_sliding_window",
            "max_window_layers", "layer_types", "no_rope_layers", "no_rope_layer_interval", "eos_token_id",
            "bos_token_id", "attention_bias", "hidden_act", "model_type", "architectures",
        ]), any_value()), 0..4),
    ) {
        let mut config = config_of(class);
        for (key, value) in changes {
            config[key] = value;
        }
        if let Ok(ReadConfig { spec, arch, .. }) = read(&config, None) {
            prop_assert_eq!(spec.validate(), Ok(()));
            for (id, _) in spec.tensors() {
                prop_assert!(arch.source_name(id).is_some(), "{}", id);
            }
        }
    }
}
