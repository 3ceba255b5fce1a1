use super::*;
use crate::samples;
use crate::{Resolved, resolve};

/// The metadata of the sample of this crate.
fn metadata() -> Map<String, Value> {
    let Value::Object(map) = json!({
        "general.architecture": "llama",
        "llama.context_length": 64,
        "llama.embedding_length": 16,
        "llama.block_count": 2,
        "llama.feed_forward_length": 24,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": [2, 2],
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": 4,
        "llama.vocab_size": 32,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.eot_token_id": 2,
    }) else {
        unreachable!()
    };
    map
}

fn tensors() -> Vec<SourceTensor> {
    let resolved = samples::resolved(&samples::config());
    let slots = resolved.slots.into_iter();
    slots
        .map(|slot| SourceTensor {
            name: slot.id.gguf_name().unwrap(),
            shape: slot.shape,
        })
        .collect()
}

/// What the configuration resolves to with the checkpoint's own tensors.
fn resolved(config: &Value) -> Resolved {
    resolve(config, None, &samples::tensors(config)).unwrap()
}

fn with(key: &str, value: Value) -> Map<String, Value> {
    let mut metadata = metadata();
    metadata.insert(key.to_owned(), value);
    metadata
}

fn refused(metadata: &Map<String, Value>) -> String {
    config(metadata, &tensors(), None).unwrap_err().to_string()
}

#[test]
fn the_sample_is_the_model_that_its_config_describes() {
    let read = config(&metadata(), &tensors(), None).unwrap();
    assert_eq!(read.arch.name, "llama");
    assert_eq!(read.warnings, Vec::<String>::new());
    assert_eq!(
        resolved(&read.config).spec,
        samples::resolved(&samples::config()).spec
    );
}

#[test]
fn biases_and_head_are_told_by_tensors() {
    let mut tensors = tensors();
    tensors.retain(|tensor| tensor.name != "output.weight");
    tensors.push(SourceTensor {
        name: "blk.0.attn_q.bias".to_owned(),
        shape: vec![16],
    });
    let read = config(&metadata(), &tensors, None).unwrap().config;
    assert_eq!(read["tie_word_embeddings"], true);
    assert_eq!(read["attention_bias"], true);
    assert_eq!(read.get("mlp_bias"), None);
}

#[test]
fn what_is_missing_or_odd_is_named() {
    for key in [
        "general.architecture",
        "llama.context_length",
        "llama.embedding_length",
        "llama.block_count",
        "llama.feed_forward_length",
        "llama.attention.head_count",
        "llama.attention.layer_norm_rms_epsilon",
    ] {
        let mut metadata = metadata();
        metadata.remove(key);
        assert!(refused(&metadata).contains(&format!("`{key}` is missing")));
    }
    for (key, value) in [
        ("llama.attention.layer_norm_rms_epsilon", json!("NaN")),
        ("llama.attention.head_count", json!(u64::MAX)),
        ("llama.attention.head_count_kv", json!([2, 1])),
        ("llama.block_count", json!(-1)),
        ("llama.rope.dimension_count", json!(2)),
        ("llama.attention.value_length", json!(8)),
        ("llama.rope.scaling.type", json!("yarn")),
        ("llama.expert_count", json!(8)),
        ("llama.attention.clamp_kqv", json!(8.0)),
        ("llama.logit_scale", json!(0.5)),
    ] {
        let message = refused(&with(key, value));
        assert!(message.contains(key), "{key}: {message}");
    }
    for (key, value) in [
        ("llama.expert_count", json!(0)),
        ("llama.logit_scale", json!(1.0)),
        ("llama.rope.scaling.type", json!("none")),
        ("other.expert_count", json!(8)),
    ] {
        config(&with(key, value), &tensors(), None).unwrap();
    }
    let other = refused(&with("general.architecture", json!("qwen9")));
    assert_eq!(other, "architecture `qwen9` is not supported");
}

#[test]
fn a_window_that_would_matter_is_told() {
    let read = config(
        &with("llama.attention.sliding_window", json!(32)),
        &tensors(),
        None,
    );
    assert_eq!(read.unwrap().warnings.len(), 1);
}

#[test]
fn frequencies_are_mapped_back_or_refused() {
    let mut linear = with("llama.rope.scaling.type", json!("linear"));
    linear.insert("llama.rope.scaling.factor".to_owned(), json!(4.0));
    let read = config(&linear, &tensors(), None).unwrap().config;
    assert_eq!(
        read["rope_scaling"],
        json!({ "rope_type": "linear", "factor": 4.0 })
    );

    let metadata = with("llama.rope.scaling.original_context_length", json!(32));
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_positions: 32.0,
    };
    let plain = RopeSpec {
        theta: 10_000.0,
        layout: RopeLayout::Half,
        scaling: RopeScaling::None,
    };
    let scaled = RopeSpec { scaling, ..plain }.inv_freq(4);
    let mut factors: Vec<f32> = plain
        .inv_freq(4)
        .iter()
        .zip(&scaled)
        .map(|(plain, scaled)| (plain / scaled) as f32)
        .collect();
    let read = config(&metadata, &tensors(), Some(&factors)).unwrap();
    assert_eq!(resolved(&read.config).spec.rope.scaling, scaling);
    assert!(config(&metadata, &tensors(), Some(&factors[1..])).is_err());
    factors[0] *= 1.001;
    let error = config(&metadata, &tensors(), Some(&factors)).unwrap_err();
    assert!(error.to_string().contains("rope_freqs.weight"), "{error}");
    factors[0] = f32::NAN;
    assert!(config(&metadata, &tensors(), Some(&factors)).is_err());
    let ones = config(&metadata, &tensors(), Some(&[1.0, 1.0])).unwrap();
    assert_eq!(ones.config.get("rope_scaling"), None);
}
