//! The plan: decided from headers, and every doubt an error.

use std::path::Path;

use neuroconv_convert::{Error, Plan, plan};
use neuroconv_recipes::Recipe;
use neuroconv_runtime::Checkpoint;

use crate::common;

fn plan_of(source: &Path, recipe: &str) -> Result<Plan, Error> {
    let recipe = match common::plain(recipe) {
        Ok(recipe) => recipe,
        Err(_) => Recipe::parse(recipe, "test")?,
    };
    plan(&Checkpoint::open(source)?, &recipe)
}

#[test]
fn every_tensor_has_a_fate_with_size_and_reason() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("tiny");
    common::write_checkpoint(&source, 1, |_, _| {});
    let plan = plan_of(&source, "int4").unwrap();
    let lines: Vec<String> = plan
        .tensors
        .iter()
        .map(|t| {
            let group = t.group.map_or(String::new(), |g| format!("/{g}"));
            format!(
                "{} {:?} {}{group} {}",
                t.id,
                t.shape,
                t.codec.name(),
                t.bytes
            )
        })
        .collect();
    assert_eq!(
        lines,
        [
            "embed [48, 64] int8/64 3200",
            "blk.0.attn_norm [64] f32 256",
            "blk.0.attn_q [64, 64] int4/64 2176",
            "blk.0.attn_k [32, 64] int4/64 1088",
            "blk.0.attn_v [32, 64] int4/64 1088",
            "blk.0.attn_o [64, 64] int4/64 2176",
            "blk.0.mlp_norm [64] f32 256",
            "blk.0.mlp_gate [96, 64] int4/64 3264",
            "blk.0.mlp_up [96, 64] int4/64 3264",
            "blk.0.mlp_down [64, 96] int4/32 3456",
            "final_norm [64] f32 256",
            "head [48, 64] int8/64 3200",
        ]
    );
    for tensor in &plan.tensors {
        let (reason, packed) = (&tensor.reason, tensor.group.is_some());
        assert!(!reason.is_empty());
        // 128 is asked for, and no matrix here is that wide.
        assert_eq!(reason.contains("instead of 128"), packed, "{reason}");
    }
    let stored: u64 = plan.tensors.iter().map(|t| t.bytes).sum();
    assert!(plan.weights_bytes > stored && plan.weights_bytes < stored + 2048);
    let bits = plan.bits_per_weight * plan.source.params as f64;
    assert!((bits - plan.weights_bytes as f64 * 8.0).abs() < 1e-6);
    assert!(plan.disk_bytes > plan.weights_bytes);
    assert_eq!(plan.source.bytes, 2 * plan.source.params);
    assert_eq!(
        (plan.source.id.as_str(), plan.source.dtype.as_str()),
        ("tiny", "bf16")
    );
    let json = serde_json::to_value(&plan).unwrap();
    assert_eq!(json["tensors"][0]["id"], "embed");
    assert_eq!(json["tensors"][0]["codec"], "int8");
    assert_eq!(
        json["tensors"][1]["source"],
        "model.layers.0.input_layernorm.weight"
    );
}

#[test]
fn the_peak_is_the_largest_tensor_with_its_neighbours() {
    let dir = tempfile::tempdir().unwrap();
    common::write_checkpoint(dir.path(), 1, |_, _| {});
    let plan = plan_of(dir.path(), "int4").unwrap();
    let elements = |id: &str| {
        plan.tensors
            .iter()
            .find(|t| t.id.to_string() == id)
            .unwrap()
            .elements()
    };
    // mlp_up is quantized, mlp_down has been read, mlp_gate is being written.
    let expected =
        4 * elements("blk.0.mlp_up") + 3264 + (2 + 4) * elements("blk.0.mlp_down") + 3264;
    assert_eq!(plan.peak_memory_bytes, expected);
}

#[test]
fn a_tied_model_has_one_table_that_says_so() {
    let dir = tempfile::tempdir().unwrap();
    common::write_checkpoint(dir.path(), 1, |name, values| {
        if name == "lm_head.weight" || name == "model.embed_tokens.weight" {
            values.fill(0.25);
        }
    });
    let plan = plan_of(dir.path(), "int4").unwrap();
    assert!(plan.tensors.iter().all(|t| t.id.to_string() != "head"));
    assert!(plan.tensors[0].reason.contains("also serves as the head"));
    assert_eq!(plan.dropped.len(), 1);
    assert_eq!(plan.dropped[0].source, "lm_head.weight");
}

#[test]
fn every_doubt_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    common::write_checkpoint(dir.path(), 1, |_, _| {});
    let recipe = |rule: &str| {
        format!(
            "schema = 1\nname = \"x\"\nsummary = \"y\"\n{rule}\n[otherwise]\nscheme = \"keep\"\n"
        )
    };
    let norms = recipe("[[rule]]\nroles = [\"norm\"]\nscheme = \"int8\"");
    let error = plan_of(dir.path(), &norms).unwrap_err();
    assert!(error.to_string().contains("`blk.0.attn_norm`"), "{error}");
    assert!(error.hint().is_some());
    let biases = recipe(
        "[[rule]]\nroles = [\"bias\"]\nscheme = \"keep\"\n[[rule]]\nroles = [\"attn_q_bias\"]\nscheme = \"keep\"",
    );
    assert!(matches!(
        plan_of(dir.path(), &biases),
        Err(Error::Recipe(_))
    ));
    let config = dir.path().join("config.json");
    let text = fs_err::read_to_string(&config).unwrap();
    let quantized = text.replacen(
        '{',
        "{\"quantization_config\": {\"quant_method\": \"gptq\"},",
        1,
    );
    fs_err::write(&config, quantized).unwrap();
    let error = plan_of(dir.path(), "int4").unwrap_err();
    assert!(error.to_string().contains("quantiz"), "{error}");
}
