//! Every reason to refuse something is the outcome of at least one case.

use std::collections::BTreeSet;
use std::fmt::Debug;

use neuroconv_format::{ArtifactError, TensorFault};

use crate::{artifact, checkpoint, hostile};

/// The names of the variants of the enum `name` in a source text.
fn variants(source: &str, name: &str) -> BTreeSet<String> {
    let (_, body) = source.split_once(&format!("pub enum {name} {{")).unwrap();
    let (body, _) = body.split_once("\n}").unwrap();
    body.lines()
        .filter_map(|line| line.strip_prefix("    "))
        .filter(|line| line.starts_with(|first: char| first.is_ascii_uppercase()))
        .map(variant)
        .collect()
}

fn variant(text: impl AsRef<str>) -> String {
    text.as_ref()
        .chars()
        .take_while(char::is_ascii_alphanumeric)
        .collect()
}

fn debug(value: &impl Debug) -> String {
    variant(format!("{value:?}"))
}

#[test]
fn every_reason_has_a_case() {
    let expected = variants(include_str!("../../src/header_error.rs"), "HeaderError");
    let found = hostile::cases()
        .iter()
        .map(|case| debug(&case.expected))
        .collect();
    assert_eq!(expected, found);

    let expected = variants(include_str!("../../src/sniff.rs"), "Disguise");
    let disguise = |text: String| text.strip_prefix("Disguised(").map(variant);
    let found = hostile::cases()
        .into_iter()
        .filter_map(|case| disguise(format!("{:?}", case.expected)));
    assert_eq!(expected, found.collect());

    let expected = variants(
        include_str!("../../src/checkpoint_error.rs"),
        "CheckpointError",
    );
    let found = checkpoint::cases()
        .iter()
        .map(|case| debug(&case.expected))
        .collect();
    assert_eq!(expected, found);

    let source = include_str!("../../src/artifact_error.rs");
    let mut expected = variants(source, "ArtifactError");
    // A folder without manifest is no change of a sample and has a test of its own.
    assert!(expected.remove("NoManifest"));
    let cases = artifact::cases();
    assert_eq!(
        expected,
        cases.iter().map(|case| debug(&case.expected)).collect()
    );

    let faults = cases.iter().flat_map(|case| match &case.expected {
        ArtifactError::Tensor { fault, .. } => match fault {
            TensorFault::Part { fault: inner, .. } => vec![debug(fault), debug(inner)],
            _ => vec![debug(fault)],
        },
        _ => Vec::new(),
    });
    assert_eq!(variants(source, "TensorFault"), faults.collect());
}
