//! One streaming pass over the teacher's attention in one layer: the statistics from which the
//! rotated channels, the constants and the metric of the latent follow.
//!
//! Owns the sums and how they are gathered window by window. Decides nothing.

use faer::{Mat, MatRef, c64};
use rayon::prelude::*;

use super::activations::Activations;
use super::linalg::{add_mul, mul, wide};
use super::rotary::Phases;
use super::score_fit::{PairFit, accumulate, key_features};
use super::source::{Geometry, Projected, SourceLayer};

/// Sums over tokens of one layer's attention.
#[derive(Clone, Debug)]
pub struct TeacherStats {
    /// Tokens summed over.
    pub tokens: usize,
    /// Per head: how far one unit of score noise moves the layer's output, the variance of the
    /// projected values under the attention weights.
    pub sensitivity: Vec<f64>,
    /// Per pair: `Σ k kᴴ` over the key heads, `[kv_heads, kv_heads]`.
    pub key_moment: Vec<Mat<c64>>,
    /// Per head: `Σ q qᵀ`, `[head_dim, head_dim]`, the score scale in `q`.
    pub query_moment: Vec<Mat<f64>>,
    /// Per head: how much attention goes how far back, `[window]`.
    pub distances: Vec<Vec<f64>>,
    /// Per key head: the mean square of its keys before their norm, summed over tokens; one each
    /// where there is no norm.
    pub key_squares: Vec<f64>,
    /// Per head and pair: the cost of losing the rotation.
    pub fits: Vec<Vec<PairFit>>,
}

impl TeacherStats {
    /// Sums over the given windows of the teacher's residual stream before attention.
    pub fn gather(g: &Geometry, layer: &SourceLayer, h: &Activations, windows: &[usize]) -> Self {
        let phases = Phases::new(&g.inv_freq, h.window_len());
        let gram = output_grams(g, &layer.attention.o);
        let parts: Vec<TeacherStats> = windows
            .par_iter()
            .map(|&w| {
                let x_dt = layer.attention_input(g, h.window(w));
                let p = layer.attention.project(g, x_dt.as_ref());
                Self::of_window(g, &p, &gram, &phases)
            })
            .collect();
        let mut sum = Self::zeros(g, h.window_len());
        for part in &parts {
            sum.add(part);
        }
        sum
    }

    fn zeros(g: &Geometry, window: usize) -> Self {
        TeacherStats {
            tokens: 0,
            sensitivity: vec![0.0; g.heads],
            key_moment: vec![Mat::zeros(g.kv_heads, g.kv_heads); g.pairs()],
            query_moment: vec![Mat::zeros(g.head_dim, g.head_dim); g.heads],
            distances: vec![vec![0.0; window]; g.heads],
            key_squares: vec![0.0; g.kv_heads],
            fits: vec![vec![PairFit::default(); g.pairs()]; g.heads],
        }
    }

    fn of_window(g: &Geometry, p: &Projected, gram: &[Mat<f32>], phases: &Phases) -> Self {
        let mut out = Self::zeros(g, p.k.ncols());
        out.tokens = p.k.ncols();
        let d = g.head_dim;
        let features: Vec<Mat<f32>> = (0..g.kv_heads)
            .map(|j| key_features(p.k.subrows(j * d, d), phases))
            .collect();
        out.key_squares.clone_from(&p.key_squares);
        let rotated = p.rotated(phases);
        for h in 0..g.heads {
            let a_st = rotated.weights(g, h);
            add_distances(&mut out.distances[h], &a_st);
            let q_dt = p.q.subrows(h * d, d);
            out.sensitivity[h] = score_sensitivity(p.value(g, h), gram[h].as_ref(), a_st.as_ref());
            out.query_moment[h] = wide(mul(q_dt, q_dt.transpose()).as_ref());
            let features = features[h / g.group()].as_ref();
            accumulate(&mut out.fits[h], features, a_st.as_ref(), q_dt, phases);
        }
        for (l, moment) in out.key_moment.iter_mut().enumerate() {
            let k_gt = Mat::from_fn(g.kv_heads, p.k.ncols(), |j, t| pair(&p.k, g, j, l, t));
            add_mul(
                moment.as_mut(),
                k_gt.as_ref(),
                k_gt.adjoint().to_owned().as_ref(),
            );
        }
        out
    }

    fn add(&mut self, other: &TeacherStats) {
        self.tokens += other.tokens;
        for (a, b) in self.sensitivity.iter_mut().zip(&other.sensitivity) {
            *a += b;
        }
        self.key_moment
            .iter_mut()
            .zip(&other.key_moment)
            .for_each(|(a, b)| *a += b);
        self.query_moment
            .iter_mut()
            .zip(&other.query_moment)
            .for_each(|(a, b)| *a += b);
        for (a, b) in self
            .distances
            .iter_mut()
            .flatten()
            .zip(other.distances.iter().flatten())
        {
            *a += b;
        }
        self.key_squares
            .iter_mut()
            .zip(&other.key_squares)
            .for_each(|(a, b)| *a += b);
        add_fits(&mut self.fits, &other.fits);
    }

    /// Mean square of the keys of key head `j` before their norm; one where there is none.
    pub fn key_square(&self, j: usize) -> f64 {
        (self.key_squares[j] / self.tokens as f64).max(1e-12)
    }

    /// The mean of `exp(i angle δ)` over the distances `δ` at which head `h` attends.
    pub fn mean_turn(&self, h: usize, angle: f64) -> c64 {
        let (mut sum, mut total) = (c64::new(0.0, 0.0), 0.0);
        for (distance, weight) in self.distances[h].iter().enumerate() {
            sum += c64::from_polar(*weight, angle * distance as f64);
            total += weight;
        }
        if total > 0.0 {
            sum * (1.0 / total)
        } else {
            c64::new(1.0, 0.0)
        }
    }

    /// `Σ q qᵀ` of head `h` with each query turned back by the distance it attends at, the mean over
    /// distances. In complex numbers a product of pairs turns by the difference of their angles, or
    /// by the sum where neither is conjugated.
    pub fn turned_query_moment(&self, g: &Geometry, h: usize) -> Mat<f64> {
        let (q, p) = (&self.query_moment[h], g.pairs());
        let mut out = Mat::zeros(2 * p, 2 * p);
        for l in 0..p {
            for m in 0..p {
                let (a, b) = (g.inv_freq[l], g.inv_freq[m]);
                let (rr, ri) = (q[(l, m)], q[(l, m + p)]);
                let (ir, ii) = (q[(l + p, m)], q[(l + p, m + p)]);
                let apart = c64::new(rr + ii, ir - ri) * self.mean_turn(h, a - b);
                let along = c64::new(rr - ii, ir + ri) * self.mean_turn(h, a + b);
                out[(l, m)] = 0.5 * (apart.re + along.re);
                out[(l + p, m + p)] = 0.5 * (apart.re - along.re);
                out[(l + p, m)] = 0.5 * (along.im + apart.im);
                out[(l, m + p)] = 0.5 * (along.im - apart.im);
            }
        }
        out
    }

    /// The sensitivities scaled to mean one.
    pub fn head_weights(&self) -> Vec<f64> {
        let mean = self.sensitivity.iter().sum::<f64>() / self.sensitivity.len() as f64;
        let weight = |&s: &f64| if mean > 0.0 { s / mean } else { 1.0 };
        self.sensitivity.iter().map(weight).collect()
    }
}

/// Per head and pair, the cost of losing the rotation of what `residual[l]`, a `[kv_heads, kv_heads]`
/// map between the key heads, leaves of pair `l`.
pub fn residual_fits(
    g: &Geometry,
    layer: &SourceLayer,
    h: &Activations,
    windows: &[usize],
    residual: &[Mat<c64>],
) -> Vec<Vec<PairFit>> {
    let phases = Phases::new(&g.inv_freq, h.window_len());
    let (d, pairs) = (g.head_dim, g.pairs());
    let of_window = |&w: &usize| {
        let x_dt = layer.attention_input(g, h.window(w));
        let p = layer.attention.project(g, x_dt.as_ref());
        let mut rest = Mat::<f32>::zeros(g.key_width(), p.k.ncols());
        for t in 0..p.k.ncols() {
            for (l, map) in residual.iter().enumerate() {
                for i in 0..g.kv_heads {
                    let sum: c64 = (0..g.kv_heads)
                        .map(|j| map[(i, j)] * pair(&p.k, g, j, l, t))
                        .sum();
                    rest[(i * d + l, t)] = sum.re as f32;
                    rest[(i * d + pairs + l, t)] = sum.im as f32;
                }
            }
        }
        let features: Vec<Mat<f32>> = (0..g.kv_heads)
            .map(|j| key_features(rest.subrows(j * d, d), &phases))
            .collect();
        let mut fits = vec![vec![PairFit::default(); pairs]; g.heads];
        let rotated = p.rotated(&phases);
        for h in 0..g.heads {
            let a_st = rotated.weights(g, h);
            let features = features[h / g.group()].as_ref();
            accumulate(
                &mut fits[h],
                features,
                a_st.as_ref(),
                p.q.subrows(h * d, d),
                &phases,
            );
        }
        fits
    };
    let parts: Vec<_> = windows.par_iter().map(of_window).collect();
    let mut sum = vec![vec![PairFit::default(); pairs]; g.heads];
    for part in &parts {
        add_fits(&mut sum, part);
    }
    sum
}

fn add_distances(sum: &mut [f64], a_st: &Mat<f32>) {
    for t in 0..a_st.ncols() {
        let weights = a_st.col_as_slice(t)[..=t].iter().rev();
        sum.iter_mut()
            .zip(weights)
            .for_each(|(sum, a)| *sum += f64::from(*a));
    }
}

fn add_fits(sum: &mut [Vec<PairFit>], part: &[Vec<PairFit>]) {
    for (a, b) in sum.iter_mut().flatten().zip(part.iter().flatten()) {
        a.add(b);
    }
}

/// Pair `l` of key head `j` at token `t`.
fn pair(k: &Mat<f32>, g: &Geometry, j: usize, l: usize, t: usize) -> c64 {
    let row = j * g.head_dim + l;
    c64::new(f64::from(k[(row, t)]), f64::from(k[(row + g.pairs(), t)]))
}

/// Per head `o_hᵀ o_h`, `[head_dim, head_dim]`: the metric its values are seen in.
pub fn output_grams(g: &Geometry, o: &Mat<f32>) -> Vec<Mat<f32>> {
    let head = |h: usize| {
        let o_h = o.subcols(h * g.head_dim, g.head_dim);
        mul(o_h.transpose(), o_h)
    };
    (0..g.heads).map(head).collect()
}

/// `Σ_t Var_{s~a_t}(o_h v_s)`: `Σ_s a v_sᵀ G v_s - (Σ_s a v_s)ᵀ G (Σ_s a v_s)`.
fn score_sensitivity(v_ds: MatRef<'_, f32>, gram: MatRef<'_, f32>, a_st: MatRef<'_, f32>) -> f64 {
    let energy = |x: MatRef<'_, f32>| -> Vec<f64> {
        let gx = mul(gram, x);
        let dot = |t| {
            (0..x.nrows())
                .map(|i| f64::from(x[(i, t)] * gx[(i, t)]))
                .sum()
        };
        (0..x.ncols()).map(dot).collect()
    };
    let keys = energy(v_ds);
    let mean: f64 = energy(mul(v_ds, a_st).as_ref()).iter().sum();
    let seen = |t| {
        (0..=t)
            .map(|s: usize| f64::from(a_st[(s, t)]) * keys[s])
            .sum::<f64>()
    };
    ((0..a_st.ncols()).map(seen).sum::<f64>() - mean).max(0.0)
}
