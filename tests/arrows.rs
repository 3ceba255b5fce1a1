//! Dependencies between the crates go down only, as `ARCHITECTURE.md` draws them.

use std::collections::BTreeMap;
use std::process::Command;

/// Each crate of the workspace and what it may depend on.
const ALLOWED: [(&str, &[&str]); 9] = [
    ("neuroconv-recipes", &[]),
    ("neuroconv-format", &[]),
    ("neuroconv-kernels", &[]),
    (
        "neuroconv-quant",
        &["neuroconv-format", "neuroconv-kernels", "neuroconv-recipes"],
    ),
    (
        "neuroconv-runtime",
        &[
            "neuroconv-format",
            "neuroconv-kernels",
            "neuroconv-quant",
            "neuroconv-recipes",
        ],
    ),
    (
        "neuroconv-convert",
        &[
            "neuroconv-format",
            "neuroconv-quant",
            "neuroconv-recipes",
            "neuroconv-runtime",
        ],
    ),
    (
        "neuroconv-verify",
        &[
            "neuroconv-format",
            "neuroconv-quant",
            "neuroconv-recipes",
            "neuroconv-runtime",
        ],
    ),
    (
        "neuroconv",
        &[
            "neuroconv-convert",
            "neuroconv-format",
            "neuroconv-kernels",
            "neuroconv-quant",
            "neuroconv-recipes",
            "neuroconv-runtime",
            "neuroconv-verify",
        ],
    ),
    ("neuroconv-fixtures", &[]),
];

#[test]
fn arrows_go_down_only() {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--offline",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("valid JSON");
    let allowed = BTreeMap::from(ALLOWED);
    let mut seen = 0;
    for package in metadata["packages"].as_array().expect("packages") {
        let name = package["name"].as_str().expect("a name");
        let may = allowed
            .get(name)
            .unwrap_or_else(|| panic!("`{name}` is not in the picture"));
        seen += 1;
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let target = dependency["name"].as_str().expect("a name");
            let dev = dependency["kind"].as_str() == Some("dev");
            if target.starts_with("neuroconv") && !(dev && target == "neuroconv-fixtures") {
                assert!(
                    may.contains(&target),
                    "`{name}` must not depend on `{target}`"
                );
            }
            if target.starts_with("candle") {
                assert!(
                    ["neuroconv-verify", "neuroconv-fixtures"].contains(&name),
                    "`{name}` must not depend on candle: the runtime and the reference share nothing"
                );
            }
        }
    }
    assert_eq!(seen, ALLOWED.len());
}
