//! `report.json`, version 1: what was measured and how it was judged.
//!
//! Owns the types and their JSON. A number that is not finite cannot be written: it is an error,
//! never a `null`. `null` means "does not apply to this one" (a source without a commit, a dense
//! tensor without an error) or, at the ends of an interval, "fewer than two windows". A section
//! that does not apply at all, such as `mla`, is left out. Within a version fields are only
//! added, so unknown ones are ignored when reading. Times are seconds, sizes bytes.

use neuroconv_format::manifest::{SourceRecord, TensorRecord};
use serde::{Deserialize, Serialize, Serializer};

use crate::Error;
use crate::drift::LayerDrift;
use crate::gate::{Check, Verdict};
use crate::metrics::{Metrics, Row};
use crate::parity::Parity;
use crate::stats::Interval;

/// The version written here and the only one read.
pub const SCHEMA_VERSION: u32 = 1;

/// The JSON Schema of that version.
pub const SCHEMA: &str = include_str!("../schema/report-1.json");

/// Everything about one conversion and its verification.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The verdict.
    pub verdict: Verdict,
    /// What the command ends with.
    pub exit_code: u8,
    /// The original.
    pub source: SourceRecord,
    /// The artifact.
    pub artifact: ArtifactRecord,
    /// The texts that were measured on.
    pub corpora: Vec<CorpusRecord>,
    /// Quality.
    pub metrics: Metrics,
    /// Implementation.
    pub parity: Parity,
    /// The change of attention, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mla: Option<MlaRecord>,
    /// Quality, text by text.
    #[serde(default)]
    pub texts: Vec<Row>,
    /// Quality in longer windows, where model and texts allow.
    #[serde(default)]
    pub long: Vec<Row>,
    /// Hidden states of original and artifact, layer by layer.
    #[serde(default)]
    pub layers: Vec<LayerDrift>,
    /// The layer whose own error is the largest.
    #[serde(default)]
    pub worst_layer: Option<usize>,
    /// What both models write after the same prompts, likeliest token first.
    #[serde(default)]
    pub samples: Vec<SampleRecord>,
    /// What computed the original: `runtime` where parity with the independent forward held for
    /// it, else `reference`.
    #[serde(default)]
    pub engine: String,
    /// Scored tokens that the verdict did not need.
    #[serde(default)]
    pub tokens_saved: u64,
    /// The model that the artifact was judged against beside its original.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub yardstick: Option<YardstickRecord>,
    /// Every stored tensor.
    pub tensors: Vec<TensorLine>,
    /// How the artifact was judged.
    pub checks: Vec<Check>,
    /// Where the time went.
    pub stages: Vec<StageRecord>,
    /// Largest resident memory of the process.
    pub peak_rss_bytes: u64,
    /// Threads that were used.
    pub threads: usize,
    /// The processor and the instruction set in use.
    pub cpu: String,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ArtifactRecord {
    /// Where it lies or would lie.
    pub path: String,
    /// Bytes of its weight files.
    pub size_bytes: u64,
    /// Stored bits per parameter, everything counted.
    #[serde(serialize_with = "finite")]
    pub bits_per_weight: f64,
    /// Bytes that one token adds to the cache.
    pub kv_bytes_per_token: u64,
    /// The same for the original, at the element type of the runtime's cache.
    pub kv_bytes_per_token_source: u64,
}

/// A text and how it was cut.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CorpusRecord {
    /// Its name.
    pub name: String,
    /// SHA-256 of its bytes.
    pub sha256: String,
    /// The protocol's name.
    pub protocol: String,
    /// Tokens per window.
    pub ctx: usize,
    /// Scored tokens.
    pub tokens: u64,
    /// Windows.
    pub windows: u64,
}

/// Both models after one prompt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleRecord {
    /// The prompt.
    pub prompt: String,
    /// What the original writes.
    pub original: String,
    /// What the artifact writes.
    pub artifact: String,
    /// The first token that differs, counted from 0; `null` where none does.
    pub divergence: Option<usize>,
    /// Tokens that the original wrote.
    pub tokens: usize,
}

/// The original rounded as a common format rounds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct YardstickRecord {
    /// Its name.
    pub name: String,
    /// Bits per weight of the format.
    #[serde(serialize_with = "finite")]
    pub bits_per_weight: f64,
    /// Its perplexity.
    pub ppl: Interval,
    /// Its mean divergence from the original.
    pub kld_mean: Interval,
    /// The artifact's mean divergence over that.
    pub kld_ratio: Option<Interval>,
}

/// How attention was changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MlaRecord {
    /// What the latent stands for: `mla` or `latent`.
    pub mode: String,
    /// Whether text was learned from, or the weights alone were looked at.
    pub calibrated: bool,
    /// The converted layers; the lists below have one entry for each.
    pub layers: Vec<usize>,
    /// Width of the latent.
    pub rank: Vec<usize>,
    /// Width of the rotated key.
    pub rope_dim: usize,
    /// Share of the weighted variance of keys and values that the rank keeps.
    #[serde(serialize_with = "finite")]
    pub energy: Vec<f64>,
    /// That share for growing ranks, evenly spread up to the full rank.
    #[serde(serialize_with = "finite")]
    pub spectrum: Vec<Vec<f64>>,
    /// Error of the layer's output on held-out calibration text, relative to its energy.
    #[serde(serialize_with = "finite")]
    pub output_error: Vec<Option<f64>>,
    /// Divergence from the source when this layer alone is converted, in nats per token.
    #[serde(serialize_with = "finite")]
    pub kld: Vec<f64>,
    /// The layer's share of the sum of these divergences.
    #[serde(serialize_with = "finite")]
    pub loss_share: Vec<f64>,
    /// Perplexity with the same rotated key and a latent of full rank.
    #[serde(serialize_with = "finite")]
    pub ppl_partial_rope: Option<f64>,
    /// Perplexity of the converted model before its weights were quantized, if they were.
    #[serde(serialize_with = "finite")]
    pub ppl_converted: Option<f64>,
}

/// One stored tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorLine {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub role: String,
    /// How it is stored.
    pub codec: String,
    /// Stored bits per element.
    #[serde(serialize_with = "finite")]
    pub bits_per_weight: f64,
    /// Squared error over squared norm of the source; packed tensors only.
    #[serde(serialize_with = "finite")]
    pub rel_mse: Option<f64>,
    /// Share of codes that mean zero; packed tensors only.
    #[serde(serialize_with = "finite")]
    pub zeros: Option<f64>,
    /// Entropy of the codes; packed tensors only.
    #[serde(serialize_with = "finite")]
    pub entropy_bits: Option<f64>,
}

impl From<&TensorRecord> for TensorLine {
    fn from(t: &TensorRecord) -> Self {
        TensorLine {
            name: t.name.clone(),
            role: t.role.clone(),
            codec: t.codec.name().to_owned(),
            bits_per_weight: t.bits_per_weight,
            rel_mse: t.rel_mse,
            zeros: t.zeros,
            entropy_bits: t.entropy_bits,
        }
    }
}

/// A stretch of work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageRecord {
    /// What was done.
    pub name: String,
    /// Seconds it took.
    #[serde(serialize_with = "finite")]
    pub wall_s: f64,
}

impl Report {
    /// The JSON text, indented and with a line end. Fails if a number is not finite.
    pub fn to_json(&self) -> Result<String, Error> {
        let mut text = serde_json::to_string_pretty(self).map_err(Error::Report)?;
        text.push('\n');
        Ok(text)
    }

    /// Reads a report of version 1.
    pub fn parse(json: &[u8]) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Version {
            schema_version: u32,
        }
        let not_a_report = |source| Error::NotAReport {
            expected: SCHEMA_VERSION,
            source,
        };
        let version: Version = serde_json::from_slice(json).map_err(not_a_report)?;
        if version.schema_version != SCHEMA_VERSION {
            let found = format!("found version {}", version.schema_version);
            return Err(not_a_report(serde::de::Error::custom(found)));
        }
        serde_json::from_slice(json).map_err(not_a_report)
    }
}

/// Serializes numbers, refusing those that JSON has no word for.
pub(crate) fn finite<T: Finite, S: Serializer>(value: &T, out: S) -> Result<S::Ok, S::Error> {
    if value.all_finite() {
        value.serialize(out)
    } else {
        Err(serde::ser::Error::custom("a number is not finite"))
    }
}

/// Numbers that may or may not be finite.
pub(crate) trait Finite: Serialize {
    /// Whether each of them is.
    fn all_finite(&self) -> bool;
}

impl Finite for f64 {
    fn all_finite(&self) -> bool {
        self.is_finite()
    }
}

impl Finite for Option<f64> {
    fn all_finite(&self) -> bool {
        self.is_none_or(f64::is_finite)
    }
}

impl<T: Finite> Finite for Vec<T> {
    fn all_finite(&self) -> bool {
        self.iter().all(Finite::all_finite)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::testing;

    #[test]
    fn reports_round_trip() {
        let report = testing::report();
        let text = report.to_json().unwrap();
        assert!(text.ends_with("}\n"));
        assert_eq!(Report::parse(text.as_bytes()).unwrap(), report);
    }

    /// What in `value` breaks `schema`, as far as the schema's own words go.
    fn breaches(schema: &Value, value: &Value, root: &Value, at: &str) -> Vec<String> {
        let mut out = Vec::new();
        let mut refuse = |why: String| out.push(format!("{at}: {why}"));
        if let Some(name) = schema["$ref"].as_str() {
            let target = &root["$defs"][name.trim_start_matches("#/$defs/")];
            assert!(target.is_object(), "{name} is defined");
            return breaches(target, value, root, at);
        }
        if let Some(any) = schema["anyOf"].as_array() {
            let fits = |s: &Value| breaches(s, value, root, at).is_empty();
            return if any.iter().any(fits) {
                out
            } else {
                vec![format!("{at}: none fits")]
            };
        }
        if schema["const"] != Value::Null && schema["const"] != *value {
            refuse(format!("not {}", schema["const"]));
        }
        if schema["enum"]
            .as_array()
            .is_some_and(|e| !e.contains(value))
        {
            refuse(format!("{value} is none of {}", schema["enum"]));
        }
        let kind = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(n) if n.is_u64() => "integer",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        let is = |t: &Value| *t == kind || (*t == "number" && kind == "integer");
        match &schema["type"] {
            Value::Null => {}
            Value::Array(types) if types.iter().any(is) => {}
            one if is(one) => {}
            other => refuse(format!("{kind} instead of {other}")),
        }
        for name in schema["required"].as_array().into_iter().flatten() {
            if value.get(name.as_str().unwrap()).is_none() {
                refuse(format!("no {name}"));
            }
        }
        for (key, inner) in value.as_object().into_iter().flatten() {
            match schema["properties"].get(key) {
                Some(schema) => out.extend(breaches(schema, inner, root, &format!("{at}.{key}"))),
                None => out.push(format!("{at}: {key} is not described")),
            }
        }
        for (i, inner) in value.as_array().into_iter().flatten().enumerate() {
            out.extend(breaches(
                &schema["items"],
                inner,
                root,
                &format!("{at}[{i}]"),
            ));
        }
        out
    }

    /// Everything that is written is described, and a wrong report breaks the schema.
    #[test]
    fn reports_fit_the_schema_and_no_field_is_missing_in_it() {
        let schema: Value = serde_json::from_str(SCHEMA).unwrap();
        let full = testing::full_report();
        let report: Value = serde_json::from_str(&full.to_json().unwrap()).unwrap();
        assert_eq!(breaches(&schema, &report, &schema, ""), [""; 0]);
        for (pointer, wrong) in [
            ("/verdict", Value::from("good")),
            ("/schema_version", Value::from(2)),
            ("/metrics/kld_p99", Value::Null),
            ("/metrics/detail/kld/p05", Value::from("0.1")),
            ("/checks/0/class", Value::from("taste")),
            ("/texts/0/ppl", Value::from(1.0)),
        ] {
            let mut bad = report.clone();
            *bad.pointer_mut(pointer).unwrap() = wrong;
            assert!(
                !breaches(&schema, &bad, &schema, "").is_empty(),
                "{pointer}"
            );
        }
        let mut short = report.clone();
        short.as_object_mut().unwrap().remove("parity");
        assert_eq!(breaches(&schema, &short, &schema, "").len(), 1);
    }

    #[test]
    fn what_does_not_apply_is_null_or_absent() {
        let value: Value = serde_json::from_str(&testing::report().to_json().unwrap()).unwrap();
        assert_eq!(value.get("mla"), None);
        assert_eq!(value["source"]["commit"], Value::Null);
        assert_eq!(value["tensors"][3]["rel_mse"], Value::Null);
        assert_eq!(value["verdict"], "fail");
    }

    /// Every number of the JSON in turn becomes NaN, and none is written as `null`.
    #[test]
    fn numbers_that_are_not_finite_are_refused() {
        type Set = fn(&mut Report);
        let sets: [Set; 12] = [
            |r| r.metrics.ppl.value = f64::NAN,
            |r| r.metrics.ppl.lo = Some(f64::NEG_INFINITY),
            |r| r.metrics.kld_p99 = f64::INFINITY,
            |r| r.metrics.rms_dp = f64::NAN,
            |r| r.parity.rel_l2 = f64::NAN,
            |r| r.parity.limits.kld_mean = f64::INFINITY,
            |r| r.checks[0].observed = f64::NAN,
            |r| r.checks[0].limit = f64::NAN,
            |r| r.tensors[0].rel_mse = Some(f64::NAN),
            |r| r.artifact.bits_per_weight = f64::NAN,
            |r| r.stages[0].wall_s = f64::NAN,
            |r| {
                let energy = vec![0.5, f64::NAN];
                r.mla = Some(MlaRecord {
                    mode: "mla".to_owned(),
                    calibrated: true,
                    layers: vec![0],
                    rank: vec![8],
                    rope_dim: 4,
                    energy,
                    spectrum: vec![vec![1.0]],
                    output_error: vec![None],
                    kld: vec![0.0],
                    loss_share: vec![1.0],
                    ppl_partial_rope: None,
                    ppl_converted: None,
                });
            },
        ];
        for (i, set) in sets.iter().enumerate() {
            let mut report = testing::report();
            set(&mut report);
            assert!(
                matches!(report.to_json(), Err(Error::Report(_))),
                "case {i}"
            );
        }
    }

    #[test]
    fn other_versions_and_other_files_are_refused() {
        let mut report = testing::report();
        report.schema_version = 2;
        let text = report.to_json().unwrap();
        for bad in [
            text.as_bytes(),
            b"{}",
            b"[]",
            b"",
            b"{\"schema_version\":1}",
        ] {
            assert!(matches!(Report::parse(bad), Err(Error::NotAReport { .. })));
        }
    }

    #[test]
    fn fields_of_later_programs_are_ignored() {
        let text = testing::report()
            .to_json()
            .unwrap()
            .replacen('{', "{\"later\": [1],", 1);
        assert_eq!(Report::parse(text.as_bytes()).unwrap(), testing::report());
    }
}
