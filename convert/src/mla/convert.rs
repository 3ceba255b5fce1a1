//! Converts one layer: from the activations before it to the weights of its latent attention.
//!
//! Owns the order of the steps and which calibration windows decide what; the steps live beside it.

use faer::Mat;

use super::activations::{Activations, blocks, gather};
use super::assemble;
use super::error::Error;
use super::linalg::{narrow, par_affine, par_mul, wide};
use super::moments::{Affine, Moments};
use super::options::{Converted, Diagnostics, Mode, Options};
use super::reduce::{Metric, Reduced, ReducedRank, value_metric};
use super::refit::{Agreed, Refit};
use super::remix::mixing;
use super::score_ls::ScoreProblem;
use super::slots::{SplitRule, Table, split};
use super::source::{Geometry, SourceLayer};
use super::streams::Streams;
use super::student::{Side, Student};
use super::teacher::{TeacherStats, residual_fits};

/// Every eighth window decides between alternatives; the others fit them.
const HELD_OUT_EVERY: usize = 8;

/// Converts the attention of one layer.
pub fn convert_layer(
    g: &Geometry,
    source: &SourceLayer,
    streams: &Streams<'_>,
    options: &Options,
) -> Result<(Converted, Diagnostics), Error> {
    let layer = Layer::new(g, source, streams, options)?;
    match options.mode {
        Mode::Mla => layer.mla(),
        Mode::Latent => layer.latent(),
    }
}

/// A layer with its statistics.
struct Layer<'a> {
    g: &'a Geometry,
    source: &'a SourceLayer,
    streams: &'a Streams<'a>,
    options: &'a Options,
    train: Vec<usize>,
    held_out: Vec<usize>,
    /// Windows of `stats`.
    sample: Vec<usize>,
    stats: TeacherStats,
    /// Of the student's normed input, with what the teacher's has on top.
    inputs: Moments,
    /// The teacher's unscaled queries, keys and values from the student's input.
    qkv: Affine,
}

/// What encodes keys and values: the map to them, mean and covariance of what it reads, and the mean
/// of the values.
struct Encoded {
    z: Affine,
    mean: Vec<f64>,
    covariance: Mat<f64>,
}

impl<'a> Layer<'a> {
    fn new(
        g: &'a Geometry,
        source: &'a SourceLayer,
        streams: &'a Streams<'a>,
        options: &'a Options,
    ) -> Result<Self, Error> {
        let windows = streams.teacher.windows();
        if windows < 2 {
            return Err(Error::FewWindows {
                found: windows,
                least: 2,
            });
        }
        let every = HELD_OUT_EVERY.min(windows);
        let (held_out, train): (Vec<usize>, Vec<usize>) =
            (0..windows).partition(|w| w % every == every - 1);
        let sample = spread_over(&train, options.attention_windows);
        let stats = TeacherStats::gather(g, source, streams.teacher, &sample);
        let inputs = input_moments(g, source, streams, &train);
        let qkv = teacher_projection(g, source, streams, &inputs, (options, &held_out))?;
        Ok(Layer {
            g,
            source,
            streams,
            options,
            train,
            held_out,
            sample,
            stats,
            inputs,
            qkv,
        })
    }

    fn mla(&self) -> Result<(Converted, Diagnostics), Error> {
        let (g, n) = (self.g, self.g.key_width());
        let rule = SplitRule {
            rope: self.options.rope,
            table: self.options.table,
            best_constant: self.options.best_constant,
        };
        let split = split(g, &self.stats, rule, |residual| {
            residual_fits(g, self.source, self.streams.teacher, &self.sample, residual)
        })?;
        let unrotated: Vec<Mat<f64>> = (0..g.heads).map(|h| split.unrotated_key(g, h)).collect();
        let base = assemble::rotated_part(g, self.source, &split, &self.qkv);
        let encoded = self.encoded(&base.encoder, &self.qkv);
        let metric = Metric {
            keys: assemble::unrotated_metric(g, &self.stats, &unrotated),
            whole_keys: assemble::whole_metric(g, &self.stats),
            values: value_metric(g, &self.source.attention),
        };
        let most = 2 * n - self.options.rope;
        let (layer, mut found) = self.finish(encoded, &metric, most, |latent| {
            assemble::with_latent(g, &base, &unrotated, latent)
        })?;
        found.rope = self.options.rope;
        found.slots = split.slots.iter().map(|slot| slot.pair).collect();
        found.rotation_loss_left = split.loss_left;
        if self.options.partial_rope {
            let plain = assemble::plain_projection(self.source);
            let base = assemble::rotated_part(g, self.source, &split, &plain);
            let encoded = self.encoded(&base.encoder, &plain);
            found.partial = Some(Box::new(assemble::full_rank(
                g,
                self.source,
                &self.stats,
                &base,
                &unrotated,
                (encoded.z, encoded.mean, encoded.covariance),
            )?));
        }
        Ok((Converted::Mla(layer), found))
    }

    fn latent(&self) -> Result<(Converted, Diagnostics), Error> {
        let g = self.g;
        let base = assemble::rebuilt_part(g, self.source, &self.qkv);
        let encoded = Encoded {
            z: assemble::rows(&self.qkv, g.query_width(), 2 * g.key_width()),
            mean: self.inputs.x_mean(),
            covariance: self.inputs.x_covariance(),
        };
        let means = encoded.z.at(&encoded.mean);
        let keys = assemble::rotated_metric(g, &self.source.attention, &self.stats);
        let metric = Metric {
            whole_keys: keys.clone(),
            keys,
            values: value_metric(g, &self.source.attention),
        };
        let (layer, found) = self.finish(encoded, &metric, 2 * g.key_width(), |latent| {
            assemble::with_rebuilt(g, &base, &means, latent)
        })?;
        Ok((Converted::Latent(layer), found))
    }

    /// Mean and covariance of what keys and values are encoded from, by the projections `qkv`.
    fn encoded(&self, encoder: &super::layer::Encoder, qkv: &Affine) -> Encoded {
        let (g, n) = (self.g, self.g.key_width());
        if self.source.attention.qk_norm.is_none() {
            return Encoded {
                z: assemble::rows(qkv, g.query_width(), 2 * n),
                mean: self.inputs.x_mean(),
                covariance: self.inputs.x_covariance(),
            };
        }
        let student = self.streams.student;
        let mut moments = Moments::zeros(2 * n, 0);
        for block in blocks(&self.train) {
            let z = gather(2 * n, student.window_len(), block, |w| {
                let x_dt = self.source.attention_input(g, student.window(w));
                encoder.encoded(x_dt.as_ref())
            });
            moments.add_block(z.as_ref(), z.subrows(0, 0));
        }
        Encoded {
            z: Affine {
                weight: Mat::identity(2 * n, 2 * n),
                bias: vec![0.0; 2 * n],
            },
            mean: moments.x_mean(),
            covariance: moments.x_covariance(),
        }
    }

    /// Finds the latent, fits the scores and the output projection.
    fn finish<S: Student>(
        &self,
        encoded: Encoded,
        metric: &Metric,
        most: usize,
        build: impl Fn(&Reduced) -> S,
    ) -> Result<(S, Diagnostics), Error> {
        let (g, n, options) = (self.g, self.g.key_width(), self.options);
        let means = encoded.z.at(&encoded.mean);
        let problem =
            ReducedRank::new(encoded.z, encoded.mean, encoded.covariance.as_ref(), metric)?;
        let rank = options.rank.clamp(1, most);
        let refit = Refit {
            g,
            source: self.source,
            streams: self.streams,
            options,
            train: &self.train,
            held_out: &self.held_out,
            plain: assemble::plain_output(g, self.source, &means[n..]),
        };
        let balances = &options.balances[..if rank == most {
            1
        } else {
            options.balances.len()
        }];
        let mut best: Option<(f64, S, f64, Vec<f64>)> = None;
        for &balance in balances {
            let latent = problem.solve(rank, balance)?;
            let mut layer = build(&latent);
            let error = refit.keep(&mut layer);
            if best.as_ref().is_none_or(|(least, ..)| error < *least) {
                best = Some((error, layer, balance, latent.energy));
            }
        }
        let Some((_, mut layer, balance, energy)) = best else {
            return Err(Error::NoBalance);
        };
        let mut found = Diagnostics {
            rank,
            rank_asked: (rank < options.rank).then_some(options.rank),
            energy,
            balance,
            ..Diagnostics::default()
        };
        if !options.score_fits.is_empty() {
            let problem = self.score_problem();
            // Too few tokens for as many unknowns per output would only fit their noise.
            let few = self.train.len() * self.streams.student.window_len() < 2 * g.hidden;
            for &(side, steps) in &options.score_fits {
                if side == Side::Query && few {
                    continue;
                }
                let steps = steps * if options.table == Table::Stock { 2 } else { 1 };
                found.score_fits.push(problem.fit(&mut layer, side, steps)?);
            }
        }
        found.output_error = refit.fit(&mut layer)?;
        if options.remix {
            layer.turn_latent(mixing(rank)?.as_ref());
        }
        Ok((layer, found))
    }

    fn score_problem(&self) -> ScoreProblem<'_> {
        let streams = self.streams;
        let one = self.g.heads * streams.teacher.window_len().pow(2) * size_of::<f32>();
        let fitting = (self.options.score_bytes / one.max(1)).max(2);
        let held_out = spread_over(&self.held_out, fitting.div_ceil(HELD_OUT_EVERY));
        let most = self
            .options
            .score_windows
            .min(fitting - held_out.len())
            .max(1);
        ScoreProblem::new(
            self.g,
            self.source,
            streams.teacher,
            streams.student,
            &self.stats.head_weights(),
            spread_over(&self.train, most),
            held_out,
        )
    }
}

/// At most `count` of `windows`, evenly spread.
fn spread_over(windows: &[usize], count: usize) -> Vec<usize> {
    let count = count.min(windows.len());
    (0..count)
        .map(|i| windows[i * windows.len() / count])
        .collect()
}

/// The student's input and what the teacher's has on top, side by side for several windows.
fn inputs_of(
    g: &Geometry,
    source: &SourceLayer,
    streams: &Streams<'_>,
    block: &[usize],
) -> (Mat<f32>, Mat<f32>) {
    let input = |h: &Activations| {
        gather(g.hidden, h.window_len(), block, |w| {
            source.attention_input(g, h.window(w))
        })
    };
    let (student, teacher) = (input(streams.student), input(streams.teacher));
    let more = &teacher - &student;
    (student, more)
}

/// Moments of both over the given windows.
fn input_moments(
    g: &Geometry,
    source: &SourceLayer,
    streams: &Streams<'_>,
    windows: &[usize],
) -> Moments {
    let mut moments = Moments::zeros(g.hidden, g.hidden);
    for block in blocks(windows) {
        let (student, more) = inputs_of(g, source, streams, block);
        moments.add_block(student.as_ref(), more.as_ref());
    }
    moments
}

/// The teacher's queries, keys and values as an affine map of the student's input: the regression on
/// it as far as held-out windows agree.
fn teacher_projection(
    g: &Geometry,
    source: &SourceLayer,
    streams: &Streams<'_>,
    inputs: &Moments,
    (options, held_out): (&Options, &[usize]),
) -> Result<Affine, Error> {
    let mut projection = assemble::plain_projection(source);
    // The same input needs no regression.
    let same = inputs.yx == Mat::<f64>::zeros(g.hidden, g.hidden);
    if !options.refit_input || same {
        return Ok(projection);
    }
    let change = inputs.ridge(options.ridge)?;
    let (weight, bias) = (
        narrow(change.weight.as_ref()),
        assemble::small(&change.bias),
    );
    let mut agreed = Agreed::default();
    for block in blocks(held_out) {
        let (student, more) = inputs_of(g, source, streams, block);
        let moved = par_affine(weight.as_ref(), &bias, student.as_ref());
        agreed.add(moved.as_ref(), more.as_ref());
    }
    let linear = Affine {
        weight: projection.weight.clone(),
        bias: vec![0.0; projection.bias.len()],
    };
    let moved = Affine {
        weight: wide(par_mul(source.attention.qkv.as_ref(), weight.as_ref()).as_ref()),
        bias: linear.at(&change.bias),
    };
    projection.add_scaled(&moved, agreed.share());
    Ok(projection)
}
