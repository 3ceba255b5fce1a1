//! The first layers of a checkpoint as a checkpoint of their own.
//!
//! Owns the cut: weights of later layers are left out, and the configuration says fewer layers.
//! Everything else is copied byte for byte.

use std::io::Write as _;
use std::path::Path;

use neuroconv_format::writer::{PlannedTensor, SafetensorsLayout};
use neuroconv_runtime::Checkpoint;
use serde_json::Value;

use crate::Error;

/// Keys of a configuration that count layers.
const COUNTS: [&str; 2] = ["num_hidden_layers", "n_layer"];
/// Keys that list something for every layer.
const LISTS: [&str; 2] = ["layer_types", "no_rope_layers"];

/// Writes the first `layers` layers of `source` into `dir`, which is created; all of them where
/// there are no more.
pub fn first_layers(source: &Checkpoint, layers: usize, dir: &Path) -> Result<(), Error> {
    let files = source.files();
    fs_err::create_dir_all(dir)?;
    for file in files.side_files()? {
        let copy = dir.join(&file.name);
        if let Some(folder) = copy.parent() {
            fs_err::create_dir_all(folder)?;
        }
        fs_err::write(copy, file.read()?)?;
    }
    let mut config = files.config().clone();
    for key in COUNTS {
        if let Some(count) = config.get_mut(key) {
            let kept = count.as_u64().unwrap_or(u64::MAX).min(layers as u64);
            *count = Value::from(kept);
        }
    }
    for key in LISTS {
        if let Some(list) = config.get_mut(key).and_then(Value::as_array_mut) {
            list.truncate(layers);
        }
    }
    fs_err::write(dir.join("config.json"), config.to_string())?;
    write_weights(source, layers, &dir.join("model.safetensors"))
}

fn write_weights(source: &Checkpoint, layers: usize, path: &Path) -> Result<(), Error> {
    let files = source.files();
    let slots = source.resolved().slots.iter();
    let kept = slots.filter(|slot| slot.id.layer.is_none_or(|layer| layer < layers));
    let tensors: Vec<PlannedTensor> = kept
        .filter_map(|slot| files.info(&slot.source))
        .filter_map(|info| Some((info, info.dtype.dense()?)))
        .map(|(info, dtype)| PlannedTensor {
            name: info.name.clone(),
            dtype,
            shape: info.shape.clone(),
        })
        .collect();
    let layout = SafetensorsLayout::new(tensors)?;
    let mut file = fs_err::File::create(path)?;
    file.write_all(&layout.header_bytes())?;
    for info in layout.tensors() {
        file.write_all(&files.read(&info.name)?.bytes)?;
    }
    Ok(())
}
