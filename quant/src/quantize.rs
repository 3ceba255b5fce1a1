//! A whole matrix to packed bytes, every group rounded on its own: panels in parallel.

use std::borrow::Cow;
use std::ops::Range;

use neuroconv_format::codec::PANEL_ROWS;
use neuroconv_format::{DenseTensor, PackedLayout, PackedTensor};
use pulp::Arch;
use rayon::prelude::*;

use crate::Threshold;
use crate::error::Error;
use crate::fit::{self, Grid, GroupFit, ternary};
use crate::levels::Levels;
use crate::pack::{Packing, Panel};
use crate::stats::{FitStats, Tally};

/// What to round a matrix to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QuantizeSpec {
    /// The levels there are.
    pub levels: Levels,
    /// Columns that share a scale: 32, 64, 128 or 256.
    pub group: usize,
    /// How ternary levels are told from zero; without effect on others.
    pub threshold: Threshold,
    /// Whether each group also has a shift.
    pub shift: bool,
}

impl QuantizeSpec {
    /// Groups of `group` columns with the threshold of least squared error and no shift.
    pub fn new(levels: impl Into<Levels>, group: usize) -> Self {
        QuantizeSpec {
            levels: levels.into(),
            group,
            threshold: Threshold::Mse,
            shift: false,
        }
    }

    /// What the groups of one row are fitted with.
    pub(crate) fn grid(&self, row: &[f32]) -> Result<Grid, Error> {
        let rule = match self.levels {
            Levels::Ternary => ternary::Rule::for_row(self.threshold, row)?,
            Levels::Nine | Levels::Int4 | Levels::Int8 => ternary::Rule::Mse,
        };
        Ok(Grid {
            levels: self.levels,
            rule,
            shift: self.shift,
        })
    }

    /// The layout of a matrix rounded so.
    pub fn layout(&self, rows: usize, cols: usize) -> Result<PackedLayout, Error> {
        let codec = self.levels.codec();
        Ok(PackedLayout::new(
            codec, rows, cols, self.group, self.shift,
        )?)
    }
}

/// Fits and packs `w_nk`, `[rows, cols]` row-major, to the nearest levels of each group.
/// `importance`, `[cols]`, weighs the squared error of each column.
///
/// The bytes do not depend on the number of threads. Refuses weights that are not finite and
/// groups whose scale is beyond f16, naming the first.
pub fn quantize(
    w_nk: &[f32],
    rows: usize,
    cols: usize,
    spec: &QuantizeSpec,
    importance: Option<&[f32]>,
) -> Result<(PackedTensor, FitStats), Error> {
    check_length(w_nk.len(), rows, cols)?;
    let panel = |range: Range<usize>| Cow::Borrowed(&w_nk[range]);
    quantize_panels(panel, rows, cols, spec, importance)
}

/// The same for a matrix as it is stored; single precision is made of 16 rows at a time.
///
/// Panics where the tensor does not have the bytes of its shape.
pub fn quantize_stored(
    w_nk: &DenseTensor,
    spec: &QuantizeSpec,
    importance: Option<&[f32]>,
) -> Result<(PackedTensor, FitStats), Error> {
    let rows = w_nk.shape.first().copied().unwrap_or(1);
    let cols = w_nk.shape.iter().skip(1).product();
    check_length(w_nk.len(), rows, cols)?;
    let panel = |range| Cow::Owned(w_nk.part(range).expect("the length was checked").to_f32());
    quantize_panels(panel, rows, cols, spec, importance)
}

/// `panel` gives a range of the weights.
fn quantize_panels<'w>(
    panel: impl Fn(Range<usize>) -> Cow<'w, [f32]> + Sync,
    rows: usize,
    cols: usize,
    spec: &QuantizeSpec,
    importance: Option<&[f32]>,
) -> Result<(PackedTensor, FitStats), Error> {
    let mut packing = Packing::new(spec.layout(rows, cols)?);
    let tallies: Vec<Result<Tally, Error>> = packing
        .panels()
        .enumerate()
        .map(|(index, mut packed)| {
            let first = index * PANEL_ROWS;
            let last = (first + PANEL_ROWS).min(rows);
            let w = panel(first * cols..last * cols);
            wide(
                #[inline(always)]
                || {
                    check_finite(&w, cols)?;
                    quantize_panel(&w, cols, spec, importance, &mut packed)
                },
            )
            .map_err(|e| e.below(first))
        })
        .collect();
    let mut total = Tally::new();
    for tally in tallies {
        total.merge(&tally?);
    }
    Ok((packing.finish(), total.stats()))
}

/// Refuses a number of weights that is not that of the shape, and weights that are not finite.
pub(crate) fn check_weights(w_nk: &[f32], rows: usize, cols: usize) -> Result<(), Error> {
    check_length(w_nk.len(), rows, cols)?;
    check_finite(w_nk, cols)
}

fn check_length(found: usize, rows: usize, cols: usize) -> Result<(), Error> {
    if found == rows * cols {
        Ok(())
    } else {
        Err(Error::Length { rows, cols, found })
    }
}

#[inline(always)]
fn check_finite(w_nk: &[f32], cols: usize) -> Result<(), Error> {
    // Without a branch per weight, since almost always all are.
    if w_nk.iter().fold(true, |finite, w| finite & w.is_finite()) {
        return Ok(());
    }
    match w_nk.iter().position(|w| !w.is_finite()) {
        Some(at) => Err(Error::NotFinite {
            row: at / cols,
            col: at % cols,
            value: w_nk[at],
        }),
        None => Ok(()),
    }
}

/// Runs `act` compiled for the widest registers there are, so far as what it calls is inlined: the
/// compiler makes SIMD of the loops. The order of all sums is written out, so results are the same.
#[inline(always)]
fn wide<T>(act: impl FnOnce() -> T) -> T {
    Arch::new().dispatch(act)
}

/// Fills the codes and scales of up to 16 rows.
#[inline(always)]
fn quantize_panel(
    w: &[f32],
    cols: usize,
    spec: &QuantizeSpec,
    importance: Option<&[f32]>,
    packed: &mut Panel<'_>,
) -> Result<Tally, Error> {
    let mut tally = Tally::new();
    let mut levels = vec![0; cols];
    let mut fits: Vec<GroupFit> = Vec::with_capacity(cols.div_ceil(spec.group));
    for (r, row) in w.chunks(cols).enumerate() {
        let grid = spec.grid(row)?;
        fits.clear();
        let groups = row.chunks(spec.group).zip(levels.chunks_mut(spec.group));
        for (g, (w, levels)) in groups.enumerate() {
            let own = importance.map(|h| &h[g * spec.group..][..w.len()]);
            let found = fit::fit(w, own, &grid, levels);
            check_scale(r, g, w, found)?;
            tally.add_group(w, levels, found);
            fits.push(found);
        }
        packed.store(r, &levels, &fits);
    }
    Ok(tally)
}

/// Refuses a scale or shift beyond f16.
pub(crate) fn check_scale(row: usize, group: usize, w: &[f32], fit: GroupFit) -> Result<(), Error> {
    if fit.scale.is_finite() && fit.shift.is_finite() {
        return Ok(());
    }
    let largest = w.iter().fold(0.0_f32, |largest, w| largest.max(w.abs()));
    Err(Error::ScaleOverflow {
        row,
        group,
        largest,
    })
}
