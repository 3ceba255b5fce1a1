//! The output projection, refitted to what the student's residual stream lacks.

use faer::{Mat, MatRef};

use super::activations::{blocks, gather};
use super::assemble::small;
use super::error::Error;
use super::linalg::{affine, narrow, par_affine};
use super::moments::{Affine, Moments};
use super::options::Options;
use super::rotary::Phases;
use super::source::{Geometry, SourceLayer};
use super::streams::Streams;
use super::student::Student;

/// What all refits of one layer share.
pub struct Refit<'a> {
    /// The layer's shape.
    pub g: &'a Geometry,
    /// The layer.
    pub source: &'a SourceLayer,
    /// The residual streams around it.
    pub streams: &'a Streams<'a>,
    /// How it is converted.
    pub options: &'a Options,
    /// Windows the projection is fitted to.
    pub train: &'a [usize],
    /// Windows that tell how good it is.
    pub held_out: &'a [usize],
    /// The source's projection, its bias with the mean of the values in it.
    pub plain: Affine,
}

impl Refit<'_> {
    /// Gives `layer` the source's projection; returns its error on the held-out windows.
    pub fn keep<S: Student>(&self, layer: &mut S) -> f64 {
        give(layer, &self.plain);
        let (mut energy, mut error) = (0.0, 0.0);
        self.visit(layer, self.held_out, |block| {
            error += square(block.rest());
            energy += square(block.lacking());
        });
        error / f64::max(energy, f64::MIN_POSITIVE)
    }

    /// Fits the projection to the training windows, as far as the held-out ones agree; returns its
    /// error on these.
    pub fn fit<S: Student>(&self, layer: &mut S) -> Result<f64, Error> {
        if !self.options.refit_output {
            return Ok(self.keep(layer));
        }
        give(layer, &self.plain);
        let mut moments = Moments::zeros(layer.heads() * layer.value_width(), self.g.hidden);
        self.visit(layer, self.train, |block| {
            moments.add_block(block.mixed(), block.rest());
        });
        let change = moments.ridge(self.options.ridge)?;
        drop(moments);
        let (weight, bias) = (narrow(change.weight.as_ref()), small(&change.bias));
        let (mut agreed, mut energy, mut rest) = (Agreed::default(), 0.0, 0.0);
        self.visit(layer, self.held_out, |block| {
            let moved = par_affine(weight.as_ref(), &bias, block.mixed());
            agreed.add(moved.as_ref(), block.rest());
            rest += square(block.rest());
            energy += square(block.lacking());
        });
        let mut output = self.plain.clone();
        output.add_scaled(&change, agreed.share());
        give(layer, &output);
        Ok((rest - agreed.gain()).max(0.0) / f64::max(energy, f64::MIN_POSITIVE))
    }

    /// Lets `visit` see the given windows, block by block.
    fn visit<S: Student>(&self, layer: &S, windows: &[usize], mut visit: impl FnMut(&Block)) {
        let (g, streams) = (self.g, self.streams);
        let phases = Phases::new(layer.inv_freq(), streams.student.window_len());
        let width = layer.heads() * layer.value_width();
        let (o, bias) = layer.output();
        for block in blocks(windows) {
            let rows = width + 2 * g.hidden;
            let all = gather(rows, streams.student.window_len(), block, |w| {
                let x_dt = self.source.attention_input(g, streams.student.window(w));
                let mixed = layer.mix(&phases, x_dt.as_ref());
                let lacking = streams.teacher_after.window(w) - streams.student.window(w);
                let rest = &lacking - affine(o, bias, mixed.as_ref());
                let mut all = Mat::zeros(rows, x_dt.ncols());
                all.subrows_mut(0, width).copy_from(&mixed);
                all.subrows_mut(width, g.hidden).copy_from(&rest);
                all.subrows_mut(width + g.hidden, g.hidden)
                    .copy_from(&lacking);
                all
            });
            visit(&Block {
                width,
                hidden: g.hidden,
                all,
            });
        }
    }
}

fn give<S: Student>(layer: &mut S, output: &Affine) {
    layer.set_output(narrow(output.weight.as_ref()), small(&output.bias));
}

/// Several windows side by side.
struct Block {
    width: usize,
    hidden: usize,
    all: Mat<f32>,
}

impl Block {
    /// The converted heads' outputs.
    fn mixed(&self) -> MatRef<'_, f32> {
        self.all.subrows(0, self.width)
    }

    /// What the present projection leaves of [`Block::lacking`].
    fn rest(&self) -> MatRef<'_, f32> {
        self.all.subrows(self.width, self.hidden)
    }

    /// The teacher's residual stream after attention less the student's before it.
    fn lacking(&self) -> MatRef<'_, f32> {
        self.all.subrows(self.width + self.hidden, self.hidden)
    }
}

/// How much of a fitted change held-out windows agree with: the share of it that leaves least of
/// what it should explain.
#[derive(Clone, Copy, Debug, Default)]
pub struct Agreed {
    along: f64,
    square: f64,
}

impl Agreed {
    /// Adds tokens with the whole change and what it should explain.
    pub fn add(&mut self, change: MatRef<'_, f32>, rest: MatRef<'_, f32>) {
        for t in 0..change.ncols() {
            for i in 0..change.nrows() {
                let (change, rest) = (f64::from(change[(i, t)]), f64::from(rest[(i, t)]));
                self.along += change * rest;
                self.square += change * change;
            }
        }
    }

    /// The share, between none and all.
    pub fn share(&self) -> f64 {
        if self.square > 0.0 {
            (self.along / self.square).clamp(0.0, 1.0)
        } else {
            0.0
        }
    }

    /// What the share explains of the held-out energy.
    fn gain(&self) -> f64 {
        self.share() * (2.0 * self.along - self.share() * self.square)
    }
}

fn square(block: MatRef<'_, f32>) -> f64 {
    let column = |t| {
        (0..block.nrows())
            .map(|i| f64::from(block[(i, t)]).powi(2))
            .sum::<f64>()
    };
    (0..block.ncols()).map(column).sum()
}
