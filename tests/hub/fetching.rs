//! What is fetched, when, and where it goes.

use std::process::Stdio;
use std::time::Duration;

use neuroconv_fixtures::hub::{Fault, Hub, Repository, Times};
use serde_json::Value;

use super::{NAME, Net, WEIGHTS, json, of_weights, sent_of_weights};
use crate::place::{MEASURE, Place, assert_code, model, stderr, stdout};

#[test]
fn a_conversion_from_a_hub_is_that_of_the_folder() {
    let net = Net::new();
    let text = neuroconv_fixtures::tiny_text();
    let convert = |name: &str, rest: &[&str]| {
        let args = [
            "int4",
            name,
            "--method",
            "rtn",
            "--text",
            text.to_str().unwrap(),
        ];
        let output = net.run(&[&args[..], &MEASURE, rest].concat());
        assert_code(&output, 0);
        output
    };
    let output = convert(NAME, &[]);
    let source = format!("source: hub {NAME}@{}\n", net.commit);
    assert!(stderr(&output).contains(&source), "{}", stderr(&output));
    assert!(
        stdout(&output).ends_with("/fable-int4\n"),
        "named as the repository is"
    );
    convert(model().to_str().unwrap(), &["-o", "local"]);
    let bytes = |folder: &str, file: &str| fs_err::read(net.place.path(folder).join(file)).unwrap();
    for file in ["model.safetensors", "config.json", "tokenizer.json"] {
        assert!(bytes("fable-int4", file) == bytes("local", file), "{file}");
    }
    let manifest: Value =
        serde_json::from_slice(&bytes("fable-int4", "neuroconv/manifest.json")).unwrap();
    assert_eq!(manifest["source"]["id"], NAME);
    assert_eq!(manifest["source"]["commit"], net.commit.as_str());
    let card = String::from_utf8(bytes("fable-int4", "README.md")).unwrap();
    assert!(card.contains(&format!("base_model: {NAME}\n")), "{card}");
    assert!(card.contains(&net.commit));
    net.assert_complete();
    let output = net.run(&[
        "verify",
        "fable-int4",
        "--against",
        NAME,
        "--text",
        text.to_str().unwrap(),
    ]);
    assert_code(&output, 0);
}

#[test]
fn what_is_in_the_cache_is_not_asked_for_again() {
    let net = Net::new();
    assert_code(&net.fetch(NAME, &[]), 0);
    let first = net.hub.requests();
    let files = first
        .iter()
        .filter(|request| request.path.contains("/resolve/"))
        .count();
    assert_eq!(
        first.len(),
        2 + files + 2,
        "a commit, a list, each file, and the weights' header and all of them where they are"
    );
    let at_commit = format!("{NAME}@{}", net.commit);
    for (name, env, requests) in [
        (NAME, &[][..], 1),
        ("org/fable@main", &[], 1),
        ("hf://org/fable", &[], 1),
        (&at_commit, &[], 0),
        (NAME, &[("HF_HUB_OFFLINE", "1")], 0),
        (NAME, &[("TRANSFORMERS_OFFLINE", "yes")], 0),
    ] {
        let output = net.fetch(name, env);
        assert_code(&output, 0);
        assert!(stderr(&output).contains(&net.commit));
        assert_eq!(net.hub.requests().len(), requests, "{name} {env:?}");
    }
    let address = format!("{}/org/fable/tree/main", net.hub.endpoint());
    assert_code(&net.fetch(&address, &[]), 0);
    let output = net.run(&["inspect", NAME, "--revision", &net.commit, "--offline"]);
    assert_code(&output, 0);
    assert!(stdout(&output).starts_with(&format!("{at_commit}: checkpoint")));
    // The cache of another program may keep no lists.
    fs_err::remove_dir_all(net.cache().join("trees")).unwrap();
    net.hub.requests();
    assert_code(&net.fetch(NAME, &[("HF_HUB_OFFLINE", "1")]), 0);
    assert_code(&net.fetch(&at_commit, &[]), 0);
    assert_eq!(net.hub.requests().len(), 1, "the list alone");
}

#[test]
fn without_links_the_files_are_there_themselves() {
    let net = Net::new();
    assert_code(&net.fetch(NAME, &[("HF_HUB_DISABLE_SYMLINKS", "1")]), 0);
    assert!(!net.snapshot().join("model.safetensors").is_symlink());
    net.assert_complete();
    net.hub.requests();
    assert_code(&net.fetch(NAME, &[]), 0);
    assert_eq!(net.hub.requests().len(), 1);
}

#[test]
fn a_plan_of_a_hub_reads_headers_alone() {
    let golden = neuroconv_fixtures::golden_dirs();
    let golden = |name: &str| {
        golden
            .iter()
            .find(|dir| dir.ends_with(name))
            .unwrap()
            .clone()
    };
    for folder in [
        model(),
        golden("llama"),
        golden("llama-tied-stored"),
        golden("llama-sharded"),
    ] {
        let net = Net::of(&folder);
        let hub = net.run(&["plan", "int8", NAME, "--json"]);
        let local = net.run(&["plan", "int8", folder.to_str().unwrap(), "--json"]);
        assert_code(&hub, 0);
        let sent: u64 = net.hub.requests().iter().map(|request| request.sent).sum();
        assert!(sent < 128 << 10, "{sent} bytes for {}", folder.display());
        let (mut hub, mut local) = (json(&hub), json(&local));
        assert_eq!(hub["source"]["id"], NAME);
        assert_eq!(hub["source"]["commit"], net.commit.as_str());
        hub["source"]["id"].take();
        hub["source"]["commit"].take();
        local["source"]["id"].take();
        local["source"]["commit"].take();
        assert_eq!(hub, local, "{}", folder.display());
    }
    let net = Net::new();
    assert_code(&net.run(&["int4", NAME, "--dry-run"]), 0);
    let output = net.run(&["inspect", NAME]);
    assert_code(&output, 0);
    assert!(stdout(&output).starts_with(&format!("{NAME}@{}: checkpoint", net.commit)));
    let requests = net.hub.requests();
    assert!(of_weights(&requests).is_empty());
    let sent = sent_of_weights(&requests);
    assert!(sent <= 2 * (16 << 10), "{sent} bytes of the weights");
    assert!(net.incomplete().is_none() && !net.snapshot().join("model.safetensors").exists());
    // What is known already is not asked for twice.
    assert_code(&net.fetch(NAME, &[]), 0);
    net.assert_complete();
}

#[test]
fn what_is_refused_is_refused_before_its_weights_are_fetched() {
    let place = Place::new();
    for entry in fs_err::read_dir(model()).unwrap() {
        let path = entry.unwrap().path();
        fs_err::copy(
            &path,
            place.path(path.file_name().unwrap().to_str().unwrap()),
        )
        .unwrap();
    }
    let config = fs_err::read_to_string(place.path("config.json")).unwrap();
    let config = config.replace("LlamaForCausalLM", "NobodyForCausalLM");
    fs_err::write(place.path("config.json"), config).unwrap();
    let net = Net::of(&place.path(""));
    let output = net.fetch(NAME, &[]);
    assert_code(&output, 5);
    let said = stderr(&output);
    assert!(
        said.contains(&format!("{NAME}@")) && said.contains("NobodyForCausalLM"),
        "{said}"
    );
    assert!(of_weights(&net.hub.requests()).is_empty());
}

#[test]
fn a_server_without_ranges_is_enough_for_a_download() {
    let golden = neuroconv_fixtures::golden_dirs();
    let net = Net::of(golden.iter().find(|dir| dir.ends_with("llama")).unwrap());
    net.hub.fail("", Fault::NoRanges, Times::Always);
    let output = net.run(&["plan", "int8", NAME]);
    assert_code(&output, 7);
    assert!(stderr(&output).contains("another range of bytes"));
    // Which norms to fold is measured, so all weights are needed.
    assert_code(&net.run(&["int8", NAME, "--dry-run", "--fold-norms"]), 0);
    assert!(net.snapshot().join("model.safetensors").exists());
}

#[test]
fn packed_shapes_are_fetched_with_the_headers() {
    let place = Place::new();
    let args = ["-o", "out", "--method", "rtn"];
    assert_code(&place.convert("int4", &model(), &args), 0);
    let export = [
        "export",
        "out",
        "--to",
        "hf",
        "-o",
        "packed",
        "--weights",
        "compressed-tensors",
    ];
    assert_code(&place.run(&export), 0);
    let net = Net::of(&place.path("packed"));
    let output = net.run(&["plan", "int8", NAME]);
    assert_code(&output, 0);
    assert!(of_weights(&net.hub.requests()).is_empty());
    let local = place.run(&["plan", "int8", "packed"]);
    assert_code(&local, 0);
    assert_eq!(stdout(&output).replace(NAME, "packed"), stdout(&local));
}

#[test]
fn shards_and_pages_are_followed() {
    let golden = neuroconv_fixtures::golden_dirs();
    let folder = golden
        .iter()
        .find(|dir| dir.ends_with("llama-sharded"))
        .unwrap();
    let repository = Repository::of(NAME, folder).unwrap();
    let mut net = Net::with(repository.clone());
    net.hub = Hub::start_at(0, 2, vec![repository]).unwrap();
    // Which norms to fold is measured, so all weights are needed.
    assert_code(&net.run(&["int8", NAME, "--dry-run", "--fold-norms"]), 0);
    let requests = net.hub.requests();
    assert!(
        requests
            .iter()
            .any(|request| request.path.contains("cursor=2"))
    );
    for entry in fs_err::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap();
        let wanted = name != "golden.safetensors";
        assert_eq!(
            net.snapshot().join(name).exists(),
            wanted,
            "{}",
            path.display()
        );
    }
}

#[test]
fn an_artifact_of_a_hub_is_run_and_inspected() {
    let place = Place::new();
    let output = place.convert("int8", &model(), &["-o", "out", "--method", "rtn"]);
    assert_code(&output, 0);
    let net = Net::of(&place.path("out"));
    let output = net.run(&["inspect", NAME]);
    assert_code(&output, 0);
    let name = format!("{NAME}@{}: artifact", net.commit);
    assert!(stdout(&output).starts_with(&name), "{}", stdout(&output));
    let hub = net.fetch(NAME, &[]);
    let out = place.path("out");
    let local = net.fetch(out.to_str().unwrap(), &[]);
    assert_code(&hub, 0);
    assert_eq!(stdout(&hub), stdout(&local));
    let output = net.run(&["plan", "int4", NAME]);
    assert_code(&output, 2);
    assert!(stderr(&output).contains("is an artifact already"));
}

#[test]
fn two_programs_do_not_fetch_the_same() {
    let net = Net::new();
    let pause = Duration::from_millis(700);
    net.hub
        .fail(WEIGHTS, Fault::Stall(1 << 20, pause), Times::Always);
    let args = ["generate", NAME, "-p", "the", "-n", "1"];
    let start = || net.command(&args).stdout(Stdio::null()).spawn().unwrap();
    for mut child in [start(), start(), start()] {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(of_weights(&net.hub.requests()).len(), 1);
    net.assert_complete();
}

#[test]
fn every_command_takes_a_name() {
    let net = Net::new();
    assert_code(&net.fetch(NAME, &[]), 0);
    let text = neuroconv_fixtures::tiny_text();
    let text = text.to_str().unwrap();
    for args in [
        &[
            "eval",
            NAME,
            "--text",
            text,
            "--ctx",
            "64",
            "--max-eval-tokens",
            "256",
        ][..],
        &[
            "bench", NAME, "--prompt", "2", "--gen", "1", "--repeat", "1",
        ],
        &["diff", NAME, "hf://org/fable@main"],
        &["export", NAME, "--to", "gguf", "--dry-run", "--text", text],
        &["run", "int8", NAME, "--dry-run"],
        &["mla", NAME, "--dry-run"],
        &["ternary", NAME, "--dry-run"],
    ] {
        let output = net.run(args);
        assert_code(&output, 0);
        let source = format!("source: hub {NAME}@{}", net.commit);
        assert!(stderr(&output).contains(&source), "{args:?}");
    }
}

#[test]
fn nothing_is_fetched_offline() {
    let net = Net::new();
    let offline = [("HF_HUB_OFFLINE", "1")];
    let output = net.fetch(NAME, &offline);
    assert_code(&output, 7);
    assert!(stderr(&output).contains("`org/fable@main` is not in the cache"));
    assert_code(&net.run(&["plan", "int8", NAME]), 0);
    net.hub.requests();
    let output = net.run(&["plan", "int8", NAME, "--offline"]);
    assert_code(&output, 7);
    assert!(stderr(&output).contains("lacks"), "{}", stderr(&output));
    assert!(stderr(&output).contains("--offline"));
    assert_eq!(net.hub.requests(), []);
}
