//! What comes out: an artifact that the runtime opens, close to its source, the same each time.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use neuroconv_convert::Staging;
use neuroconv_format::Validate;
use neuroconv_format::manifest::{Manifest, VerdictStatus};
use neuroconv_quant::{dequantize, relative_mse};
use neuroconv_runtime::{Checkpoint, PackedModel, Quiet, WeightSource as _};
use sha2::{Digest as _, Sha256};

use crate::common;

fn manifest(artifact: &Path) -> Manifest {
    let path = artifact.join("neuroconv/manifest.json");
    Manifest::parse(&fs_err::read(&path).unwrap(), &path).unwrap()
}

#[test]
fn the_runtime_opens_it_and_finds_weights_close_to_the_source() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    common::write_checkpoint(&source, 2, |_, _| {});
    for (recipe, limit) in [("int8", 1e-4), ("int4", 1e-2), ("ternary", 0.25)] {
        let output = dir.path().join(recipe);
        common::convert(&source, recipe, &output).unwrap();
        let (checkpoint, packed) = (
            Checkpoint::open(&source).unwrap(),
            PackedModel::open(&output, Validate::Full).unwrap(),
        );
        assert_eq!(packed.spec(), checkpoint.spec());
        let records = manifest(&output).tensors;
        let specs = packed.spec().tensors();
        assert_eq!(records.len(), specs.len());
        for ((id, shape), record) in specs.into_iter().zip(records) {
            let original = dequantize(&checkpoint.tensor(id).unwrap());
            let stored = packed.tensor(id).unwrap();
            assert_eq!((stored.shape(), record.name), (shape, id.to_string()));
            let error = relative_mse(&original, &dequantize(&stored));
            assert!(error < limit, "{recipe}: {id} is off by {error}");
            match record.rel_mse {
                Some(told) => assert!(
                    (told - error).abs() <= 1e-3 * error,
                    "{id}: {told}, {error}"
                ),
                None => assert_eq!(error.to_bits(), 0, "{id}"),
            }
        }
    }
}

#[test]
fn everything_beside_the_weights_is_there_and_hashed() {
    let dir = tempfile::tempdir().unwrap();
    let (source, output) = (dir.path().join("source"), dir.path().join("sub/model"));
    common::write_checkpoint(&source, 1, |_, _| {});
    common::convert(&source, "int4", &output).unwrap();
    let tree = common::tree(&output);
    let names: Vec<&str> = tree.keys().map(|path| path.to_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "LICENSE",
            "README.md",
            "config.json",
            "model.safetensors",
            "neuroconv/SHA256SUMS",
            "neuroconv/manifest.json",
            "neuroconv/recipe.toml",
            "neuroconv/report.json",
            "neuroconv/report.md",
            "tokenizer.json",
        ]
    );
    let original = common::tree(&source);
    for same in ["LICENSE", "tokenizer.json"] {
        assert_eq!(tree[Path::new(same)], original[Path::new(same)]);
    }
    let config: serde_json::Value =
        serde_json::from_slice(&tree[Path::new("config.json")]).unwrap();
    assert_eq!(config["quantization_config"]["quant_method"], "neuroconv");
    assert_eq!(config["hidden_size"], 64);
    let sums = String::from_utf8(tree[Path::new("neuroconv/SHA256SUMS")].clone()).unwrap();
    let listed: BTreeMap<&str, &str> = sums
        .lines()
        .map(|line| line.split_once("  ").unwrap())
        .map(|(sum, name)| (name, sum))
        .collect();
    let sum = |bytes: &[u8]| format!("{:x}", Sha256::digest(bytes));
    for (path, bytes) in &tree {
        let name = path.to_str().unwrap();
        if name != "neuroconv/SHA256SUMS" {
            assert_eq!(listed[name], sum(bytes), "{name}");
        }
    }
    assert_eq!(listed.len() + 1, tree.len());
    let manifest = manifest(&output);
    assert_eq!(manifest.verdict.status, VerdictStatus::Pass);
    assert_eq!(manifest.verdict.report_sha256, Some(sum(b"{}\n")));
    assert_eq!(
        manifest.recipe.sha256,
        sum(&tree[Path::new("neuroconv/recipe.toml")])
    );
    assert_eq!(
        manifest.size.weights_bytes,
        tree[Path::new("model.safetensors")].len() as u64
    );
    let files: Vec<&str> = manifest
        .source
        .files
        .iter()
        .map(|f| f.path.as_str())
        .collect();
    assert_eq!(
        files,
        [
            "LICENSE",
            "config.json",
            "model.safetensors",
            "tokenizer.json"
        ]
    );
    let text = serde_json::to_string(&manifest).unwrap();
    assert!(
        !text.contains(dir.path().to_str().unwrap()),
        "an absolute path in the manifest"
    );
}

#[test]
fn the_number_of_threads_changes_no_byte() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    common::write_checkpoint(&source, 2, |_, _| {});
    for recipe in ["int4", "int8", "ternary"] {
        let tree_with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            let output = dir.path().join(format!("{recipe}{threads}"));
            pool.install(|| common::convert(&source, recipe, &output))
                .unwrap();
            common::tree(&output)
        };
        let one = tree_with(1);
        for threads in [2, 4] {
            assert!(tree_with(threads) == one, "{recipe} with {threads} threads");
        }
    }
}

#[test]
fn a_staged_artifact_opens_but_is_marked_unverified() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    common::write_checkpoint(&source, 1, |_, _| {});
    let staging = Staging::open(&dir.path().join("model"), false).unwrap();
    let recipe = common::plain("ternary").unwrap();
    let staged = common::stage(&source, &recipe, staging, &Quiet, &AtomicBool::new(false)).unwrap();
    PackedModel::open(&staged.path(), Validate::Full).unwrap();
    assert_eq!(
        manifest(&staged.path()).verdict.status,
        VerdictStatus::Unverified
    );
    assert_eq!(
        staged.weights_sha256(),
        neuroconv_format::sha256_file(staged.path().join("model.safetensors")).unwrap()
    );
}

#[test]
fn shards_give_the_same_weights_and_their_index_is_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    common::write_checkpoint(&source, 1, |_, _| {});
    let whole = dir.path().join("whole");
    common::convert(&source, "int4", &whole).unwrap();
    let map: serde_json::Map<String, serde_json::Value> = Checkpoint::open(&source)
        .unwrap()
        .files()
        .tensors()
        .map(|info| (info.name.clone(), "model-00001-of-00001.safetensors".into()))
        .collect();
    let index = serde_json::json!({"metadata": {}, "weight_map": map});
    fs_err::write(
        source.join("model.safetensors.index.json"),
        index.to_string(),
    )
    .unwrap();
    fs_err::rename(
        source.join("model.safetensors"),
        source.join("model-00001-of-00001.safetensors"),
    )
    .unwrap();
    let sharded = dir.path().join("sharded");
    common::convert(&source, "int4", &sharded).unwrap();
    let weights = |dir: &Path| fs_err::read(dir.join("model.safetensors")).unwrap();
    assert!(weights(&sharded) == weights(&whole));
    let files: Vec<String> = manifest(&sharded)
        .source
        .files
        .into_iter()
        .map(|f| f.path)
        .collect();
    assert!(files.contains(&"model-00001-of-00001.safetensors".to_owned()));
    assert!(files.contains(&"model.safetensors.index.json".to_owned()));
}
