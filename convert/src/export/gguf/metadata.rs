//! The keys of a GGUF file that describe the model and where it comes from.

use neuroconv_format::gguf::{Array, GgmlType, Metadata, Value};
use neuroconv_recipes::gguf::keys;
use neuroconv_recipes::stock::stock_latent;
use neuroconv_recipes::{Mixer, ModelSpec, RopeScaling, architecture};

use super::names::no_family;
use crate::export::ExportError;
use crate::export::side::Side;
use crate::ours;

/// Numbers by which llama.cpp names the type of most of a file.
const FILE_TYPES: [(GgmlType, u32); 10] = [
    (GgmlType::F32, 0),
    (GgmlType::F16, 1),
    (GgmlType::Q4_0, 2),
    (GgmlType::Q4_1, 3),
    (GgmlType::Q8_0, 7),
    (GgmlType::Q4_K, 15),
    (GgmlType::BF16, 32),
    (GgmlType::TQ1_0, 36),
    (GgmlType::TQ2_0, 37),
    (GgmlType::Q2_0, 41),
];

/// All keys but those of the tokenizer.
pub(crate) fn model(
    spec: &ModelSpec,
    side: &Side,
    types: &[GgmlType],
) -> Result<Metadata, ExportError> {
    let mut out = Metadata::default();
    let first = spec.layers.first().map(|layer| &layer.mixer);
    let arch = match first {
        Some(Mixer::Mla(_)) => &stock_latent().gguf.arch,
        _ => {
            &architecture(&spec.arch)?
                .gguf()
                .ok_or_else(|| no_family(spec))?
                .arch
        }
    };
    out.push(keys::ARCHITECTURE, Value::Text(arch.clone()));
    card(&mut out, side);
    out.push("general.file_type", Value::U32(file_type(types)));
    out.push("general.quantization_version", Value::U32(2));
    let mut keyed = Keyed { arch, out };
    keyed.count(keys::POSITIONS, spec.max_positions);
    keyed.count(keys::HIDDEN, spec.hidden);
    keyed.count(keys::LAYERS, spec.layers.len());
    keyed.count(keys::FFN, spec.ffn);
    keyed.count(keys::VOCAB, spec.vocab);
    keyed.real(keys::NORM_EPS, spec.norm_eps);
    keyed.real(keys::ROPE_THETA, spec.rope.theta);
    if let RopeScaling::Linear { factor } = spec.rope.scaling {
        keyed.push(keys::ROPE_SCALING, Value::Text("linear".to_owned()));
        keyed.real(keys::ROPE_FACTOR, factor);
    }
    match first {
        Some(Mixer::Attention(a)) => {
            keyed.count(keys::HEADS, a.heads);
            keyed.count(keys::KV_HEADS, a.kv_heads);
            keyed.count(keys::KEY_LENGTH, a.head_dim);
            keyed.count(keys::VALUE_LENGTH, a.head_dim);
            keyed.count(keys::ROPE_DIM, a.head_dim);
        }
        Some(Mixer::Mla(a)) => {
            keyed.count(keys::HEADS, a.heads);
            // Attention in the latent space: one key and value for all heads.
            keyed.count(keys::KV_HEADS, 1);
            keyed.count(keys::KEY_LENGTH, a.rank + a.rope_dim);
            keyed.count(keys::VALUE_LENGTH, a.rank);
            keyed.count(".attention.key_length_mla", a.head_dim + a.rope_dim);
            keyed.count(".attention.value_length_mla", a.head_dim);
            keyed.count(".attention.kv_lora_rank", a.rank);
            // Loading fails without it, although there is no such rank.
            keyed.count(".attention.q_lora_rank", 0);
            keyed.count(keys::ROPE_DIM, a.rope_dim);
            keyed.count(".leading_dense_block_count", spec.layers.len());
            keyed.count(".expert_feed_forward_length", spec.ffn);
            keyed.count(".expert_shared_count", 0);
        }
        Some(Mixer::Latent(_)) | None => return Err(no_family(spec)),
    }
    Ok(keyed.out)
}

/// Keys that begin with the name of the family.
struct Keyed<'a> {
    arch: &'a str,
    out: Metadata,
}

impl Keyed<'_> {
    fn push(&mut self, key: &str, value: Value) {
        self.out.push(format!("{}{key}", self.arch), value);
    }

    fn count(&mut self, key: &str, count: usize) {
        self.push(key, Value::U32(u32::try_from(count).unwrap_or(u32::MAX)));
    }

    fn real(&mut self, key: &str, value: f64) {
        self.push(key, Value::F32(value as f32));
    }
}

/// What model cards say, and which program wrote the file.
fn card(out: &mut Metadata, side: &Side) {
    let mut text = |key: &str, value: &str| out.push(key, Value::Text(value.to_owned()));
    text("general.type", "model");
    text("general.name", &side.name);
    if let Some(license) = side.carried.license() {
        text("general.license", license);
    }
    if let Some(base) = &side.base_model {
        text("general.source.huggingface.repository", base);
    }
    text(ours::GGUF_KEY, env!("CARGO_PKG_VERSION"));
    if let Some(verdict) = &side.verdict {
        text("neuroconv.verdict", verdict);
    }
    out.push(
        "general.tags",
        Value::Array(Array::Text(vec![
            "neuroconv".to_owned(),
            "text-generation".to_owned(),
        ])),
    );
}

/// The number of the type that most matrices have.
fn file_type(types: &[GgmlType]) -> u32 {
    let count = |kind: GgmlType| types.iter().filter(|t| **t == kind).count();
    // Vectors are of single precision in every file.
    let matrices = FILE_TYPES.iter().filter(|(kind, _)| *kind != GgmlType::F32);
    matrices
        .filter(|(kind, _)| count(*kind) > 0)
        .max_by_key(|(kind, _)| count(*kind))
        .map_or(0, |(_, number)| *number)
}
