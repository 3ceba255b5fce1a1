//! Models as people run them: generation, perplexity, caches of fewer bits, speed.

use serde_json::Value;

use crate::place::{MEASURE, Place, assert_code, model, stderr, stdout};

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

/// Keys and values in fewer bits are what the three other commands run with, too.
#[test]
fn caches_of_fewer_bits_generate_verify_and_are_timed() {
    let place = Place::new();
    let (source, text) = (model(), neuroconv_fixtures::tiny_text());
    let (source, text) = (source.to_str().unwrap(), text.to_str().unwrap());
    assert_code(&place.convert("int8", &model(), &["-o", "out"]), 0);
    let json = |args: &[&str]| -> Value {
        let output = place.run(&[args, &["--json", "-q"]].concat());
        assert_code(&output, 0);
        serde_json::from_str(&stdout(&output)).unwrap()
    };
    let generate = |kv: &str| {
        let args = [
            "generate",
            "out",
            "-p",
            "Once upon a time",
            "-n",
            "24",
            "--kv",
            kv,
        ];
        json(&args)["text"].as_str().unwrap().to_owned()
    };
    assert_eq!(generate("f32"), generate("f16"));
    assert!(!generate("int8").is_empty());
    let verify = |kv: &str| {
        let mut args = vec![
            "verify",
            "out",
            "--against",
            source,
            "--text",
            text,
            "--kv",
            kv,
        ];
        args.extend(MEASURE);
        json(&args)
    };
    let bench = |kv: &str| {
        let args = "--threads 1 --prompt 64 --gen 4 --repeat 1 --kv".split(' ');
        let mut all = vec!["bench", "out"];
        all.extend(args);
        all.push(kv);
        json(&all)["runs"][0]["bytes_per_token"].as_f64().unwrap()
    };
    let cached = |report: &Value| report["artifact"]["kv_bytes_per_token"].as_u64().unwrap();
    let divergence = |report: &Value| report["metrics"]["kld_mean"]["value"].as_f64().unwrap();
    let exact = verify("f32");
    for (kv, share) in [("f16", 2), ("int8", 3)] {
        let fewer = verify(kv);
        assert!(cached(&fewer) * share <= cached(&exact), "{kv}");
        assert!(
            (divergence(&fewer) - divergence(&exact)).abs() > 0.0,
            "{kv}"
        );
        assert!(bench(kv) < bench("f32"), "{kv}");
    }
    let unknown = ["generate", "out", "-p", "x", "--kv", "int4"];
    assert_code(&place.run(&unknown), 2);
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
