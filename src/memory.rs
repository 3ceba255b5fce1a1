//! How much memory a conversion and its verification will take, before anything is read.
//!
//! Owns the estimate of verification and the comparison with what the user allows. Only what grows
//! with the model is counted, and a constant for all else.

use std::fmt;
use std::str::FromStr;

use neuroconv_convert::{Plan, PlannedTensor};

use crate::present;

/// Program, tokenizer, texts and statistics.
const CONSTANT: u64 = 128 << 20;
/// Residual streams of a batch, of the original and of the artifact before and after a layer, and
/// logits.
const BATCH: u64 = 4 * (64 << 20);

/// A number of bytes as people write it: `1.5GiB`, `800MB`, `2G`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse =
            || format!("`{text}` is no size: expected a number and a unit, as in `1.5GiB`");
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
        let (number, unit) = text.split_at(end.unwrap_or(text.len()));
        let number: f64 = number.parse().map_err(|_| refuse())?;
        let factor: f64 = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1.0,
            "kb" => 1e3,
            "mb" => 1e6,
            "gb" => 1e9,
            "tb" => 1e12,
            "k" | "kib" => 1024.0,
            "m" | "mib" => 1024.0 * 1024.0,
            "g" | "gib" => 1024.0 * 1024.0 * 1024.0,
            "t" | "tib" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
            _ => return Err(refuse()),
        };
        Ok(Size((number * factor) as u64))
    }
}

/// More memory is needed than is allowed.
#[derive(Debug, thiserror::Error)]
#[error("{step} needs about {needed} of memory, and --max-memory allows {allowed}")]
pub(crate) struct TooLittleMemory {
    step: &'static str,
    needed: String,
    allowed: String,
}

impl TooLittleMemory {
    /// What to do about it.
    pub(crate) const HINT: &str =
        "rounding with `--calib none` and fewer `--calib-tokens` need less; else allow more";
}

/// Estimates of the most memory that is held at a time, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    convert: u64,
    verify: u64,
}

impl Memory {
    /// What `plan` needs.
    pub(crate) fn of(plan: &Plan) -> Self {
        Memory {
            convert: plan.peak_memory_bytes + CONSTANT,
            verify: verification(&plan.tensors) + BATCH + CONSTANT,
        }
    }

    /// Refuses more than `allowed`, before anything is read.
    pub(crate) fn check(self, allowed: Option<Size>) -> Result<(), TooLittleMemory> {
        let Some(Size(allowed)) = allowed else {
            return Ok(());
        };
        for (step, needed) in [
            ("the conversion", self.convert),
            ("its verification", self.verify),
        ] {
            if needed > allowed {
                return Err(TooLittleMemory {
                    step,
                    needed: present::bytes(needed),
                    allowed: present::bytes(allowed),
                });
            }
        }
        Ok(())
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [convert, verify] = [self.convert, self.verify].map(present::bytes);
        write!(f, "{convert} of memory to convert, {verify} to verify")
    }
}

/// The largest of what is held at a time: a layer in single precision for the reference, with the last
/// of its tensors as it is stored; or a tensor that is compared. The heads of both models are less.
fn verification(tensors: &[PlannedTensor]) -> u64 {
    let stored = |t: &PlannedTensor| t.elements() * t.source_dtype.size() as u64;
    let layers = tensors.chunk_by(|a, b| a.id.layer == b.id.layer);
    let layers = layers.filter(|layer| layer[0].id.layer.is_some());
    let layers = layers.map(|layer| {
        let floats: u64 = layer.iter().map(|t| 4 * t.elements()).sum();
        floats + layer.iter().map(stored).max().unwrap_or(0)
    });
    let compared = tensors.iter();
    let compared = compared.map(|t| 4 * t.elements() + stored(t) + t.bytes);
    layers.chain(compared).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let size = |text: &str| text.parse::<Size>().map(|size| size.0);
        assert_eq!(size("1.5GiB"), Ok(3 << 29));
        assert_eq!(size("800MB"), Ok(800_000_000));
        assert_eq!(size("2g"), Ok(2 << 30));
        assert_eq!(size("4096"), Ok(4096));
        for text in ["", "GiB", "1.5 parsecs", "-1G", "1..5G"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
