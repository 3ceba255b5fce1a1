//! The metadata keys that say what model a GGUF file holds. Owns names; those that begin with a dot
//! follow the value of [`ARCHITECTURE`].

/// The family of the model.
pub const ARCHITECTURE: &str = "general.architecture";
/// Longest position.
pub const POSITIONS: &str = ".context_length";
/// Width of the residual stream.
pub const HIDDEN: &str = ".embedding_length";
/// Number of layers.
pub const LAYERS: &str = ".block_count";
/// Width of the feed-forward block; one number, or one for each layer.
pub const FFN: &str = ".feed_forward_length";
/// Query heads; one number, or one for each layer.
pub const HEADS: &str = ".attention.head_count";
/// Key/value heads; as many as query heads where it is missing.
pub const KV_HEADS: &str = ".attention.head_count_kv";
/// Width of one key head; width of the residual stream per head where it is missing.
pub const KEY_LENGTH: &str = ".attention.key_length";
/// Width of one value head.
pub const VALUE_LENGTH: &str = ".attention.value_length";
/// Added to the mean square inside each norm.
pub const NORM_EPS: &str = ".attention.layer_norm_rms_epsilon";
/// Window of attention.
pub const WINDOW: &str = ".attention.sliding_window";
/// Channels of a head that are rotated; all where it is missing.
pub const ROPE_DIM: &str = ".rope.dimension_count";
/// Base of the rotary frequencies; 10000 where it is missing.
pub const ROPE_THETA: &str = ".rope.freq_base";
/// Kind of change to the frequencies: `none` or `linear`; others are not read.
pub const ROPE_SCALING: &str = ".rope.scaling.type";
/// Divisor of the frequencies.
pub const ROPE_FACTOR: &str = ".rope.scaling.factor";
/// Positions before the change.
pub const ROPE_ORIGINAL: &str = ".rope.scaling.original_context_length";
/// Number of token ids.
pub const VOCAB: &str = ".vocab_size";

/// The tensor of divisors of the rotary frequencies, `[head_dim / 2]`.
pub const ROPE_FACTORS: &str = "rope_freqs.weight";
