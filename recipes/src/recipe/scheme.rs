//! What can become of one tensor, and how recipes write it: `"int4"` with its defaults, or a
//! table such as `{ type = "int4", group_size = 64 }`.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Apart, Method, Packed, PackedKind, Threshold};
use crate::Error;

/// What becomes of one tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scheme {
    /// Stored unpacked.
    Keep {
        /// Type to store; `None` is that of the source.
        dtype: Option<KeepDtype>,
    },
    /// Stored in few bits.
    Packed(Packed),
}

/// Types an unpacked tensor may be stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeepDtype {
    /// 32 bits.
    F32,
    /// 16 bits, IEEE half precision.
    F16,
    /// 16 bits, the upper half of an `F32`.
    Bf16,
}

impl KeepDtype {
    /// The name in recipes and manifests.
    pub const fn name(self) -> &'static str {
        match self {
            KeepDtype::F32 => "f32",
            KeepDtype::F16 => "f16",
            KeepDtype::Bf16 => "bf16",
        }
    }
}

impl Scheme {
    /// The defaults of a kind.
    pub const fn packed(kind: PackedKind) -> Self {
        Scheme::Packed(Packed::new(kind))
    }

    /// The name in recipes, manifests and messages.
    pub const fn name(&self) -> &'static str {
        match self {
            Scheme::Keep { .. } => "keep",
            Scheme::Packed(packed) => packed.kind.name(),
        }
    }

    /// A short name that tells ways apart.
    pub fn label(&self) -> String {
        match self {
            Scheme::Keep { .. } => self.name().to_owned(),
            Scheme::Packed(packed) => packed.label(),
        }
    }

    /// How the tensor is packed, which takes a matrix; `None` where it is not.
    pub const fn as_packed(&self) -> Option<&Packed> {
        match self {
            Scheme::Keep { .. } => None,
            Scheme::Packed(packed) => Some(packed),
        }
    }

    pub(super) fn as_packed_mut(&mut self) -> Option<&mut Packed> {
        match self {
            Scheme::Keep { .. } => None,
            Scheme::Packed(packed) => Some(packed),
        }
    }

    /// Inputs that share a scale; `None` where nothing is packed.
    pub fn group_size(&self) -> Option<usize> {
        self.as_packed().map(|packed| packed.group_size)
    }

    /// Whether the tensor is packed, which takes a matrix.
    pub const fn is_packed(&self) -> bool {
        self.as_packed().is_some()
    }

    /// Fails for what no layout has.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.as_packed().map_or(Ok(()), Packed::check)
    }
}

/// The table form; the string form is a table of nothing but `type`.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SchemeTable {
    r#type: Kind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    group_size: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    method: Option<Method>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    threshold: Option<Threshold>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    planes: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    shift: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    correct_rank: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    salient: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    outliers: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    activations: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dtype: Option<KeepDtype>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    #[default]
    Keep,
    Ternary,
    Int4,
    Int8,
}

impl Kind {
    fn packed(self) -> Option<PackedKind> {
        match self {
            Kind::Keep => None,
            Kind::Ternary => Some(PackedKind::Ternary),
            Kind::Int4 => Some(PackedKind::Int4),
            Kind::Int8 => Some(PackedKind::Int8),
        }
    }
}

impl From<PackedKind> for Kind {
    fn from(kind: PackedKind) -> Self {
        match kind {
            PackedKind::Ternary => Kind::Ternary,
            PackedKind::Int4 => Kind::Int4,
            PackedKind::Int8 => Kind::Int8,
        }
    }
}

impl SchemeTable {
    /// The keys that are set and what types they belong to.
    fn strays(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let kind = self.r#type;
        let (keep, ternary) = (kind == Kind::Keep, kind == Kind::Ternary);
        let levels = ternary || kind == Kind::Int4;
        [
            ("dtype", self.dtype.is_some() && !keep, "type `keep`"),
            (
                "threshold",
                self.threshold.is_some() && !ternary,
                "type `ternary`",
            ),
            (
                "planes",
                self.planes.is_some() && !ternary,
                "type `ternary`",
            ),
            (
                "shift",
                self.shift.is_some() && !levels,
                "types `ternary` and `int4`",
            ),
            (
                "group_size",
                self.group_size.is_some() && keep,
                "packed types",
            ),
            ("method", self.method.is_some() && keep, "packed types"),
            (
                "correct_rank",
                self.correct_rank.is_some() && keep,
                "packed types",
            ),
            ("salient", self.salient.is_some() && keep, "packed types"),
            (
                "outliers",
                self.outliers.is_some() && kind != Kind::Int8,
                "type `int8`",
            ),
            (
                "activations",
                self.activations.is_some() && keep,
                "packed types",
            ),
        ]
        .into_iter()
        .filter_map(|(key, stray, only)| stray.then_some((key, only)))
    }

    /// The scheme, or the key that makes no sense for its type.
    fn scheme(self) -> Result<Scheme, String> {
        if let Some((key, only)) = self.strays().next() {
            return Err(format!("`{key}` belongs to {only} only"));
        }
        let Some(kind) = self.r#type.packed() else {
            return Ok(Scheme::Keep { dtype: self.dtype });
        };
        let default = Packed::new(kind);
        let apart = match (self.salient, self.outliers) {
            (None, None) => Apart::None,
            (Some(share), None) => Apart::Salient(share),
            (None, Some(threshold)) => Apart::Outliers(threshold),
            (Some(_), Some(_)) => {
                return Err("`salient` and `outliers` exclude each other".to_owned());
            }
        };
        Ok(Scheme::Packed(Packed {
            kind,
            group_size: self.group_size.unwrap_or(default.group_size),
            method: self.method.unwrap_or(default.method),
            threshold: self.threshold.unwrap_or_default(),
            planes: self.planes.unwrap_or(default.planes),
            shift: self.shift.unwrap_or(default.shift),
            correct_rank: self.correct_rank.unwrap_or(default.correct_rank),
            apart,
            activations: self.activations.unwrap_or(default.activations),
        }))
    }
}

impl From<Scheme> for SchemeTable {
    /// What is always said of a type, and what is not as usual.
    fn from(scheme: Scheme) -> Self {
        let packed = match scheme {
            Scheme::Keep { dtype } => {
                return SchemeTable {
                    dtype,
                    ..SchemeTable::default()
                };
            }
            Scheme::Packed(packed) => packed,
        };
        let ternary = packed.kind == PackedKind::Ternary;
        SchemeTable {
            r#type: packed.kind.into(),
            group_size: Some(packed.group_size),
            method: Some(packed.method),
            threshold: ternary.then_some(packed.threshold),
            planes: (packed.planes > 1).then_some(packed.planes),
            shift: packed.shift.then_some(true),
            correct_rank: (packed.correct_rank > 0).then_some(packed.correct_rank),
            salient: match packed.apart {
                Apart::Salient(share) => Some(share),
                Apart::None | Apart::Outliers(_) => None,
            },
            outliers: match packed.apart {
                // JSON has no infinity, which takes no column.
                Apart::Outliers(threshold) if threshold.is_finite() => Some(threshold),
                Apart::None | Apart::Salient(_) | Apart::Outliers(_) => None,
            },
            activations: Some(packed.activations),
            dtype: None,
        }
    }
}

impl Serialize for Scheme {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        SchemeTable::from(*self).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Scheme {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NameOrTable)
    }
}

/// Reads both forms with errors as exact as those of a single one.
struct NameOrTable;

impl<'de> Visitor<'de> for NameOrTable {
    type Value = Scheme;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a scheme or a table with its `type`")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Scheme, E> {
        let kind = Kind::deserialize(serde::de::value::StrDeserializer::<E>::new(name))?;
        let table = SchemeTable {
            r#type: kind,
            ..SchemeTable::default()
        };
        table.scheme().map_err(E::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Scheme, A::Error> {
        SchemeTable::deserialize(MapAccessDeserializer::new(map))?
            .scheme()
            .map_err(A::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn both_forms_are_read_and_the_whole_one_written() {
        let read = |value: serde_json::Value| serde_json::from_value::<Scheme>(value).unwrap();
        assert_eq!(read(json!("int8")), Scheme::packed(PackedKind::Int8));
        assert_eq!(
            read(json!({ "type": "int4", "group_size": 64 })),
            Scheme::Packed(Packed::new(PackedKind::Int4).with_group(64))
        );
        let ternary = Scheme::Packed(Packed {
            threshold: Threshold::Sparsity(0.5),
            ..Packed::new(PackedKind::Ternary)
        });
        let text = json!({
            "type": "ternary", "group_size": 128, "method": "gptq", "threshold": "sparsity:0.5",
            "activations": 8
        });
        assert_eq!(serde_json::to_value(ternary).unwrap(), text);
        assert_eq!(read(text), ternary);
        let keep = Scheme::Keep {
            dtype: Some(KeepDtype::Bf16),
        };
        assert_eq!(read(json!({ "type": "keep", "dtype": "bf16" })), keep);
        assert!(!keep.is_packed() && ternary.is_packed());
    }

    #[test]
    fn keys_of_another_type_are_refused() {
        for (text, complaint) in [
            (
                json!({ "type": "int4", "dtype": "f32" }),
                "`dtype` belongs to type `keep` only",
            ),
            (
                json!({ "type": "int8", "threshold": "mse" }),
                "`threshold` belongs to type `ternary` only",
            ),
            (
                json!({ "type": "keep", "group_size": 64 }),
                "`group_size` belongs to packed types only",
            ),
            (json!({ "group_size": 64 }), "missing field `type`"),
            (json!("int5"), "unknown variant `int5`"),
            (json!(4), "the name of a scheme"),
        ] {
            let error = serde_json::from_value::<Scheme>(text)
                .unwrap_err()
                .to_string();
            assert!(error.contains(complaint), "{error}");
        }
    }
}
