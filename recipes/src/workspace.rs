//! What this crate promises about the whole workspace: no Rust code knows a family by name,
//! and every committed golden checkpoint resolves.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::arch::architectures;
use crate::resolve::{SourceTensor, resolve};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

/// Rust files below `dir` that are neither built nor of test folders nor the fixtures' own.
fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> = dir.read_dir().unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap().to_str().unwrap_or_default();
        if name.starts_with('.') || ["target", "tests", "fixtures", "benches"].contains(&name) {
            continue;
        }
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

/// The files that `file` declares as modules for tests only.
fn test_modules(file: &Path, text: &str) -> Vec<PathBuf> {
    let gated = text
        .split("#[cfg(test)]")
        .skip(1)
        .filter_map(|after| after.trim_start().split_once(';'));
    let names =
        gated.filter_map(|(declaration, _)| declaration.rsplit_once("mod ").map(|(_, name)| name));
    names
        .filter(|name| !name.contains(char::is_whitespace))
        .map(|name| file.with_file_name(format!("{name}.rs")))
        .collect()
}

/// String literals that would be a family's name, in code that is not a test.
fn named(text: &str) -> Option<String> {
    let code = text
        .split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or(text);
    let families = architectures()
        .iter()
        .flat_map(|a| a.classes.iter().chain([&a.name, &a.model_type]));
    families
        .map(|name| format!("\"{name}\""))
        .find(|literal| code.contains(literal.as_str()))
}

#[test]
fn no_code_outside_tests_names_a_family() {
    let mut files = Vec::new();
    sources(&root(), &mut files);
    assert!(files.len() > 20, "only {} files found", files.len());
    let texts: BTreeMap<PathBuf, String> = files
        .into_iter()
        .map(|file| {
            let text = fs_err::read_to_string(&file).unwrap();
            (file, text)
        })
        .collect();
    let tests: BTreeSet<PathBuf> = texts
        .iter()
        .flat_map(|(file, text)| test_modules(file, text))
        .collect();
    assert!(tests.contains(&root().join("recipes/src/samples.rs")));
    for (file, text) in texts.iter().filter(|(file, _)| !tests.contains(*file)) {
        assert_eq!(named(text), None, "{}", file.display());
    }
    assert_eq!(
        named("if arch == \"llama\" {").as_deref(),
        Some("\"llama\"")
    );
    assert_eq!(
        named("\"Qwen3ForCausalLM\"").as_deref(),
        Some("\"Qwen3ForCausalLM\"")
    );
    assert_eq!(named("#[cfg(test)]\nmod tests {\n\"llama\""), None);
}

/// Names and shapes from the header of every safetensors file of a folder.
fn headers(dir: &Path) -> Vec<SourceTensor> {
    let mut out = Vec::new();
    for entry in dir.read_dir().unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if !name.starts_with("model") || !name.ends_with(".safetensors") {
            continue;
        }
        let bytes = fs_err::read(&path).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        for (name, info) in header
            .as_object()
            .unwrap()
            .iter()
            .filter(|(name, _)| *name != "__metadata__")
        {
            let shape = serde_json::from_value(info["shape"].clone()).unwrap();
            out.push(SourceTensor {
                name: name.clone(),
                shape,
            });
        }
    }
    out
}

#[test]
fn every_golden_checkpoint_resolves() {
    let mut seen = BTreeSet::new();
    for entry in root().join("fixtures/golden").read_dir().unwrap() {
        let dir = entry.unwrap().path();
        if !dir.is_dir() {
            continue;
        }
        let read = |name: &str| -> Option<serde_json::Value> {
            let text = fs_err::read_to_string(dir.join(name)).ok()?;
            Some(serde_json::from_str(&text).unwrap())
        };
        let (config, generation) = (read("config.json").unwrap(), read("generation_config.json"));
        let resolved = resolve(&config, generation.as_ref(), &headers(&dir))
            .unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        assert_eq!(resolved.slots.len(), resolved.spec.tensors().len());
        seen.insert(resolved.spec.arch);
    }
    let all: Vec<&str> = architectures().iter().map(|a| a.name.as_str()).collect();
    assert_eq!(
        seen.into_iter().collect::<Vec<_>>(),
        all,
        "an architecture has no golden checkpoint"
    );
}
