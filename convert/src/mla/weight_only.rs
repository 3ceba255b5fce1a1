//! Conversion without calibration text: the same algebra on statistics that the weights alone
//! suggest.
//!
//! The normed input is taken for noise of the size of the norm's gain, attention for even over a
//! span of distances. What calibration would have found is lost: a fallback, and labelled as such.

use faer::{Mat, c64};

use super::assemble;
use super::error::Error;
use super::linalg::{mul, par_mul};
use super::moments::Affine;
use super::options::{Converted, Diagnostics, Mode, Options};
use super::reduce::{Metric, ReducedRank, value_metric};
use super::score_fit::PairFit;
use super::slots::{SplitRule, split};
use super::source::{Geometry, SourceLayer};
use super::student::Student;
use super::teacher::TeacherStats;

/// Distances that attention is taken to be spread over.
const SPAN: usize = 256;

/// Converts one layer by its weights alone.
pub fn weight_only(
    g: &Geometry,
    source: &SourceLayer,
    options: &Options,
) -> Result<(Converted, Diagnostics), Error> {
    let (n, hd) = (g.key_width(), g.query_width());
    let plain = assemble::plain_projection(source);
    let input = Mat::from_fn(g.hidden, g.hidden, |i, j| {
        if i == j {
            f64::from(source.attn_norm[i]).powi(2)
        } else {
            0.0
        }
    });
    let covariance = normed_covariance(g, source, &plain, &input);
    let stats = stats(g, source, &covariance);
    let normed = source.attention.qk_norm.is_some();
    let (z, inputs) = if normed && options.mode == Mode::Mla {
        let z = Affine {
            weight: Mat::identity(2 * n, 2 * n),
            bias: vec![0.0; 2 * n],
        };
        (z, covariance.submatrix(hd, hd, 2 * n, 2 * n).to_owned())
    } else {
        (assemble::rows(&plain, hd, 2 * n), input)
    };
    let mean = vec![0.0; inputs.nrows()];
    let means = z.at(&mean);
    let values = value_metric(g, &source.attention);
    let solve = |metric: &Metric, rank: usize| {
        ReducedRank::new(z.clone(), mean.clone(), inputs.as_ref(), metric)?.solve(rank, 1.0)
    };
    let mut found = Diagnostics {
        weight_only: true,
        balance: 1.0,
        ..Diagnostics::default()
    };
    let mut clamp = |most: usize| {
        found.rank = options.rank.clamp(1, most);
        found.rank_asked = (options.rank > most).then_some(options.rank);
        found.rank
    };
    let output = assemble::plain_output(g, source, &means[n..]);
    let converted = match options.mode {
        Mode::Mla => {
            let rule = SplitRule {
                rope: options.rope,
                table: options.table,
                best_constant: options.best_constant,
            };
            let split = split(g, &stats, rule, |residual| {
                residual_pairs(g, &stats, residual)
            })?;
            let unrotated: Vec<_> = (0..g.heads).map(|h| split.unrotated_key(g, h)).collect();
            let keys = assemble::unrotated_metric(g, &stats, &unrotated);
            let whole_keys = assemble::whole_metric(g, &stats);
            let metric = Metric {
                keys,
                whole_keys,
                values,
            };
            let latent = solve(&metric, clamp(2 * n - options.rope))?;
            let base = assemble::rotated_part(g, source, &split, &plain);
            found.rope = options.rope;
            found.slots = split.slots.iter().map(|slot| slot.pair).collect();
            found.rotation_loss_left = split.loss_left;
            found.energy.clone_from(&latent.energy);
            let layer = assemble::with_latent(g, &base, &unrotated, &latent);
            Converted::Mla(finished(layer, &output, options, found.rank)?)
        }
        Mode::Latent => {
            let keys = assemble::rotated_metric(g, &source.attention, &stats);
            let metric = Metric {
                whole_keys: keys.clone(),
                keys,
                values,
            };
            let latent = solve(&metric, clamp(2 * n))?;
            let base = assemble::rebuilt_part(g, source, &plain);
            found.energy.clone_from(&latent.energy);
            let layer = assemble::with_rebuilt(g, &base, &means, &latent);
            Converted::Latent(finished(layer, &output, options, found.rank)?)
        }
    };
    Ok((converted, found))
}

fn finished<S: Student>(
    mut layer: S,
    output: &Affine,
    options: &Options,
    rank: usize,
) -> Result<S, Error> {
    let bias = output.bias.iter().map(|&b| b as f32).collect();
    layer.set_output(super::linalg::narrow(output.weight.as_ref()), bias);
    if options.remix {
        layer.turn_latent(super::remix::mixing(rank)?.as_ref());
    }
    Ok(layer)
}

/// Covariance of queries, keys and values, heads that are normed scaled to what the norm makes of
/// them.
fn normed_covariance(
    g: &Geometry,
    source: &SourceLayer,
    plain: &Affine,
    input: &Mat<f64>,
) -> Mat<f64> {
    let weight = plain.weight.as_ref();
    let mut out = par_mul(par_mul(weight, input.as_ref()).as_ref(), weight.transpose());
    if let Some((q_gain, k_gain)) = &source.attention.qk_norm {
        let d = g.head_dim;
        let scale: Vec<f64> = (0..out.nrows())
            .map(|i| {
                let head = i / d;
                let gain = match head {
                    _ if head < g.heads => &q_gain[i % d],
                    _ if head < g.heads + g.kv_heads => &k_gain[i % d],
                    _ => return 1.0,
                };
                let square: f64 = (head * d..(head + 1) * d).map(|c| out[(c, c)]).sum();
                f64::from(*gain) / (square / d as f64 + g.norm_eps).sqrt()
            })
            .collect();
        out = Mat::from_fn(out.nrows(), out.nrows(), |i, j| {
            scale[i] * out[(i, j)] * scale[j]
        });
    }
    out
}

/// What a calibration pass over noise and even attention would have found.
fn stats(g: &Geometry, source: &SourceLayer, covariance: &Mat<f64>) -> TeacherStats {
    let (d, pairs, hd) = (g.head_dim, g.pairs(), g.query_width());
    let scale = g.scale().powi(2);
    let key_moment = (0..pairs).map(|l| {
        Mat::from_fn(g.kv_heads, g.kv_heads, |i, j| {
            let (a, b) = (hd + i * d + l, hd + j * d + l);
            let c = |a, b| covariance[(a, b)];
            let (re, im) = (
                c(a, b) + c(a + pairs, b + pairs),
                c(a + pairs, b) - c(a, b + pairs),
            );
            c64::new(re, im)
        })
    });
    let query = |h: usize| Mat::from_fn(d, d, |i, j| scale * covariance[(h * d + i, h * d + j)]);
    let sensitivity = |h: usize| {
        let own = hd + g.key_width() + h / g.group() * d;
        let o_h = super::linalg::wide(source.attention.o.subcols(h * d, d));
        let gram = mul(o_h.transpose(), o_h.as_ref());
        super::linalg::dot(gram.as_ref(), covariance.submatrix(own, own, d, d))
    };
    let mut out = TeacherStats {
        tokens: 1,
        sensitivity: (0..g.heads).map(sensitivity).collect(),
        key_moment: key_moment.collect(),
        query_moment: (0..g.heads).map(query).collect(),
        distances: vec![vec![1.0 / SPAN as f64; SPAN]; g.heads],
        key_squares: key_squares(g, source),
        fits: Vec::new(),
    };
    let whole = vec![Mat::identity(g.kv_heads, g.kv_heads); pairs];
    out.fits = residual_pairs(g, &out, &whole);
    out
}

/// Mean square of each key head before its norm, or one where there is none.
fn key_squares(g: &Geometry, source: &SourceLayer) -> Vec<f64> {
    let weight = source.attention.qkv.as_ref();
    let square = |j: usize| {
        if source.attention.qk_norm.is_none() {
            return 1.0;
        }
        let rows = weight.subrows(g.query_width() + j * g.head_dim, g.head_dim);
        let of = |c: usize| f64::from(source.attn_norm[c]).powi(2);
        let sum: f64 = (0..g.hidden)
            .map(|c| {
                of(c)
                    * (0..g.head_dim)
                        .map(|i| f64::from(rows[(i, c)]).powi(2))
                        .sum::<f64>()
            })
            .sum();
        sum / g.head_dim as f64
    };
    (0..g.kv_heads).map(square).collect()
}

/// The cost of un-rotating what `residual` leaves, were queries and keys independent and attention
/// even over [`SPAN`] distances.
fn residual_pairs(g: &Geometry, stats: &TeacherStats, residual: &[Mat<c64>]) -> Vec<Vec<PairFit>> {
    let pairs = g.pairs();
    let mean_turn: Vec<c64> = g.inv_freq.iter().map(|f| stats.mean_turn(0, -f)).collect();
    let of = |h: usize, l: usize| {
        let (own, q) = (h / g.group(), &stats.query_moment[h]);
        let left = mul(
            mul(residual[l].as_ref(), stats.key_moment[l].as_ref()).as_ref(),
            residual[l].adjoint().to_owned().as_ref(),
        );
        let square = (q[(l, l)] + q[(l + pairs, l + pairs)]) * left[(own, own)].re;
        PairFit {
            square,
            cross: c64::new(0.0, 0.0),
            target: mean_turn[l] * square,
            energy: 0.5 * square,
        }
    };
    (0..g.heads)
        .map(|h| (0..pairs).map(|l| of(h, l)).collect())
        .collect()
}
