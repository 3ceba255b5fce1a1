//! `neuroconv mla` as people and scripts meet it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// A folder of its own, where the fixture model is converted on little text.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Place(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_neuroconv"))
            .args(args)
            .current_dir(self.0.path())
            .output()
            .unwrap()
    }

    /// Converts the fixture model, learning from and judged on text of its own language.
    fn convert(&self, command: &[&str], rest: &[&str]) -> Output {
        let model = neuroconv_fixtures::tiny_model();
        let calibration = neuroconv_fixtures::root().join("texts/calib.txt");
        let text = neuroconv_fixtures::tiny_text();
        let word = |path: &Path| path.to_str().unwrap().to_owned();
        let (model, calibration, text) = (word(&model), word(&calibration), word(&text));
        let mut args = command.to_vec();
        args.extend([&*model, "--calib", &calibration, "--text", &text]);
        args.extend(["--ctx", "64", "--calib-tokens", "2048"]);
        args.extend(["--max-eval-tokens", "1280", "-o", "out"]);
        args.extend(rest);
        self.run(&args)
    }

    fn report(&self) -> Value {
        let path = self.path("out/neuroconv/report.json");
        serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap()
    }
}

fn assert_code(output: &Output, expected: i32) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!(
        output.status.code(),
        Some(expected),
        "{}\n{}",
        text(&output.stdout),
        text(&output.stderr)
    );
}

#[test]
fn half_the_cache_passes_and_the_report_says_what_it_cost() {
    let place = Place::new();
    assert_code(&place.convert(&["mla"], &["--kv-budget", "0.5"]), 0);
    let report = place.report();
    let (mla, artifact) = (&report["mla"], &report["artifact"]);
    assert_eq!(artifact["kv_bytes_per_token_source"], 2048);
    assert_eq!(artifact["kv_bytes_per_token"], 1024);
    assert_eq!(
        (&mla["rope_dim"], &mla["calibrated"]),
        (&32.into(), &true.into())
    );
    let list = |key: &str| mla[key].as_array().unwrap().clone();
    assert_eq!(list("rank"), [32, 32, 32, 32]);
    for key in ["energy", "output_error", "kld", "loss_share"] {
        let numbers: Vec<f64> = list(key).iter().map(|v| v.as_f64().unwrap()).collect();
        assert!(
            numbers.len() == 4 && numbers.iter().all(|x| *x > 0.0),
            "{key}"
        );
    }
    let shares: f64 = list("loss_share").iter().map(|v| v.as_f64().unwrap()).sum();
    assert!((shares - 1.0).abs() < 1e-9);
    let base = report["metrics"]["ppl_base"]["value"].as_f64().unwrap();
    let partial = mla["ppl_partial_rope"].as_f64().unwrap();
    assert!(
        (0.9..1.2).contains(&(partial / base)),
        "{partial} of {base}"
    );
    // The artifact runs, and is judged again like any other.
    let said = place.run(&["generate", "out", "-p", "Once", "-n", "8", "-q"]);
    assert_code(&said, 0);
    assert!(!said.stdout.is_empty());
    let inspected = place.run(&["inspect", "out"]);
    let text = String::from_utf8(inspected.stdout).unwrap();
    assert!(text.contains("latent of 32, rotated key of 32"), "{text}");
}

#[test]
fn latents_and_quantization_go_together_in_one_recipe() {
    let place = Place::new();
    let recipe = "name = \"small\"\nextends = \"int4\"\n[mla]\nmode = \"latent\"\nrank = 64\n\
                  [limits]\nmax_ppl_ratio = 1.2\nmax_kld = 0.2\nmin_top1 = 0.7\nmax_p99_kld = 5.0\n";
    fs_err::write(place.path("small.toml"), recipe).unwrap();
    assert_code(&place.convert(&["run", "small.toml"], &[]), 0);
    let report = place.report();
    let codec = |role: &str| {
        let tensors = report["tensors"].as_array().unwrap();
        let found = tensors.iter().find(|t| t["role"] == role).unwrap();
        found["codec"].as_str().unwrap().to_owned()
    };
    assert_eq!(codec("attn_q"), "int4");
    assert_eq!(codec("attn_kv_a"), "int8");
    assert_eq!(codec("attn_v_b"), "int8");
    // Measured on the same windows, so that the steps can be compared.
    let before = report["mla"]["ppl_converted"].as_f64().unwrap();
    let after = report["metrics"]["ppl"]["value"].as_f64().unwrap();
    assert!((after / before - 1.0).abs() < 0.01, "{before} {after}");
    let resolved = fs_err::read_to_string(place.path("out/neuroconv/recipe.toml")).unwrap();
    assert!(resolved.contains("[calibration]") && resolved.contains("calib.txt"));
}

#[test]
fn a_rank_is_found_that_passes_and_costly_layers_are_kept() {
    let place = Place::new();
    let flags = ["--rank", "auto", "--retain-variance", "0.5"];
    let strict = ["--max-ppl-ratio", "1.08"];
    assert_code(&place.convert(&["mla"], &[&flags[..], &strict].concat()), 0);
    let rank = place.report()["mla"]["rank"][0].as_u64().unwrap();
    assert!((16..=32).contains(&rank), "{rank}");
    let flags = ["--rank", "24", "--max-layers-kld", "0.002", "--overwrite"];
    assert_code(&place.convert(&["mla"], &flags), 0);
    let layers = place.report()["mla"]["layers"].as_array().unwrap().len();
    assert!((1..4).contains(&layers), "{layers}");
}

#[test]
fn what_would_harm_is_refused_and_leaves_nothing() {
    let place = Place::new();
    let grown = place.convert(&["mla"], &["--rank", "512"]);
    assert_code(&grown, 2);
    let text = String::from_utf8(grown.stderr).unwrap();
    assert!(
        text.contains("544 numbers per token, the source 128"),
        "{text}"
    );
    // Far too small: the gate says no.
    let flags = ["--rank", "2", "--rope-dim", "2", "--calib-ctx", "32"];
    assert_code(&place.convert(&["mla"], &flags), 3);
    let text = neuroconv_fixtures::tiny_text();
    let text = text.to_str().unwrap();
    let model = neuroconv_fixtures::tiny_model();
    let model = model.to_str().unwrap();
    let leak = ["mla", model, "--calib", text, "--text", text, "-o", "out"];
    assert_code(&place.run(&leak), 2);
    assert_eq!(fs_err::read_dir(place.0.path()).unwrap().count(), 0);
}
