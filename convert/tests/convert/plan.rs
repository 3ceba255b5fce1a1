//! The plan: decided from headers, and every doubt an error.

use std::path::Path;

use neuroconv_convert::{Error, Plan, plan};
use neuroconv_recipes::{Recipe, builtin};
use neuroconv_runtime::Checkpoint;

use crate::common;

fn plan_of(source: &Path, recipe: &str) -> Result<Plan, Error> {
    let recipe = match builtin(recipe) {
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
            "embed [48, 64] int8/64 3168",
            "blk.0.attn_norm [64] f32 256",
        ]
    );
    assert!(plan.tensors.iter().all(|t| !t.reason.is_empty()));
    assert_eq!(plan.source.id, "tiny");
    let json = serde_json::to_value(&plan).unwrap();
    assert_eq!(json["tensors"][0]["id"], "embed");
    assert_eq!(json["tensors"][0]["codec"], "int8");
}
