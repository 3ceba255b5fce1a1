//! Sources that are no folder of dense safetensors: what was ternary stays so bit for bit, a GGUF file
//! becomes the artifact that its checkpoint becomes, and rounding twice is refused.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use neuroconv_convert::{Error, Staging, check_rounded, execute, plan};
use neuroconv_format::Validate;
use neuroconv_format::gguf::{Array, GgmlType, GgufLayout, Metadata, PlannedGguf, Value};
use neuroconv_quant::dequantize;
use neuroconv_recipes::gguf::{gathered, keys};
use neuroconv_recipes::{Recipe, RoleKind, TensorId, architecture, builtin};
use neuroconv_runtime::{Checkpoint, PackedModel, Quiet, WeightSource};
use serde_json::json;

use crate::common;

/// A tensor of a safetensors file: name, element type, dimensions, bytes.
type Stored = (String, &'static str, Vec<usize>, Vec<u8>);

fn write_safetensors(path: &Path, tensors: &[Stored]) {
    let mut header = serde_json::Map::new();
    let mut data: Vec<u8> = Vec::new();
    for (name, dtype, shape, bytes) in tensors {
        let start = data.len();
        data.extend_from_slice(bytes);
        let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, data.len()] });
        header.insert(name.clone(), entry);
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.bytes());
    file.extend(data);
    fs_err::write(path, file).unwrap();
}

/// -1, 0 or 1: magnitudes of half a scale and more are kept.
fn code(value: f32) -> i8 {
    if value.abs() < 0.02 {
        0
    } else {
        value.signum() as i8
    }
}

/// Turns a checkpoint into one of `BitNet`'s form, in its place.
fn into_bitnet(dir: &Path, class: &str) {
    let source = Checkpoint::open(dir).unwrap();
    let mut tensors: Vec<Stored> = Vec::new();
    for info in source.files().tensors() {
        let dense = source.files().read(&info.name).unwrap();
        if !info.name.contains("_proj") {
            tensors.push((
                info.name.clone(),
                "BF16",
                info.shape.clone(),
                dense.bytes.to_vec(),
            ));
            continue;
        }
        let codes: Vec<i8> = dense.to_f32().iter().map(|v| code(*v)).collect();
        let quarter = codes.len() / 4;
        let byte = |at: usize| {
            (0..4)
                .map(|i| ((codes[at + i * quarter] + 1) as u8) << (2 * i))
                .sum()
        };
        let scale = if class == "bitlinear" {
            31.75_f32
        } else {
            0.0315
        };
        let scale = half::bf16::from_f32(scale).to_le_bytes().to_vec();
        let shape = vec![info.shape[0] / 4, info.shape[1]];
        tensors.push((
            info.name.clone(),
            "U8",
            shape,
            (0..quarter).map(byte).collect(),
        ));
        tensors.push((format!("{}_scale", info.name), "BF16", vec![1], scale));
    }
    write_safetensors(&dir.join("model.safetensors"), &tensors);
    let path = dir.join("config.json");
    let mut config: serde_json::Value =
        serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
    config["quantization_config"] = json!({ "quant_method": "bitnet", "linear_class": class });
    fs_err::write(path, config.to_string()).unwrap();
}

/// Converts with some calibration text, where the recipe learns.
fn converted(source: &Checkpoint, recipe: &Recipe, output: &Path) -> PackedModel {
    let plan = plan(source, recipe).unwrap();
    check_rounded(source, &plan, false).unwrap();
    let staging = Staging::open(output, false).unwrap();
    let text: Vec<Vec<u32>> = (0..8)
        .map(|window| {
            (0..64)
                .map(|at| (at * 7 + window * 5 + at * at) % 48)
                .collect()
        })
        .collect();
    let stop = AtomicBool::new(false);
    let staged = execute(&plan, source, &text, staging, &Quiet, &stop).unwrap();
    let path = staged.emit(&common::passed(), &Quiet).unwrap();
    PackedModel::open(&path, Validate::Full).unwrap()
}

/// Whether every matrix of the blocks has the same values in both, bit for bit.
fn same_matrices(source: &Checkpoint, artifact: &PackedModel) -> bool {
    let ids = source.spec().tensors().into_iter().map(|(id, _)| id);
    let mut matrices = ids
        .filter(|id| id.role.kind() == RoleKind::Linear)
        .peekable();
    assert!(matrices.peek().is_some());
    let values = |model: &dyn WeightSource, id: TensorId| -> Vec<f32> {
        dequantize(&model.tensor(id).unwrap())
    };
    matrices.all(|id| values(source, id) == values(artifact, id))
}

#[test]
fn three_levels_stay_the_same_three_levels() {
    for class in ["bitlinear", "autobitlinear", "plain"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        common::write_checkpoint(&path, 2, |name, values| {
            if class == "plain" && name.contains("_proj") {
                let level = |v: &mut f32| *v = f32::from(code(*v)) * 0.0315;
                values.iter_mut().for_each(level);
            }
        });
        if class != "plain" {
            into_bitnet(&path, class);
        }
        let source = Checkpoint::open(&path).unwrap();
        assert_eq!(source.files().rounded().is_some(), class != "plain");
        assert_eq!(
            source.resolved().warnings.len(),
            usize::from(class != "plain")
        );
        for (name, recipe) in [
            ("rtn", common::plain("ternary").unwrap()),
            ("gptq", builtin("ternary").unwrap()),
        ] {
            let artifact = converted(&source, &recipe, &dir.path().join(name));
            assert!(same_matrices(&source, &artifact), "{class}, {name}");
        }
        let text = fs_err::read_to_string(dir.path().join("rtn/config.json")).unwrap();
        assert!(text.contains("\"neuroconv\"") && !text.contains("bitnet"));
    }
}

#[test]
fn rounding_twice_is_refused_unless_allowed() {
    let dir = tempfile::tempdir().unwrap();
    common::write_checkpoint(dir.path(), 1, |_, _| {});
    into_bitnet(dir.path(), "bitlinear");
    let source = Checkpoint::open(dir.path()).unwrap();
    let mut sparse = common::plain("ternary").unwrap();
    sparse
        .set_threshold(neuroconv_recipes::Threshold::Sparsity(0.9))
        .unwrap();
    for recipe in [common::plain("int4").unwrap(), sparse] {
        let plan = plan(&source, &recipe).unwrap();
        assert!(plan.warnings.iter().any(|w| w.contains("in no figure")));
        let error = check_rounded(&source, &plan, false).unwrap_err();
        assert!(matches!(&error, Error::Rounded { found, .. } if found == "bitnet"));
        assert!(error.hint().unwrap().contains("--allow-requantize"));
        check_rounded(&source, &plan, true).unwrap();
    }
}

/// Writes the checkpoint of `dir` as a GGUF file, with a tokenizer of single letters.
fn write_gguf(dir: &Path, kind: GgmlType, path: &Path) {
    let source = Checkpoint::open(dir).unwrap();
    let arch = architecture("llama").unwrap();
    let rules = arch.gguf().unwrap();
    let mut metadata = Metadata::default();
    metadata.push(keys::ARCHITECTURE, Value::Text(rules.arch.clone()));
    for (key, value) in [
        (keys::POSITIONS, 128),
        (keys::HIDDEN, 64),
        (keys::LAYERS, 1),
        (keys::FFN, 96),
        (keys::HEADS, 4),
        (keys::KV_HEADS, 2),
    ] {
        metadata.push(format!("{}{key}", rules.arch), Value::U32(value));
    }
    let eps = format!("{}{}", rules.arch, keys::NORM_EPS);
    metadata.push(eps, Value::F32(1e-5));
    let tokens = (0..48_u8).map(|id| char::from(b'0' + id).to_string());
    metadata.push("tokenizer.ggml.model", Value::Text("gpt2".to_owned()));
    metadata.push(
        "tokenizer.ggml.tokens",
        Value::Array(Array::Text(tokens.collect())),
    );
    metadata.push(
        "tokenizer.ggml.merges",
        Value::Array(Array::Text(Vec::new())),
    );
    metadata.push("tokenizer.ggml.bos_token_id", Value::U32(1));
    metadata.push("tokenizer.ggml.eos_token_id", Value::U32(2));
    let mut planned = Vec::new();
    let mut data = Vec::new();
    for (id, shape) in source.spec().tensors() {
        let mut values = dequantize(&source.tensor(id).unwrap());
        if arch.reorders_in_gguf(id.role) {
            values = gathered(&values, shape[0], |row| rules.row_of_checkpoint(row, 16));
        }
        planned.push(PlannedGguf {
            name: id.gguf_name().unwrap(),
            kind: if shape.len() == 1 {
                GgmlType::F32
            } else {
                kind
            },
            shape: shape.clone(),
        });
        data.push(match (kind, shape.len()) {
            (_, 1) | (GgmlType::F32, _) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            _ => vec![0; values.len() / 32 * 18],
        });
    }
    let layout = GgufLayout::new(&metadata, &planned).unwrap();
    let mut bytes = layout.header_bytes().to_vec();
    bytes.resize(layout.file_size() as usize, 0);
    for (tensor, data) in planned.iter().zip::<Vec<Vec<u8>>>(data) {
        let range = layout.range(&tensor.name).unwrap();
        bytes[range.start as usize..range.end as usize].copy_from_slice(&data);
    }
    fs_err::write(path, bytes).unwrap();
}

#[test]
fn a_gguf_file_becomes_the_artifact_that_its_checkpoint_becomes() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = dir.path().join("m");
    common::write_checkpoint(&checkpoint, 1, |_, _| {});
    let file = dir.path().join("a.model.gguf");
    write_gguf(&checkpoint, GgmlType::F32, &file);
    let recipe = common::plain("int8").unwrap();
    let source = Checkpoint::open(&file).unwrap();
    assert_eq!(source.spec(), Checkpoint::open(&checkpoint).unwrap().spec());
    let ours = converted(&source, &recipe, &dir.path().join("of-gguf"));
    let other = Checkpoint::open(&checkpoint).unwrap();
    let theirs = converted(&other, &recipe, &dir.path().join("of-folder"));
    for (id, _) in source.spec().tensors() {
        let values = |model: &PackedModel| dequantize(&model.tensor(id).unwrap());
        assert_eq!(values(&ours), values(&theirs), "{id}");
    }
    let record = &ours.artifact().manifest().source;
    let files: Vec<&str> = record.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(
        (record.id.as_str(), files),
        ("a.model", vec!["a.model.gguf"])
    );
    let tree = common::tree(&dir.path().join("of-gguf"));
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        assert!(tree.contains_key(Path::new(name)), "{name}");
    }
    neuroconv_runtime::TextTokenizer::open(&dir.path().join("of-gguf")).unwrap();

    write_gguf(&checkpoint, GgmlType::Q4_0, &file);
    let coarse = Checkpoint::open(&file).unwrap();
    let plan = plan(&coarse, &recipe).unwrap();
    let error = check_rounded(&coarse, &plan, false).unwrap_err();
    assert!(error.to_string().contains("Q4_0"), "{error}");
}
