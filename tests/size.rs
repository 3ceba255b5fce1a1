//! Sizes that are asked for: reached, told, and refused where they cannot be.

use serde_json::Value;

use crate::place::{Place, assert_code, model, stderr, stdout};

/// Little enough calibration text for a test.
const CALIBRATION: [&str; 2] = ["--calib-tokens", "2048"];

fn report(place: &Place) -> Value {
    let json = fs_err::read(place.path("out/neuroconv/report.json")).unwrap();
    serde_json::from_slice(&json).unwrap()
}

fn bits(report: &Value) -> f64 {
    report["artifact"]["bits_per_weight"].as_f64().unwrap()
}

#[test]
fn a_size_is_kept_and_the_best_at_each_is_told() {
    let place = Place::new();
    let args = ["-o", "out", "--target-bpw", "6", "--allow-quality-loss"];
    let output = place.convert("int4", &model(), &[&args[..], &CALIBRATION].concat());
    assert_code(&output, 0);
    let text = stdout(&output);
    assert!(
        text.contains("expected KL") && text.contains("taken"),
        "{text}"
    );
    let report = report(&place);
    assert!((5.5..=6.0).contains(&bits(&report)), "{}", bits(&report));
    let allocation = &report["allocation"];
    assert_eq!(
        allocation["chosen"]["bytes"],
        report["artifact"]["size_bytes"]
    );
    let front = allocation["front"].as_array().unwrap();
    let klds: Vec<f64> = front
        .iter()
        .map(|point| point["expected_kld"].as_f64().unwrap())
        .collect();
    assert!(
        klds.len() > 4 && klds.is_sorted_by(|a, b| a > b),
        "{klds:?}"
    );
    for form in ["report.md", "report.html"] {
        let text = fs_err::read_to_string(place.path("out/neuroconv").join(form)).unwrap();
        assert!(text.contains("The best at each size"), "{form}");
    }
    let recipe = fs_err::read_to_string(place.path("out/neuroconv/recipe.toml")).unwrap();
    assert!(recipe.contains("loses least for its bytes"), "{recipe}");
}

#[test]
fn the_smallest_that_passes_is_smaller_than_int8_and_passes() {
    let place = Place::new();
    let args = [
        "-o",
        "out",
        "--target-bpw",
        "smallest",
        "--max-ppl-ratio",
        "1.02",
    ];
    let output = place.convert("int8", &model(), &[&args[..], &CALIBRATION].concat());
    assert_code(&output, 0);
    let report = report(&place);
    assert_eq!(report["verdict"], "pass");
    assert!(bits(&report) < 8.0, "{}", bits(&report));
    assert_eq!(place.names(), ["out"], "trials are removed");
}

#[test]
fn sizes_that_cannot_be_are_misuse() {
    let place = Place::new();
    for (args, complaint) in [
        (
            &["--target-bpw", "1.5"][..],
            "no choice comes down to 1.5 bits",
        ),
        (
            &["--target-bpw", "4", "--calib", "none"],
            "calibration text",
        ),
        (&["--target-bpw", "-4"], "neither a number of bits above 0"),
        (
            &["--target-bpw", "small"],
            "neither a number of bits above 0",
        ),
    ] {
        let output = place.convert("int4", &model(), &[args, &CALIBRATION].concat());
        assert_code(&output, 2);
        assert!(stderr(&output).contains(complaint), "{}", stderr(&output));
        assert!(place.names().is_empty(), "{:?}", place.names());
    }
    fs_err::write(
        place.path("both.toml"),
        "name = \"both\"\nextends = \"int4\"\n[mla]\nrank = 32\n",
    )
    .unwrap();
    let model = model();
    let model = model.to_str().unwrap();
    let output = place.run(&["run", "both.toml", model, "--target-bpw", "4"]);
    assert_code(&output, 2);
    assert!(
        stderr(&output).contains("converts attention"),
        "{}",
        stderr(&output)
    );
}
