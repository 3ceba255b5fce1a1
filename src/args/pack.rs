//! Flags that say how matrices are packed.

use clap::{Args, ValueEnum};
use neuroconv_recipes::{Apart, Auto, FoldNorms, Method, Recipe};

use super::number::{group_size, magnitude, share};

/// How matrices of the blocks are packed.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct PackArgs {
    /// Columns that share a scale
    #[arg(long, value_name = "N", value_parser = group_size)]
    pub(crate) group_size: Option<usize>,

    /// How weights are rounded
    #[arg(long, value_enum, value_name = "METHOD")]
    pub(crate) method: Option<MethodArg>,

    /// Give every group a shift beside its scale
    #[arg(long)]
    pub(crate) shift: bool,

    /// Add a correction of this rank to every product, fitted to what rounding left
    #[arg(long, value_name = "R")]
    pub(crate) correct_rank: Option<usize>,

    /// Bits of the activations that meet the codes: 16 cost speed where prompts are long
    #[arg(long, value_name = "BITS", value_parser = activation_bits)]
    pub(crate) activations: Option<u8>,

    /// Multiply norm gains into the matrices that read them, where these then lose less
    #[arg(long)]
    pub(crate) fold_norms: bool,

    /// Rotate the residual stream, so that no channel of it stands out
    #[arg(long)]
    pub(crate) rotate: bool,

    /// Store this share of the columns apart in 8 bits, those that matter most
    #[arg(long, value_name = "SHARE", value_parser = share)]
    pub(crate) salient: Option<f64>,

    /// Store the columns apart in 16 bits whose inputs reach this magnitude on calibration text;
    /// `int8` only
    #[arg(long, value_name = "THRESHOLD", value_parser = magnitude, conflicts_with = "salient")]
    pub(crate) outliers: Option<f64>,
}

/// How weights are rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum MethodArg {
    /// With feedback, so that outputs for calibration text change least
    Gptq,
    /// Every group by itself
    Rtn,
}

fn activation_bits(text: &str) -> Result<u8, &'static str> {
    match text {
        "8" => Ok(8),
        "16" => Ok(16),
        _ => Err("neither 8 nor 16"),
    }
}

impl PackArgs {
    /// Changes a recipe as the flags say.
    pub(crate) fn apply(&self, recipe: &mut Recipe) -> anyhow::Result<()> {
        if let Some(group) = self.group_size {
            recipe.set_group_size(group)?;
        }
        if let Some(method) = self.method {
            let method = match method {
                MethodArg::Gptq => Method::Gptq,
                MethodArg::Rtn => Method::Rtn,
            };
            recipe.set_body("a method", |packed| packed.method = method)?;
        }
        if self.shift {
            recipe.set_body("a shift", |packed| packed.shift = true)?;
        }
        if let Some(rank) = self.correct_rank {
            recipe.set_body("a correction", |packed| packed.correct_rank = rank)?;
        }
        if let Some(bits) = self.activations {
            recipe.set_body("activations", |packed| packed.activations = bits)?;
        }
        if self.fold_norms {
            recipe.rewrites.fold_norms = FoldNorms::WhereItGains(Auto::Auto);
        }
        recipe.rewrites.rotate |= self.rotate;
        if let Some(share) = self.salient {
            let apart = Apart::Salient(share);
            recipe.set_body("columns to store apart", |packed| packed.apart = apart)?;
        }
        if let Some(threshold) = self.outliers {
            let apart = Apart::Outliers(threshold);
            recipe.set_body("columns to store apart", |packed| packed.apart = apart)?;
        }
        Ok(())
    }
}
