//! What the matrices of a layer read: moments of the rounded model's activations, and how the
//! source's differ from them.
//!
//! Owns the sums. Windows are taken in blocks of a fixed size and in order, so sums never depend on
//! the number of threads.

use faer::{Mat, MatRef};
use neuroconv_recipes::Role;
use neuroconv_runtime::OneLayer;
use rayon::prelude::*;

use crate::mla::Error;
use crate::mla::activations::blocks;
use crate::mla::linalg::{damped, narrow, par_mul, solve_spd};
use crate::mla::moments::add_outer;
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
        let mut sums: Option<Sums> = None;
        for block in blocks(&fitted) {
            let Some(block) = self.block(block) else {
                return Ok(None);
            };
            sums.get_or_insert_with(|| Sums::zeros(block.rounded.nrows()))
                .add(&block);
        }
        let Some(sums) = sums else { return Ok(None) };
        let mut change = sums.change()?;
        if let Some(change) = &mut change {
            let mut agreed = Agreed::default();
            for block in held_out.iter().filter_map(|w| self.block(&[*w])) {
                let moved = par_mul(change.as_ref(), block.rounded.as_ref());
                agreed.add(moved.as_ref(), block.more.as_ref());
            }
            *change *= faer::Scale(agreed.share() as f32);
        }
        // The held-out windows are only kept from the regression.
        let mut sums = sums;
        for block in held_out.iter().filter_map(|w| self.block(&[*w])) {
            sums.add(&block);
        }
        Ok(Some(Inputs {
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

/// The rounded model's inputs, and what the source's have on top.
struct Block {
    rounded: Mat<f32>,
    more: Mat<f32>,
}

/// Sums over tokens; products in single precision, sums in double.
struct Sums {
    tokens: f64,
    xx: Mat<f64>,
    /// `Σ (source - rounded) roundedᵀ`.
    more: Mat<f64>,
}

impl Sums {
    fn zeros(n: usize) -> Self {
        Sums {
            tokens: 0.0,
            xx: Mat::zeros(n, n),
            more: Mat::zeros(n, n),
        }
    }

    fn add(&mut self, block: &Block) {
        self.tokens += block.rounded.ncols() as f64;
        let x = block.rounded.as_ref();
        add_outer(self.xx.as_mut(), x, x);
        add_outer(self.more.as_mut(), block.more.as_ref(), x);
    }

    /// The regression of what the source's input has on top on the rounded model's.
    fn change(&self) -> Result<Option<Mat<f32>>, Error> {
        if self.more.norm_max() == 0.0 {
            return Ok(None);
        }
        let damped = damped(self.xx.as_ref(), RIDGE);
        let change = solve_spd(damped.as_ref(), self.more.transpose())?;
        Ok(Some(narrow(change.transpose())))
    }
}
