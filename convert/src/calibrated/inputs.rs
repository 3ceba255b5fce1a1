//! What the matrices of a layer read: moments of the rounded model's activations, and how the
//! source's differ from them.
//!
//! Owns what is summed; the sums are those of [`Moments`]. Windows are taken in blocks of a fixed
//! size and in order, so sums never depend on the number of threads.

use faer::{Mat, MatRef};
use neuroconv_recipes::Role;
use neuroconv_runtime::OneLayer;
use rayon::prelude::*;

use crate::mla::Error;
use crate::mla::activations::blocks;
use crate::mla::linalg::{damped, narrow, par_mul, solve_spd};
use crate::mla::moments::Moments;
use crate::mla::refit::Agreed;

/// Every eighth window tells how much of a fitted change is real.
const HELD_OUT_EVERY: usize = 8;
/// Share of the mean second moment that is added before the regression.
const RIDGE: f64 = 0.01;

/// The residual streams of both models before a layer: `[t, hidden]` for each window.
#[derive(Debug)]
pub(super) struct Streams {
    pub(super) source: Vec<Vec<f32>>,
    pub(super) rounded: Vec<Vec<f32>>,
}

impl Streams {
    /// Takes both through a layer.
    pub(super) fn run(&mut self, source: &OneLayer, rounded: &OneLayer) {
        self.source.par_iter_mut().for_each(|x_td| source.run(x_td));
        self.rounded
            .par_iter_mut()
            .for_each(|x_td| rounded.run(x_td));
    }
}

/// What the matrices of one role, and those that share their input, read.
pub(super) struct Inputs {
    /// `E[x xᵀ]` of the rounded model.
    pub(super) moments: Mat<f64>,
    /// `d` such that `x + d x` is the source's input as far as the rounded model's tells it:
    /// `[n, n]`. `None` where nothing differs.
    pub(super) change: Option<Mat<f32>>,
    /// Sums of squares of the source's inputs, `[n]`.
    pub(super) source_squares: Vec<f32>,
}

impl Inputs {
    /// Columns that are zero for every token.
    pub(super) fn idle_columns(&self) -> usize {
        let diagonal = (0..self.moments.nrows()).map(|i| self.moments[(i, i)]);
        diagonal.filter(|&square| square == 0.0).count()
    }
}

/// The inputs of the matrix `role` in both models, the same layer of each.
pub(super) struct Observed<'a> {
    pub(super) streams: &'a Streams,
    pub(super) source: &'a OneLayer,
    pub(super) rounded: &'a OneLayer,
    pub(super) role: Role,
}

impl Observed<'_> {
    /// The moments over all windows; `None` where the matrix does not read activations as they are.
    pub(super) fn inputs(&self) -> Result<Option<Inputs>, Error> {
        let windows = self.streams.rounded.len();
        let every = HELD_OUT_EVERY.min(windows.max(2));
        let (held_out, fitted): (Vec<usize>, Vec<usize>) =
            (0..windows).partition(|w| w % every == every - 1);
        let mut sums: Option<Moments> = None;
        let mut squares = Vec::new();
        for block in blocks(&fitted) {
            let Some(block) = self.block(block) else {
                return Ok(None);
            };
            block.add_squares(&mut squares);
            let Block { rounded, more } = block;
            let n = rounded.nrows();
            sums.get_or_insert_with(|| Moments::zeros(n, n))
                .add_block(rounded.as_ref(), more.as_ref());
        }
        let Some(mut sums) = sums else {
            return Ok(None);
        };
        let mut change = change(&sums)?;
        if let Some(change) = &mut change {
            let mut agreed = Agreed::default();
            for block in held_out.iter().filter_map(|w| self.block(&[*w])) {
                let moved = par_mul(change.as_ref(), block.rounded.as_ref());
                agreed.add(moved.as_ref(), block.more.as_ref());
            }
            *change *= faer::Scale(agreed.share() as f32);
        }
        // The held-out windows are only kept from the regression.
        for block in held_out.iter().filter_map(|w| self.block(&[*w])) {
            block.add_squares(&mut squares);
            sums.add_block(block.rounded.as_ref(), block.more.as_ref());
        }
        Ok(Some(Inputs {
            source_squares: squares.iter().map(|&sum| sum as f32).collect(),
            moments: sums.xx * faer::Scale(1.0 / sums.tokens.max(1.0)),
            change,
        }))
    }

    /// The inputs of several windows side by side, one token per column.
    fn block(&self, windows: &[usize]) -> Option<Block> {
        let read = |layer: &OneLayer, streams: &[Vec<f32>]| -> Option<Vec<Vec<f32>>> {
            let inputs = windows
                .par_iter()
                .map(|&w| layer.input(self.role, &streams[w]));
            inputs.collect()
        };
        let tokens: usize = windows.iter().map(|&w| self.tokens(w)).sum();
        let rounded = read(self.rounded, &self.streams.rounded)?.concat();
        let source = read(self.source, &self.streams.source)?.concat();
        let n = rounded.len() / tokens.max(1);
        let rounded = MatRef::from_column_major_slice(&rounded, n, tokens).to_owned();
        let source = MatRef::from_column_major_slice(&source, n, tokens);
        let more = source - &rounded;
        Some(Block { rounded, more })
    }

    fn tokens(&self, window: usize) -> usize {
        self.streams.rounded[window].len() / self.rounded.spec().hidden
    }
}

/// `E[x xᵀ]` of what the matrix of a role reads in one model; `None` where it does not read
/// activations as they are.
pub(crate) fn moments(layer: &OneLayer, role: Role, streams: &[Vec<f32>]) -> Option<Mat<f64>> {
    let all: Vec<usize> = (0..streams.len()).collect();
    let mut sums: Option<Moments> = None;
    for block in blocks(&all) {
        let inputs = block.par_iter().map(|&w| layer.input(role, &streams[w]));
        let x = inputs.collect::<Option<Vec<Vec<f32>>>>()?.concat();
        let tokens: usize = block.iter().map(|&w| streams[w].len()).sum();
        let tokens = tokens / layer.spec().hidden;
        let x = MatRef::from_column_major_slice(&x, x.len() / tokens.max(1), tokens);
        sums.get_or_insert_with(|| Moments::zeros(x.nrows(), 0))
            .add_block(x, x.subrows(0, 0));
    }
    sums.map(|sums| sums.xx * faer::Scale(1.0 / sums.tokens.max(1.0)))
}

/// The rounded model's inputs, and what the source's have on top.
struct Block {
    rounded: Mat<f32>,
    more: Mat<f32>,
}

impl Block {
    /// Adds the squares of the source's inputs, column by column of the matrices that read them.
    fn add_squares(&self, sums: &mut Vec<f64>) {
        sums.resize(self.rounded.nrows(), 0.0);
        for t in 0..self.rounded.ncols() {
            let source = self.rounded.col(t) + self.more.col(t);
            for (sum, x) in sums.iter_mut().zip(source.iter()) {
                *sum += f64::from(*x).powi(2);
            }
        }
    }
}

/// The regression of what the source's input has on top on the rounded model's; `None` where
/// nothing differs.
fn change(sums: &Moments) -> Result<Option<Mat<f32>>, Error> {
    if sums.yx.norm_max() == 0.0 {
        return Ok(None);
    }
    let damped = damped(sums.xx.as_ref(), RIDGE);
    let change = solve_spd(damped.as_ref(), sums.yx.transpose())?;
    Ok(Some(narrow(change.transpose())))
}
