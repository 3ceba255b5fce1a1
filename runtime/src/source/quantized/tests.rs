use std::path::{Path, PathBuf};

use neuroconv_format::SafetensorsFile;

use super::*;

fn folder(name: &str) -> PathBuf {
    neuroconv_fixtures::root().join("quantized").join(name)
}

fn open(dir: &Path) -> Result<QuantizedFolder, Error> {
    QuantizedFolder::open(CheckpointFiles::open(dir)?)
}

#[test]
fn every_form_gives_the_values_that_other_packages_give() {
    for (name, warns) in [
        ("awq", false),
        ("bitnet-divisor", true),
        ("bitnet-multiplier", true),
        ("compressed-4-group", false),
        ("compressed-4-zeros", false),
        ("compressed-8-channel", false),
        ("compressed-8-zeros", false),
        ("fp8", true),
        ("gptq", false),
        ("gptq-8", false),
        ("gptq-ordered", false),
        ("gptq-v2", false),
    ] {
        let model = open(&folder(name)).unwrap();
        let names: Vec<&str> = model.tensors().map(|info| info.name.as_str()).collect();
        assert_eq!(names, ["expected", "x.weight"], "{name}");
        assert_eq!(
            (model.decodes("x.weight"), model.decodes("expected")),
            (true, false)
        );
        assert_eq!(model.warnings().len(), usize::from(warns), "{name}");
        assert_eq!(model.config().get(KEY), None);
        let (found, expected) = (model.read("x.weight"), model.read("expected").unwrap());
        let found = found.unwrap();
        assert_eq!(found.shape, expected.shape, "{name}");
        assert_eq!(found.to_f32(), expected.to_f32(), "{name}");
    }
}

/// A copy of a folder with other settings.
fn with(name: &str, change: impl Fn(&mut Value)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs_err::copy(folder(name).join(file), dir.path().join(file)).unwrap();
    }
    let path = dir.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
    change(&mut config[KEY]);
    fs_err::write(&path, config.to_string()).unwrap();
    dir
}

#[test]
fn other_methods_and_settings_are_refused_by_name() {
    for (name, key, value) in [
        ("gptq", "quant_method", Value::from("quip")),
        ("gptq", "quant_method", Value::Null),
        ("gptq", "bits", Value::from(3)),
        ("gptq", "bits", Value::Null),
        ("gptq", "checkpoint_format", Value::from("marlin")),
        ("gptq", "is_marlin_format", Value::from(true)),
        ("gptq", "format", Value::from("bitblas")),
        ("gptq", "dynamic", serde_json::json!({ "x": { "bits": 8 } })),
        (
            "compressed-4-group",
            "transform_config",
            serde_json::json!({ "a": 1 }),
        ),
        ("awq", "version", Value::from("gemv")),
        ("awq", "bits", Value::from(8)),
        ("fp8", "weight_block_size", Value::from(128)),
        ("fp8", "fmt", Value::from("e5m2")),
        ("bitnet-divisor", "linear_class", Value::from("other")),
        ("bitnet-divisor", "quantization_mode", Value::from("online")),
        ("bitnet-divisor", "use_rms_norm", Value::from(true)),
        ("compressed-4-group", "format", Value::from("marlin-24")),
        ("compressed-4-group", "config_groups", Value::Null),
    ] {
        let dir = with(name, |settings| settings[key] = value.clone());
        let error = open(dir.path()).unwrap_err().to_string();
        assert!(error.contains(key), "{name}: {error}");
    }
    for (key, value) in [
        ("input_activations", serde_json::json!({ "num_bits": 8 })),
        ("format", Value::from("int-quantized")),
        ("weights", serde_json::json!({ "type": "float" })),
    ] {
        let dir = with("compressed-4-group", |settings| {
            settings["config_groups"]["group_0"][key] = value.clone();
        });
        assert!(open(dir.path()).is_err(), "{key}");
    }
}

/// Other bytes in a safetensors file, of the same length.
fn replaced(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    let (from, to) = (from.as_bytes(), to.as_bytes());
    assert_eq!(from.len(), to.len());
    let at = bytes.windows(from.len()).position(|window| window == from);
    let at = at.expect("the header has this text");
    let mut bytes = bytes.to_vec();
    bytes[at..at + to.len()].copy_from_slice(to);
    bytes
}

#[test]
fn parts_that_do_not_fit_are_named() {
    for (name, from, to, word) in [
        ("gptq", "x.scales", "x.scaleS", "x.scales"),
        ("gptq", "x.qzeros", "x.qzeroS", "x.qzeros"),
        ("awq", "x.scales", "x.scaleS", "x.scales"),
        (
            "fp8",
            "x.weight_scale_inv",
            "x.weight_scale_xxx",
            "x.weight_scale_inv",
        ),
        (
            "compressed-4-group",
            "x.weight_shape",
            "x.weight_shapE",
            "x.weight_shape",
        ),
        (
            "compressed-4-group",
            "x.weight_scale",
            "x.weight_scalE",
            "x.weight_scale",
        ),
        (
            "bitnet-divisor",
            "x.weight_scale",
            "x.weight_scalE",
            "x.weight_scale",
        ),
        ("gptq", "\"shape\":[2,32]", "\"shape\":[32,2]", "x.scales"),
        (
            "fp8",
            "\"shape\":[2,3]",
            "\"shape\":[3,2]",
            "x.weight_scale_inv",
        ),
    ] {
        let dir = with(name, |_| {});
        let path = dir.path().join("model.safetensors");
        let bytes = replaced(&fs_err::read(&path).unwrap(), from, to);
        fs_err::write(&path, bytes).unwrap();
        let error = open(dir.path()).unwrap_err().to_string();
        assert!(error.contains(word), "{name}: {error}");
    }
}

#[test]
fn bytes_that_mean_nothing_never_panic() {
    for name in [
        "awq",
        "bitnet-divisor",
        "compressed-4-zeros",
        "fp8",
        "gptq-ordered",
    ] {
        let dir = with(name, |_| {});
        let path = dir.path().join("model.safetensors");
        let good = fs_err::read(&path).unwrap();
        let data = SafetensorsFile::open(&path).unwrap();
        let first = data
            .tensors()
            .iter()
            .map(|info| info.range.start)
            .min()
            .unwrap();
        for at in (8..good.len()).step_by(if name == "fp8" { 3 } else { 7 }) {
            let mut bytes = good.clone();
            bytes[at] ^= 0xff;
            fs_err::write(&path, &bytes).unwrap();
            match open(dir.path()) {
                Ok(model) => {
                    let _ = model.read("x.weight");
                }
                Err(error) => assert!(
                    (at as u64) < first || name.starts_with("compressed"),
                    "{error}"
                ),
            }
        }
    }
}
