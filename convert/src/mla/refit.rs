//! The output projection, refitted to what the student's residual stream lacks.

use faer::Mat;

use super::activations::{blocks, gather};
use super::error::Error;
use super::linalg::{narrow, wide};
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
        self.give(layer, &self.plain)
    }

    /// Fits the projection; returns its error on the held-out windows.
    pub fn fit<S: Student>(&self, layer: &mut S) -> Result<f64, Error> {
        if !self.options.refit_output {
            return Ok(self.keep(layer));
        }
        let moments = self.moments(layer, self.train);
        let prior = wide(self.source.attention.o.as_ref());
        Ok(self.give(layer, &moments.ridge(prior.as_ref(), self.options.ridge)?))
    }

    fn give<S: Student>(&self, layer: &mut S, output: &Affine) -> f64 {
        let bias = output.bias.iter().map(|&b| b as f32).collect();
        layer.set_output(narrow(output.weight.as_ref()), bias);
        let phases = Phases::new(layer.inv_freq(), self.streams.student.window_len());
        let mut sums = (0.0, 0.0);
        for block in blocks(self.held_out) {
            let rows = 2 * self.g.hidden;
            let both = gather(rows, self.streams.student.window_len(), block, |w| {
                let x_dt = self
                    .source
                    .attention_input(self.g, self.streams.student.window(w));
                let found = layer.forward(&phases, x_dt.as_ref());
                let mut out = Mat::zeros(rows, x_dt.ncols());
                out.subrows_mut(0, self.g.hidden).copy_from(&found);
                out.subrows_mut(self.g.hidden, self.g.hidden)
                    .copy_from(self.lacking(w));
                out
            });
            for t in 0..both.ncols() {
                let (found, want) = both.col_as_slice(t).split_at(self.g.hidden);
                let pairs = found.iter().zip(want);
                sums.0 += pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
                sums.1 += want.iter().map(|&b| f64::from(b).powi(2)).sum::<f64>();
            }
        }
        if sums.1 > 0.0 { sums.0 / sums.1 } else { 0.0 }
    }

    /// The teacher's residual stream after attention less the student's before it.
    fn lacking(&self, w: usize) -> Mat<f32> {
        self.streams.teacher_after.window(w) - self.streams.student.window(w)
    }

    /// Moments of the converted heads' outputs and of what the stream lacks.
    fn moments<S: Student>(&self, layer: &S, windows: &[usize]) -> Moments {
        let len = self.streams.student.window_len();
        let phases = Phases::new(layer.inv_freq(), len);
        let width = layer.heads() * layer.value_width();
        let mut moments = Moments::zeros(width, self.g.hidden);
        for block in blocks(windows) {
            let mixed = gather(width, len, block, |w| {
                let x_dt = self
                    .source
                    .attention_input(self.g, self.streams.student.window(w));
                layer.mix(&phases, x_dt.as_ref())
            });
            let lacking = gather(self.g.hidden, len, block, |w| self.lacking(w));
            moments.add_block(mixed.as_ref(), lacking.as_ref());
        }
        moments
    }
}
