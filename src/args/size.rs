//! The flag that names a size.

use std::str::FromStr;

use clap::Args;

/// Which size is aimed at.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct SizeArgs {
    /// Choose for every matrix how it is packed, so that the model is as good as it can be with so
    /// many bits per weight in its whole file; `smallest`: with as few as pass the gate
    #[arg(long, value_name = "BITS|smallest", allow_negative_numbers = true)]
    pub(crate) target_bpw: Option<TargetSize>,
}

/// A size to aim at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum TargetSize {
    /// At most so many stored bits per parameter.
    BitsPerWeight(f64),
    /// The smallest that passes.
    Smallest,
}

impl FromStr for TargetSize {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match (text, text.parse()) {
            ("smallest", _) => Ok(TargetSize::Smallest),
            (_, Ok(bits)) if bits > 0.0 && f64::is_finite(bits) => {
                Ok(TargetSize::BitsPerWeight(bits))
            }
            _ => Err("neither a number of bits above 0 nor `smallest`"),
        }
    }
}
