//! Exact changes of the graph, from the command line to the manifest.

use serde_json::Value;

use crate::place::{MEASURE, Place, assert_code, model, stderr, stdout};

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
fn norms_that_a_recipe_names_are_folded_and_listed() {
    let place = Place::new();
    let recipe = "name = \"folded\"\nextends = \"int8\"\n[rewrite]\n\
                  fold_norms = [\"blk.1.attn_norm\", \"blk.2.mlp_norm\"]\n";
    fs_err::write(place.path("folded.toml"), recipe).unwrap();
    let (model, text) = (model(), neuroconv_fixtures::tiny_text());
    let (model, text) = (model.to_str().unwrap(), text.to_str().unwrap());
    let mut args = vec!["run", "folded.toml", model, "-o", "out", "--text", text];
    args.extend(MEASURE);
    assert_code(&place.run(&args), 0);
    let manifest = manifest(&place);
    let listed = serde_json::json!({
        "folded": ["blk.1.attn_norm", "blk.2.mlp_norm"], "rotated": false
    });
    assert_eq!(manifest["rewrites"], listed);
    let recipe = fs_err::read_to_string(place.path("out/neuroconv/recipe.toml")).unwrap();
    assert!(recipe.contains("[rewrite]"), "{recipe}");
}

#[test]
fn norms_stay_where_codes_do_not_gain() {
    let place = packed(&["--fold-norms"]);
    assert_eq!(manifest(&place)["rewrites"], Value::Null);
}

#[test]
fn attention_is_not_converted_and_rewritten_at_once() {
    let place = Place::new();
    let recipe =
        "name = \"both\"\nextends = \"int8\"\n[mla]\nrank = 32\n[rewrite]\nrotate = true\n";
    fs_err::write(place.path("both.toml"), recipe).unwrap();
    let output = place.run(&["run", "both.toml", model().to_str().unwrap(), "-o", "out"]);
    assert_code(&output, 2);
    assert!(stderr(&output).contains("both converts attention and rewrites"));
    assert_eq!(place.names(), ["both.toml"]);
}
