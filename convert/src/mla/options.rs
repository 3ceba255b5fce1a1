//! How a model is converted, and what the conversion of a layer found.

use std::collections::BTreeSet;

use super::layer::MlaAttention;
use super::rebuilt::LatentAttention;
use super::score_ls::ScoreFit;
use super::slots::Table;
use super::student::Side;

/// What a converted layer caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A latent and one rotated key shared by all heads.
    Mla,
    /// A latent from which all keys are rebuilt and rotated.
    Latent,
}

/// How a model is converted.
#[derive(Clone, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent switches, all set by name"
)]
pub struct Options {
    /// What is cached.
    pub mode: Mode,
    /// Layers that stay as they are.
    pub keep: BTreeSet<usize>,
    /// Width of the latent; a layer takes no more than it has numbers for.
    pub rank: usize,
    /// Channels of the shared rotated key; even. Only in [`Mode::Mla`].
    pub rope: usize,
    /// Whose frequencies the rotated key has.
    pub table: Table,
    /// Whether pairs that lose their rotation get their best constant.
    pub best_constant: bool,
    /// Balances of values against keys that are tried.
    pub balances: Vec<f64>,
    /// Ridge of every regression, relative to the mean variance of its input.
    pub ridge: f64,
    /// Whether the teacher's keys, values and queries are regressed on the student's input.
    pub refit_input: bool,
    /// Whether the output projection is refitted.
    pub refit_output: bool,
    /// Windows the teacher's attention statistics are gathered from.
    pub attention_windows: usize,
    /// Windows of score least squares, fewer where they would not fit in [`Options::score_bytes`].
    pub score_windows: usize,
    /// Memory for the teacher's attention weights during score least squares.
    pub score_bytes: usize,
    /// Rounds of score least squares: side and most steps of each; twice the steps with
    /// [`Table::Stock`], which leaves more to mend.
    pub score_fits: Vec<(Side, usize)>,
    /// Whether the latent is turned at random, so that no channel stands out to a quantizer.
    pub remix: bool,
    /// Whether a layer of full rank with the same split is made beside each, to tell what losing
    /// rotations costs alone. Only in [`Mode::Mla`].
    pub partial_rope: bool,
}

impl Options {
    /// What is best on real text, for a latent of `rank` and a rotated key of `rope`.
    pub fn new(rank: usize, rope: usize) -> Self {
        Options {
            mode: Mode::Mla,
            keep: BTreeSet::new(),
            rank,
            rope,
            table: Table::Own,
            best_constant: true,
            balances: vec![0.25, 1.0, 4.0],
            ridge: 1e-3,
            refit_input: true,
            refit_output: true,
            attention_windows: 16,
            score_windows: 128,
            score_bytes: 1 << 30,
            score_fits: [(Side::Key, 3), (Side::Query, 3)].repeat(2),
            remix: true,
            partial_rope: false,
        }
    }
}

/// One layer after conversion.
#[derive(Clone, Debug)]
pub enum Converted {
    /// Latent attention with a shared rotated key.
    Mla(MlaAttention),
    /// Attention with keys rebuilt from a latent.
    Latent(LatentAttention),
    /// The layer stays as it is.
    Kept,
}

/// What the conversion of one layer found.
#[derive(Clone, Debug, Default)]
pub struct Diagnostics {
    /// Width of the latent.
    pub rank: usize,
    /// The rank asked for, where it was more than the layer has numbers for.
    pub rank_asked: Option<usize>,
    /// Channels of the rotated key.
    pub rope: usize,
    /// Whether only weights were used, for want of calibration text.
    pub weight_only: bool,
    /// Share of the weighted variance of keys and values that a latent of `1, 2, …` numbers keeps.
    pub energy: Vec<f64>,
    /// Source pair of each rotated slot.
    pub slots: Vec<usize>,
    /// The balance chosen.
    pub balance: f64,
    /// Error of the attention block's output on held-out windows, relative to its energy.
    pub output_error: f64,
    /// Share of the loss of un-rotating everything that the slots leave.
    pub rotation_loss_left: f64,
    /// Score least squares, round by round.
    pub score_fits: Vec<ScoreFit>,
    /// Distance of the student's residual stream from the teacher's after the layer, relative to the
    /// teacher's energy.
    pub drift: f64,
    /// The layer at full rank with the same split, if asked for.
    pub partial: Option<Box<MlaAttention>>,
}

impl Diagnostics {
    /// Share of the weighted variance the rank keeps.
    pub fn energy_kept(&self) -> f64 {
        self.rank
            .checked_sub(1)
            .and_then(|r| self.energy.get(r))
            .copied()
            .unwrap_or(1.0)
    }
}

/// The smallest rank whose share of the cumulative `energy` is at least `share`.
pub fn rank_for(energy: &[f64], share: f64) -> usize {
    energy
        .iter()
        .position(|&e| e >= share)
        .map_or(energy.len(), |at| at + 1)
}
