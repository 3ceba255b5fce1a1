//! `model.safetensors.index.json`: which shard holds which tensor.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::error::{CheckpointError, json_reason, shown};
use crate::files::is_weight_file_name;
use crate::limits;

/// The shards in order of name, and the shard of every tensor by its place in that list.
#[derive(Debug, Default)]
pub(crate) struct ShardIndex {
    pub(crate) shards: Vec<String>,
    pub(crate) tensors: BTreeMap<String, usize>,
}

/// Why an index could not be parsed.
#[derive(Debug)]
pub(crate) enum IndexError {
    Json {
        line: usize,
        column: usize,
        reason: String,
    },
    Checkpoint(CheckpointError),
}

/// Parses an index. Fields besides `weight_map` say nothing that is used and are skipped.
pub(crate) fn parse(json: &[u8]) -> Result<ShardIndex, IndexError> {
    let mut state = State::default();
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let parsed = Index(&mut state)
        .deserialize(&mut deserializer)
        .and_then(|()| deserializer.end());
    match (parsed, state.error) {
        (Err(_), Some(error)) => Err(IndexError::Checkpoint(error)),
        (Err(error), None) => Err(IndexError::Json {
            line: error.line(),
            column: error.column(),
            reason: json_reason(&error),
        }),
        (Ok(()), _) if !state.mapped => Err(IndexError::Checkpoint(CheckpointError::NoWeightMap)),
        (Ok(()), _) => Ok(sorted(state.shards, state.tensors)),
    }
}

/// Renumbers the shards, met in any order, by name.
fn sorted(shards: BTreeMap<String, usize>, mut tensors: BTreeMap<String, usize>) -> ShardIndex {
    let places: BTreeMap<usize, usize> = shards
        .values()
        .enumerate()
        .map(|(place, &met)| (met, place))
        .collect();
    for shard in tensors.values_mut() {
        *shard = places.get(shard).copied().unwrap_or(*shard);
    }
    ShardIndex {
        shards: shards.into_keys().collect(),
        tensors,
    }
}

#[derive(Default)]
struct State {
    shards: BTreeMap<String, usize>,
    tensors: BTreeMap<String, usize>,
    mapped: bool,
    error: Option<CheckpointError>,
}

impl State {
    /// Keeps `error`, which the parser's own error type cannot carry.
    fn refuse<E: serde::de::Error>(&mut self, error: CheckpointError) -> E {
        let out = E::custom(&error);
        self.error = Some(error);
        out
    }

    fn insert(&mut self, tensor: String, shard: String) -> Result<(), CheckpointError> {
        if self.tensors.contains_key(&tensor) {
            return Err(CheckpointError::DuplicateKey {
                key: shown(&tensor),
            });
        }
        if self.tensors.len() >= limits::TENSORS {
            return Err(CheckpointError::TensorCount);
        }
        if !is_weight_file_name(&shard) {
            return Err(CheckpointError::ShardName {
                tensor: shown(&tensor),
                shard: shown(&shard),
            });
        }
        let next = self.shards.len();
        let place = *self.shards.entry(shard).or_insert(next);
        if place >= limits::SHARDS {
            return Err(CheckpointError::ShardCount);
        }
        self.tensors.insert(tensor, place);
        Ok(())
    }
}

/// The whole index.
struct Index<'a>(&'a mut State);

impl<'de> DeserializeSeed<'de> for Index<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Index<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with a `weight_map`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            if key != "weight_map" {
                map.next_value::<IgnoredAny>()?;
            } else if std::mem::replace(&mut self.0.mapped, true) {
                return Err(self.0.refuse(CheckpointError::DuplicateKey { key }));
            } else {
                map.next_value_seed(WeightMap(self.0))?;
            }
        }
        Ok(())
    }
}

/// The object of shard names by tensor name.
struct WeightMap<'a>(&'a mut State);

impl<'de> DeserializeSeed<'de> for WeightMap<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for WeightMap<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of shard names by tensor name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some((tensor, shard)) = map.next_entry::<String, String>()? {
            self.0
                .insert(tensor, shard)
                .map_err(|error| self.0.refuse(error))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(json: &str) -> CheckpointError {
        match parse(json.as_bytes()) {
            Err(IndexError::Checkpoint(error)) => error,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn shards_are_numbered_by_name() {
        let json = r#"{"metadata":{"total_size":1},
            "weight_map":{"x":"b.safetensors","y":"a.safetensors","z":"b.safetensors"}}"#;
        let index = parse(json.as_bytes()).unwrap();
        assert_eq!(index.shards, ["a.safetensors", "b.safetensors"]);
        let tensors: Vec<_> = index.tensors.into_iter().collect();
        assert_eq!(
            tensors,
            [
                ("x".to_owned(), 1),
                ("y".to_owned(), 0),
                ("z".to_owned(), 1)
            ]
        );
    }

    #[test]
    fn bad_indexes_are_refused() {
        let key = |key: &str| CheckpointError::DuplicateKey {
            key: key.to_owned(),
        };
        let twice = r#"{"weight_map":{"a":"a.safetensors","\u0061":"b.safetensors"}}"#;
        assert_eq!(refused(twice), key("a"));
        assert_eq!(
            refused(r#"{"weight_map":{},"weight_map":{}}"#),
            key("weight_map")
        );
        assert_eq!(refused("{}"), CheckpointError::NoWeightMap);
        let name = CheckpointError::ShardName {
            tensor: "a".into(),
            shard: "../b.safetensors".into(),
        };
        assert_eq!(refused(r#"{"weight_map":{"a":"../b.safetensors"}}"#), name);
        for json in [
            "",
            "[]",
            r#"{"weight_map":{"a":1}}"#,
            r#"{"weight_map":{}} x"#,
        ] {
            assert!(
                matches!(parse(json.as_bytes()), Err(IndexError::Json { .. })),
                "{json}"
            );
        }
    }

    #[test]
    fn too_many_shards_are_refused() {
        let entries: Vec<String> = (0..=limits::SHARDS)
            .map(|i| format!(r#""t{i}":"s{i}.safetensors""#))
            .collect();
        let json = format!(r#"{{"weight_map":{{{}}}}}"#, entries.join(","));
        assert_eq!(refused(&json), CheckpointError::ShardCount);
    }

    #[test]
    fn too_many_tensors_are_refused() {
        let entries: Vec<String> = (0..=limits::TENSORS)
            .map(|i| format!(r#""{i}":"s.safetensors""#))
            .collect();
        let json = format!(r#"{{"weight_map":{{{}}}}}"#, entries.join(","));
        assert_eq!(refused(&json), CheckpointError::TensorCount);
    }
}
