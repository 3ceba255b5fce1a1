//! `neuroconv/manifest.json`: what an artifact consists of and where it comes from.
//!
//! Owns the record types and their JSON. Whether the records fit the weights is checked where an
//! artifact is opened.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::codec::{ActivationBits, Codec};
use crate::corrections::{PartCodec, PartKind, PartLayout};
use crate::dtype::DType;
use crate::error::{Error, json_reason};
use crate::strict_json;

/// The version of the manifest that this program writes, and the newest that it reads.
pub const SCHEMA_VERSION: u32 = 1;

/// Everything that is known about an artifact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`SCHEMA_VERSION`] of the program that wrote it.
    pub schema_version: u32,
    /// The program that wrote it.
    pub tool: ToolRecord,
    /// The model that was converted.
    pub source: SourceRecord,
    /// The recipe it was converted by.
    pub recipe: RecipeRecord,
    /// The resolved description of the model, which the runtime reads.
    #[serde(deserialize_with = "strict_json::deserialize")]
    pub model: Value,
    /// Exact changes of the graph, other weights with the same function.
    #[serde(default, skip_serializing_if = "RewriteRecord::is_empty")]
    pub rewrites: RewriteRecord,
    /// Every stored tensor, in order of storage.
    pub tensors: Vec<TensorRecord>,
    /// Every tensor of the source that is not stored.
    pub dropped: Vec<DroppedRecord>,
    /// What the weights cost.
    pub size: SizeRecord,
    /// What verification found.
    pub verdict: VerdictRecord,
}

/// A program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolRecord {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// The model that was converted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceRecord {
    /// Its name: that of a folder, or `org/name` on a hub.
    pub id: String,
    /// Its revision on a hub.
    pub commit: Option<String>,
    /// Its architecture.
    pub arch: String,
    /// Its number of parameters.
    pub params: u64,
    /// The element type that most of its parameters have.
    pub dtype: String,
    /// Its files that were read.
    pub files: Vec<FileRecord>,
}

/// A file and its contents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRecord {
    /// Its path, relative to the model.
    pub path: String,
    /// Its bytes.
    pub size: u64,
    /// Their SHA-256, in lower-case hexadecimal.
    pub sha256: String,
}

/// A recipe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecipeRecord {
    /// Its name.
    pub name: String,
    /// SHA-256 of `neuroconv/recipe.toml`, in lower-case hexadecimal.
    pub sha256: String,
}

/// Exact changes of the graph.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewriteRecord {
    /// Norms whose gains went into the matrices that read them.
    pub folded: Vec<String>,
    /// Whether the residual stream is rotated.
    pub rotated: bool,
}

impl RewriteRecord {
    /// Whether nothing was changed.
    pub fn is_empty(&self) -> bool {
        *self == RewriteRecord::default()
    }
}

/// One stored tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorRecord {
    /// Its name in the weight file, such as `blk.3.attn_q`.
    pub name: String,
    /// What it is for.
    pub role: String,
    /// Its name in the source.
    pub source: String,
    /// How it is stored.
    pub codec: TensorCodec,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Columns that share a scale; packed tensors only.
    pub group: Option<usize>,
    /// Whether groups have a shift beside the scale.
    pub shift: bool,
    /// How finely activations are rounded that meet its codes; packed tensors only. Eight bits where
    /// it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activation_bits: Option<ActivationBits>,
    /// The weight file, a plain name.
    pub file: String,
    /// Where it lies, in bytes from the start of the file.
    pub offset: u64,
    /// Its bytes.
    pub size: u64,
    /// BLAKE3 of its bytes, in lower-case hexadecimal.
    pub blake3: String,
    /// 8 times [`TensorRecord::stored_bytes`] over the number of its elements.
    pub bits_per_weight: f64,
    /// What is stored beside its codes; packed tensors only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<PartRecord>,
    /// Squared error over squared norm of the source.
    pub rel_mse: Option<f64>,
    /// Share of codes that mean zero.
    pub zeros: Option<f64>,
    /// Entropy of the codes.
    pub entropy_bits: Option<f64>,
    /// Squared error over squares of the outputs for calibration text; of matrices that were rounded
    /// with feedback only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_error: Option<f64>,
    /// Why it is stored so.
    pub reason: String,
}

impl TensorRecord {
    /// Bytes of the tensor and of its parts.
    pub fn stored_bytes(&self) -> u64 {
        let parts = self.parts.iter().map(|part| part.size);
        parts.fold(self.size, u64::saturating_add)
    }
}

/// A part of a packed tensor. In the weight file it is called `<tensor>.<kind>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartRecord {
    /// Which part.
    pub kind: PartKind,
    /// How it is stored.
    pub codec: PartCodec,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Columns that share a scale, where it is packed.
    pub group: Option<usize>,
    /// Where it lies, in bytes from the start of the tensor's weight file.
    pub offset: u64,
    /// Its bytes.
    pub size: u64,
    /// BLAKE3 of its bytes, in lower-case hexadecimal.
    pub blake3: String,
}

impl PartRecord {
    /// The record of the part `layout` that lies at `offset` and has this hash.
    pub fn new(layout: &PartLayout, offset: u64, blake3: String) -> Self {
        PartRecord {
            kind: layout.kind(),
            codec: layout.codec(),
            shape: layout.shape().to_vec(),
            group: layout.group(),
            offset,
            size: layout.size_bytes() as u64,
            blake3,
        }
    }
}

/// How a tensor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TensorCodec {
    /// Packed, [`Codec::Ternary`].
    Ternary,
    /// Packed, [`Codec::Int4`].
    Int4,
    /// Packed, [`Codec::Int8`].
    Int8,
    /// Dense, [`DType::F32`].
    F32,
    /// Dense, [`DType::F16`].
    F16,
    /// Dense, [`DType::BF16`].
    Bf16,
}

impl TensorCodec {
    /// The codec, where the tensor is packed.
    pub const fn packed(self) -> Option<Codec> {
        match self {
            TensorCodec::Ternary => Some(Codec::Ternary),
            TensorCodec::Int4 => Some(Codec::Int4),
            TensorCodec::Int8 => Some(Codec::Int8),
            TensorCodec::F32 | TensorCodec::F16 | TensorCodec::Bf16 => None,
        }
    }

    /// The element type that the header of the weight file gives it.
    pub const fn dtype(self) -> DType {
        match self {
            TensorCodec::Ternary | TensorCodec::Int4 | TensorCodec::Int8 => DType::U8,
            TensorCodec::F32 => DType::F32,
            TensorCodec::F16 => DType::F16,
            TensorCodec::Bf16 => DType::BF16,
        }
    }

    /// The name used in manifests and messages.
    pub const fn name(self) -> &'static str {
        match self {
            TensorCodec::Ternary => "ternary",
            TensorCodec::Int4 => "int4",
            TensorCodec::Int8 => "int8",
            TensorCodec::F32 => "f32",
            TensorCodec::F16 => "f16",
            TensorCodec::Bf16 => "bf16",
        }
    }
}

impl From<Codec> for TensorCodec {
    fn from(codec: Codec) -> Self {
        match codec {
            Codec::Ternary => TensorCodec::Ternary,
            Codec::Int4 => TensorCodec::Int4,
            Codec::Int8 => TensorCodec::Int8,
        }
    }
}

/// A tensor of the source that is not stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DroppedRecord {
    /// Its name in the source.
    pub source: String,
    /// Why.
    pub reason: String,
}

/// What the weights cost.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SizeRecord {
    /// Bytes of the weight files.
    pub weights_bytes: u64,
    /// `8 * weights_bytes` over the number of parameters.
    pub bits_per_weight: f64,
}

/// What verification found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerdictRecord {
    /// The verdict.
    pub status: VerdictStatus,
    /// SHA-256 of `neuroconv/report.json`, in lower-case hexadecimal.
    pub report_sha256: Option<String>,
    /// The checks that were missed and waived.
    pub waived: Vec<String>,
}

/// The verdict of verification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VerdictStatus {
    /// Not judged.
    Unverified,
    /// Every check passed.
    Pass,
    /// A check failed.
    Fail,
    /// Not enough evidence.
    Inconclusive,
    /// A quality check failed and was waived.
    Waived,
}

impl Manifest {
    /// Parses the JSON of the manifest `path`, which is named in errors and not opened.
    pub fn parse(json: &[u8], path: &Path) -> Result<Self, Error> {
        /// The one field that every version has.
        #[derive(Deserialize)]
        struct Versioned {
            schema_version: u32,
        }
        let refuse = |error: serde_json::Error| Error::Json {
            path: path.to_owned(),
            line: error.line(),
            column: error.column(),
            reason: json_reason(&error),
        };
        let found = serde_json::from_slice::<Versioned>(json)
            .map_err(refuse)?
            .schema_version;
        if found == 0 || found > SCHEMA_VERSION {
            return Err(Error::ManifestVersion {
                path: path.to_owned(),
                found,
            });
        }
        serde_json::from_slice(json).map_err(refuse)
    }

    /// The JSON text, the same for equal manifests; an error where a number is not finite.
    pub fn to_json(&self) -> Result<String, Error> {
        self.check_finite()?;
        let mut text = serde_json::to_string_pretty(self).map_err(|error| Error::Json {
            path: "manifest.json".into(),
            line: error.line(),
            column: error.column(),
            reason: json_reason(&error),
        })?;
        text.push('\n');
        Ok(text)
    }

    fn check_finite(&self) -> Result<(), Error> {
        let tensors = self.tensors.iter().flat_map(|tensor| {
            [
                ("bits_per_weight", Some(tensor.bits_per_weight)),
                ("rel_mse", tensor.rel_mse),
                ("zeros", tensor.zeros),
                ("entropy_bits", tensor.entropy_bits),
                ("output_error", tensor.output_error),
            ]
            .map(|(field, value)| (tensor.name.as_str(), field, value))
        });
        let size = ("size", "bits_per_weight", Some(self.size.bits_per_weight));
        for (of, field, value) in tensors.chain([size]) {
            if let Some(value) = value.filter(|value| !value.is_finite()) {
                return Err(Error::NotFinite {
                    field: format!("{of}.{field}"),
                    value,
                });
            }
        }
        Ok(())
    }
}
