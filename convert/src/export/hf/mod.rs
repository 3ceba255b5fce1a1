//! A checkpoint folder as `transformers` and its relatives load it.

mod config;
mod layouts;
mod names;
mod packing;
mod quantization;
mod writer;

use std::path::Path;

use neuroconv_format::DType;
use neuroconv_recipes::stock::{StockClass, stock_latent};
use neuroconv_recipes::{Role, TensorId, architecture};
use neuroconv_runtime::{Progress, WeightSource};
use serde_json::{Map, Value};

use super::engine::Engine;
use super::foreign::Foreign;
use super::latent::{Constant, mla_of};
use super::side::Side;
use super::{ExportError, Plan};

use names::LatentForm;
pub use packing::Packing;
use packing::Storage;

/// How a checkpoint is written.
#[derive(Clone, Copy, Debug)]
pub struct HfOptions<'a> {
    /// Who will load it.
    pub engine: Engine,
    /// How the weights of matrices are written.
    pub packing: Packing,
    /// Element type of plain numbers.
    pub dtype: DType,
    /// Bytes of a file of weights at most.
    pub shard_bytes: u64,
    /// The class of latent attention.
    pub class: &'a str,
}

/// A checkpoint that is going to be written.
pub(crate) struct HfPlan {
    tensors: Vec<Foreign>,
    storages: Vec<Storage>,
    config: Map<String, Value>,
    shard_bytes: u64,
}

/// Plans the checkpoint of `model`, whose other files are `side`.
pub(crate) fn plan(
    model: &dyn WeightSource,
    side: &Side,
    options: HfOptions<'_>,
) -> Result<Plan<HfPlan>, ExportError> {
    let spec = model.spec();
    let mut config = config::kept(&side.config);
    let mut spec_written = spec.clone();
    let tensors = match mla_of(spec, 0) {
        None => names::own(spec, architecture(&spec.arch)?)?,
        Some(mla) => {
            let stock = stock_latent();
            let class: &StockClass = stock.class(options.class)?;
            let biases = options.engine == Engine::Transformers;
            let biased = biases && has_query_bias(model)?;
            let queries = biased.then(|| Constant::new(spec.hidden + 1, options.dtype));
            let form = LatentForm { biases, queries };
            config = config::latent(&config, spec, mla, class, form);
            spec_written.tied = false;
            names::latent(spec, mla, &stock.tensors, form)
        }
    };
    config::restate(&mut config, &spec_written, options.dtype);
    let (storages, notes) = packing::choose(&tensors, model, options.packing, options.dtype)?;
    if let Some(quantization) = quantization::config(options.packing, &tensors, &storages) {
        config.insert("quantization_config".to_owned(), quantization);
    }
    Ok(Plan {
        bytes: writer::weights_bytes(&tensors, &storages),
        tensors: tensors.len(),
        notes,
        written: HfPlan {
            tensors,
            storages,
            config,
            shard_bytes: options.shard_bytes,
        },
    })
}

/// Whether any layer's queries have a bias that is not zero.
fn has_query_bias(model: &dyn WeightSource) -> Result<bool, ExportError> {
    for layer in 0..model.spec().layers.len() {
        let bias = model.tensor(TensorId::layer(layer, Role::QBias))?;
        if neuroconv_quant::dequantize(&bias).iter().any(|&b| b != 0.0) {
            return Ok(true);
        }
    }
    Ok(false)
}

impl HfPlan {
    /// Writes weights and configuration into the folder `dir`.
    pub(crate) fn write(
        &self,
        dir: &Path,
        model: &dyn WeightSource,
        progress: &dyn Progress,
        check: &dyn Fn() -> Result<(), ExportError>,
    ) -> Result<(), ExportError> {
        writer::write(
            dir,
            &self.tensors,
            &self.storages,
            model,
            self.shard_bytes,
            progress,
            check,
        )?;
        let config = serde_json::to_string_pretty(&self.config).unwrap_or_default() + "\n";
        Ok(fs_err::write(dir.join("config.json"), config)?)
    }
}
