//! Matrices in eight-bit floats (E4M3) with a scale for each block of rows and columns.

use neuroconv_format::ElementType;
use serde_json::json;

use super::parts::{Parts, Settings};
use crate::Error;

const SCALE: &str = "weight_scale_inv";

/// Rows and columns that share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    rows: usize,
    cols: usize,
}

pub(super) fn settings(settings: &Settings<'_>) -> Result<Block, Error> {
    settings.check("fmt", &[json!("e4m3")])?;
    let sides = settings.needed("weight_block_size")?.as_array();
    let side = |value: &serde_json::Value| {
        let side = value.as_u64().filter(|side| (1..=1 << 20).contains(side));
        side.and_then(|side| usize::try_from(side).ok())
    };
    match sides.map(|sides| sides.iter().filter_map(side).collect::<Vec<_>>()) {
        Some(sides) if sides.len() == 2 => Ok(Block {
            rows: sides[0],
            cols: sides[1],
        }),
        _ => Err(settings.bad("weight_block_size", "it is two numbers of 1 and more")),
    }
}

pub(super) fn shape(parts: &Parts<'_>, block: Block) -> Result<[usize; 2], Error> {
    let [rows, cols] = parts.codes()?;
    parts.expect(
        SCALE,
        &[rows.div_ceil(block.rows), cols.div_ceil(block.cols)],
    )?;
    Ok([rows, cols])
}

pub(super) fn values(parts: &Parts<'_>, block: Block) -> Result<Vec<f32>, Error> {
    let [_, cols] = parts.codes()?;
    let bytes = parts.bytes("weight", &[ElementType::F8_E4M3])?;
    let scales = parts.floats(SCALE)?;
    let blocks = cols.div_ceil(block.cols);
    let value = |(at, &byte): (usize, &u8)| {
        let (row, col) = (at / cols, at % cols);
        e4m3(byte) * scales[row / block.rows * blocks + col / block.cols]
    };
    Ok(bytes.iter().enumerate().map(value).collect())
}

/// One bit of sign, four of exponent with bias 7, three of fraction. No infinities: all ones is no number.
fn e4m3(byte: u8) -> f32 {
    let (exponent, fraction) = (byte >> 3 & 15, byte & 7);
    let magnitude = match (exponent, fraction) {
        (15, 7) => f32::NAN,
        (0, _) => f32::from(fraction) / 512.0,
        _ => f32::from(8 + fraction) * 2_f32.powi(i32::from(exponent) - 10),
    };
    if byte & 0x80 == 0 {
        magnitude
    } else {
        -magnitude
    }
}
