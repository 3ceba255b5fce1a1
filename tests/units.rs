//! Conversions in parts, and within a bound of memory, as people run them.

use serde_json::Value;

use crate::place::{MEASURE, Place, assert_code, model, stderr, stdout};

/// A conversion whose parts need nothing of each other.
const TERNARY: [&str; 6] = ["-o", "out", "--calib", "none", "--max-ppl-ratio", "9"];

fn unit(place: &Place, unit: &str) -> std::process::Output {
    let model = model();
    let mut args = vec!["ternary", model.to_str().unwrap()];
    args.extend(TERNARY);
    args.extend(["--unit", unit]);
    place.run(&args)
}

fn merge(place: &Place, more: &[&str]) -> std::process::Output {
    let (model, text) = (model(), neuroconv_fixtures::tiny_text());
    let mut args = vec!["merge", model.to_str().unwrap(), "-o", "out"];
    args.extend(["--text", text.to_str().unwrap(), "--allow-quality-loss"]);
    args.extend(MEASURE);
    args.extend(more);
    place.run(&args)
}

#[test]
fn units_are_planned_made_and_merged() {
    let place = Place::new();
    let model = model();
    let plan = [
        "plan",
        "ternary",
        model.to_str().unwrap(),
        "--units",
        "3",
        "--json",
    ];
    let planned = place.run(&plan);
    assert_code(&planned, 0);
    let units: Value = serde_json::from_str(&stdout(&planned)).unwrap();
    let units = units.as_array().unwrap();
    assert_eq!((units.len(), &units[2]["unit"]), (3, &Value::from("3/3")));
    let learned = [
        "ternary",
        model.to_str().unwrap(),
        "-o",
        "out",
        "--unit",
        "1/3",
    ];
    let refused = place.run(&learned);
    assert_code(&refused, 2);
    assert!(stderr(&refused).contains("feedback from the layers before"));

    let early = merge(&place, &[]);
    assert_code(&early, 5);
    assert!(
        stderr(&early).contains("there are no units"),
        "{}",
        stderr(&early)
    );
    for (index, part) in ["1/3", "2/3", "3/3", "2/3"].into_iter().enumerate() {
        if index == 2 {
            let missing = merge(&place, &[]);
            assert_code(&missing, 5);
            assert!(stderr(&missing).contains("of 3 there are only 1, 2"));
        }
        let output = unit(&place, part);
        assert_code(&output, 0);
        let (i, n) = part.split_once('/').unwrap();
        let folder = format!("out.unit-{i}-of-{n}");
        assert_eq!(stdout(&output).trim(), folder);
        assert!(place.path(&folder).join("neuroconv/unit.json").is_file());
    }
    let merged = merge(&place, &[]);
    assert_code(&merged, 0);
    assert_eq!(stdout(&merged).lines().last(), Some("./out"));
    // The limits of the units are in the recipe; the merge judged by them.
    let recipe = fs_err::read_to_string(place.path("out/neuroconv/recipe.toml")).unwrap();
    assert!(recipe.contains("max_ppl_ratio = 9"), "{recipe}");

    let alone = ["-o", "single", "--calib", "none", "--allow-quality-loss"];
    assert_code(&place.convert("ternary", &model, &alone), 0);
    let weights = |name: &str| fs_err::read(place.path(name).join("model.safetensors")).unwrap();
    assert!(weights("out") == weights("single"));
}

#[test]
fn wrong_units_are_wrong_usage() {
    let place = Place::new();
    for (part, why) in [
        ("4/3", "is no unit"),
        ("three", "is no unit"),
        ("1/999", "999 units, but only"),
    ] {
        let output = unit(&place, part);
        assert_code(&output, 2);
        assert!(stderr(&output).contains(why), "{}", stderr(&output));
    }
    let both = merge(&place, &["--unit", "1/2"]);
    assert_code(&both, 2);
    assert!(!place.path("out").exists());
}

#[test]
fn memory_is_bounded_told_and_measured() {
    let place = Place::new();
    let model = model();
    let little = ["-o", "out", "--calib", "none", "--max-memory", "64MiB"];
    let output = place.convert("int8", &model, &little);
    assert_code(&output, 6);
    assert!(
        stderr(&output).contains("--max-memory allows"),
        "{}",
        stderr(&output)
    );
    assert!(!place.path("out").exists());
    let enough = ["-o", "out", "--calib", "none", "--max-memory", "4GiB"];
    let output = place.convert("int8", &model, &enough);
    assert_code(&output, 0);
    assert!(
        stderr(&output).contains("of memory to convert"),
        "{}",
        stderr(&output)
    );
    let report = fs_err::read(place.path("out/neuroconv/report.json")).unwrap();
    let report: Value = serde_json::from_slice(&report).unwrap();
    let peak = report["peak_rss_bytes"].as_u64().unwrap();
    assert!((1 << 20..4 << 30).contains(&peak), "{peak}");
    assert_code(
        &place.convert("int8", &model, &["-o", "x", "--max-memory", "much"]),
        2,
    );
}
