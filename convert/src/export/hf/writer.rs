//! Safetensors files as other programs write them: any element type, several files of a limited size.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use fs_err::os::unix::fs::FileExt as _;
use neuroconv_runtime::{Progress, WeightSource};
use serde_json::{Value, json};

use super::packing::{Storage, Stored};
use crate::export::ExportError;
use crate::export::foreign::Foreign;

/// A file and the tensors it holds, by their place in the list of all.
struct Shard {
    name: String,
    tensors: Vec<usize>,
}

/// Bytes of one element.
fn element_bytes(stored: &Stored) -> u64 {
    match stored.dtype {
        "I64" => 8,
        "F32" | "I32" => 4,
        "F16" | "BF16" => 2,
        _ => 1,
    }
}

/// Bytes of a stored tensor.
fn size_bytes(stored: &Stored) -> u64 {
    stored.shape.iter().map(|&dim| dim as u64).product::<u64>() * element_bytes(stored)
}

/// Bytes of all weights.
pub(crate) fn weights_bytes(tensors: &[Foreign], storages: &[Storage]) -> u64 {
    let pairs = tensors.iter().zip(storages);
    pairs
        .flat_map(|(tensor, storage)| storage.stored(tensor))
        .map(|stored| size_bytes(&stored))
        .sum()
}

/// Writes all tensors into the folder `dir`, no file above `shard_bytes` unless one tensor is.
pub(crate) fn write(
    dir: &Path,
    tensors: &[Foreign],
    storages: &[Storage],
    model: &dyn WeightSource,
    shard_bytes: u64,
    progress: &dyn Progress,
    check: &dyn Fn() -> Result<(), ExportError>,
) -> Result<(), ExportError> {
    let shards = shards(tensors, storages, shard_bytes);
    let mut map = BTreeMap::new();
    let mut total = 0;
    for shard in &shards {
        let file = fs_err::File::create_new(dir.join(&shard.name))?;
        let layout = Layout::new(shard.tensors.iter().map(|&at| (&tensors[at], storages[at])));
        file.write_all_at(&layout.header, 0)?;
        for &at in &shard.tensors {
            check()?;
            let (tensor, storage) = (&tensors[at], storages[at]);
            for (stored, bytes) in storage
                .stored(tensor)
                .iter()
                .zip(storage.bytes(tensor, model)?)
            {
                assert_eq!(
                    bytes.len() as u64,
                    size_bytes(stored),
                    "the header told the size"
                );
                file.write_all_at(&bytes, layout.offsets[&stored.name])?;
                total += bytes.len() as u64;
                map.insert(stored.name.clone(), shard.name.clone());
            }
            progress.advance(1);
        }
        file.sync_all()?;
    }
    if shards.len() > 1 {
        let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
        let text = serde_json::to_string_pretty(&index).unwrap_or_default() + "\n";
        fs_err::write(dir.join("model.safetensors.index.json"), text)?;
    }
    Ok(())
}

/// Which tensors go into which file, in order.
fn shards(tensors: &[Foreign], storages: &[Storage], shard_bytes: u64) -> Vec<Shard> {
    let mut groups: Vec<(u64, Vec<usize>)> = Vec::new();
    for (at, (tensor, storage)) in tensors.iter().zip(storages).enumerate() {
        let bytes: u64 = storage.stored(tensor).iter().map(size_bytes).sum();
        match groups.last_mut() {
            Some((size, group)) if *size + bytes <= shard_bytes => {
                *size += bytes;
                group.push(at);
            }
            _ => groups.push((bytes, vec![at])),
        }
    }
    let count = groups.len();
    let name = |number: usize| {
        if count == 1 {
            "model.safetensors".to_owned()
        } else {
            format!("model-{number:05}-of-{count:05}.safetensors")
        }
    };
    let shard = |(at, (_, tensors))| Shard {
        name: name(at + 1),
        tensors,
    };
    groups.into_iter().enumerate().map(shard).collect()
}

/// Where everything lies in a file: elements of many bytes first, so that all are aligned.
struct Layout {
    header: Vec<u8>,
    /// In bytes from the start of the file.
    offsets: BTreeMap<String, u64>,
}

impl Layout {
    fn new<'a>(tensors: impl Iterator<Item = (&'a Foreign, Storage)>) -> Self {
        let mut stored: Vec<Stored> = tensors
            .flat_map(|(tensor, storage)| storage.stored(tensor))
            .collect();
        stored.sort_by_key(|stored| std::cmp::Reverse(element_bytes(stored)));
        let mut json = String::from(r#"{"__metadata__":{"format":"pt"}"#);
        let mut offset = 0;
        let mut offsets = BTreeMap::new();
        for tensor in &stored {
            let end = offset + size_bytes(tensor);
            let entry = json!({
                "dtype": tensor.dtype,
                "shape": tensor.shape,
                "data_offsets": [offset, end],
            });
            let _ = write!(json, ",{}:{entry}", Value::from(tensor.name.as_str()));
            offsets.insert(tensor.name.clone(), offset);
            offset = end;
        }
        json.push('}');
        let length = json.len().next_multiple_of(8);
        json.extend(std::iter::repeat_n(' ', length - json.len()));
        let header = [&(length as u64).to_le_bytes()[..], json.as_bytes()].concat();
        for offset in offsets.values_mut() {
            *offset += header.len() as u64;
        }
        Layout { header, offsets }
    }
}
