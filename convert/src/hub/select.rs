//! Which files of a repository belong to the model that is read.
//!
//! Owns the choice. Everything is taken but what is known to be something else, so that a new file of a
//! tokenizer, or a chat template, is never lost. Of weights, those that a folder with the same files would
//! be read from: `model.safetensors`, else the shards that the index names.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::HubError;
use super::listing::Listing;
use super::names::shown;

/// The configuration of a model.
pub(crate) const CONFIG: &str = "config.json";
/// All weights in one file.
const SINGLE: &str = "model.safetensors";
/// Which shard holds which tensor.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// What only artifacts of this program have.
const MANIFEST: &str = "neuroconv/manifest.json";
/// The ending of weights that are read.
const WEIGHTS: &str = ".safetensors";
/// Weights that can run code.
const PICKLE: [&str; 5] = [".bin", ".pt", ".pth", ".ckpt", ".pkl"];
/// Weights of other programs, and pictures.
const OTHER: [&str; 18] = [
    ".gguf",
    ".h5",
    ".hdf5",
    ".msgpack",
    ".ot",
    ".onnx",
    ".onnx_data",
    ".tflite",
    ".mlmodel",
    ".mlpackage",
    ".npz",
    ".pb",
    ".engine",
    ".png",
    ".jpg",
    ".jpeg",
    ".gif",
    ".webp",
];
/// Folders of weights in other forms.
const FOLDERS: [&str; 5] = ["original/", "onnx/", "openvino/", "coreml/", "metal/"];

/// What is taken of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Selection {
    /// Everything but weights.
    pub(crate) small: Vec<String>,
    pub(crate) weights: Weights,
    /// Whether it is an artifact of this program.
    pub(crate) artifact: bool,
}

/// Where the weights are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Weights {
    Single,
    /// In the shards that the index names, which is one of the small files.
    Shards,
}

/// Chooses from everything that is listed.
///
/// # Errors
///
/// Where there is no model that is read: weights as pickle or GGUF only, no weights, no configuration.
pub(crate) fn select(repository: &str, listing: &Listing) -> Result<Selection, HubError> {
    let has = |name: &str| listing.files.contains_key(name);
    let with = |endings: &[&str]| -> Vec<String> {
        let names = listing.files.keys().filter(|name| !name.contains('/'));
        names
            .filter(|name| ends(name, endings))
            .map(|name| shown(name))
            .collect()
    };
    let weights = if has(SINGLE) {
        Weights::Single
    } else if has(INDEX) {
        Weights::Shards
    } else {
        let repository = repository.to_owned();
        let gguf = with(&[".gguf"]);
        return Err(match with(&PICKLE).into_iter().next() {
            _ if !gguf.is_empty() => HubError::OnlyGguf {
                repository,
                files: gguf,
            },
            Some(file) => HubError::Pickle { repository, file },
            None => HubError::NoModel {
                repository,
                missing: SINGLE,
            },
        });
    };
    if !has(CONFIG) {
        return Err(HubError::NoModel {
            repository: repository.to_owned(),
            missing: CONFIG,
        });
    }
    let small = listing.files.keys().filter(|name| is_small(name));
    Ok(Selection {
        small: small.cloned().collect(),
        weights,
        artifact: has(MANIFEST),
    })
}

fn is_small(name: &str) -> bool {
    let left = FOLDERS.iter().any(|folder| name.starts_with(folder));
    !left && !ends(name, &PICKLE) && !ends(name, &OTHER) && !ends(name, &[WEIGHTS])
}

fn ends(name: &str, endings: &[&str]) -> bool {
    let name = name.to_ascii_lowercase();
    endings.iter().any(|ending| name.ends_with(ending))
}

impl Selection {
    /// The files of the weights; `index` are the bytes of the index, where there is one.
    pub(crate) fn weights(
        &self,
        repository: &str,
        listing: &Listing,
        index: Option<&[u8]>,
    ) -> Result<Vec<String>, HubError> {
        #[derive(Deserialize)]
        struct Index {
            weight_map: std::collections::BTreeMap<String, String>,
        }
        if self.weights == Weights::Single {
            return Ok(vec![SINGLE.to_owned()]);
        }
        let index: Option<Index> = index.and_then(|bytes| serde_json::from_slice(bytes).ok());
        let index = index.ok_or_else(|| HubError::BadName {
            repository: repository.to_owned(),
            what: "the shards in",
            text: INDEX.to_owned(),
            reason: "it is no index",
        })?;
        let names: BTreeSet<String> = index.weight_map.into_values().collect();
        for name in &names {
            if !listing.files.contains_key(name) {
                return Err(HubError::NoFile {
                    repository: repository.to_owned(),
                    file: shown(name),
                });
            }
            if !ends(name, &[WEIGHTS]) {
                return Err(HubError::BadName {
                    repository: repository.to_owned(),
                    what: "the shard",
                    text: shown(name),
                    reason: "only safetensors are read",
                });
            }
        }
        Ok(names.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(names: &[&str]) -> Listing {
        let lines: Vec<String> = names
            .iter()
            .map(|name| format!(r#"{name:?}:{{"size":1,"blob_id":"{}"}}"#, "0a".repeat(20)))
            .collect();
        let text = format!(r#"{{"format_version":1,"files":{{{}}}}}"#, lines.join(","));
        Listing::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn everything_is_taken_but_what_is_known_to_be_something_else() {
        let taken = [
            "LICENSE",
            "additional_chat_templates/tool.jinja",
            "chat_template.jinja",
            "config.json",
            "tokenizer.model",
            "tokenizer.new",
            "vocab.txt",
        ];
        let left = [
            "pytorch_model.bin",
            "a.PT",
            "model.onnx",
            "onnx/config.json",
            "original/params.json",
            "x.png",
            "m.gguf",
            "tf_model.h5",
            "flax_model.msgpack",
            "consolidated.safetensors",
            "model.safetensors",
        ];
        let found = select("o/n", &listing(&[&taken[..], &left].concat())).unwrap();
        assert_eq!(found.small, taken);
        assert_eq!(
            found.weights("o/n", &listing(&left), None).unwrap(),
            ["model.safetensors"]
        );
    }

    #[test]
    fn shards_are_those_of_the_index() {
        let all = listing(&[
            "config.json",
            INDEX,
            "b.safetensors",
            "a.safetensors",
            "c.safetensors",
        ]);
        let found = select("o/n", &all).unwrap();
        let names = |index: &str| found.weights("o/n", &all, Some(index.as_bytes()));
        let index =
            r#"{"weight_map":{"x":"b.safetensors","y":"a.safetensors","z":"a.safetensors"}}"#;
        assert_eq!(names(index).unwrap(), ["a.safetensors", "b.safetensors"]);
        assert!(matches!(
            names(r#"{"weight_map":{"x":"../d"}}"#),
            Err(HubError::NoFile { .. })
        ));
        assert!(matches!(
            names(r#"{"weight_map":{"x":"config.json"}}"#),
            Err(HubError::BadName { .. })
        ));
        assert!(matches!(names("[]"), Err(HubError::BadName { .. })));
    }

    #[test]
    fn what_is_no_model_is_refused_before_a_byte_of_it_is_fetched() {
        let refused = |names: &[&str]| select("o/n", &listing(names)).unwrap_err();
        assert!(matches!(
            refused(&["config.json", "pytorch_model.bin"]),
            HubError::Pickle { .. }
        ));
        assert!(matches!(
            refused(&["README.md", "a.gguf", "b.gguf"]),
            HubError::OnlyGguf { .. }
        ));
        assert!(matches!(
            refused(&["README.md"]),
            HubError::NoModel {
                missing: SINGLE,
                ..
            }
        ));
        assert!(matches!(
            refused(&["model.safetensors"]),
            HubError::NoModel {
                missing: CONFIG,
                ..
            }
        ));
    }
}
