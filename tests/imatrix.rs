//! Importance matrices by their own commands: the whole, its parts, and what they are good for.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use neuroconv_format::gguf::Imatrix;
use serde_json::Value;

use crate::place::{Place, assert_code, model, stderr, stdout};

fn calib() -> String {
    let path = neuroconv_fixtures::root().join("texts/calib.txt");
    path.to_str().unwrap().to_owned()
}

/// 31 windows of the fixture model's language.
const WINDOWS: [&str; 4] = ["--calib-tokens", "4000", "--ctx", "128"];

fn imatrix(place: &Place, output: &str, more: &[&str]) -> Output {
    let (model, calib) = (model(), calib());
    let mut args = vec!["imatrix", model.to_str().unwrap(), "-o", output];
    args.extend(["--calib", &calib]);
    args.extend(WINDOWS);
    args.extend(more);
    place.run(&args)
}

fn open(place: &Place, name: &str) -> Imatrix {
    Imatrix::open(place.path(name)).unwrap()
}

/// The same texts, windows, matrices and tokens; the largest relative difference of the sums.
fn off(a: &Imatrix, b: &Imatrix) -> f32 {
    assert_eq!(a.datasets, b.datasets);
    assert_eq!((a.chunks, a.chunk_tokens), (b.chunks, b.chunk_tokens));
    assert!(a.entries.keys().eq(b.entries.keys()));
    let mut largest = 0.0_f32;
    for (name, a) in &a.entries {
        let b = &b.entries[name];
        assert_eq!((a.columns(), &a.counts), (b.columns(), &b.counts), "{name}");
        let pairs = a.sums.iter().zip(&b.sums);
        largest = pairs
            .map(|(a, b)| (a / b - 1.0).abs())
            .fold(largest, f32::max);
    }
    largest
}

#[test]
fn the_whole_is_what_a_conversion_saves() {
    let place = Place::new();
    let output = imatrix(&place, "whole.gguf", &[]);
    assert_code(&output, 0);
    assert_eq!(stdout(&output), "whole.gguf\n");
    let calib = calib();
    let mut save = vec![
        "-o",
        "out",
        "--save-imatrix",
        "saved.gguf",
        "--calib",
        &calib,
    ];
    save.extend(&WINDOWS[..2]);
    assert_code(&place.convert("int4", &model(), &save), 0);
    assert_eq!(place.names(), ["out", "saved.gguf", "whole.gguf"]);
    let (whole, saved) = (open(&place, "whole.gguf"), open(&place, "saved.gguf"));
    assert_eq!(whole.entries.len(), 4 * 7);
    assert_eq!((whole.chunks, whole.chunk_tokens), (31, 128));
    // A conversion keeps the inputs as those of the rounded model and a difference, in single precision.
    let off = off(&whole, &saved);
    assert!(off < 1e-5, "{off}");
}

#[test]
fn parts_are_merged_to_the_whole_and_weigh() {
    let place = Place::new();
    assert_code(&imatrix(&place, "whole.gguf", &[]), 0);
    let whole = open(&place, "whole.gguf");
    for parts in 1..=3 {
        let names: Vec<String> = (1..=parts)
            .map(|i| format!("{i}-of-{parts}.gguf"))
            .collect();
        for (i, name) in (1..).zip(&names) {
            let output = imatrix(&place, name, &["--part", &format!("{i}/{parts}")]);
            assert_code(&output, 0);
        }
        let mut merge = vec!["imatrix-merge"];
        merge.extend(names.iter().map(String::as_str));
        merge.extend(["-o", "sum.gguf", "--overwrite", "--json"]);
        let output = place.run(&merge);
        assert_code(&output, 0);
        let told: Value = serde_json::from_str(&stdout(&output)).unwrap();
        assert_eq!(
            (&told["windows"], &told["matrices"]),
            (&31.into(), &28.into())
        );
        // Each file rounds the sums once, and each addition once.
        let off = off(&whole, &open(&place, "sum.gguf"));
        assert!(off <= (parts + 1) as f32 * f32::EPSILON, "{parts}: {off}");
        let bytes = |name: &str| fs_err::read(place.path(name)).unwrap();
        if parts == 1 {
            assert!(
                bytes("whole.gguf") == bytes(&names[0]) && bytes("sum.gguf") == bytes(&names[0])
            );
        }
    }
    let rtn = [
        "-o",
        "out",
        "--method",
        "rtn",
        "--imatrix",
        "1-of-2.gguf",
        "--imatrix",
        "2-of-2.gguf",
    ];
    assert_code(&place.convert("int4", &model(), &rtn), 0);
    let merged = ["-o", "merged", "--method", "rtn", "--imatrix", "whole.gguf"];
    assert_code(&place.convert("int4", &model(), &merged), 0);
    let weights = |name: &str| fs_err::read(place.path(name).join("model.safetensors")).unwrap();
    assert_eq!(weights("out").len(), weights("merged").len());
}

#[test]
fn results_and_notes_go_where_those_of_other_commands_go() {
    let place = Place::new();
    let output = imatrix(
        &place,
        "a.gguf",
        &["--part", "2/3", "--json", "-q", "--threads", "1"],
    );
    assert_code(&output, 0);
    assert!(stderr(&output).is_empty(), "{}", stderr(&output));
    let told: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let expected = serde_json::json!({
        "path": "a.gguf", "part": "2/3", "texts": ["calib.txt"], "windows": 10, "ctx": 128, "matrices": 28
    });
    assert_eq!(told, expected);
    let again = imatrix(&place, "b.gguf", &["--part", "2/3", "--threads", "3"]);
    assert!(stderr(&again).contains("10 windows of 128 tokens of `calib.txt`, part 2/3"));
    let bytes = |name: &str| fs_err::read(place.path(name)).unwrap();
    assert!(bytes("a.gguf") == bytes("b.gguf"), "threads change nothing");
}

#[test]
fn what_cannot_be_summed_is_refused_before_any_work() {
    let place = Place::new();
    fs_err::write(place.path("old.gguf"), "old").unwrap();
    fs_err::create_dir(place.path("folder")).unwrap();
    for (output, more, code, says) in [
        ("old.gguf", &[][..], 6, "`old.gguf`: exists already"),
        ("folder", &["--overwrite"], 2, "`folder` is a folder"),
        ("none/new.gguf", &[], 2, "there is no such folder"),
        (
            "new.gguf",
            &["--part", "0/2"],
            2,
            "`0/2` is no unit or part",
        ),
        (
            "new.gguf",
            &["--part", "3/2"],
            2,
            "`3/2` is no unit or part",
        ),
        (
            "new.gguf",
            &["--part", "1/32"],
            2,
            "32 parts, but only 31 windows",
        ),
        (
            "new.gguf",
            &["--calib-ctx", "100000"],
            2,
            "longer than the model's 256",
        ),
    ] {
        let refused = imatrix(&place, output, more);
        assert_code(&refused, code);
        assert!(stderr(&refused).contains(says), "{}", stderr(&refused));
    }
    let model = model();
    let model = model.to_str().unwrap();
    fs_err::write(place.path("short.txt"), "short").unwrap();
    for (args, code, says) in [
        (
            ["no-such-model", "--calib", "short.txt"],
            5,
            "does not exist",
        ),
        ([model, "--calib", "no-such.txt"], 5, "no-such.txt"),
        ([model, "--calib", "none"], 2, "is what a text gives"),
        ([model, "--calib", "short.txt"], 2, "no window of 256"),
    ] {
        let args = [&["imatrix", "-o", "new.gguf"], &args[..]].concat();
        let refused = place.run(&args);
        assert_code(&refused, code);
        assert!(stderr(&refused).contains(says), "{}", stderr(&refused));
    }
    assert_eq!(fs_err::read(place.path("old.gguf")).unwrap(), b"old");
    assert_eq!(place.names(), ["folder", "old.gguf", "short.txt"]);
}

#[test]
fn an_artifact_is_not_summed() {
    let place = Place::new();
    assert_code(&place.convert("int8", &model(), &["-o", "out"]), 0);
    let refused = place.run(&["imatrix", "out", "-o", "new.gguf"]);
    assert_code(&refused, 2);
    assert!(stderr(&refused).contains("name the checkpoint"));
    assert_eq!(place.names(), ["out"]);
}

#[test]
fn files_that_are_no_parts_of_one_whole_are_not_merged() {
    let place = Place::new();
    for (name, part) in [("1.gguf", "1/2"), ("2.gguf", "2/2")] {
        assert_code(&imatrix(&place, name, &["--part", part]), 0);
    }
    let change = |name: &str, change: &dyn Fn(&mut Imatrix)| {
        let mut part = open(&place, "2.gguf");
        change(&mut part);
        fs_err::write(place.path(name), part.to_bytes().unwrap()).unwrap();
    };
    let down = "blk.1.ffn_down.weight";
    change("fewer.gguf", &|part| {
        part.entries.remove(down);
    });
    change("others.gguf", &|part| part.chunk_tokens = 64);
    change("narrow.gguf", &|part| {
        part.entries.get_mut(down).unwrap().sums.truncate(383);
    });
    change("large.gguf", &|part| {
        part.entries.get_mut(down).unwrap().sums.fill(3e38);
    });
    change("huge.gguf", &|part| {
        part.entries.get_mut(down).unwrap().sums.fill(3.1e38);
    });
    fs_err::copy(place.path("1.gguf"), place.path("copy.gguf")).unwrap();
    fs_err::write(place.path("text.gguf"), "text").unwrap();
    let before = place.names();
    for (files, code, says) in [
        (
            ["1.gguf", "copy.gguf"],
            2,
            "`copy.gguf` is `1.gguf` once more",
        ),
        (
            ["1.gguf", "fewer.gguf"],
            2,
            "`blk.1.ffn_down.weight` is missing",
        ),
        (
            ["fewer.gguf", "1.gguf"],
            2,
            "is in none of the files before",
        ),
        (
            ["1.gguf", "others.gguf"],
            2,
            "windows of 64 tokens, expected 128",
        ),
        (
            ["1.gguf", "narrow.gguf"],
            2,
            "has another shape than before",
        ),
        (["large.gguf", "huge.gguf"], 2, "too large for a file"),
        (["1.gguf", "text.gguf"], 5, "text.gguf"),
        (["1.gguf", "3.gguf"], 5, "3.gguf"),
    ] {
        let args = [&["imatrix-merge"], &files[..], &["-o", "new.gguf"]].concat();
        let refused = place.run(&args);
        assert_code(&refused, code);
        assert!(stderr(&refused).contains(says), "{}", stderr(&refused));
    }
    let taken = place.run(&["imatrix-merge", "1.gguf", "2.gguf", "-o", "2.gguf"]);
    assert_code(&taken, 6);
    assert_code(&place.run(&["imatrix-merge", "-o", "new.gguf"]), 2);
    assert_eq!(place.names(), before);
}

#[test]
fn an_interruption_ends_at_once_and_leaves_nothing() {
    let place = Place::new();
    let text = fs_err::read_to_string(calib()).unwrap();
    fs_err::write(place.path("long.txt"), text.repeat(3)).unwrap();
    let model = model();
    let args = [
        "imatrix",
        model.to_str().unwrap(),
        "-o",
        "new.gguf",
        "--threads",
        "1",
    ];
    let mut child = Command::new(env!("CARGO_BIN_EXE_neuroconv"))
        .args(args)
        .args(["--calib", "long.txt", "--calib-tokens", "160000"])
        .current_dir(place.path(""))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // What is about to be done is told when interruptions are watched for, with many seconds to go.
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut told = String::new();
    said.read_line(&mut told).unwrap();
    assert!(told.contains("windows of 256 tokens"), "{told}");
    let pid = child.id().to_string();
    let sent = Command::new("kill").args(["-s", "INT", &pid]).status();
    assert!(sent.unwrap().success());
    let start = Instant::now();
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest}");
    assert!(start.elapsed() < Duration::from_secs(20));
    assert!(rest.contains("interrupted"), "{rest}");
    assert!(!rest.contains("takes over"), "{rest}");
    assert_eq!(place.names(), ["long.txt"]);
}
