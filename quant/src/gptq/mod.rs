//! Rounding a matrix so that its products with real inputs change least.
//!
//! Every row is rounded column by column with feedback ([GPTQ]), compared with plain rounding, and
//! then improved code by code and scale by scale in sweeps. Owns the order of these; what becomes
//! of the bytes is for others. Rows are worked on in blocks of a fixed size, so the result does not
//! depend on the number of threads.
//!
//! [GPTQ]: https://arxiv.org/abs/2210.17323

mod low_rank;
mod metric;
mod rows;
mod sweep;

use neuroconv_format::PackedTensor;
use neuroconv_format::codec::PANEL_ROWS;
use rayon::prelude::*;

pub use low_rank::{LowRankFit, low_rank};
pub use metric::InputMetric;

use crate::Threshold;
use crate::error::Error;
use crate::fit::GroupFit;
use crate::levels::Levels;
use crate::pack::{Packing, Panel};
use crate::quantize::{QuantizeSpec, check_scale, check_weights};
use crate::stats::{FitStats, Tally};
use rows::{Coded, Task};

/// Rows that are worked on together.
const BLOCK_ROWS: usize = 4 * PANEL_ROWS;
/// Sweeps, at most.
const SWEEPS: usize = 8;

/// A matrix to be rounded in a metric.
#[derive(Clone, Copy, Debug)]
pub struct Rounding<'a> {
    /// What to round to; the group size is that of the metric.
    pub spec: &'a QuantizeSpec,
    /// What errors weigh.
    pub metric: &'a InputMetric,
    /// `[rows, cols]`: the weights that would be best if nothing had to be rounded; `None` for the
    /// weights themselves.
    pub target_nk: Option<&'a [f32]>,
    /// Columns that are stored apart, ascending.
    pub apart: &'a [u32],
}

/// A matrix rounded in a metric.
#[derive(Clone, Debug)]
pub struct Rounded {
    /// Codes, scales and shifts; columns stored apart have level 0.
    pub tensor: PackedTensor,
    /// `[rows, columns stored apart]`: the values of those columns that are best beside the codes.
    pub apart_nc: Vec<f32>,
    /// What it costs in weights.
    pub stats: FitStats,
    /// What it costs in outputs: `Σ e H eᵀ / Σ t H tᵀ`, with `e` the distance from the target `t`.
    pub output_error: f64,
    /// The same for plain rounding.
    pub nearest_output_error: f64,
}

impl Rounding<'_> {
    /// Rounds and packs `w_nk`, `[rows, cols]` row-major.
    ///
    /// Never worse in outputs than rounding every group by itself, unless a share of zeros is asked
    /// for. Rows that have three levels already keep them, where three levels are asked for. Refuses weights that are not finite and groups whose scale is beyond f16, naming the
    /// first.
    ///
    /// Panics when the metric, the target or the columns stored apart do not fit the matrix.
    pub fn round(&self, w_nk: &[f32], rows: usize, cols: usize) -> Result<Rounded, Error> {
        let layout = self.spec.layout(rows, cols)?;
        check_weights(w_nk, rows, cols)?;
        let target_nk = self.target_nk.unwrap_or(w_nk);
        check_weights(target_nk, rows, cols)?;
        assert_eq!(self.metric.cols(), cols, "moments of all columns");
        let mut packing = Packing::new(layout);
        let panels: Vec<Panel<'_>> = packing.panels().collect();
        let mut blocks: Vec<Vec<Panel<'_>>> = Vec::new();
        for (i, panel) in panels.into_iter().enumerate() {
            if i % (BLOCK_ROWS / PANEL_ROWS) == 0 {
                blocks.push(Vec::new());
            }
            blocks.last_mut().expect("one was just made").push(panel);
        }
        let step = BLOCK_ROWS * cols;
        let found: Vec<Result<Block, Error>> = w_nk
            .par_chunks(step)
            .zip(target_nk.par_chunks(step))
            .zip(blocks)
            .enumerate()
            .map(|(block, ((w, target), panels))| {
                self.block(w, target, panels)
                    .map_err(|e| e.below(block * BLOCK_ROWS))
            })
            .collect();
        let (mut tally, mut costs) = (Tally::new(), Costs::default());
        let mut apart_nc = Vec::with_capacity(rows * self.apart.len());
        for block in found {
            let block = block?;
            tally.merge(&block.tally);
            costs.add(&block.costs);
            apart_nc.extend(block.apart_nc);
        }
        Ok(Rounded {
            tensor: packing.finish(),
            apart_nc,
            stats: tally.stats(),
            output_error: ratio(costs.rounded, costs.energy),
            nearest_output_error: ratio(costs.nearest, costs.energy),
        })
    }

    /// Rounds some rows and stores them.
    fn block(&self, w: &[f32], target: &[f32], mut panels: Vec<Panel<'_>>) -> Result<Block, Error> {
        let task = self.task(target)?;
        let nearest = task.nearest();
        let coded = if self.holds(w) {
            // What the levels hold exactly stays, whatever inputs came to meanwhile.
            self.task(w)?.unweighted()
        } else {
            let mut coded = task.with_feedback();
            // Where zeros are asked for, both have about as many, and may be compared as well.
            task.take_better(&mut coded, &nearest);
            for _ in 0..SWEEPS {
                if task.sweep(&mut coded) == 0 {
                    break;
                }
            }
            coded
        };
        let costs = Costs {
            rounded: task.costs(&coded).iter().sum(),
            nearest: task.costs(&nearest).iter().sum(),
            energy: task.energy(),
        };
        let tally = self.store(&coded, w, &task, &mut panels)?;
        Ok(Block {
            tally,
            costs,
            apart_nc: self.values_apart(&coded),
        })
    }

    fn task(&self, target: &[f32]) -> Result<Task<'_>, Error> {
        let (n, order) = (self.metric.cols(), self.metric.order());
        let placed = |values: &[f32]| -> Vec<f32> {
            let rows = values.chunks(n);
            rows.flat_map(|row| order.iter().map(|&col| row[col]))
                .collect()
        };
        let grids = target.chunks(n).map(|row| self.spec.grid(row));
        Ok(Task {
            metric: self.metric,
            grids: grids.collect::<Result<_, _>>()?,
            zeros: self.zeros(),
            target: placed(target),
            apart: if self.apart.is_empty() {
                Vec::new()
            } else {
                let apart = |&col: &usize| self.apart.contains(&(col as u32));
                order.iter().map(apart).collect()
            },
        })
    }

    /// Whether every group of these rows has three levels already, a scale apart that f16 holds.
    fn holds(&self, w: &[f32]) -> bool {
        let plain = self.spec.levels == Levels::Ternary
            && self.spec.threshold == Threshold::Mse
            && !self.spec.shift
            && self.apart.is_empty();
        let ternary = |group: &[f32]| {
            let mut kept = group.iter().map(|w| w.abs()).filter(|w| *w > 0.0);
            let scale = kept.next().unwrap_or(0.0);
            let exact = half::f16::from_f32(scale).to_f32().to_bits() == scale.to_bits();
            exact && kept.all(|w| w.to_bits() == scale.to_bits())
        };
        let mut rows = w.chunks(self.metric.cols());
        plain && rows.all(|row| row.chunks(self.spec.group).all(ternary))
    }

    /// The share of zeros that is asked for.
    fn zeros(&self) -> Option<f64> {
        match (self.spec.levels, self.spec.threshold) {
            (Levels::Ternary, Threshold::Sparsity(share)) => Some(share),
            (Levels::Ternary, Threshold::EntropyMax) => Some(1.0 / 3.0),
            (Levels::Ternary, Threshold::Mse | Threshold::Twn | Threshold::Rd(_))
            | (Levels::Nine | Levels::Int4 | Levels::Int8, _) => None,
        }
    }

    /// The values of the columns stored apart, row by row.
    fn values_apart(&self, coded: &Coded) -> Vec<f32> {
        let places: Vec<usize> = self
            .apart
            .iter()
            .filter_map(|&column| {
                let mut order = self.metric.order().iter();
                order.position(|&col| col == column as usize)
            })
            .collect();
        let rows = coded.value.chunks(self.metric.cols());
        rows.flat_map(|row| places.iter().map(|&place| row[place]))
            .collect()
    }

    /// Brings rows back into the order of columns and packs them.
    fn store(
        &self,
        coded: &Coded,
        w: &[f32],
        task: &Task<'_>,
        panels: &mut [Panel<'_>],
    ) -> Result<Tally, Error> {
        let (n, groups) = (self.metric.cols(), self.metric.groups());
        let mut tally = Tally::new();
        let (mut levels, mut values) = (vec![0; n], vec![0.0; n]);
        for (row, w) in w.chunks(n).enumerate() {
            for (place, &col) in self.metric.order().iter().enumerate() {
                levels[col] = coded.level[row * n + place];
                values[col] = coded.value[row * n + place];
            }
            let own = &coded.fit[row * groups.len()..(row + 1) * groups.len()];
            let mut fits: Vec<GroupFit> = own.to_vec();
            for ((index, places), fit) in groups.iter().zip(own) {
                let at = row * n + places.start;
                check_scale(row, *index, &task.target[at..at + places.len()], *fit)?;
                fits[*index] = *fit;
            }
            tally.add_values(w, &levels, &values);
            panels[row / PANEL_ROWS].store(row % PANEL_ROWS, &levels, &fits);
        }
        Ok(tally)
    }
}

/// What came of some rows.
struct Block {
    tally: Tally,
    costs: Costs,
    apart_nc: Vec<f32>,
}

/// Sums over rows.
#[derive(Default)]
struct Costs {
    rounded: f64,
    nearest: f64,
    energy: f64,
}

impl Costs {
    fn add(&mut self, other: &Costs) {
        self.rounded += other.rounded;
        self.nearest += other.nearest;
        self.energy += other.energy;
    }
}

fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 {
        (part / whole).max(0.0)
    } else {
        0.0
    }
}
