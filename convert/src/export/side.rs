//! What belongs to a model besides weights: configuration, tokenizer, templates, and where it comes
//! from.

use std::path::Path;

use neuroconv_format::side_files;
use neuroconv_runtime::Source;
use serde_json::{Map, Value, json};

use super::ExportError;
use crate::card::FrontMatter;
use crate::job::relative;
use crate::origin::SourceName;

/// Everything of a model but its weights.
#[derive(Clone, Debug)]
pub struct Side {
    /// The name of the model: of its folder or file.
    pub name: String,
    /// The name of what an artifact was made from; of a checkpoint, its own.
    pub source: String,
    /// Hub id of the source, where it has one.
    pub base_model: Option<String>,
    /// The verdict of an artifact.
    pub verdict: Option<String>,
    /// Licence and language of the source's card.
    pub carried: FrontMatter,
    /// What an artifact says of where it comes from.
    pub(crate) provenance: Value,
    pub(crate) config: Map<String, Value>,
    /// Path in the folder, and bytes.
    pub(crate) files: Vec<(String, Vec<u8>)>,
}

impl Side {
    /// What belongs to `source` beside its weights; `path` is what it was opened by.
    pub fn of(source: &Source, path: &Path) -> Result<Self, ExportError> {
        let mut files = Vec::new();
        let (config, manifest) = match source {
            Source::Checkpoint(checkpoint) => {
                for file in checkpoint.files().side_files()? {
                    files.push((file.name.to_string_lossy().into_owned(), file.read()?));
                }
                (checkpoint.files().config().clone(), None)
            }
            Source::Artifact(model) => {
                let dir = model.artifact().path();
                for path in side_files(dir)? {
                    files.push((relative(dir, &path), fs_err::read(&path)?));
                }
                (
                    config(&dir.join("config.json"))?,
                    Some(model.artifact().manifest()),
                )
            }
        };
        let origin = SourceName::of(path).id;
        let id = manifest.map_or(&origin, |m| &m.source.id).clone();
        let provenance = match manifest {
            Some(m) => json!({
                "id": m.source.id,
                "commit": m.source.commit,
                "recipe": m.recipe.name,
                "recipe_sha256": m.recipe.sha256,
                "verdict": m.verdict.status,
                "waived": m.verdict.waived,
            }),
            None => json!({ "id": id }),
        };
        let verdict = provenance["verdict"].as_str().map(ToOwned::to_owned);
        Ok(Side {
            name: origin,
            base_model: id.contains('/').then(|| id.clone()),
            source: id,
            verdict,
            carried: FrontMatter::read(path),
            provenance,
            config: config.as_object().cloned().unwrap_or_default(),
            files,
        })
    }

    /// A file that is JSON, where there is one.
    pub(crate) fn json(&self, name: &str) -> Result<Option<Value>, ExportError> {
        let Some((_, bytes)) = self.files.iter().find(|(path, _)| path == name) else {
            return Ok(None);
        };
        serde_json::from_slice(bytes)
            .map(Some)
            .map_err(|error| ExportError::Config {
                path: name.into(),
                reason: error.to_string(),
            })
    }

    /// A file that is text, where there is one.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        let (_, bytes) = self.files.iter().find(|(path, _)| path == name)?;
        String::from_utf8(bytes.clone()).ok()
    }
}

/// The JSON in the file `path`.
fn config(path: &Path) -> Result<Value, ExportError> {
    let text = fs_err::read_to_string(path)?;
    serde_json::from_str(&text).map_err(|error| ExportError::Config {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}
