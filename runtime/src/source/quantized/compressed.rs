//! The form `pack-quantized` of compressed-tensors: signed levels of four or eight bits along rows.
//!
//! Word `[r, j]` holds levels of row `r` from the lowest bits on, each `2^(bits-1)` above its value; zeros
//! are packed alike, but down the columns. How many bits a level has follows from the shapes.

use neuroconv_format::ElementType;
use serde_json::json;

use super::levels::{Levels, turned, unpacked};
use super::parts::{Parts, Settings};
use crate::Error;

/// Ends of the names of parts.
const CODES: &str = "weight_packed";
const SCALE: &str = "weight_scale";
const SHAPE: &str = "weight_shape";
const ZERO: &str = "weight_zero_point";
const GROUP: &str = "weight_g_idx";

/// Refuses what is packed in another way.
pub(super) fn check(settings: &Settings<'_>) -> Result<(), Error> {
    const FORMAT: &str = "pack-quantized";
    settings.check("format", &[json!(FORMAT), json!("mixed-precision")])?;
    settings.nothing("sparsity_config")?;
    settings.nothing("transform_config")?;
    let groups = settings.needed("config_groups")?;
    let groups = groups.as_object().into_iter().flatten();
    for (_, group) in groups {
        let form = &group["format"];
        if !(form.is_null() || form == FORMAT) {
            return Err(settings.bad("config_groups", &format!("a group's format is {form}")));
        }
        if group["weights"]["type"] != "int" {
            return Err(settings.bad("config_groups", "weights that are no integers"));
        }
        if !group["input_activations"].is_null() {
            return Err(settings.bad("config_groups", "activations that are rounded"));
        }
    }
    Ok(())
}

/// How a matrix is packed.
struct Layout {
    rows: usize,
    cols: usize,
    bits: u32,
    groups: usize,
}

impl Layout {
    fn of(parts: &Parts<'_>) -> Result<Self, Error> {
        let [rows, words] = parts.codes()?;
        let bytes = parts.bytes(SHAPE, &[ElementType::I64])?;
        let shape = bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b));
        let cols = match *shape.collect::<Vec<_>>() {
            [r, cols] if usize::try_from(r) == Ok(rows) => usize::try_from(cols).ok(),
            _ => None,
        };
        let bits = |&bits: &u32| cols.map(|cols| cols.div_ceil(32 / bits as usize)) == Some(words);
        let (Some(cols), Some(bits)) = (cols, [4, 8].into_iter().find(bits)) else {
            let problem = format!("does not fit {rows} rows of {words} words of 4 or 8 bits");
            return Err(parts.bad(SHAPE, problem));
        };
        let groups = match parts.pair(SCALE)? {
            [r, groups] if r == rows && cols.is_multiple_of(groups) => groups,
            found => {
                let problem = format!("has shape {found:?}, which does not fit {rows} x {cols}");
                return Err(parts.bad(SCALE, problem));
            }
        };
        if parts.find(ZERO).is_some() {
            parts.expect(ZERO, &[rows.div_ceil(32 / bits as usize), groups])?;
        }
        if parts.find(GROUP).is_some() {
            parts.expect(GROUP, &[cols])?;
        }
        Ok(Layout {
            rows,
            cols,
            bits,
            groups,
        })
    }
}

pub(super) fn shape(parts: &Parts<'_>) -> Result<[usize; 2], Error> {
    let layout = Layout::of(parts)?;
    Ok([layout.rows, layout.cols])
}

pub(super) fn values(parts: &Parts<'_>) -> Result<Vec<f32>, Error> {
    let Layout {
        rows,
        cols,
        bits,
        groups,
    } = Layout::of(parts)?;
    let middle = 1 << (bits - 1);
    let words = parts.words(CODES)?;
    let mut levels = Vec::with_capacity(rows * cols);
    for row in words.chunks_exact(words.len() / rows) {
        levels.extend(unpacked(row, bits).take(cols).map(|code| code - middle));
    }
    let mut zeros = Vec::new();
    if parts.find(ZERO).is_some() {
        // One column of words after the other, then back to rows of groups.
        let words = parts.words(ZERO)?;
        let down = turned(&words, groups);
        let mut by_group = Vec::with_capacity(rows * groups);
        for column in down.chunks_exact(words.len() / groups) {
            by_group.extend(unpacked(column, bits).take(rows).map(|code| code - middle));
        }
        zeros = turned(&by_group, rows);
    }
    let group_of = match parts.find(GROUP) {
        Some(_) => parts.indices(GROUP, groups)?,
        None => Levels::in_order(cols, groups),
    };
    let levels = Levels {
        cols,
        groups,
        group_of,
        codes: levels,
        zeros,
        scales: parts.floats(SCALE)?,
    };
    Ok(levels.values())
}
