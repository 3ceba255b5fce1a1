//! Latent attention for engines that norm the latent and have no biases.
//!
//! Such an engine remembers `n = u / rms(u)` of `u = W x`. One more channel of `u` is the linear map of
//! the layer's input that comes nearest to a constant; the larger its weight, the less the norm of `u`
//! depends on all others. What keys and values lose is fitted away: the decoder becomes the linear map of
//! least squared error from `n` to what the model's own latent gives, layer after layer on the activations
//! that the engine itself has at this place.

use std::collections::BTreeMap;

use faer::{Mat, MatRef};
use neuroconv_format::Tensor;
use neuroconv_quant::dequantize;
use neuroconv_recipes::{Mixer, MlaSpec, ModelSpec, Role, TensorId};
use neuroconv_runtime::{Error, OneLayer, Progress, WeightSource, embed};
use rayon::prelude::*;

use super::ExportError;
use super::latent::{dense, mla_of};
use crate::mla::linalg::{damped, mul, par_mul, solve_spd};
use crate::mla::moments::Moments;

/// Share of the mean second moment added before each regression.
const RIDGE: f64 = 1e-5;
/// Weights of the constant channel that are tried, as multiples of the latent's length.
const WEIGHTS: [f32; 5] = [1.0, 3.0, 10.0, 30.0, 100.0];
/// Every so many windows, one judges the weights instead of being fitted to.
const HELD_OUT_EVERY: usize = 4;

/// A model of latent attention without biases, its latents normed.
pub(crate) struct Normed<'a> {
    model: &'a dyn WeightSource,
    spec: ModelSpec,
    /// What differs from the model.
    fitted: BTreeMap<TensorId, Tensor>,
}

impl WeightSource for Normed<'_> {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn tensor(&self, id: TensorId) -> Result<Tensor, Error> {
        match self.fitted.get(&id) {
            Some(tensor) => Ok(tensor.clone()),
            None => self.model.tensor(id),
        }
    }
}

impl<'a> Normed<'a> {
    /// Fits `model`, all of whose layers have latent attention by linear encoders, to `windows` of
    /// tokens. With `extra`, latents get one more channel, the nearest to a constant. What the
    /// engine's norm adds is what the model's own norms add.
    pub(crate) fn fit(
        model: &'a dyn WeightSource,
        windows: &[Vec<u32>],
        extra: bool,
        progress: &dyn Progress,
        check: &dyn Fn() -> Result<(), ExportError>,
    ) -> Result<Self, ExportError> {
        let mut spec = model.spec().clone();
        let eps = spec.norm_eps;
        for layer in &mut spec.layers {
            if let Mixer::Mla(mla) = &mut layer.mixer {
                mla.rank += usize::from(extra);
                mla.latent_norm = Some(eps);
            }
        }
        let mut normed = Normed {
            model,
            spec,
            fitted: BTreeMap::new(),
        };
        let mut own = embed(model, windows)?;
        let mut theirs = own.clone();
        let layers = model.spec().layers.len();
        progress.start("fit latents", layers as u64, "layers");
        for index in 0..layers {
            check()?;
            let layer = OneLayer::load(model, index)?;
            let reads = |streams: &[Vec<f32>]| -> Vec<Vec<f32>> {
                let inputs = streams.par_iter().map(|x_td| layer.input(Role::KvA, x_td));
                inputs.map(Option::unwrap_or_default).collect()
            };
            normed.fit_layer(index, &reads(&own), &reads(&theirs), extra)?;
            let engine = OneLayer::load(&normed, index)?;
            own.par_iter_mut().for_each(|x_td| layer.run(x_td));
            theirs.par_iter_mut().for_each(|x_td| engine.run(x_td));
            progress.advance(1);
        }
        progress.finish();
        Ok(normed)
    }

    /// Fits one layer: `own` and `theirs` are its inputs, `[t, hidden]` per window, in the model and
    /// in the engine.
    fn fit_layer(
        &mut self,
        index: usize,
        own: &[Vec<f32>],
        theirs: &[Vec<f32>],
        extra: bool,
    ) -> Result<(), ExportError> {
        let hidden = self.spec.hidden;
        let Some(&MlaSpec { rank, rope_dim, .. }) = mla_of(self.model.spec(), index) else {
            return Ok(());
        };
        let read = |role| {
            self.model
                .tensor(TensorId::layer(index, role))
                .map(|t| dequantize(&t))
        };
        let mut w_ch = read(Role::KvA)?;
        let bias = read(Role::KvABias)?;
        let latent = |x_td: &[f32]| columns(&w_ch[..rank * hidden], rank, x_td, hidden);
        let with_bias = |mut c_rt: Mat<f32>| {
            for t in 0..c_rt.ncols() {
                c_rt.col_as_slice_mut(t)
                    .iter_mut()
                    .zip(&bias)
                    .for_each(|(c, b)| *c += b);
            }
            c_rt
        };
        // What the model remembers, and what the engine's encoder gives before the norm.
        let targets: Vec<Mat<f32>> = own.par_iter().map(|x| with_bias(latent(x))).collect();
        let raw: Vec<Mat<f32>> = theirs.par_iter().map(|x| latent(x)).collect();
        let (mut best, mut constant) = (None, Vec::new());
        if extra {
            constant = nearest_to_one(theirs, hidden)?;
            let ones: Vec<Vec<f32>> = theirs.iter().map(|x| dots(x, &constant)).collect();
            let length = root_mean_square(&raw);
            for weight in WEIGHTS.map(|weight| weight * length) {
                let normed: Vec<Mat<f32>> = raw
                    .par_iter()
                    .zip(&ones)
                    .map(|(c_rt, ones)| self.norm(c_rt, Some((ones, weight))))
                    .collect();
                let candidate = Candidate::fit(&normed, &targets, weight)?;
                if best
                    .as_ref()
                    .is_none_or(|b: &Candidate| candidate.error < b.error)
                {
                    best = Some(candidate);
                }
            }
        } else {
            let normed: Vec<Mat<f32>> = raw.par_iter().map(|c_rt| self.norm(c_rt, None)).collect();
            best = Some(Candidate::fit(&normed, &targets, 0.0)?);
        }
        let Some(Candidate { weight, map, error }) = best else {
            return Err(ExportError::Degenerate { layer: index });
        };
        if !error.is_finite() {
            return Err(ExportError::Degenerate { layer: index });
        }
        let wide = rank + usize::from(extra);
        let bias_q = read(Role::QBias)?;
        let biased = bias_q.iter().chain(&bias[rank..]).any(|&b| b != 0.0);
        if biased && constant.is_empty() {
            constant = nearest_to_one(theirs, hidden)?;
        }
        // A bias is what the nearest to a constant is multiplied by.
        add_outer(&mut w_ch[rank * hidden..], &bias[rank..], &constant);
        if bias_q.iter().any(|&b| b != 0.0) {
            let mut q = read(Role::Q)?;
            add_outer(&mut q, &bias_q, &constant);
            let id = |role| TensorId::layer(index, role);
            self.fitted
                .insert(id(Role::Q), dense(vec![bias_q.len(), hidden], &q));
            self.fitted.insert(
                id(Role::QBias),
                dense(vec![bias_q.len()], &vec![0.0; bias_q.len()]),
            );
        }
        if extra {
            let row = constant.iter().map(|c| c * weight);
            w_ch.splice(rank * hidden..rank * hidden, row);
        }
        let id = |role| TensorId::layer(index, role);
        let (k_b, v_b) = (read(Role::KB)?, read(Role::VB)?);
        let rows = k_b.len() / rank;
        let mean = self.value_of_output_bias(index, &read(Role::OBias)?)?;
        for (role, shape, values) in [
            (Role::KvA, vec![wide + rope_dim, hidden], w_ch),
            (
                Role::KvABias,
                vec![wide + rope_dim],
                vec![0.0; wide + rope_dim],
            ),
            (Role::KvANorm, vec![wide], vec![1.0; wide]),
            (Role::KB, vec![rows, wide], through(&k_b, rank, &map, None)),
            (
                Role::VB,
                vec![rows, wide],
                through(&v_b, rank, &map, mean.as_deref()),
            ),
            (Role::OBias, vec![hidden], vec![0.0; hidden]),
        ] {
            self.fitted.insert(id(role), dense(shape, &values));
        }
        Ok(())
    }

    /// The latents that the engine remembers: `[rank, t]`, or one channel more.
    fn norm(&self, c_rt: &Mat<f32>, constant: Option<(&Vec<f32>, f32)>) -> Mat<f32> {
        let wide = c_rt.nrows() + usize::from(constant.is_some());
        let mut out = Mat::zeros(wide, c_rt.ncols());
        for t in 0..c_rt.ncols() {
            let (from, to) = (c_rt.col_as_slice(t), out.col_as_slice_mut(t));
            to[..from.len()].copy_from_slice(from);
            if let Some((ones, weight)) = constant {
                to[from.len()] = ones[t] * weight;
            }
            let squares: f32 = to.iter().map(|u| u * u).sum();
            let scale = 1.0 / (squares / wide as f32 + self.spec.norm_eps as f32).sqrt();
            for u in to {
                *u *= scale;
            }
        }
        out
    }

    /// The vector of all heads' values that gives the output's bias, `[heads * head_dim]`: attention
    /// adds it whatever it attends to. `None` where there is no bias.
    fn value_of_output_bias(
        &self,
        index: usize,
        bias: &[f32],
    ) -> Result<Option<Vec<f32>>, ExportError> {
        if bias.iter().all(|&b| b == 0.0) {
            return Ok(None);
        }
        let o = dequantize(&self.model.tensor(TensorId::layer(index, Role::O))?);
        let (rows, cols) = (bias.len(), o.len() / bias.len());
        let o_nk = Mat::from_fn(rows, cols, |i, j| f64::from(o[i * cols + j]));
        let b = Mat::from_fn(rows, 1, |i, _| f64::from(bias[i]));
        // The shortest of all that do: Oᵀ (O Oᵀ)⁻¹ b.
        let gram = damped(par_mul(o_nk.as_ref(), o_nk.transpose()).as_ref(), 1e-9);
        let inner = solve_spd(gram.as_ref(), b.as_ref())?;
        let value = mul(o_nk.transpose(), inner.as_ref());
        Ok(Some((0..cols).map(|j| value[(j, 0)] as f32).collect()))
    }
}

/// A weight of the constant channel, and what follows from it.
struct Candidate {
    weight: f32,
    /// From what is remembered to the model's latent, and last to one: `[rank + 1, wide]`.
    map: Mat<f64>,
    /// Squared error of the latent on windows that were not fitted to, as a share.
    error: f64,
}

impl Candidate {
    /// The best map from `normed` to `targets` and one.
    fn fit(normed: &[Mat<f32>], targets: &[Mat<f32>], weight: f32) -> Result<Self, ExportError> {
        let (wide, rank) = (normed[0].nrows(), targets[0].nrows());
        let mut sums = Moments::zeros(wide, rank + 1);
        let every = HELD_OUT_EVERY.min(normed.len().max(2));
        let held_out = |at: usize| at % every == every - 1;
        let with_one = |c_rt: &Mat<f32>| {
            Mat::from_fn(rank + 1, c_rt.ncols(), |i, t| {
                if i < rank { c_rt[(i, t)] } else { 1.0 }
            })
        };
        for (at, (n, target)) in normed.iter().zip(targets).enumerate() {
            if !held_out(at) {
                sums.add_block(n.as_ref(), with_one(target).as_ref());
            }
        }
        let gram = damped(sums.xx.as_ref(), RIDGE);
        let map = solve_spd(gram.as_ref(), sums.yx.transpose())?
            .transpose()
            .to_owned();
        let (mut error, mut all) = (0.0, 0.0);
        let narrow = Mat::from_fn(rank, wide, |i, j| map[(i, j)] as f32);
        for (at, (n, target)) in normed.iter().zip(targets).enumerate() {
            if held_out(at) {
                let found = par_mul(narrow.as_ref(), n.as_ref());
                error += squares((&found - target).as_ref());
                all += squares(target.as_ref());
            }
        }
        Ok(Candidate {
            weight,
            map,
            error: error / f64::max(all, f64::MIN_POSITIVE),
        })
    }
}

/// `w += bias ⊗ row`, `w` row-major; nothing where there is no row.
fn add_outer(w: &mut [f32], bias: &[f32], row: &[f32]) {
    if row.is_empty() {
        return;
    }
    for (w, bias) in w.chunks_mut(row.len()).zip(bias) {
        w.iter_mut().zip(row).for_each(|(w, r)| *w += bias * r);
    }
}

fn squares(a: MatRef<'_, f32>) -> f64 {
    let column = |t| {
        a.col(t)
            .iter()
            .map(|&v| f64::from(v) * f64::from(v))
            .sum::<f64>()
    };
    (0..a.ncols()).map(column).sum()
}

/// The root of the mean squared length of the columns.
fn root_mean_square(latents: &[Mat<f32>]) -> f32 {
    let tokens: usize = latents.iter().map(Mat::ncols).sum();
    let sum: f64 = latents.iter().map(|c| squares(c.as_ref())).sum();
    (sum / tokens.max(1) as f64).sqrt() as f32
}

/// `W X`, `[rank, t]`, of rows `x_td`.
fn columns(w_rh: &[f32], rank: usize, x_td: &[f32], hidden: usize) -> Mat<f32> {
    let w = MatRef::from_row_major_slice(w_rh, rank, hidden);
    let x = MatRef::from_column_major_slice(x_td, hidden, x_td.len() / hidden);
    mul(w, x)
}

/// The products of every row with `w`.
fn dots(x_td: &[f32], w: &[f32]) -> Vec<f32> {
    let dot = |x: &[f32]| x.iter().zip(w).map(|(x, w)| x * w).sum();
    x_td.chunks(w.len()).map(dot).collect()
}

/// The linear map of least squared distance to one: `E[x xᵀ]⁻¹ E[x]`.
fn nearest_to_one(inputs: &[Vec<f32>], hidden: usize) -> Result<Vec<f32>, ExportError> {
    let mut sums = Moments::zeros(hidden, 1);
    for x_td in inputs {
        let tokens = x_td.len() / hidden;
        let x = MatRef::from_column_major_slice(x_td, hidden, tokens);
        sums.add_block(x, Mat::from_fn(1, tokens, |_, _| 1.0).as_ref());
    }
    let gram = damped(sums.xx.as_ref(), RIDGE);
    let w = solve_spd(gram.as_ref(), sums.yx.transpose())?;
    Ok((0..hidden).map(|i| w[(i, 0)] as f32).collect())
}

/// `D · map` and, where given, `mean ⊗ (the row of map that gives one)`: `[rows, wide]` row-major. `d`
/// is `[rows, rank]`, `map` `[rank + 1, wide]`.
fn through(d: &[f32], rank: usize, map: &Mat<f64>, mean: Option<&[f32]>) -> Vec<f32> {
    let (rows, wide) = (d.len() / rank, map.ncols());
    let d_nr = Mat::from_fn(rows, rank, |i, j| f64::from(d[i * rank + j]));
    let product = par_mul(d_nr.as_ref(), map.subrows(0, rank));
    let mut out = Vec::with_capacity(rows * wide);
    for i in 0..rows {
        let mean = mean.map_or(0.0, |mean| f64::from(mean[i]));
        out.extend((0..wide).map(|j| (product[(i, j)] + mean * map[(rank, j)]) as f32));
    }
    out
}
