//! What can become of one tensor, and how recipes write it: `"int4"` with its defaults, or a
//! table such as `{ type = "int4", group_size = 64 }`.

use std::fmt;
use std::str::FromStr;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Error;
use crate::suggest::shown;

/// Group sizes a packed layout may have.
pub(crate) const GROUP_SIZES: [usize; 4] = [32, 64, 128, 256];
const DEFAULT_GROUP: usize = 128;

/// What becomes of one tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scheme {
    /// Stored unpacked.
    Keep {
        /// Type to store; `None` is that of the source.
        dtype: Option<KeepDtype>,
    },
    /// Packed in three levels.
    Ternary {
        /// Inputs that share a scale.
        group_size: usize,
        /// Which weights become zero.
        threshold: Threshold,
    },
    /// Packed in sixteen levels.
    Int4 {
        /// Inputs that share a scale.
        group_size: usize,
    },
    /// Packed in 255 levels.
    Int8 {
        /// Inputs that share a scale.
        group_size: usize,
    },
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

/// Which weights of a group become zero when three levels must do. In every case the scale is
/// then the one of least squared error.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Threshold {
    /// The threshold of least squared error, found exactly.
    #[default]
    Mse,
    /// 0.7 of the mean magnitude.
    Twn,
    /// All three levels equally frequent, the most information per code.
    EntropyMax,
    /// This share of the weights, above 0 and below 1.
    Sparsity(f64),
    /// Least squared error plus this many times the entropy of the codes.
    Rd(f64),
}

impl FromStr for Threshold {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || Error::Threshold { found: shown(text) };
        let number = |digits: &str| digits.parse::<f64>().ok().filter(|n| n.is_finite());
        match text.split_once(':') {
            None => match text {
                "mse" => Ok(Threshold::Mse),
                "twn" => Ok(Threshold::Twn),
                "entropy-max" => Ok(Threshold::EntropyMax),
                _ => Err(bad()),
            },
            Some(("sparsity", share)) => {
                let share = number(share).filter(|s| *s > 0.0 && *s < 1.0);
                share.map(Threshold::Sparsity).ok_or_else(bad)
            }
            Some(("rd", lambda)) => number(lambda)
                .filter(|l| *l >= 0.0)
                .map(Threshold::Rd)
                .ok_or_else(bad),
            Some(_) => Err(bad()),
        }
    }
}

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Threshold::Mse => f.write_str("mse"),
            Threshold::Twn => f.write_str("twn"),
            Threshold::EntropyMax => f.write_str("entropy-max"),
            Threshold::Sparsity(share) => write!(f, "sparsity:{share}"),
            Threshold::Rd(lambda) => write!(f, "rd:{lambda}"),
        }
    }
}

impl Serialize for Threshold {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Threshold {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

impl Scheme {
    /// The name in recipes, manifests and messages.
    pub const fn name(&self) -> &'static str {
        match self {
            Scheme::Keep { .. } => "keep",
            Scheme::Ternary { .. } => "ternary",
            Scheme::Int4 { .. } => "int4",
            Scheme::Int8 { .. } => "int8",
        }
    }

    /// Inputs that share a scale; `None` where nothing is packed.
    pub const fn group_size(&self) -> Option<usize> {
        match self {
            Scheme::Keep { .. } => None,
            Scheme::Ternary { group_size, .. }
            | Scheme::Int4 { group_size }
            | Scheme::Int8 { group_size } => Some(*group_size),
        }
    }

    /// Whether the tensor is packed, which takes a matrix.
    pub const fn is_packed(&self) -> bool {
        self.group_size().is_some()
    }

    pub(super) fn group_size_mut(&mut self) -> Option<&mut usize> {
        match self {
            Scheme::Keep { .. } => None,
            Scheme::Ternary { group_size, .. }
            | Scheme::Int4 { group_size }
            | Scheme::Int8 { group_size } => Some(group_size),
        }
    }

    /// Fails for a group size that no layout has.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.group_size().map_or(Ok(()), check_group_size)
    }
}

pub(super) fn check_group_size(found: usize) -> Result<(), Error> {
    if GROUP_SIZES.contains(&found) {
        Ok(())
    } else {
        Err(Error::GroupSize { found })
    }
}

/// The table form; the string form is a table of nothing but `type`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SchemeTable {
    r#type: Kind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    group_size: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    threshold: Option<Threshold>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dtype: Option<KeepDtype>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Keep,
    Ternary,
    Int4,
    Int8,
}

impl SchemeTable {
    fn new(kind: Kind) -> Self {
        SchemeTable {
            r#type: kind,
            group_size: None,
            threshold: None,
            dtype: None,
        }
    }

    /// The scheme, or the key that makes no sense for its type.
    fn scheme(self) -> Result<Scheme, String> {
        let SchemeTable {
            r#type: kind,
            group_size,
            threshold,
            dtype,
        } = self;
        let stray = |key: &str, only: &str| format!("`{key}` belongs to {only} only");
        if dtype.is_some() && kind != Kind::Keep {
            return Err(stray("dtype", "type `keep`"));
        }
        if threshold.is_some() && kind != Kind::Ternary {
            return Err(stray("threshold", "type `ternary`"));
        }
        if group_size.is_some() && kind == Kind::Keep {
            return Err(stray("group_size", "packed types"));
        }
        let group_size = group_size.unwrap_or(DEFAULT_GROUP);
        Ok(match kind {
            Kind::Keep => Scheme::Keep { dtype },
            Kind::Ternary => Scheme::Ternary {
                group_size,
                threshold: threshold.unwrap_or_default(),
            },
            Kind::Int4 => Scheme::Int4 { group_size },
            Kind::Int8 => Scheme::Int8 { group_size },
        })
    }
}

impl From<Scheme> for SchemeTable {
    fn from(scheme: Scheme) -> Self {
        let group_size = scheme.group_size();
        let table = |kind| SchemeTable {
            group_size,
            ..SchemeTable::new(kind)
        };
        match scheme {
            Scheme::Keep { dtype } => SchemeTable {
                dtype,
                ..table(Kind::Keep)
            },
            Scheme::Ternary { threshold, .. } => SchemeTable {
                threshold: Some(threshold),
                ..table(Kind::Ternary)
            },
            Scheme::Int4 { .. } => table(Kind::Int4),
            Scheme::Int8 { .. } => table(Kind::Int8),
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
        SchemeTable::new(kind).scheme().map_err(E::custom)
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
    fn thresholds_round_trip_and_bad_ones_are_refused() {
        for text in [
            "mse",
            "twn",
            "entropy-max",
            "sparsity:0.5",
            "rd:0",
            "rd:0.001",
        ] {
            assert_eq!(text.parse::<Threshold>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "Mse",
            "sparsity",
            "sparsity:",
            "sparsity:0",
            "sparsity:1",
            "sparsity:nan",
            "rd:-1",
            "rd:inf",
            "mse:1",
        ] {
            let error = bad.parse::<Threshold>().unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("`{bad}` is not a ternary threshold")
            );
            assert!(error.hint().unwrap().contains("entropy-max"));
        }
    }

    #[test]
    fn both_forms_are_read_and_the_whole_one_written() {
        let read = |value: serde_json::Value| serde_json::from_value::<Scheme>(value).unwrap();
        assert_eq!(read(json!("int8")), Scheme::Int8 { group_size: 128 });
        assert_eq!(
            read(json!({ "type": "int4", "group_size": 64 })),
            Scheme::Int4 { group_size: 64 }
        );
        let ternary = Scheme::Ternary {
            group_size: 128,
            threshold: Threshold::Sparsity(0.5),
        };
        let text = json!({ "type": "ternary", "group_size": 128, "threshold": "sparsity:0.5" });
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
