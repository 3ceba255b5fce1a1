//! The parts of a report that are no statistics: what was made, of what, on which texts.

use neuroconv_format::manifest::TensorRecord;
use serde::{Deserialize, Serialize};

use super::finite;
use crate::stats::Interval;

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

/// How a size was spent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AllocationRecord {
    /// Tokens of calibration text on which the loss of each matrix was measured.
    pub tokens: u64,
    /// The best choices that were found, the smallest first.
    pub front: Vec<FrontPoint>,
    /// The choice that was taken.
    pub chosen: FrontPoint,
    /// Every matrix that was chosen for.
    pub matrices: Vec<AllocatedMatrix>,
}

/// One choice of how every matrix is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FrontPoint {
    /// Bytes of the weights file.
    pub bytes: u64,
    /// Stored bits per parameter, everything counted.
    #[serde(serialize_with = "finite")]
    pub bits_per_weight: f64,
    /// The divergence that is expected of it, in nats per token.
    #[serde(serialize_with = "finite")]
    pub expected_kld: f64,
    /// How its matrices are stored: the ways and their shares of the weights, largest first.
    pub packings: Vec<(String, f64)>,
}

/// One matrix that was chosen for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AllocatedMatrix {
    /// Its name.
    pub name: String,
    /// Divergence of the model in which this matrix alone is rounded to four bits, in nats per
    /// token.
    #[serde(serialize_with = "finite")]
    pub kld_alone: f64,
    /// How it is stored.
    pub packing: String,
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
    /// Squared error over squares of the outputs for calibration text; of matrices rounded with
    /// feedback only.
    #[serde(serialize_with = "finite")]
    pub output_error: Option<f64>,
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
            output_error: t.output_error,
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
