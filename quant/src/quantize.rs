//! A whole matrix to packed bytes: panels in parallel, each row and group fitted on its own.

use neuroconv_format::codec::PANEL_ROWS;
use neuroconv_format::{Codec, PackedLayout, PackedTensor};
use neuroconv_kernels::layout;
use rayon::prelude::*;

use crate::Threshold;
use crate::dequantize::kernel_codes;
use crate::error::Error;
use crate::fit::{self, ternary};
use crate::stats::{FitStats, Tally};

/// How to quantize a matrix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QuantizeSpec {
    /// Levels and their storage.
    pub codec: Codec,
    /// Columns that share a scale: 32, 64, 128 or 256.
    pub group: usize,
    /// How ternary levels are told from zero; without effect on other codecs.
    pub threshold: Threshold,
}

/// Fits and packs `w_nk`, `[rows, cols]` row-major, to the nearest levels of each group.
///
/// The bytes do not depend on the number of threads. Refuses weights that are not finite and
/// groups whose scale is beyond f16, naming the first.
pub fn quantize(
    w_nk: &[f32],
    rows: usize,
    cols: usize,
    spec: &QuantizeSpec,
) -> Result<(PackedTensor, FitStats), Error> {
    let layout = PackedLayout::new(spec.codec, rows, cols, spec.group, false)?;
    if w_nk.len() != rows * cols {
        return Err(Error::Length {
            rows,
            cols,
            found: w_nk.len(),
        });
    }
    let mut bytes = vec![0; layout.size_bytes()];
    let (codes, rest) = bytes.split_at_mut(layout.codes().end);
    let scales = &mut rest[..layout.scales().len()];
    let (code_bytes, scale_bytes) = (
        codes.len() / layout.panels(),
        scales.len() / layout.panels(),
    );
    let tallies: Vec<Result<Tally, Error>> = w_nk
        .par_chunks(PANEL_ROWS * cols)
        .zip(
            codes
                .par_chunks_mut(code_bytes)
                .zip(scales.par_chunks_mut(scale_bytes)),
        )
        .enumerate()
        .map(|(panel, (w, (codes, scales)))| {
            quantize_panel(w, cols, spec, codes, scales).map_err(|e| below(e, panel * PANEL_ROWS))
        })
        .collect();
    let mut total = Tally::new();
    for tally in tallies {
        total.merge(&tally?);
    }
    Ok((PackedTensor::new(layout, bytes), total.stats()))
}

/// An error of a panel whose first row is `first` of the matrix.
fn below(error: Error, first: usize) -> Error {
    match error {
        Error::NotFinite { row, col, value } => Error::NotFinite {
            row: first + row,
            col,
            value,
        },
        Error::ScaleOverflow {
            row,
            group,
            largest,
        } => Error::ScaleOverflow {
            row: first + row,
            group,
            largest,
        },
        other => other,
    }
}

/// Fills the codes and scales of up to 16 rows.
fn quantize_panel(
    w: &[f32],
    cols: usize,
    spec: &QuantizeSpec,
    codes: &mut [u8],
    scales: &mut [u8],
) -> Result<Tally, Error> {
    let kind = kernel_codes(spec.codec);
    let block_bytes = kind.block_bytes(spec.group);
    codes.fill(kind.zero_byte());
    let mut tally = Tally::new();
    let mut levels = [0; layout::MAX_GROUP];
    for (r, row) in w.chunks(cols).enumerate() {
        if let Some((col, &value)) = row.iter().enumerate().find(|(_, w)| !w.is_finite()) {
            return Err(Error::NotFinite { row: r, col, value });
        }
        let rule = match spec.codec {
            Codec::Ternary => ternary::Rule::for_row(spec.threshold, row)?,
            Codec::Int4 | Codec::Int8 => ternary::Rule::Mse,
        };
        let blocks = codes
            .chunks_mut(block_bytes)
            .zip(scales.chunks_mut(2 * PANEL_ROWS));
        for (g, (w, (block, scales))) in row.chunks(spec.group).zip(blocks).enumerate() {
            let levels = &mut levels[..w.len()];
            let scale = match spec.codec {
                Codec::Ternary => ternary::fit(w, None, rule, levels),
                Codec::Int4 => fit::int4::fit(w, levels),
                Codec::Int8 => fit::int8::fit(w, levels),
            };
            if scale.is_infinite() {
                let largest = w.iter().fold(0.0_f32, |largest, w| largest.max(w.abs()));
                return Err(Error::ScaleOverflow {
                    row: r,
                    group: g,
                    largest,
                });
            }
            tally.add_group(w, levels, scale.to_f32());
            layout::pack_row(kind, block, r, levels);
            scales[2 * r..2 * r + 2].copy_from_slice(&scale.to_le_bytes());
        }
    }
    Ok(tally)
}
