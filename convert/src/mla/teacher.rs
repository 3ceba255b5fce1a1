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
        let mut sum = Self::zeros(g);
        for part in &parts {
            sum.add(part);
        }
        sum
    }

    fn zeros(g: &Geometry) -> Self {
        TeacherStats {
            tokens: 0,
            sensitivity: vec![0.0; g.heads],
            key_moment: vec![Mat::zeros(g.kv_heads, g.kv_heads); g.pairs()],
            query_moment: vec![Mat::zeros(g.head_dim, g.head_dim); g.heads],
            fits: vec![vec![PairFit::default(); g.pairs()]; g.heads],
        }
    }

    fn of_window(g: &Geometry, p: &Projected, gram: &[Mat<f32>], phases: &Phases) -> Self {
        let mut out = Self::zeros(g);
        out.tokens = p.k.ncols();
        let d = g.head_dim;
        let features: Vec<Mat<f32>> = (0..g.kv_heads)
            .map(|j| key_features(p.k.subrows(j * d, d), phases))
            .collect();
        for (h, a_st) in p.weights(g, phases).iter().enumerate() {
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
        add_fits(&mut self.fits, &other.fits);
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
        for (h, a_st) in p.weights(g, &phases).iter().enumerate() {
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
