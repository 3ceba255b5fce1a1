//! What stands in an artifact beside its weights: copied files, configuration, recipe, manifest.
//!
//! Owns their contents. Nothing here depends on time, machine, user or absolute paths.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use fs_err::os::unix::fs::OpenOptionsExt as _;
use neuroconv_format::ActivationBits;
use neuroconv_format::manifest::{
    self, Manifest, PartRecord, RecipeRecord, RewriteRecord, SizeRecord, SourceRecord,
    TensorRecord, ToolRecord, VerdictRecord, VerdictStatus,
};
use neuroconv_runtime::{ModelFiles, SideContent, SideFile};
use rustix::fs::OFlags;

use crate::Error;
use crate::job::{SourceFiles, sha256};
use crate::journal::{Record, Stats};
use crate::ours;
use crate::plan::Plan;

/// The key that keeps loaders of plain weights from misreading an artifact.
const CONFIG_KEY: &str = "quantization_config";

/// Writes everything but weights and manifest into `artifact`.
pub(crate) fn write_side(
    plan: &Plan,
    source: &ModelFiles,
    hashes: &SourceFiles,
    artifact: &Path,
) -> Result<(), Error> {
    for file in source.side_files()? {
        let copy = artifact.join(&file.name);
        if let Some(folder) = copy.parent() {
            fs_err::create_dir_all(folder)?;
        }
        write(&copy, &unchanged(&file, hashes)?)?;
    }
    let config = unchanged(&source.config_file(), hashes)?;
    let marked = std::str::from_utf8(&config).ok().and_then(mark_config);
    let marked = marked.ok_or_else(|| Error::ConfigNotObject {
        path: source.path().to_owned(),
    })?;
    write(&artifact.join("config.json"), marked.as_bytes())?;
    fs_err::create_dir_all(artifact.join(ours::FOLDER))?;
    write(&artifact.join(ours::RECIPE), plan.recipe_toml.as_bytes())
}

/// The bytes of a file that travels with the model, if it is still what was hashed. What is made from a
/// hashed file needs no hash of its own.
fn unchanged(file: &SideFile, hashes: &SourceFiles) -> Result<Vec<u8>, Error> {
    let bytes = file.read()?;
    match &file.content {
        SideContent::Stored(path) if Some(sha256(&bytes).as_str()) != hashes.sha256_of(path) => {
            Err(Error::SourceChanged { path: path.clone() })
        }
        SideContent::Stored(_) | SideContent::Made(_) => Ok(bytes),
    }
}

/// The text of `config.json` with [`CONFIG_KEY`] as last key and every other byte as it was:
/// reading and writing the numbers could change them.
fn mark_config(text: &str) -> Option<String> {
    let config: serde_json::Value = serde_json::from_str(text).ok()?;
    let keys = config.as_object()?;
    let body = text.trim_end().strip_suffix('}')?.trim_end();
    // Resolving refused everything under this key that says something.
    if keys.contains_key(CONFIG_KEY) {
        let mut config = config;
        config[CONFIG_KEY] = marker();
        return Some(serde_json::to_string_pretty(&config).ok()? + "\n");
    }
    let comma = if keys.is_empty() { "" } else { "," };
    let marker = serde_json::to_string_pretty(&marker())
        .ok()?
        .replace('\n', "\n  ");
    Some(format!("{body}{comma}\n  \"{CONFIG_KEY}\": {marker}\n}}\n"))
}

fn marker() -> serde_json::Value {
    serde_json::json!({
        "quant_method": "neuroconv",
        "format_version": manifest::SCHEMA_VERSION,
    })
}

/// The manifest of a plan whose source files are `hashes`, without tensors and unverified.
pub(crate) fn manifest(plan: &Plan, hashes: &SourceFiles) -> Manifest {
    Manifest {
        schema_version: manifest::SCHEMA_VERSION,
        tool: ToolRecord {
            name: "neuroconv".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        },
        source: SourceRecord {
            id: plan.source.id.clone(),
            commit: plan.source.commit.clone(),
            arch: plan.source.arch.clone(),
            params: plan.source.params,
            dtype: plan.source.dtype.clone(),
            files: hashes.records(),
        },
        recipe: RecipeRecord {
            name: plan.recipe.clone(),
            sha256: sha256(plan.recipe_toml.as_bytes()),
        },
        model: serde_json::to_value(&plan.spec).expect("a spec has string keys and finite numbers"),
        rewrites: RewriteRecord {
            folded: plan.folded().map(|id| id.to_string()).collect(),
            rotated: plan.rewrites.rotate,
        },
        tensors: Vec::new(),
        dropped: plan.dropped.clone(),
        size: SizeRecord {
            weights_bytes: plan.weights_bytes,
            bits_per_weight: plan.bits_per_weight,
        },
        verdict: VerdictRecord {
            status: VerdictStatus::Unverified,
            report_sha256: None,
            waived: Vec::new(),
        },
    }
}

/// The manifest's entries: the plan and what came of it. Every tensor needs its record.
pub(crate) fn tensor_records(plan: &Plan, records: &BTreeMap<String, Record>) -> Vec<TensorRecord> {
    let entry = |t: &crate::plan::PlannedTensor| {
        let record = records.get(&t.id.to_string())?;
        Some(TensorRecord {
            name: record.name.clone(),
            role: t.id.role.name().to_owned(),
            source: t.source.clone(),
            codec: t.codec,
            shape: t.shape.clone(),
            group: t.group,
            shift: t.packed().is_some_and(|packed| packed.spec.shift),
            activation_bits: t
                .packed()
                .map(|packed| packed.activations)
                .filter(|&bits| bits != ActivationBits::default()),
            file: ours::WEIGHTS.to_owned(),
            offset: record.offset,
            size: record.size,
            blake3: record.blake3.clone(),
            bits_per_weight: t.bits_per_weight,
            parts: part_records(t, record),
            rel_mse: record.stats.map(Stats::rel_mse),
            zeros: record.stats.and_then(Stats::zeros),
            entropy_bits: record.stats.and_then(Stats::entropy_bits),
            output_error: record.stats.and_then(Stats::output_error),
            reason: t.reason.clone(),
        })
    };
    plan.tensors.iter().filter_map(entry).collect()
}

/// The entries of the parts of a tensor.
fn part_records(tensor: &crate::plan::PlannedTensor, record: &Record) -> Vec<PartRecord> {
    let layouts = tensor.packed().map_or(&[][..], |packed| &packed.parts);
    let parts = layouts.iter().zip(&record.parts);
    parts
        .map(|(layout, part)| PartRecord::new(layout, part.offset, part.blake3.clone()))
        .collect()
}

/// Writes the manifest into `artifact`.
pub(crate) fn write_manifest(manifest: &Manifest, artifact: &Path) -> Result<(), Error> {
    write(
        &artifact.join(ours::MANIFEST),
        manifest.to_json()?.as_bytes(),
    )
}

/// Writes a whole file, replacing one that stands there, following no link.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    Ok(create(path)?.write_all(bytes)?)
}

fn create(path: &Path) -> Result<fs_err::File, Error> {
    let mut options = fs_err::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
    Ok(options.open(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_marker_is_added_and_every_other_byte_kept() {
        let text = "{\n  \"rms_norm_eps\": 1e-05,\n  \"rope_theta\": 10000.000000000001,\n  \"x\": {}\n}\n";
        let marked = mark_config(text).unwrap();
        assert_eq!(
            marked,
            "{\n  \"rms_norm_eps\": 1e-05,\n  \"rope_theta\": 10000.000000000001,\n  \"x\": {},\n  \
             \"quantization_config\": {\n    \"quant_method\": \"neuroconv\",\n    \
             \"format_version\": 1\n  }\n}\n"
        );
        for text in [
            "{}",
            " { } \n",
            "{\"a\":1}",
            "{\"quantization_config\": null, \"a\": [1]}",
        ] {
            let mut expected: serde_json::Value = serde_json::from_str(text).unwrap();
            expected[CONFIG_KEY] = marker();
            let found: serde_json::Value =
                serde_json::from_str(&mark_config(text).unwrap()).unwrap();
            assert_eq!(found, expected, "{text}");
        }
        for text in ["", "[]", "1", "{\"a\":1", "{} {}"] {
            assert_eq!(mark_config(text), None, "{text}");
        }
    }
}
