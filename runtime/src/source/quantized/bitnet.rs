//! `BitNet`'s ternary matrices: codes -1, 0 and 1 in two bits, one scale for a matrix.
//!
//! Byte `[i, j]` holds column `j` of rows `i`, `i + r`, `i + 2 r` and `i + 3 r`, `r` a quarter of the rows,
//! the first in the lowest bits. `bitlinear` divides by the scale, `autobitlinear` multiplies. The scale is
//! taken in half precision, as finely as the checkpoint's own arithmetic in bfloat16 and finer.

use half::f16;
use neuroconv_format::ElementType;
use serde_json::json;

use super::parts::{Parts, Settings};
use crate::Error;

/// How a scale is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scale {
    Divides,
    Multiplies,
}

pub(super) fn settings(settings: &Settings<'_>) -> Result<Scale, Error> {
    settings.check("quantization_mode", &[json!("offline")])?;
    settings.check("use_rms_norm", &[json!(false)])?;
    match settings.get("linear_class").map(|class| class.as_str()) {
        None | Some(Some("bitlinear")) => Ok(Scale::Divides),
        Some(Some("autobitlinear")) => Ok(Scale::Multiplies),
        Some(_) => Err(settings.bad("linear_class", "known are bitlinear and autobitlinear")),
    }
}

pub(super) fn shape(parts: &Parts<'_>) -> Result<[usize; 2], Error> {
    let [quarter, cols] = parts.codes()?;
    if parts
        .find("weight_scale")
        .is_some_and(|scale| scale.shape.is_empty())
    {
        parts.expect("weight_scale", &[])?;
    } else {
        parts.expect("weight_scale", &[1])?;
    }
    Ok([quarter * 4, cols])
}

/// The values, each of which half precision holds.
pub(super) fn values(parts: &Parts<'_>, scale: Scale) -> Result<Vec<f32>, Error> {
    let bytes = parts.bytes("weight", &[ElementType::U8])?;
    let stored = parts.floats("weight_scale")?[0];
    let factor = match scale {
        Scale::Divides => f16::from_f32(1.0 / stored),
        Scale::Multiplies => f16::from_f32(stored),
    };
    if !factor.is_normal() || factor.is_sign_negative() {
        return Err(parts.bad(
            "weight_scale",
            format!("is {stored}, which half precision does not hold"),
        ));
    }
    let mut values = Vec::with_capacity(bytes.len() * 4);
    for shift in [0, 2, 4, 6] {
        for byte in &bytes {
            let code = byte >> shift & 3;
            if code == 3 {
                return Err(parts.bad("weight", "holds a code that is none of -1, 0 and 1"));
            }
            values.push((f32::from(code) - 1.0) * factor.to_f32());
        }
    }
    Ok(values)
}
