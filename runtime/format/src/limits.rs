//! The largest inputs that are accepted. Owns numbers only; whoever reads compares with them
//! before anything is allocated.

/// Bytes of a safetensors header, the same cap as the reference reader's.
pub const HEADER_BYTES: u64 = 100_000_000;
/// Tensors of one safetensors file.
pub const TENSORS_PER_FILE: usize = 1 << 18;
/// Tensors that the index of a checkpoint may list.
pub const TENSORS: usize = 1 << 20;
/// Keys of the `__metadata__` object of a safetensors header.
pub const METADATA_KEYS: usize = 1 << 16;
/// Dimensions of a tensor.
pub const RANK: usize = 8;
/// Bytes of a tensor name, which has at least one.
pub const NAME_BYTES: usize = 512;
/// Any size or offset in a header.
pub const SIZE: u64 = (1 << 48) - 1;
/// Bytes of `model.safetensors.index.json`.
pub const INDEX_BYTES: u64 = 64 << 20;
/// Files that the tensors of a checkpoint are spread over.
pub const SHARDS: usize = 4096;
/// Bytes of `config.json` or `generation_config.json`.
pub const CONFIG_BYTES: u64 = 1 << 20;
/// Bytes of `neuroconv/manifest.json`.
pub const MANIFEST_BYTES: u64 = 64 << 20;
/// Characters of untrusted text that are repeated in a message.
pub const SHOWN_CHARS: usize = 120;
