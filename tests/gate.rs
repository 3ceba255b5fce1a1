//! The gate as builds meet it: baseline, damage, annotations, outputs.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

const MEASURE: [&str; 4] = ["--ctx", "128", "--max-eval-tokens", "1280"];

fn run(dir: &Path, args: &[&str], env: &[(&str, &Path)]) -> Output {
    let text = neuroconv_fixtures::tiny_text();
    Command::new(env!("CARGO_BIN_EXE_neuroconv"))
        .args(args)
        .args(["--text", text.to_str().unwrap()])
        .args(MEASURE)
        .env_remove("GITHUB_ACTIONS")
        .envs(env.iter().copied())
        .current_dir(dir)
        .output()
        .unwrap()
}

fn model() -> String {
    neuroconv_fixtures::tiny_model()
        .to_str()
        .unwrap()
        .to_owned()
}

fn assert_code(output: &Output, expected: i32) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(expected), "{stdout}\n{stderr}");
    stdout + &stderr
}

/// An artifact of the fixture model in a folder of its own.
fn exported(what: &[&str]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let model = model();
    let mut args = vec![what[0], &model, "-o", "out"];
    args.extend(&what[1..]);
    assert_code(&run(dir.path(), &args, &[]), 0);
    let out = dir.path().join("out");
    (dir, out)
}

fn gate(dir: &Path, rest: &[&str], env: &[(&str, &Path)]) -> Output {
    let model = model();
    let mut args = vec!["gate", "out", "--against", &model];
    args.extend(rest);
    run(dir, &args, env)
}

/// Changes stored bytes of a tensor and the hash that speaks of them, as a faulty converter would
/// have written both.
fn damage(out: &Path, tensor: &str, change: impl FnOnce(&mut [u8])) {
    let path = out.join("neuroconv/manifest.json");
    let mut manifest: Value = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
    let tensors = manifest["tensors"].as_array_mut().unwrap();
    let record = tensors.iter_mut().find(|t| t["name"] == tensor).unwrap();
    let [offset, size] = ["offset", "size"].map(|key| record[key].as_u64().unwrap() as usize);
    let weights = out.join(record["file"].as_str().unwrap());
    let mut bytes = fs_err::read(&weights).unwrap();
    let stored = &mut bytes[offset..offset + size];
    change(stored);
    record["blake3"] = blake3::hash(stored).to_hex().as_str().into();
    fs_err::write(&weights, &bytes).unwrap();
    fs_err::write(&path, manifest.to_string()).unwrap();
}

#[test]
fn an_export_is_held_to_what_it_reached_before() {
    let baseline = ["--baseline", "baseline.json"];
    let (dir, _) = exported(&["int8"]);
    let text = assert_code(&gate(dir.path(), &baseline, &[]), 5);
    assert!(text.contains("baseline.json"), "{text}");
    let update = [&baseline[..], &["--update-baseline"]].concat();
    assert_code(&gate(dir.path(), &update, &[]), 0);
    let text = assert_code(&gate(dir.path(), &baseline, &[]), 0);
    assert!(text.contains("baseline.kld_mean"), "{text}");

    // The same recipe with coarser activations: within its limits, worse than before.
    let (worse, _) = exported(&["int8", "--activations", "8"]);
    let stored = fs_err::read(dir.path().join("baseline.json")).unwrap();
    fs_err::write(worse.path().join("baseline.json"), &stored).unwrap();
    let text = assert_code(&gate(worse.path(), &baseline, &[]), 3);
    assert!(text.contains("--update-baseline"), "{text}");
    let wide = [&baseline[..], &["--max-drift", "900%"]].concat();
    assert_code(&gate(worse.path(), &wide, &[]), 0);

    // Another amount of text, and an export that the baseline does not know.
    let other = [&baseline[..], &["--protocol", "llamacpp-512"]].concat();
    assert_code(&gate(dir.path(), &other, &[]), 2);
    let (int4, _) = exported(&["int4"]);
    fs_err::write(int4.path().join("baseline.json"), &stored).unwrap();
    assert_code(&gate(int4.path(), &baseline, &[]), 2);
}

#[test]
fn a_deliberately_damaged_artifact_is_refused() {
    let baseline = ["--baseline", "baseline.json"];
    let update = [&baseline[..], &["--update-baseline"]].concat();
    let (dir, out) = exported(&["int8"]);
    assert_code(&gate(dir.path(), &update, &[]), 0);
    // The last scales of one matrix of thousands are lost.
    damage(&out, "blk.2.mlp_up", |bytes| {
        let end = bytes.len() - 16;
        bytes[end..].fill(0);
    });
    let text = assert_code(&gate(dir.path(), &baseline, &[]), 3);
    assert!(text.contains("blk.2.mlp_up"), "the tensor is named: {text}");
    let waived = ["--allow-quality-loss"];
    assert_code(&gate(dir.path(), &waived, &[]), 0);

    // A token that moved in the tokenizer cannot be waived.
    let (dir, out) = exported(&["int8"]);
    let path = out.join("tokenizer.json");
    let text = fs_err::read_to_string(&path).unwrap();
    fs_err::write(
        &path,
        text.replacen(": 300", ": 3000", 1)
            .replacen(":300", ":3000", 1),
    )
    .unwrap();
    let text = assert_code(&gate(dir.path(), &waived, &[]), 4);
    assert!(text.contains("tokenizer.json"), "{text}");

    // Nor can another rotation in the description.
    let (dir, out) = exported(&["int8"]);
    let path = out.join("neuroconv/manifest.json");
    let mut manifest: Value = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
    manifest["model"]["rope"]["theta"] = 10_050.0.into();
    fs_err::write(&path, manifest.to_string()).unwrap();
    let text = assert_code(&gate(dir.path(), &waived, &[]), 4);
    assert!(text.contains("rotation"), "{text}");
}

#[test]
fn a_workflow_is_told_everything_and_nothing_breaks_out() {
    let (dir, _) = exported(&["int8"]);
    let [summary, outputs] = ["summary.md", "outputs"].map(|name| dir.path().join(name));
    let github = [
        ("GITHUB_ACTIONS", Path::new("true")),
        ("GITHUB_STEP_SUMMARY", &summary),
        ("GITHUB_OUTPUT", &outputs),
    ];
    let reports = [
        "--report",
        "json,md,html,junit,lm-eval",
        "--report-dir",
        "100%",
    ];
    let refused = [&reports[..], &["--max-kld", "0.0000001"]].concat();
    let text = assert_code(&gate(dir.path(), &refused, &github), 3);
    let line = text.lines().find(|l| l.starts_with("::error ")).unwrap();
    assert!(
        line.starts_with("::error title=neuroconv gate::quality.kld_mean: observed "),
        "{line}"
    );
    let told = fs_err::read_to_string(&summary).unwrap();
    assert!(told.contains("quality.kld_mean"), "{told}");
    let set = fs_err::read_to_string(&outputs).unwrap();
    assert!(set.contains("verdict=fail\nexit-code=3\n"), "{set}");
    assert!(set.contains("report<<END\n100%\nEND\n"), "{set}");
    for file in [
        "report.json",
        "report.md",
        "report.html",
        "junit.xml",
        "results.json",
    ] {
        assert!(dir.path().join("100%").join(file).is_file(), "{file}");
    }
    // Once more, and everything is added, nothing replaced.
    let text = assert_code(&gate(dir.path(), &["--github", "auto"], &github), 0);
    assert!(!text.contains("::error"), "{text}");
    assert!(fs_err::read_to_string(&summary).unwrap().starts_with(&told));
    assert!(
        fs_err::read_to_string(&outputs)
            .unwrap()
            .contains("verdict=pass\n")
    );
    let silent = gate(
        dir.path(),
        &["--max-kld", "0.0000001", "--github", "off"],
        &github,
    );
    assert!(!assert_code(&silent, 3).contains("::error"));
}

#[test]
fn the_yardstick_judges_and_early_looks_save_tokens() {
    let (dir, _) = exported(&["int8", "--smoke", "on"]);
    let yardstick = ["--yardstick", "q4", "--json", "--max-eval-tokens", "20480"];
    let model = model();
    let text = neuroconv_fixtures::tiny_text();
    let mut args = vec!["gate", "out", "--against", &model, "--ctx", "128"];
    args.extend(["--text", text.to_str().unwrap()]);
    args.extend(yardstick);
    let report = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_neuroconv"))
            .args(args)
            .current_dir(dir.path())
            .output()
            .unwrap();
        assert_code(&output, 0);
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let early = report(&args);
    assert!(early["yardstick"]["kld_ratio"]["value"].as_f64().unwrap() < 1.0);
    assert!(
        early["tokens_saved"].as_u64().unwrap() > 10_000,
        "{}",
        early["tokens_saved"]
    );
    assert_eq!(early["engine"], "runtime");
    args.push("--all-tokens");
    let all = report(&args);
    assert_eq!(all["tokens_saved"], 0);
    assert_eq!(all["samples"].as_array().unwrap().len(), 4);
}

#[test]
fn the_schema_is_json_and_names_what_reports_have() {
    let output = Command::new(env!("CARGO_BIN_EXE_neuroconv"))
        .args(["schema", "report"])
        .output()
        .unwrap();
    assert_code(&output, 0);
    let schema: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(schema["properties"]["schema_version"]["const"], 1);
}
