//! `report.json`, version 1: what was measured and how it was judged.
//!
//! Owns the types and their JSON. A number that is not finite cannot be written: it is an error,
//! never a `null`. `null` means "does not apply to this one" (a source without a commit, a dense
//! tensor without an error) or, at the ends of an interval, "fewer than two windows". A section
//! that does not apply at all, such as `mla`, is left out. Within a version fields are only
//! added, so unknown ones are ignored when reading. Times are seconds, sizes bytes.

mod finite;
mod records;

use neuroconv_format::manifest::SourceRecord;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::drift::LayerDrift;
use crate::gate::{Check, Verdict};
use crate::metrics::{Metrics, Row};
use crate::parity::Parity;

pub(crate) use finite::finite;
pub use records::{
    AllocatedMatrix, AllocationRecord, ArtifactRecord, CorpusRecord, FrontPoint, MlaRecord,
    SampleRecord, StageRecord, TensorLine, YardstickRecord,
};

/// The version written here and the only one read.
pub const SCHEMA_VERSION: u32 = 1;

/// The JSON Schema of that version.
pub const SCHEMA: &str = include_str!("../../schema/report-1.json");

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
    /// How the size was spent, where one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocation: Option<AllocationRecord>,
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

impl Report {
    /// The JSON text, indented and with a line end. Fails if a number is not finite.
    pub fn to_json(&self) -> Result<String, Error> {
        let mut text = serde_json::to_string_pretty(self).map_err(Error::Report)?;
        text.push('\n');
        Ok(text)
    }

    /// What verification took, over what original and artifact took for the text alone: layers, heads
    /// and the statistics of each token. None where the stages are not told.
    pub fn cost(&self) -> Option<f64> {
        let verification = |s: &&StageRecord| s.name.starts_with("verify: ");
        let passes = |s: &&StageRecord| {
            ["original", "artifact", "scores"].contains(&&s.name["verify: ".len()..])
        };
        let stages = || self.stages.iter().filter(verification);
        let all: f64 = stages().map(|s| s.wall_s).sum();
        let text: f64 = stages().filter(passes).map(|s| s.wall_s).sum();
        (text > 0.0).then(|| all / text)
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

#[cfg(test)]
mod tests;
