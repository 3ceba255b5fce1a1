//! What `neuroconv export` was asked for, resolved for one model; and the card of the result.

use neuroconv_convert::Card;
use neuroconv_convert::export::{
    Engine, EngineModel, EngineVerdict, Export, ExportError, GgufOptions, HfOptions, Packing, Side,
    TernaryType,
};
use neuroconv_format::{Codec, DType, Tensor};
use neuroconv_recipes::{RoleKind, TensorId};
use neuroconv_runtime::{Source, WeightSource};
use serde::Serialize;

use crate::args::{DTypeArg, EngineArg, ExportArgs, FormArg, PackingArg, TernaryArg};
use crate::failure::Misuse;
use crate::{present, reports};

/// Bytes of a gigabyte as file sizes count it.
const GB: f64 = 1e9;

/// What `--json` prints, and what stands in the record of an export.
#[derive(Serialize)]
pub(crate) struct Outcome {
    pub(crate) form: &'static str,
    pub(crate) engine: &'static str,
    /// Whether the engine computes the same function.
    pub(crate) exact: bool,
    pub(crate) bytes: u64,
    pub(crate) notes: Vec<String>,
    pub(crate) engines: Vec<EngineVerdict>,
    pub(crate) comparison: Option<Comparison>,
    /// Whether the user accepted a loss beyond the limit.
    pub(crate) waived: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) path: Option<String>,
}

/// The model and the export on the same text.
#[derive(Serialize)]
pub(crate) struct Comparison {
    pub(crate) text: String,
    pub(crate) tokens: u64,
    /// Whether the written files were read back, or the weights as they were before writing.
    pub(crate) read_back: bool,
    /// Whether what was written cuts a text into the same tokens.
    pub(crate) tokens_equal: bool,
    pub(crate) ppl_model: f64,
    pub(crate) ppl: f64,
    pub(crate) kld_mean: f64,
    pub(crate) kld_max: f64,
    pub(crate) top1: f64,
    pub(crate) max_kld: f64,
    pub(crate) pass: bool,
}

/// Who will load the export.
pub(crate) fn engine(args: &ExportArgs) -> anyhow::Result<Engine> {
    let engine = match (args.to, args.target) {
        (FormArg::Hf, None | Some(EngineArg::Transformers)) => Engine::Transformers,
        (FormArg::Hf, Some(EngineArg::Vllm)) => Engine::Vllm,
        (FormArg::Gguf, None | Some(EngineArg::LlamaCpp)) => Engine::LlamaCpp,
        (FormArg::Hf, Some(EngineArg::LlamaCpp)) => {
            return Err(Misuse::new(
                "llama.cpp loads no checkpoint folders",
                "ask for `--to gguf`",
            )
            .into());
        }
        (FormArg::Gguf, Some(_)) => {
            let message = "GGUF files are written for llama.cpp and its relatives";
            return Err(Misuse::new(message, "ask for `--to hf`").into());
        }
    };
    Ok(engine)
}

/// The element type of plain numbers: as asked, or that of the source's weights.
pub(crate) fn dtype(args: &ExportArgs, source: &Source) -> anyhow::Result<DType> {
    Ok(match args.weights.dtype {
        Some(DTypeArg::F32) => DType::F32,
        Some(DTypeArg::F16) => DType::F16,
        Some(DTypeArg::Bf16) => DType::BF16,
        None => match source {
            Source::Checkpoint(_) => {
                match source.tensor(TensorId::model(neuroconv_recipes::Role::Embed))? {
                    Tensor::Dense(dense) => dense.dtype,
                    Tensor::Packed(_) => DType::BF16,
                }
            }
            Source::Artifact(model) => match model.artifact().manifest().source.dtype.as_str() {
                "F32" | "f32" => DType::F32,
                "F16" | "f16" => DType::F16,
                _ => DType::BF16,
            },
        },
    })
}

/// The export as planned.
pub(crate) fn plan<'a>(
    args: &ExportArgs,
    engine: Engine,
    dtype: DType,
    source: &Source,
    model: &'a EngineModel<'a>,
    side: &'a Side,
) -> Result<Export<'a>, ExportError> {
    match args.to {
        FormArg::Hf => {
            let options = HfOptions {
                engine,
                packing: packing(args, source)?,
                dtype,
                shard_bytes: (args.weights.max_shard_size * GB) as u64,
                class: &args.weights.latent_class,
            };
            Export::hf(model, side, options)
        }
        FormArg::Gguf => {
            let options = GgufOptions {
                dtype,
                ternary: match args.weights.ternary_type {
                    TernaryArg::Auto => TernaryType::Auto,
                    TernaryArg::Tq1 => TernaryType::Tq1,
                    TernaryArg::Tq2 => TernaryType::Tq2,
                    TernaryArg::Q2 => TernaryType::Q2,
                    TernaryArg::Q4 => TernaryType::Q4,
                },
                q4_k: args.weights.q4_k,
                dense: args.weights.weights == PackingArg::Dense,
            };
            Export::gguf(model, side, options)
        }
    }
}

/// The form of matrices in a checkpoint: as asked, or packed where any has four or eight bits.
fn packing(args: &ExportArgs, source: &Source) -> Result<Packing, ExportError> {
    Ok(match args.weights.weights {
        PackingArg::Dense => Packing::Dense,
        PackingArg::CompressedTensors => Packing::CompressedTensors,
        PackingArg::Gptq => Packing::Gptq,
        PackingArg::Bitnet => Packing::BitNet,
        PackingArg::Auto => {
            for (id, _) in source.spec().tensors() {
                if id.role.kind() == RoleKind::Linear
                    && let Tensor::Packed(packed) = source.tensor(id)?
                    && packed.layout.codec() != Codec::Ternary
                {
                    return Ok(Packing::CompressedTensors);
                }
            }
            Packing::Dense
        }
    })
}

/// The card of an exported checkpoint.
pub(crate) fn card(title: &str, side: &Side, outcome: &Outcome) -> Card {
    let comparison = outcome.comparison.as_ref();
    let figures = comparison.map_or_else(Vec::new, |c| {
        vec![
            [
                "perplexity".to_owned(),
                present::number(c.ppl_model),
                present::number(c.ppl),
            ],
            [
                "mean divergence, nats".to_owned(),
                "0".to_owned(),
                format!("{:.2e}", c.kld_mean),
            ],
            [
                "same top token".to_owned(),
                "100 %".to_owned(),
                format!("{:.2} %", 100.0 * c.top1),
            ],
        ]
    });
    let mut limits: Vec<String> = outcome.notes.clone();
    limits.push(format!(
        "written for {}; the table says what other engines make of the model it was exported from",
        outcome.engine
    ));
    Card {
        title: title.to_owned(),
        source: side.source.clone(),
        base_model: side.base_model.clone(),
        carried: side.carried.clone(),
        tags: vec!["export".to_owned()],
        verdict: if outcome.waived { "waived" } else { "pass" }.to_owned(),
        summary: match (outcome.waived, outcome.exact) {
            (true, _) => "The export is further from its model than the limit; the user accepted that by name.",
            (false, true) => "The export computes what the model does.",
            (false, false) => "The engine computes another function; the export comes near to the model.",
        }
        .to_owned(),
        comparison: figures,
        engines: outcome.engines.iter().map(EngineVerdict::row).collect(),
        library: "transformers".to_owned(),
        usage: "Load the folder like any checkpoint of its class. `neuroconv/export.json` tells what \
                it was made of.\n"
            .to_owned(),
        command: reports::command_line(),
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        limits,
        ..Card::default()
    }
}
