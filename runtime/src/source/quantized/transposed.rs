//! The matrices of GPTQ and AWQ, which lie inputs first: unsigned levels with a zero for each group.
//!
//! GPTQ packs levels down the inputs and zeros along the outputs, lowest bits first; its first format
//! stores zeros less one. AWQ packs both along the outputs, in an order of its own.

use serde_json::json;

use super::levels::{Levels, turned, unpacked};
use super::parts::{Parts, Settings};
use crate::Error;

/// Ends of the names of parts.
const CODES: &str = "qweight";
const ZEROS: &str = "qzeros";
const SCALES: &str = "scales";
const GROUP: &str = "g_idx";
/// Bits of AWQ's levels.
const AWQ_BITS: u32 = 4;
/// Which of eight outputs stands where in a word of AWQ, lowest bits first.
const AWQ_ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// What GPTQ's settings say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gptq {
    bits: u32,
    /// What is added to a stored zero.
    offset: i32,
}

pub(super) fn gptq(settings: &Settings<'_>) -> Result<Gptq, Error> {
    let known = [json!("gptq"), json!("gptq_v2")];
    settings.check("checkpoint_format", &known)?;
    settings.check("format", &known)?;
    settings.nothing("is_marlin_format")?;
    // Other bits for single matrices.
    settings.nothing("dynamic")?;
    let form = settings.get("checkpoint_format").or(settings.get("format"));
    let offset = i32::from(form != Some(&known[1]));
    match settings.needed("bits")?.as_u64() {
        Some(bits @ (4 | 8)) => Ok(Gptq {
            bits: bits as u32,
            offset,
        }),
        _ => Err(settings.bad("bits", "known are 4 and 8")),
    }
}

pub(super) fn check_awq(settings: &Settings<'_>) -> Result<(), Error> {
    settings.needed("bits")?;
    settings.check("bits", &[json!(AWQ_BITS)])?;
    settings.check("version", &[json!("gemm"), json!("GEMM")])
}

/// Outputs, inputs and groups.
struct Sizes {
    rows: usize,
    cols: usize,
    groups: usize,
}

/// Checks zeros and scales of a matrix of `rows` outputs and `cols` inputs.
fn sizes(parts: &Parts<'_>, rows: usize, cols: usize, bits: u32) -> Result<Sizes, Error> {
    let [groups, _] = parts.pair(SCALES)?;
    parts.expect(SCALES, &[groups, rows])?;
    let per_word = 32 / bits as usize;
    if !rows.is_multiple_of(per_word) {
        return Err(parts.bad(
            CODES,
            format!("has {rows} outputs, not a multiple of {per_word}"),
        ));
    }
    parts.expect(ZEROS, &[groups, rows / per_word])?;
    Ok(Sizes { rows, cols, groups })
}

impl Gptq {
    fn sizes(self, parts: &Parts<'_>) -> Result<Sizes, Error> {
        let [words, rows] = parts.codes()?;
        let sizes = sizes(parts, rows, words * (32 / self.bits as usize), self.bits)?;
        if parts.find(GROUP).is_some() {
            parts.expect(GROUP, &[sizes.cols])?;
        } else if !sizes.cols.is_multiple_of(sizes.groups) {
            return Err(parts.bad(SCALES, format!("has {} groups", sizes.groups)));
        }
        Ok(sizes)
    }

    pub(super) fn shape(self, parts: &Parts<'_>) -> Result<[usize; 2], Error> {
        let sizes = self.sizes(parts)?;
        Ok([sizes.rows, sizes.cols])
    }

    pub(super) fn values(self, parts: &Parts<'_>) -> Result<Vec<f32>, Error> {
        let Sizes { rows, cols, groups } = self.sizes(parts)?;
        // By outputs, the words of a row follow each other.
        let words = turned(&parts.words(CODES)?, rows);
        let zeros: Vec<i32> = unpacked(&parts.words(ZEROS)?, self.bits).collect();
        let zeros = zeros.iter().map(|zero| zero + self.offset);
        let group_of = match parts.find(GROUP) {
            Some(_) => parts.indices(GROUP, groups)?,
            None => Levels::in_order(cols, groups),
        };
        let levels = Levels {
            cols,
            groups,
            group_of,
            codes: unpacked(&words, self.bits).collect(),
            zeros: turned(&zeros.collect::<Vec<_>>(), rows),
            scales: turned(&parts.floats(SCALES)?, rows),
        };
        Ok(levels.values())
    }
}

fn awq_sizes(parts: &Parts<'_>) -> Result<Sizes, Error> {
    let [cols, words] = parts.codes()?;
    let sizes = sizes(parts, words * (32 / AWQ_BITS as usize), cols, AWQ_BITS)?;
    if !sizes.cols.is_multiple_of(sizes.groups) {
        return Err(parts.bad(SCALES, format!("has {} groups", sizes.groups)));
    }
    Ok(sizes)
}

pub(super) fn awq_shape(parts: &Parts<'_>) -> Result<[usize; 2], Error> {
    let sizes = awq_sizes(parts)?;
    Ok([sizes.rows, sizes.cols])
}

pub(super) fn awq_values(parts: &Parts<'_>) -> Result<Vec<f32>, Error> {
    let Sizes { rows, cols, groups } = awq_sizes(parts)?;
    let levels = Levels {
        cols,
        groups,
        group_of: Levels::in_order(cols, groups),
        codes: turned(&in_order(&parts.words(CODES)?), rows),
        zeros: turned(&in_order(&parts.words(ZEROS)?), rows),
        scales: turned(&parts.floats(SCALES)?, rows),
    };
    Ok(levels.values())
}

/// AWQ's numbers in the order of outputs.
fn in_order(words: &[u32]) -> Vec<i32> {
    let stored: Vec<i32> = unpacked(words, AWQ_BITS).collect();
    let mut ordered = vec![0; stored.len()];
    let words = ordered.chunks_exact_mut(8).zip(stored.chunks_exact(8));
    for (ordered, stored) in words {
        for (&to, &number) in AWQ_ORDER.iter().zip(stored) {
            ordered[to] = number;
        }
    }
    ordered
}
