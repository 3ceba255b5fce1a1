//! Conversions as people and scripts meet them: outputs, exit codes, and what is left on disk.

use std::path::Path;

use neuroconv_fixtures::broken::{self, Broken};
use serde_json::Value;

use crate::place::{MEASURE, Place, assert_code, model, stderr, stdout};

#[test]
fn transcripts() {
    trycmd::TestCases::new().case("tests/cmd/*.md");
}

#[test]
fn int8_and_int4_pass_and_their_reports_say_so() {
    for (what, bits) in [("int8", 8.2), ("int4", 4.7)] {
        let place = Place::new();
        let output = place.convert(
            what,
            &model(),
            &["-o", "out", "--report", "json,md,html,junit"],
        );
        assert_code(&output, 0);
        assert!(
            stdout(&output).trim_end().ends_with("out"),
            "the last line is the path"
        );
        for file in [
            "manifest.json",
            "recipe.toml",
            "report.json",
            "report.md",
            "report.html",
            "junit.xml",
            "SHA256SUMS",
        ] {
            assert!(place.path("out/neuroconv").join(file).is_file(), "{file}");
        }
        let report: Value =
            serde_json::from_slice(&fs_err::read(place.path("out/neuroconv/report.json")).unwrap())
                .unwrap();
        assert_eq!(report["verdict"], "pass");
        assert_eq!(report["exit_code"], 0);
        assert!(report["artifact"]["bits_per_weight"].as_f64().unwrap() < bits);
        assert!(report["metrics"]["kld_mean"]["value"].as_f64().unwrap() > 0.0);
        assert_eq!(
            place.names(),
            ["out"],
            "nothing is left beside the artifact"
        );
    }
}

#[test]
fn an_importance_matrix_is_written_and_weighs() {
    let place = Place::new();
    let save = ["-o", "out", "--save-imatrix", "i.gguf"];
    let output = place.convert("int4", &model(), &save);
    assert_code(&output, 0);
    assert_eq!(place.names(), ["i.gguf", "out"]);
    let output = place.convert("int4", &model(), &save[2..]);
    assert_code(&output, 2);
    assert!(stderr(&output).contains("`i.gguf` exists already"));
    let read = ["-o", "rtn", "--imatrix", "i.gguf"];
    let output = place.convert("int4", &model(), &read);
    assert_code(&output, 2);
    assert!(stderr(&output).contains("leaves nothing for an importance matrix to weigh"));
    let output = place.convert(
        "int4",
        &model(),
        &[&read[..], &["--method", "rtn"]].concat(),
    );
    assert_code(&output, 0);
    let recipe = fs_err::read_to_string(place.path("rtn/neuroconv/recipe.toml")).unwrap();
    let sha256 = neuroconv_format::sha256_file(place.path("i.gguf")).unwrap();
    assert!(recipe.contains(&format!(
        "[importance]\nfile = \"i.gguf\"\nsha256 = \"{sha256}\""
    )));
    // The recipe of such an artifact asks for the file.
    let recipe = place.path("rtn/neuroconv/recipe.toml");
    let again = place.convert("run", &recipe, &[model().to_str().unwrap()]);
    assert_code(&again, 2);
    assert!(stderr(&again).contains("--imatrix"), "{}", stderr(&again));
    let output = place.convert("int8", &model(), &["-o", "o", "--save-imatrix", "j.gguf"]);
    assert_code(&output, 2);
    assert!(stderr(&output).contains("nothing is learned"));
}

#[test]
fn outliers_are_kept_apart_and_counted() {
    let place = Place::new();
    let size = |name: &str| {
        let report = fs_err::read(place.path(name).join("neuroconv/report.json")).unwrap();
        let report: Value = serde_json::from_slice(&report).unwrap();
        report["artifact"]["size_bytes"].as_u64().unwrap()
    };
    for (name, flags) in [
        ("plain", &[][..]),
        ("none", &["--outliers", "inf"]),
        ("some", &["--outliers", "4"]),
    ] {
        let output = place.convert("int8", &model(), &[&["-o", name], flags].concat());
        assert_code(&output, 0);
    }
    assert!(size("plain") == size("none") && size("plain") < size("some"));
    for (what, flags, says) in [
        (
            "int8",
            &["--outliers", "4", "--calib", "none"][..],
            "calibration",
        ),
        ("int4", &["--outliers", "4"], "outliers"),
        ("int8", &["--outliers=-1"], "must be 0 or more"),
    ] {
        let output = place.convert(what, &model(), &[&["-o", "x"], flags].concat());
        assert_code(&output, 2);
        assert!(stderr(&output).contains(says), "{}", stderr(&output));
    }
}

#[test]
fn ternary_is_refused_with_a_reason_and_leaves_nothing() {
    let place = Place::new();
    let output = place.convert(
        "ternary",
        &model(),
        &[
            "-o",
            "out",
            "--calib",
            "none",
            "--threshold",
            "sparsity:0.6",
            "--report-dir",
            "reports",
        ],
    );
    assert_code(&output, 3);
    assert!(stderr(&output).contains("ternary tensors have fewer than 40 %"));
    assert!(
        stderr(&output).contains("ternary-mixed"),
        "{}",
        stderr(&output)
    );
    assert!(stderr(&output).contains("--allow-quality-loss"));
    assert_eq!(place.names(), ["reports"]);
    assert!(place.path("reports/report.html").is_file());
}

#[test]
fn a_text_too_short_for_a_verdict_is_refused_before_a_weight_is_read() {
    let place = Place::new();
    fs_err::write(place.path("short.txt"), "Once upon a time.").unwrap();
    let model = model();
    let model = model.to_str().unwrap();
    let args = ["int8", model, "-o", "out", "--text", "short.txt"];
    let output = place.run(&args);
    assert_code(&output, 5);
    let said = stderr(&output);
    assert!(said.contains("at least 512 are needed"), "{said}");
    assert!(!said.contains("hash source"), "{said}");
    assert_eq!(place.names(), ["short.txt"]);
}

#[test]
fn a_waiver_emits_and_is_written_down() {
    let place = Place::new();
    let output = place.convert(
        "ternary",
        &model(),
        &["-o", "out", "--allow-quality-loss", "--json"],
    );
    assert_code(&output, 0);
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(report["verdict"], "waived");
    let manifest: Value =
        serde_json::from_slice(&fs_err::read(place.path("out/neuroconv/manifest.json")).unwrap())
            .unwrap();
    assert_eq!(manifest["verdict"]["status"], "waived");
    assert!(!manifest["verdict"]["waived"].as_array().unwrap().is_empty());
    let card = fs_err::read_to_string(place.path("out/README.md")).unwrap();
    assert!(card.contains("waived"), "{card}");
}

#[test]
fn limits_of_the_user_win() {
    let place = Place::new();
    let output = place.convert("int4", &model(), &["-o", "out", "--max-kld", "0.000001"]);
    assert_code(&output, 3);
    let lenient = [
        "-o",
        "out",
        "--max-kld",
        "5",
        "--max-ppl-ratio",
        "9",
        "--min-top1",
        "0.01",
    ];
    let recipe = place.path("lenient.toml");
    fs_err::write(
        &recipe,
        "name = \"lenient\"\nextends = \"ternary\"\n[limits]\nmax_p99_kld = 50.0\n",
    )
    .unwrap();
    let text = neuroconv_fixtures::tiny_text();
    let mut args = vec!["run", "lenient.toml", "", "--text", text.to_str().unwrap()];
    let model = model();
    args[2] = model.to_str().unwrap();
    args.extend(MEASURE);
    args.extend(lenient);
    assert_code(&place.run(&args), 0);
}

#[test]
fn the_same_command_gives_the_same_weights() {
    let place = Place::new();
    assert_code(
        &place.convert("int4", &model(), &["-o", "a", "--threads", "1"]),
        0,
    );
    assert_code(
        &place.convert("int4", &model(), &["-o", "b", "--threads", "3"]),
        0,
    );
    let read = |name: &str| fs_err::read(place.path(name).join("model.safetensors")).unwrap();
    assert!(read("a") == read("b"));
    let again = place.convert("int4", &model(), &["-o", "a"]);
    assert_code(&again, 6);
    assert!(stderr(&again).contains("--overwrite"));
    assert_code(
        &place.convert("int4", &model(), &["-o", "a", "--overwrite"]),
        0,
    );
    let diff = place.run(&["diff", "a", "b", "--json"]);
    assert_code(&diff, 0);
    let diff: Value = serde_json::from_str(&stdout(&diff)).unwrap();
    assert_eq!(diff["equal"], true);
}

#[test]
fn an_artifact_is_judged_again_and_a_damaged_one_is_refused() {
    let place = Place::new();
    assert_code(&place.convert("int4", &model(), &["-o", "out"]), 0);
    let text = neuroconv_fixtures::tiny_text();
    let model = model();
    let mut args = vec![
        "verify",
        "out",
        "--against",
        model.to_str().unwrap(),
        "--text",
        text.to_str().unwrap(),
    ];
    args.extend(MEASURE);
    assert_code(&place.run(&args), 0);

    let weights = place.path("out/model.safetensors");
    let mut bytes = fs_err::read(&weights).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x11;
    fs_err::write(&weights, &bytes).unwrap();
    let damaged = place.run(&args);
    assert_code(&damaged, 5);
    assert!(
        stderr(&damaged).contains("model.safetensors"),
        "{}",
        stderr(&damaged)
    );
    assert!(
        stderr(&damaged).contains("blk."),
        "the tensor is named: {}",
        stderr(&damaged)
    );
}

#[test]
fn every_broken_checkpoint_is_refused_by_name() {
    let golden = neuroconv_fixtures::root().join("golden");
    for kind in Broken::ALL {
        if kind.only_logits_show_it() {
            // The logits of these differ and nothing else: `runtime` and `verify` catch them.
            continue;
        }
        let place = Place::new();
        let source = if kind == Broken::ShardMissing {
            "llama-sharded"
        } else {
            "llama"
        };
        let dir = place.path("model");
        broken::write(kind, &golden.join(source), &dir).unwrap();
        fs_err::copy(model().join("tokenizer.json"), dir.join("tokenizer.json")).unwrap();
        let output = place.convert("int8", &dir, &["-o", "out"]);
        assert_code(&output, 5);
        let text = stderr(&output);
        assert!(
            text.contains("safetensors") || text.contains("model."),
            "{kind:?}: {text}"
        );
        assert!(!text.contains("panicked"), "{kind:?}: {text}");
        assert!(!place.path("out").exists(), "{kind:?}");
    }
}

#[test]
fn what_cannot_be_meant_is_a_usage_error() {
    let place = Place::new();
    let model = model();
    let model = model.to_str().unwrap();
    for args in [
        vec!["int4", model, "--max-kld", "nan"],
        vec!["int4", model, "--group-size", "48"],
        vec!["int4", model, "--ctx", "100000"],
        vec!["ternary", model, "--threshold", "sparsity:2"],
        vec!["int8", model, "--shift"],
        vec!["int4", model, "--salient", "0"],
        vec!["ternary", model, "--calib", "none", "--correct-rank", "4"],
        vec!["run", "no-such.toml", model],
        vec!["run", "int5", model],
        vec!["plan", "int4"],
        vec!["mla", model, "--rank", "many"],
        vec!["mla", model, "--rank", "32", "--kv-budget", "0.5"],
        vec!["mla", model, "--mode", "latent", "--rope-dim", "16"],
        vec!["mla", model, "--rank", "512"],
        vec!["mla", model, "--rank", "32", "--keep-layers", "9"],
        vec!["bench", model, "--prompt", "200", "--gen", "57"],
        vec!["bench", model, "--threads", "1,0"],
        vec!["eval", model, "--threads", "1,2"],
        vec!["inspect"],
    ] {
        assert_code(&place.run(&args), 2);
    }
    assert!(place.names().is_empty());
}

/// A checkpoint that lies in the hub's cache is named as on the hub, so that the card can point to it.
#[test]
fn the_card_names_the_repository_of_a_snapshot() {
    let place = Place::new();
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let snapshot = place.path("hub/models--org--fable/snapshots").join(commit);
    fs_err::create_dir_all(&snapshot).unwrap();
    for entry in fs_err::read_dir(model()).unwrap() {
        let entry = entry.unwrap();
        fs_err::copy(entry.path(), snapshot.join(entry.file_name())).unwrap();
    }
    let front = |what: &str, source: &Path, rest: &[&str]| {
        let args = ["-o", "out", "--overwrite", "--allow-quality-loss"];
        assert_code(&place.convert(what, source, &[&args, rest].concat()), 0);
        let card = fs_err::read_to_string(place.path("out/README.md")).unwrap();
        card.split("---\n").nth(1).unwrap().to_owned()
    };
    let card = front("int8", &snapshot, &[]);
    let based =
        |relation: &str| format!("base_model: org/fable\nbase_model_relation: {relation}\n");
    assert!(card.contains(&based("quantized")), "{card}");
    let manifest = fs_err::read(place.path("out/neuroconv/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(manifest["source"]["id"], "org/fable");
    assert_eq!(manifest["source"]["commit"], commit);
    let card = front("mla", &snapshot, &["--calib", "none"]);
    assert!(card.contains(&based("finetune")), "{card}");
    // The name of a folder says nothing to anybody else.
    assert!(!front("int8", &model(), &[]).contains("base_model"));
}
