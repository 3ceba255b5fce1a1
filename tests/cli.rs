//! The program as people and scripts meet it: outputs, exit codes, and what is left on disk.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use neuroconv_fixtures::broken::{self, Broken};
use serde_json::Value;

/// Enough text for a verdict, little enough for a test.
const MEASURE: [&str; 4] = ["--ctx", "128", "--max-eval-tokens", "1280"];

/// A folder of its own for one test, and the fixture model.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Place {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_neuroconv"))
            .args(args)
            .current_dir(self.dir.path())
            .output()
            .unwrap()
    }

    /// Runs a conversion of `model` that is measured on the model's own language.
    fn convert(&self, what: &str, model: &Path, rest: &[&str]) -> Output {
        let text = neuroconv_fixtures::tiny_text();
        let mut args = vec![
            what,
            model.to_str().unwrap(),
            "--text",
            text.to_str().unwrap(),
        ];
        args.extend(MEASURE);
        args.extend(rest);
        self.run(&args)
    }

    /// Names of everything in the folder, hidden ones too.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs_err::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

fn model() -> PathBuf {
    neuroconv_fixtures::tiny_model()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn assert_code(output: &Output, expected: i32) {
    assert_eq!(
        code(output),
        expected,
        "{}\n{}",
        stdout(output),
        stderr(output)
    );
}

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
fn ternary_is_refused_with_a_reason_and_leaves_nothing() {
    let place = Place::new();
    let output = place.convert(
        "ternary",
        &model(),
        &["-o", "out", "--report-dir", "reports"],
    );
    assert_code(&output, 3);
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
fn generation_is_greedy_by_default_and_seeded_otherwise() {
    let place = Place::new();
    let model = model();
    let generate = |rest: &[&str]| {
        let mut args = vec![
            "generate",
            model.to_str().unwrap(),
            "-p",
            "Once",
            "-n",
            "12",
            "--json",
        ];
        args.extend(rest);
        let output = place.run(&args);
        assert_code(&output, 0);
        let json: Value = serde_json::from_str(&stdout(&output)).unwrap();
        json["text"].as_str().unwrap().to_owned()
    };
    assert_eq!(
        generate(&[]),
        generate(&["--seed", "5"]),
        "greedy ignores the seed"
    );
    let warm = |seed| generate(&["--temperature", "1.5", "--seed", seed]);
    assert_eq!(warm("1"), warm("1"));
    let distinct: std::collections::BTreeSet<String> = ["1", "2", "3", "4"].map(warm).into();
    assert!(distinct.len() > 1);
    assert!(!generate(&["--chat"]).is_empty());
}

#[test]
fn eval_follows_its_protocols() {
    let place = Place::new();
    let (model, text) = (model(), neuroconv_fixtures::tiny_text());
    let eval = |rest: &[&str]| {
        let mut args = vec![
            "eval",
            model.to_str().unwrap(),
            "--text",
            text.to_str().unwrap(),
            "--json",
        ];
        args.extend(MEASURE);
        args.extend(rest);
        let output = place.run(&args);
        assert_code(&output, 0);
        serde_json::from_str::<Value>(&stdout(&output)).unwrap()
    };
    let runtime = eval(&[]);
    assert_eq!(runtime["windows"], 10);
    assert_eq!(runtime["tokens"], 10 * 127);
    assert_eq!(runtime["protocol"], "windows");
    let reference = eval(&["--reference"]);
    let ratio = runtime["ppl"].as_f64().unwrap() / reference["ppl"].as_f64().unwrap();
    assert!(
        (ratio - 1.0).abs() < 1e-4,
        "two independent forwards agree: {ratio}"
    );
    let half = eval(&["--protocol", "llamacpp-512"]);
    assert_eq!(half["tokens"], 10 * 63);
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
fn caches_of_fewer_bits_change_perplexity_little() {
    let place = Place::new();
    let (model, text) = (model(), neuroconv_fixtures::tiny_text());
    let ppl = |kv: &str| {
        let mut args = vec!["eval", model.to_str().unwrap(), "--json", "-q", "--kv", kv];
        args.extend(["--text", text.to_str().unwrap()]);
        args.extend(MEASURE);
        let output = place.run(&args);
        assert_code(&output, 0);
        let json: Value = serde_json::from_str(&stdout(&output)).unwrap();
        json["ppl"].as_f64().unwrap()
    };
    let exact = ppl("f32");
    for (kv, bound) in [("f16", 1e-3), ("int8", 1e-2)] {
        let off = (ppl(kv) / exact - 1.0).abs();
        assert!(off > 0.0 && off < bound, "{kv}: {off}");
    }
}

#[test]
fn bench_tells_what_it_measured_in_one_object() {
    let place = Place::new();
    let model = model();
    let args = "--json -q --threads 1,2 --prompt 8 --gen 4 --repeat 3".split(' ');
    let args: Vec<&str> = ["bench", model.to_str().unwrap()]
        .into_iter()
        .chain(args)
        .collect();
    let output = place.run(&args);
    assert_code(&output, 0);
    let json: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let isas = neuroconv_kernels::Isa::available();
    assert!(isas.iter().any(|isa| json["isa"] == isa.name()));
    for (i, threads) in [1, 2].into_iter().enumerate() {
        let run = &json["runs"][i];
        let number = |key: &str| run[key].as_f64().unwrap();
        assert_eq!(run["threads"], threads);
        let stream = json["stream_gb_s"][threads.to_string()].as_f64().unwrap();
        assert!(stream > 0.0 && number("prefill_tok_s") > 0.0);
        let gb_s = number("decode_tok_s") * number("bytes_per_token") / 1e9;
        assert!((number("gb_s") / gb_s - 1.0).abs() < 1e-9);
        let (low, high) = (&run["share_range"][0], &run["share_range"][1]);
        assert!((low.as_f64().unwrap()..=high.as_f64().unwrap()).contains(&number("share")));
    }
    assert!(place.names().is_empty());
}

/// `generate` starts before the weights are checked, and still never succeeds with damaged ones.
#[test]
fn damaged_weights_fail_a_generation_that_has_begun() {
    let place = Place::new();
    assert_code(&place.convert("int8", &model(), &["-o", "out"]), 0);
    let args = ["generate", "out", "-p", "the", "-n", "3"];
    assert_code(&place.run(&args), 0);
    let weights = place.path("out").join("model.safetensors");
    let mut bytes = fs_err::read(&weights).unwrap();
    let last = bytes.len() - 3000;
    bytes[last] ^= 1;
    fs_err::write(&weights, bytes).unwrap();
    let output = place.run(&args);
    assert_code(&output, 5);
    assert!(
        stderr(&output).contains("model.safetensors"),
        "{}",
        stderr(&output)
    );
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
