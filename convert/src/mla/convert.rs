//! Converts one layer: from the activations before it to the weights of its latent attention.
//!
//! Owns the order of the steps and which calibration windows decide what; the steps live beside it.

use faer::Mat;

use super::activations::{Activations, blocks, gather};
use super::error::Error;
use super::latent::{Latent, LatentProblem};
use super::layer::MlaAttention;
use super::linalg::{narrow, wide};
use super::moments::{Affine, Moments};
use super::rotary::Phases;
use super::score_ls::{ScoreFit, ScoreProblem, Side};
use super::slots::{Split, SplitRule, Table, split};
use super::source::{Geometry, SourceLayer};
use super::teacher::TeacherStats;

/// How a model is converted.
#[derive(Clone, Debug)]
pub struct Options {
    /// Width of the latent.
    pub rank: usize,
    /// Channels of the shared rotated key; even.
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
    /// Windows of score least squares.
    pub score_windows: usize,
    /// Rounds of score least squares: side and most steps of each.
    pub score_fits: Vec<(Side, usize)>,
}

impl Options {
    /// What is best on real text, for a latent of `rank` and a rotated key of `rope`.
    pub fn new(rank: usize, rope: usize) -> Self {
        Options {
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
            score_fits: vec![(Side::Key, 4), (Side::Query, 4)],
        }
    }
}

/// What the conversion of one layer found.
#[derive(Clone, Debug)]
pub struct Diagnostics {
    /// Share of the weighted variance of keys and values the rank keeps.
    pub energy: f64,
    /// Source pair of each rotated slot.
    pub slots: Vec<usize>,
    /// The balance chosen.
    pub balance: f64,
    /// Error of the layer's output on held-out windows, relative to its energy.
    pub output_error: f64,
    /// Share of the loss of un-rotating everything that the slots leave.
    pub rotation_loss_left: f64,
    /// Score least squares, round by round.
    pub score_fits: Vec<ScoreFit>,
}

/// The residual streams around one attention block.
pub struct Streams<'a> {
    /// The teacher's before attention.
    pub teacher: &'a Activations,
    /// The teacher's after attention.
    pub teacher_after: &'a Activations,
    /// The student's before attention.
    pub student: &'a Activations,
}

/// Every eighth window decides between alternatives; the others fit them.
const HELD_OUT_EVERY: usize = 8;

/// Converts the attention of one layer.
pub fn convert_layer(
    g: &Geometry,
    source: &SourceLayer,
    streams: &Streams<'_>,
    options: &Options,
) -> Result<(MlaAttention, Diagnostics), Error> {
    let windows = streams.teacher.windows();
    if windows < 2 {
        return Err(Error::FewWindows {
            found: windows,
            least: 2,
        });
    }
    let (held_out, train): (Vec<usize>, Vec<usize>) = (0..windows).partition(|w| {
        w % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 || (windows < HELD_OUT_EVERY && *w == windows - 1)
    });
    let sample = spread_over(&train, options.attention_windows);
    let stats = TeacherStats::gather(g, source, streams.teacher, &sample);
    let rule = SplitRule {
        rope: options.rope,
        table: options.table,
        best_constant: options.best_constant,
    };
    let split = split(g, source, streams.teacher, &sample, &stats, rule)?;

    let inputs = input_moments(g, source, streams)?;
    let qkv = teacher_projection(source, &inputs, options)?;
    let base = rotated_part(g, &split, &qkv);
    let n = g.key_width();
    let z = rows(&qkv, g.query_width(), 2 * n);
    let problem = LatentProblem::new(
        g,
        &source.attention,
        &stats,
        &split,
        z.clone(),
        inputs.x_mean(),
        inputs.x_covariance().as_ref(),
    )?;

    let rank = options.rank.min(2 * n - options.rope);
    let plain_bias = plain_bias(g, source, &z, &inputs.x_mean());
    let refit = Refit {
        g,
        source,
        streams,
        options,
        train: &train,
        held_out: &held_out,
        plain_bias,
    };
    let full = rank == 2 * n - options.rope;
    let balances = if full {
        &options.balances[..1]
    } else {
        &options.balances[..]
    };
    let mut best: Option<(f64, f64, f64, MlaAttention)> = None;
    for &balance in balances {
        let latent = problem.solve(g, rank, balance)?;
        let energy = latent.energy;
        let mut layer = with_latent(&base, &latent);
        let error = refit.output(&mut layer)?;
        if best.as_ref().is_none_or(|(least, ..)| error < *least) {
            best = Some((error, balance, energy, layer));
        }
    }
    let (mut output_error, balance, energy, mut layer) =
        best.expect("at least one balance is tried");

    let mut score_fits = Vec::new();
    if !options.score_fits.is_empty() {
        let train = spread_over(&train, options.score_windows);
        let problem = ScoreProblem::new(
            g,
            source,
            streams.teacher,
            streams.student,
            &stats.head_weights(),
            train,
            held_out.clone(),
        );
        for &(side, steps) in &options.score_fits {
            score_fits.push(problem.fit(&mut layer, side, steps)?);
        }
        output_error = refit.output(&mut layer)?;
    }
    let diagnostics = Diagnostics {
        energy,
        slots: split.slots.iter().map(|slot| slot.pair).collect(),
        balance,
        output_error,
        rotation_loss_left: split.loss_left,
        score_fits,
    };
    Ok((layer, diagnostics))
}

/// At most `count` of `windows`, evenly spread.
fn spread_over(windows: &[usize], count: usize) -> Vec<usize> {
    let count = count.min(windows.len());
    (0..count)
        .map(|i| windows[i * windows.len() / count])
        .collect()
}

/// Moments of the student's input and the teacher's.
fn input_moments(
    g: &Geometry,
    source: &SourceLayer,
    streams: &Streams<'_>,
) -> Result<Moments, Error> {
    let all: Vec<usize> = (0..streams.student.windows()).collect();
    let len = streams.student.window_len();
    let mut moments = Moments::zeros(g.hidden, g.hidden);
    for block in blocks(&all) {
        let input = |h: &Activations| {
            gather(g.hidden, len, block, |w| {
                Ok::<_, Error>(source.attention_input(g, h.window(w)))
            })
        };
        moments.add_block(
            input(streams.student)?.as_ref(),
            input(streams.teacher)?.as_ref(),
        );
    }
    Ok(moments)
}

/// The teacher's queries (scaled), keys and values as an affine map of the student's input.
fn teacher_projection(
    source: &SourceLayer,
    inputs: &Moments,
    options: &Options,
) -> Result<Affine, Error> {
    let d = inputs.x.len();
    let identity = Mat::identity(d, d);
    let input = if options.refit_input {
        inputs.ridge(identity.as_ref(), options.ridge)?
    } else {
        Affine {
            weight: identity,
            bias: vec![0.0; d],
        }
    };
    let bias: Vec<f64> = source
        .attention
        .qkv_bias
        .iter()
        .map(|&b| f64::from(b))
        .collect();
    Ok(input.then(wide(source.attention.qkv.as_ref()).as_ref(), &bias))
}

fn rows(map: &Affine, start: usize, count: usize) -> Affine {
    Affine {
        weight: map.weight.subrows(start, count).to_owned(),
        bias: map.bias[start..start + count].to_vec(),
    }
}

/// Queries and the rotated key; the latent is empty.
fn rotated_part(g: &Geometry, split: &Split, qkv: &Affine) -> MlaAttention {
    let (hd, d, n, rope) = (
        g.query_width(),
        g.head_dim,
        g.key_width(),
        2 * split.slots.len(),
    );
    let mut q = rows(qkv, 0, hd);
    q.weight *= g.scale();
    q.bias.iter_mut().for_each(|b| *b *= g.scale());
    let mut q_rope = Mat::zeros(g.heads * rope, g.hidden);
    let mut q_rope_bias = Vec::with_capacity(g.heads * rope);
    for h in 0..g.heads {
        let turned = rows(&q, h * d, d).then(split.rotated_query(g, h).as_ref(), &vec![0.0; rope]);
        q_rope.subrows_mut(h * rope, rope).copy_from(&turned.weight);
        q_rope_bias.extend(turned.bias);
    }
    let k_rope = rows(qkv, hd, n).then(split.rotated_key(g).as_ref(), &vec![0.0; rope]);
    let small = |v: &[f64]| v.iter().map(|&x| x as f32).collect::<Vec<f32>>();
    MlaAttention {
        heads: g.heads,
        inv_freq: split.inv_freq(g),
        q_nope: narrow(q.weight.as_ref()),
        q_nope_bias: small(&q.bias),
        q_rope: narrow(q_rope.as_ref()),
        q_rope_bias: small(&q_rope_bias),
        k_rope: narrow(k_rope.weight.as_ref()),
        k_rope_bias: small(&k_rope.bias),
        kv_a: Mat::zeros(0, g.hidden),
        kv_a_bias: Vec::new(),
        kb: Mat::zeros(hd, 0),
        vb: Mat::zeros(hd, 0),
        o: Mat::zeros(0, 0),
        o_bias: Vec::new(),
    }
}

fn with_latent(base: &MlaAttention, latent: &Latent) -> MlaAttention {
    MlaAttention {
        kv_a: narrow(latent.kv_a.as_ref()),
        kv_a_bias: latent.kv_a_bias.iter().map(|&b| b as f32).collect(),
        kb: narrow(latent.kb.as_ref()),
        vb: narrow(latent.vb.as_ref()),
        ..base.clone()
    }
}

/// The source's output bias plus the mean of the values, which the centred latent leaves out.
fn plain_bias(g: &Geometry, source: &SourceLayer, z: &Affine, x_mean: &[f64]) -> Vec<f64> {
    let n = g.key_width();
    let mean = |row: usize| -> f64 {
        z.bias[row]
            + (0..x_mean.len())
                .map(|i| z.weight[(row, i)] * x_mean[i])
                .sum::<f64>()
    };
    let values: Vec<f64> = (0..g.query_width())
        .map(|i| mean(n + i / g.head_dim / g.group() * g.head_dim + i % g.head_dim))
        .collect();
    let o = &source.attention.o;
    let out = |row: usize| {
        (0..values.len())
            .map(|i| f64::from(o[(row, i)]) * values[i])
            .sum::<f64>()
    };
    (0..g.hidden)
        .map(|row| f64::from(source.attention.o_bias[row]) + out(row))
        .collect()
}

struct Refit<'a> {
    g: &'a Geometry,
    source: &'a SourceLayer,
    streams: &'a Streams<'a>,
    options: &'a Options,
    train: &'a [usize],
    held_out: &'a [usize],
    /// The output's bias where it is not refitted.
    plain_bias: Vec<f64>,
}

impl Refit<'_> {
    /// Fits the output projection to what the student's residual stream lacks, on all windows;
    /// returns the error on the held-out windows of the fit to the others.
    fn output(&self, layer: &mut MlaAttention) -> Result<f64, Error> {
        let o = wide(self.source.attention.o.as_ref());
        let mut moments = self.moments(layer, self.train)?;
        let held_out = self.moments(layer, self.held_out)?;
        let fit = |moments: &Moments| {
            if self.options.refit_output {
                return moments.ridge(o.as_ref(), self.options.ridge);
            }
            Ok(Affine {
                weight: o.clone(),
                bias: self.plain_bias.clone(),
            })
        };
        let error = held_out.relative_error(&fit(&moments)?);
        moments.add(&held_out);
        let map = fit(&moments)?;
        layer.o = narrow(map.weight.as_ref());
        layer.o_bias = map.bias.iter().map(|&b| b as f32).collect();
        Ok(error)
    }

    /// Moments of the converted heads' outputs and of the teacher's residual stream after attention
    /// less the student's before it.
    fn moments(&self, layer: &MlaAttention, windows: &[usize]) -> Result<Moments, Error> {
        let len = self.streams.student.window_len();
        let phases = Phases::new(&layer.inv_freq, len);
        let width = layer.vb.nrows();
        let mut moments = Moments::zeros(width, self.g.hidden);
        for block in blocks(windows) {
            let mixed = gather(width, len, block, |w| {
                let x_dt = self
                    .source
                    .attention_input(self.g, self.streams.student.window(w));
                Ok::<_, Error>(layer.mix(&phases, x_dt.as_ref()))
            })?;
            let lacking = gather(self.g.hidden, len, block, |w| {
                Ok::<_, Error>(
                    self.streams.teacher_after.window(w) - self.streams.student.window(w),
                )
            })?;
            moments.add_block(mixed.as_ref(), lacking.as_ref());
        }
        Ok(moments)
    }
}
