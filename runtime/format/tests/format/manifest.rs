//! The manifest as text: round trip, versions, and everything that is no manifest.

use std::path::Path;

use neuroconv_format::manifest::TensorCodec;
use neuroconv_format::{Artifact, Codec, Error, Manifest, Validate, limits};
use serde_json::Value;

use crate::build::{Dir, Random};
use crate::sample::Sample;

fn parse(text: &str) -> Result<Manifest, Error> {
    Manifest::parse(text.as_bytes(), Path::new("m.json"))
}

#[test]
fn a_manifest_survives_its_text() {
    let manifest = Sample::new().manifest;
    let text = manifest.to_json().unwrap();
    assert!(text.starts_with("{\n  \"schema_version\": 1,\n") && text.ends_with("}\n"));
    let again = parse(&text).unwrap();
    assert_eq!(again, manifest);
    assert_eq!(again.to_json().unwrap(), text);
}

#[test]
fn codecs_have_one_name_and_one_element_type() {
    use TensorCodec::{Bf16, F16, F32, Int4, Int8, Ternary};
    for codec in Codec::ALL {
        let stored = TensorCodec::from(codec);
        assert_eq!(
            (stored.packed(), stored.name()),
            (Some(codec), codec.name())
        );
        assert_eq!(stored.dtype().size(), 1);
    }
    for codec in [Ternary, Int4, Int8, F32, F16, Bf16] {
        assert_eq!(serde_json::to_value(codec).unwrap(), codec.name());
        if codec.packed().is_none() {
            assert_eq!(codec.dtype().name().to_lowercase(), codec.name());
        }
    }
}

#[test]
fn only_known_versions_are_read() {
    let manifest = Sample::new().manifest;
    let text = manifest.to_json().unwrap();
    for found in [0, 2, u32::MAX] {
        let other = text.replacen(
            "\"schema_version\": 1",
            &format!("\"schema_version\": {found}"),
            1,
        );
        // A newer version may have fields that this one does not know.
        let other = other.replacen('{', "{\"later\": [],", 1);
        let error = parse(&other).unwrap_err();
        assert!(
            matches!(error, Error::ManifestVersion { found: f, .. } if f == found),
            "{error:?}"
        );
        assert_eq!(
            error.to_string(),
            format!("`m.json` has schema version {found}, read are 1 to 1")
        );
        assert_eq!(
            error.hint().as_deref(),
            Some("use a newer version of the program")
        );
    }
}

#[test]
fn everything_else_is_refused_with_its_place() {
    let text = Sample::new().manifest.to_json().unwrap();
    let change = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        text.replacen(from, to, 1)
    };
    for (text, expected) in [
        (
            change("\"tool\"", "\"tools\""),
            "unknown field `tools`, expected one of",
        ),
        (
            change("\"shift\": false", "\"shift\": 0"),
            "invalid type: integer `0`, expected a boolean",
        ),
        (
            change("\"shift\": false", "\"shift\": false, \"shift\": false"),
            "duplicate field `shift`",
        ),
        (
            change("\"hidden\": 40", "\"hidden\": 40, \"hidden\": 41"),
            "key `hidden` occurs twice",
        ),
        (
            change("\"codec\": \"int8\"", "\"codec\": \"int7\""),
            "unknown variant `int7`",
        ),
        (
            change("\"offset\": ", "\"offset\": -"),
            "invalid value: integer `-",
        ),
        (
            change("\"rel_mse\": 0.25", "\"rel_mse\": 1e999"),
            "number out of range",
        ),
        (
            change("\"status\": \"unverified\"", "\"status\": \"good\""),
            "unknown variant `good`",
        ),
        (text[..text.len() - 10].to_owned(), "EOF while parsing"),
        (format!("{text}x"), "trailing characters"),
    ] {
        let error = parse(&text).unwrap_err();
        let Error::Json { line, reason, .. } = &error else {
            panic!("{expected}: {error:?}")
        };
        assert!(
            *line >= 1 && reason.starts_with(expected),
            "{expected}: {error}"
        );
    }
}

#[test]
fn numbers_that_are_not_finite_are_not_written() {
    let good = Sample::new().manifest;
    let mut size = good.clone();
    size.size.bits_per_weight = f64::INFINITY;
    let mut tensor = good.clone();
    tensor.tensors[2].rel_mse = Some(f64::NAN);
    for (manifest, expected) in [
        (size, "size.bits_per_weight"),
        (tensor, "blk.0.attn_q.rel_mse"),
    ] {
        let error = manifest.to_json().unwrap_err();
        assert!(
            matches!(&error, Error::NotFinite { field, .. } if field == expected),
            "{error:?}"
        );
        assert!(error.hint().is_some());
    }
}

#[test]
fn a_manifest_is_capped() {
    let dir = Dir::new();
    Sample::new().write(&dir);
    let path = dir.path("a/neuroconv/manifest.json");
    let file = fs_err::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(limits::MANIFEST_BYTES + 1).unwrap();
    let error = Artifact::open(dir.path("a"), Validate::Full).unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error:?}");
}

#[test]
fn changed_manifests_are_refused_or_say_the_same_about_the_bytes() {
    let dir = Dir::new();
    let sample = Sample::new();
    sample.write(&dir);
    let good = sample.manifest.to_json().unwrap().into_bytes();
    let mut random = Random(7);
    for _ in 0..4000 {
        let mut text = good.clone();
        let at = random.below(text.len());
        text[at] ^= 1 << random.below(8);
        dir.write("a/neuroconv/manifest.json", &text);
        let Ok(artifact) = Artifact::open(dir.path("a"), Validate::Full) else {
            continue;
        };
        let essence = |manifest: &Manifest| -> Vec<Value> {
            let fields = [
                "name", "codec", "shape", "group", "shift", "file", "offset", "size", "blake3",
            ];
            let value = serde_json::to_value(&manifest.tensors).unwrap();
            let records = value.as_array().unwrap().iter();
            records
                .map(|r| fields.iter().map(|&f| r[f].clone()).collect())
                .collect()
        };
        assert_eq!(
            essence(artifact.manifest()),
            essence(&sample.manifest),
            "{at}"
        );
    }
}
