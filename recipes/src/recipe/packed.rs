//! How a matrix is packed: levels, groups, and what is done so that little is lost.

use serde::{Deserialize, Serialize};

use super::Threshold;
use crate::Error;

/// Group sizes a packed layout may have.
pub(crate) const GROUP_SIZES: [usize; 4] = [32, 64, 128, 256];
/// The group size where none is named.
const DEFAULT_GROUP: usize = 128;

/// How a matrix is packed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Packed {
    /// Levels of a weight.
    pub kind: PackedKind,
    /// Inputs that share a scale.
    pub group_size: usize,
    /// How weights are rounded.
    pub method: Method,
    /// Which weights become zero; ternary only.
    pub threshold: Threshold,
    /// Ternary planes, 1 or 2; ternary only. Two are tied, `3 · t₁ + t₂`, so that they are nine
    /// levels in four bits.
    pub planes: u8,
    /// Whether groups have a shift beside the scale; not with `int8`.
    pub shift: bool,
    /// Rank of the correction that is added to the product; 0 for none.
    pub correct_rank: usize,
    /// Which columns are stored apart, with more bits.
    pub apart: Apart,
    /// Bits of the activations that meet the codes, 8 or 16.
    pub activations: u8,
}

/// Levels of a packed weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PackedKind {
    /// Three levels.
    Ternary,
    /// Sixteen levels.
    Int4,
    /// 255 levels.
    Int8,
}

impl PackedKind {
    /// The name in recipes, manifests and messages.
    pub const fn name(self) -> &'static str {
        match self {
            PackedKind::Ternary => "ternary",
            PackedKind::Int4 => "int4",
            PackedKind::Int8 => "int8",
        }
    }
}

/// How weights are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// With feedback, so that outputs for calibration text change least.
    Gptq,
    /// Every group by itself, so that weights change least.
    Rtn,
}

impl Method {
    /// The name in recipes.
    pub const fn name(self) -> &'static str {
        match self {
            Method::Gptq => "gptq",
            Method::Rtn => "rtn",
        }
    }
}

/// Which columns of a matrix are stored apart, with more bits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Apart {
    /// None.
    None,
    /// This share of the columns, above 0 and at most 1: those whose inputs and weights are largest,
    /// in eight bits.
    Salient(f64),
    /// Those whose inputs reach this magnitude somewhere in the calibration text, in half precision;
    /// `int8` only. 0 takes all columns, infinity none.
    Outliers(f64),
}

impl Packed {
    /// The defaults of a kind.
    pub const fn new(kind: PackedKind) -> Self {
        Packed {
            kind,
            group_size: DEFAULT_GROUP,
            method: match kind {
                PackedKind::Ternary | PackedKind::Int4 => Method::Gptq,
                // 255 levels leave nothing that feedback could make good.
                PackedKind::Int8 => Method::Rtn,
            },
            threshold: Threshold::Mse,
            planes: 1,
            shift: false,
            correct_rank: 0,
            apart: Apart::None,
            activations: match kind {
                // Eight bits would cost four times what the weights do.
                PackedKind::Int8 => 16,
                PackedKind::Ternary | PackedKind::Int4 => 8,
            },
        }
    }

    /// The same with groups of another size.
    #[must_use]
    pub const fn with_group(self, group_size: usize) -> Self {
        Packed { group_size, ..self }
    }

    /// A short name that tells ways apart: `int4`, `int4 g32`, `ternary x2 r16`.
    pub fn label(&self) -> String {
        let mut words = vec![self.kind.name().to_owned()];
        if self.planes > 1 {
            words.push("x2".to_owned());
        }
        if self.group_size != DEFAULT_GROUP {
            words.push(format!("g{}", self.group_size));
        }
        if self.shift {
            words.push("shifted".to_owned());
        }
        if self.correct_rank > 0 {
            words.push(format!("r{}", self.correct_rank));
        }
        match self.apart {
            Apart::None => {}
            Apart::Salient(_) => words.push("salient".to_owned()),
            Apart::Outliers(_) => words.push("outliers".to_owned()),
        }
        words.join(" ")
    }

    /// Whether rounding is fitted to calibration text.
    pub fn learns(&self) -> bool {
        let salient = matches!(self.apart, Apart::Salient(_));
        self.method == Method::Gptq || self.correct_rank > 0 || salient
    }

    /// Whether calibration text is needed.
    pub fn reads_text(&self) -> bool {
        self.learns() || matches!(self.apart, Apart::Outliers(_))
    }

    /// Fails for what cannot be.
    pub(super) fn check(&self) -> Result<(), Error> {
        check_group_size(self.group_size)?;
        let bad = |key, reason: &str| {
            Err(Error::Packing {
                key,
                kind: self.kind.name(),
                reason: reason.to_owned(),
            })
        };
        if !matches!(self.activations, 8 | 16) {
            return bad("activations", "they have 8 bits or 16");
        }
        if !matches!(self.planes, 1 | 2) {
            return bad("planes", "there are one or two");
        }
        match self.apart {
            Apart::Salient(share) if !(share > 0.0 && share <= 1.0) => {
                return bad(
                    "salient",
                    "it is a share of the columns, above 0 and at most 1",
                );
            }
            Apart::Outliers(threshold) => {
                if threshold.is_nan() || threshold < 0.0 {
                    return bad("outliers", "the threshold is a magnitude, 0 or more");
                }
                if self.kind != PackedKind::Int8 || self.learns() {
                    let reason =
                        "they are kept apart beside `int8` that is rounded without feedback";
                    return bad("outliers", reason);
                }
            }
            Apart::None | Apart::Salient(_) => {}
        }
        if self.shift && self.kind == PackedKind::Int8 {
            return bad("shift", "255 levels follow any weights without one");
        }
        Ok(())
    }
}

pub(super) fn check_group_size(found: usize) -> Result<(), Error> {
    if GROUP_SIZES.contains(&found) {
        Ok(())
    } else {
        Err(Error::GroupSize { found })
    }
}
