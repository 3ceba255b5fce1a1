//! Exact changes of the graph, from the command line to the manifest.

use serde_json::Value;

use crate::place::{MEASURE, Place, assert_code, model, stdout};

fn manifest(place: &Place) -> Value {
    let json = fs_err::read(place.path("out/neuroconv/manifest.json")).unwrap();
    serde_json::from_slice(&json).unwrap()
}

fn packed(rest: &[&str]) -> Place {
    let place = Place::new();
    let common = ["-o", "out", "--calib", "none"];
    let output = place.convert("int8", &model(), &[&common[..], rest].concat());
    assert_code(&output, 0);
    place
}

#[test]
fn a_rotated_model_is_emitted_listed_and_judged_again() {
    let place = packed(&["--rotate"]);
    let manifest = manifest(&place);
    assert_eq!(manifest["rewrites"]["rotated"], true);
    let folded = manifest["rewrites"]["folded"].as_array().unwrap();
    let layers = manifest["model"]["layers"].as_array().unwrap().len();
    assert_eq!(folded.len(), 2 * layers + 1, "every norm");
    assert_eq!(manifest["model"]["tied"], false);
    let (model, text) = (model(), neuroconv_fixtures::tiny_text());
    let mut args = vec!["verify", "out", "--against", model.to_str().unwrap()];
    args.extend(["--text", text.to_str().unwrap()]);
    args.extend(MEASURE);
    let output = place.run(&args);
    assert_code(&output, 0);
    assert!(stdout(&output).contains("quality.tensors"));
}

#[test]
fn norms_are_folded_where_codes_gain() {
    let place = packed(&["--fold-norms"]);
    let manifest = manifest(&place);
    let folded = manifest["rewrites"]["folded"].as_array().unwrap();
    assert!(!folded.is_empty());
    assert_eq!(manifest["rewrites"]["rotated"], false);
    for norm in folded {
        let name = norm.as_str().unwrap();
        assert!(
            name.starts_with("blk.") && name.ends_with("_norm"),
            "{name}"
        );
    }
    let recipe = fs_err::read_to_string(place.path("out/neuroconv/recipe.toml")).unwrap();
    assert!(recipe.contains("[rewrite]"), "{recipe}");
}
