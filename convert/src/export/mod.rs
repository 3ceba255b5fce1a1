//! Forms of a model that other engines load.
//!
//! Owns what each engine can run, how its files are laid out, and their bytes. Whether an export still
//! computes what the model did is measured by whoever asked for it, on [`EngineModel::model`] and on the
//! files read back.

mod engine;
mod error;
mod foreign;
mod gguf;
mod hf;
mod latent;
mod matrix;
mod normed;
mod place;
mod side;

use neuroconv_recipes::stock::stock_latent;
use neuroconv_runtime::{Progress, WeightSource};

use crate::Staging;

pub use engine::{Engine, EngineVerdict, Fit, LatentFacts};
pub use error::ExportError;
pub use gguf::{GgufOptions, TernaryType};
pub use hf::{HfOptions, Packing};
use latent::{ConstantChannel, mla_of};
pub use latent::{InType, latent_facts};
pub use place::StagedExport;
pub use side::Side;

/// A form that is going to be written.
pub(crate) struct Plan<T> {
    /// Bytes of the weights.
    pub(crate) bytes: u64,
    /// Number of tensors.
    pub(crate) tensors: usize,
    /// What is not as asked, for people.
    pub(crate) notes: Vec<String>,
    /// What to write.
    pub(crate) written: T,
}

/// A model in the form in which an engine will run it: the model itself, or one that norms its latents.
pub struct EngineModel<'a>(Box<dyn WeightSource + 'a>);

impl<'a> EngineModel<'a> {
    /// `model` as `engine` runs it without any loss, where it can: see [`Engine::fit`]. `dtype` is the
    /// element type of plain numbers.
    pub fn exact(model: &'a dyn WeightSource, dtype: neuroconv_format::DType) -> Self {
        if mla_of(model.spec(), 0).is_none() {
            return EngineModel(Box::new(Same(model)));
        }
        let eps = stock_latent().norm_eps;
        EngineModel(Box::new(ConstantChannel::new(model, dtype, eps)))
    }

    /// `model` as `engine`, which norms its latents and has no biases there, can come nearest to it:
    /// fitted to `windows` of calibration text. llama.cpp takes latents of any width, so they get a
    /// channel that is nearly constant.
    pub fn fitted(
        model: &'a dyn WeightSource,
        engine: Engine,
        windows: &[Vec<u32>],
        progress: &dyn Progress,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<Self, ExportError> {
        let check = || {
            if interrupted() {
                Err(ExportError::Interrupted)
            } else {
                Ok(())
            }
        };
        let extra = engine == Engine::LlamaCpp;
        let normed = normed::Normed::fit(model, windows, extra, progress, &check)?;
        Ok(EngineModel(Box::new(normed)))
    }

    /// What the engine computes, for whoever measures it.
    pub fn model(&self) -> &dyn WeightSource {
        &*self.0
    }
}

/// A model as it is.
struct Same<'a>(&'a dyn WeightSource);

impl WeightSource for Same<'_> {
    fn spec(&self) -> &neuroconv_recipes::ModelSpec {
        self.0.spec()
    }

    fn tensor(
        &self,
        id: neuroconv_recipes::TensorId,
    ) -> Result<neuroconv_format::Tensor, neuroconv_runtime::Error> {
        self.0.tensor(id)
    }
}

/// An export that is planned: nothing but headers and scales was read.
pub struct Export<'a> {
    model: &'a EngineModel<'a>,
    side: &'a Side,
    form: Form,
}

/// The two containers.
enum Form {
    Hf(Plan<hf::HfPlan>),
    Gguf(Plan<gguf::GgufPlan>),
}

impl<'a> Export<'a> {
    /// Plans a checkpoint folder of `model`, whose other files are `side`.
    pub fn hf(
        model: &'a EngineModel<'a>,
        side: &'a Side,
        options: HfOptions<'_>,
    ) -> Result<Self, ExportError> {
        let form = Form::Hf(hf::plan(model.model(), side, options)?);
        Ok(Export { model, side, form })
    }

    /// Plans a GGUF file of `model`, whose other files are `side`.
    pub fn gguf(
        model: &'a EngineModel<'a>,
        side: &'a Side,
        options: GgufOptions,
    ) -> Result<Self, ExportError> {
        let form = Form::Gguf(gguf::plan(model.model(), side, options)?);
        Ok(Export { model, side, form })
    }

    /// Bytes of the weights; of a GGUF file, of all of it.
    pub fn bytes(&self) -> u64 {
        match &self.form {
            Form::Hf(plan) => plan.bytes,
            Form::Gguf(plan) => plan.bytes,
        }
    }

    /// What is not as asked, for people.
    pub fn notes(&self) -> &[String] {
        match &self.form {
            Form::Hf(plan) => &plan.notes,
            Form::Gguf(plan) => &plan.notes,
        }
    }

    /// Writes the export beside its final name. `interrupted` is asked between tensors.
    pub fn stage(
        &self,
        staging: Staging,
        progress: &dyn Progress,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<StagedExport, crate::Error> {
        let check = || {
            if interrupted() {
                Err(ExportError::Interrupted)
            } else {
                Ok(())
            }
        };
        let model = self.model.model();
        let staged = match &self.form {
            Form::Hf(plan) => {
                let staged = StagedExport::open(staging, None)?;
                staged.write_side(self.side)?;
                progress.start("export", plan.tensors as u64, "tensors");
                plan.written.write(staged.path(), model, progress, &check)?;
                staged
            }
            Form::Gguf(plan) => {
                let staged = StagedExport::open(staging, Some("export.gguf"))?;
                progress.start("export", plan.tensors as u64, "tensors");
                plan.written.write(staged.path(), model, progress, &check)?;
                staged
            }
        };
        progress.finish();
        Ok(staged)
    }
}
