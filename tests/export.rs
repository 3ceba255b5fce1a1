//! Exports: every family in both forms, read back; what is refused; what is left behind.

use std::path::Path;

use serde_json::Value;

use crate::place::{Place, assert_code, model, stderr, stdout};

/// Little text, for a comparison that has to come out equal anyway.
const TEXT: [&str; 4] = ["--ctx", "64", "--max-eval-tokens", "256"];

fn export(
    place: &Place,
    model: &Path,
    form: &str,
    out: &str,
    rest: &[&str],
) -> std::process::Output {
    let mut args = vec!["export", model.to_str().unwrap(), "--to", form, "-o", out];
    args.extend(TEXT);
    args.extend(rest);
    place.run(&args)
}

fn outcome(output: &std::process::Output) -> Value {
    assert_code(output, 0);
    serde_json::from_str(&stdout(output)).unwrap()
}

fn divergence(outcome: &Value) -> f64 {
    outcome["comparison"]["kld_mean"].as_f64().unwrap()
}

fn quantized(place: &Place, what: &str, rest: &[&str]) {
    let args = ["-o", what, "--allow-quality-loss", "-q"];
    assert_code(&place.convert(what, &model(), &[&args, rest].concat()), 0);
}

#[test]
fn checkpoints_and_gguf_files_are_read_back_as_they_were() {
    let place = Place::new();
    for (form, out) in [("hf", "folder"), ("gguf", "file.gguf")] {
        let found = outcome(&export(&place, &model(), form, out, &["--json"]));
        assert_eq!(found["comparison"]["read_back"], true);
        assert!(divergence(&found) <= 0.0, "bf16 stays bf16 in {form}");
        let diff = place.run(&["diff", model().to_str().unwrap(), out, "--json"]);
        let diff: Value = serde_json::from_str(&stdout(&diff)).unwrap();
        let far = |t: &Value| t["max_abs"].as_f64().unwrap() > 0.0;
        assert!(
            !diff["tensors"].as_array().unwrap().iter().any(far),
            "{form}"
        );
    }
    for file in [
        "config.json",
        "tokenizer.json",
        "README.md",
        "neuroconv/export.json",
        "neuroconv/SHA256SUMS",
    ] {
        assert!(place.path("folder").join(file).is_file(), "{file}");
    }
    let config = fs_err::read(place.path("folder/config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(
        (&config["dtype"], &config["torch_dtype"]),
        (&"bfloat16".into(), &"bfloat16".into())
    );
    assert_eq!(
        config["rope_parameters"]["rope_theta"],
        config["rope_theta"]
    );
    assert!(config.get("quantization_config").is_none());
}

#[test]
fn levels_survive_in_every_form_that_holds_them() {
    let place = Place::new();
    quantized(&place, "int4", &["--method", "rtn"]);
    quantized(&place, "ternary", &["--method", "rtn"]);
    for (source, form, rest) in [
        ("int4", "hf", &["--weights", "compressed-tensors"][..]),
        ("int4", "hf", &["--weights", "gptq"]),
        ("int4", "gguf", &[]),
        ("ternary", "hf", &["--weights", "compressed-tensors"]),
        ("ternary", "hf", &["--weights", "gptq"]),
        ("ternary", "gguf", &[]),
        ("ternary", "gguf", &["--ternary-type", "q2_0"]),
    ] {
        let rest = [&["--dtype", "f32", "--json", "--overwrite"], rest].concat();
        let found = outcome(&export(&place, &place.path(source), form, form, &rest));
        assert!(divergence(&found) < 1e-12, "{source} {rest:?}: {found}");
        assert_eq!(found["comparison"]["read_back"], true);
    }
    let sharded = [
        "--dtype",
        "f32",
        "--weights",
        "dense",
        "--max-shard-size",
        "0.002",
        "--overwrite",
    ];
    assert_code(
        &export(&place, &place.path("int4"), "hf", "hf", &sharded),
        0,
    );
    assert!(place.path("hf/model.safetensors.index.json").is_file());
}

#[test]
fn what_a_form_cannot_hold_is_refused_before_any_work() {
    let place = Place::new();
    quantized(&place, "int4", &["--method", "rtn"]);
    let before = place.names();
    let bitnet = export(
        &place,
        &place.path("int4"),
        "hf",
        "out",
        &["--weights", "bitnet"],
    );
    assert_code(&bitnet, 2);
    assert!(
        stderr(&bitnet).contains("more than three levels"),
        "{}",
        stderr(&bitnet)
    );
    let dense = export(&place, &model(), "hf", "out", &["--weights", "gptq"]);
    assert_code(&dense, 2);
    assert!(
        stderr(&dense).contains("no matrix can be packed"),
        "{}",
        stderr(&dense)
    );
    let wrong = export(&place, &model(), "hf", "out", &["--target", "llamacpp"]);
    assert_code(&wrong, 2);
    let windowed = neuroconv_fixtures::root().join("golden/smollm3");
    let unknown = export(&place, &windowed, "gguf", "out.gguf", &[]);
    assert_code(&unknown, 5);
    assert!(
        stderr(&unknown).contains("llama.cpp cannot run this model"),
        "{}",
        stderr(&unknown)
    );
    assert_eq!(place.names(), before, "nothing is left");
}

#[test]
fn what_stands_there_is_replaced_only_where_it_is_ours_and_asked_for() {
    let place = Place::new();
    for (form, out) in [("hf", "folder"), ("gguf", "file.gguf")] {
        assert_code(&export(&place, &model(), form, out, &[]), 0);
        assert_code(&export(&place, &model(), form, out, &[]), 6);
        assert_code(&export(&place, &model(), form, out, &["--overwrite"]), 0);
    }
    fs_err::write(place.path("folder/mine.txt"), "mine").unwrap();
    fs_err::write(place.path("other.gguf"), "mine").unwrap();
    for (form, out) in [("hf", "folder"), ("gguf", "other.gguf")] {
        let output = export(&place, &model(), form, out, &["--overwrite"]);
        assert_code(&output, 6);
    }
    assert_eq!(
        fs_err::read_to_string(place.path("other.gguf")).unwrap(),
        "mine"
    );
    let hidden = |name: &String| name.starts_with('.');
    assert!(!place.names().iter().any(hidden), "{:?}", place.names());
}

#[test]
fn latent_attention_is_exact_where_the_engine_has_biases_and_fitted_where_not() {
    let place = Place::new();
    let calibration = ["--calib-tokens", "2048", "--calib-ctx", "128"];
    let shape = ["--rank", "64", "--rope-dim", "32"];
    let text = neuroconv_fixtures::tiny_text();
    let common = ["--allow-quality-loss", "-q"];
    let stock = [
        &["-o", "stock", "--stock-rope"],
        &shape[..],
        &calibration,
        &common,
    ]
    .concat();
    assert_code(&place.convert("mla", &model(), &stock), 0);
    let free = [&["-o", "free"], &shape[..], &calibration, &common].concat();
    assert_code(&place.convert("mla", &model(), &free), 0);

    let on_text = ["--text", text.to_str().unwrap(), "--dtype", "f32", "--json"];
    let exact = outcome(&export(&place, &place.path("stock"), "hf", "hf", &on_text));
    assert_eq!(exact["exact"], true);
    assert!(divergence(&exact) < 1e-8, "{exact}");
    let config = fs_err::read(place.path("hf/config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["kv_lora_rank"], 65, "one channel is the constant");
    assert_eq!(config["tie_word_embeddings"], false);

    let calibrated = [&on_text[..], &calibration, &["--max-kld", "0.5"]].concat();
    let fitted = outcome(&export(
        &place,
        &place.path("stock"),
        "gguf",
        "f.gguf",
        &calibrated,
    ));
    assert_eq!(fitted["exact"], false);
    assert!(
        divergence(&fitted) > 1e-6,
        "a norm costs something: {fitted}"
    );
    let strict = [&on_text[..], &calibration, &["--max-kld", "1e-9"]].concat();
    let refused = export(&place, &place.path("stock"), "gguf", "g.gguf", &strict);
    assert_code(&refused, 3);
    assert!(!place.path("g.gguf").exists());

    for engine in ["transformers", "vllm"] {
        let own_table = export(
            &place,
            &place.path("free"),
            "hf",
            "no",
            &["--target", engine],
        );
        assert_code(&own_table, 5);
        assert!(
            stderr(&own_table).contains("--stock-rope"),
            "{}",
            stderr(&own_table)
        );
    }
}
