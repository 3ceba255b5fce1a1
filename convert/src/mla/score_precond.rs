//! The preconditioner of score least squares: the Hessian as if it were a Kronecker product.

use faer::{Mat, MatRef};
use rayon::prelude::*;

use super::activations::{blocks, gather};
use super::error::Error;
use super::layer::MlaAttention;
use super::linalg::{damped_inverse, mul, wide};
use super::moments::add_outer;
use super::score_ls::{ScoreProblem, Side, sides_of};
use super::score_weights::Weights;

/// The factors of the preconditioner: `left⁻¹ gradient right⁻¹`, both already inverted.
pub(super) struct Preconditioner {
    /// Per head, `[nope, nope]`.
    nope_left: Vec<Mat<f64>>,
    nope_right: Mat<f64>,
    /// Per row of the rotated weights.
    rope_left: Vec<f64>,
    rope_right: Mat<f64>,
}

impl Preconditioner {
    pub(super) fn apply(&self, gradient: &Weights) -> Weights {
        let width = gradient.nope.nrows() / self.nope_left.len().max(1);
        let mut nope = mul(gradient.nope.as_ref(), self.nope_right.as_ref());
        for (h, left) in self.nope_left.iter().enumerate() {
            let block = mul(left.as_ref(), nope.subrows(h * width, width));
            nope.subrows_mut(h * width, width).copy_from(&block);
        }
        let rope = mul(gradient.rope.as_ref(), self.rope_right.as_ref());
        let rope = Mat::from_fn(rope.nrows(), rope.ncols(), |i, j| {
            self.rope_left[i] * rope[(i, j)]
        });
        Weights { nope, rope }
    }
}

impl ScoreProblem<'_> {
    pub(super) fn preconditioner(
        &self,
        layer: &MlaAttention,
        side: Side,
    ) -> Result<Preconditioner, Error> {
        let (nope, rope, heads) = (layer.nope(), layer.rope(), layer.heads);
        let phases = self.phases(layer);
        let tokens = (self.train.len() * self.hs.window_len()) as f64;
        let of_window = |&w: &usize| {
            let x_dt = self.input(w);
            let s = sides_of(layer, &phases, x_dt.as_ref());
            let mut full: Vec<Mat<f64>> = Vec::with_capacity(heads);
            let mut diagonal = vec![0.0; heads * rope];
            for h in 0..heads {
                let q_rope = s.q_rope.subrows(h * rope, rope);
                match side {
                    Side::Query => {
                        let a = &self.teacher[w].as_ref().expect("a window of the problem")[h];
                        let k = s.k_nope.subrows(h * nope, nope);
                        full.push(wide(spread(k, a.as_ref()).as_ref()));
                        let spread = spread(s.k_rope.as_ref(), a.as_ref());
                        (0..rope).for_each(|i| diagonal[h * rope + i] = f64::from(spread[(i, i)]));
                    }
                    Side::Key => {
                        let q = s.q_nope.subrows(h * nope, nope);
                        full.push(wide(mul(q, q.transpose()).as_ref()));
                        for i in 0..rope {
                            diagonal[h * rope + i] = (0..q_rope.ncols())
                                .map(|t| f64::from(q_rope[(i, t)]).powi(2))
                                .sum();
                        }
                    }
                }
            }
            (full, diagonal)
        };
        let parts: Vec<_> = self.train.par_iter().map(of_window).collect();
        let mut full = vec![Mat::<f64>::zeros(nope, nope); heads];
        let mut diagonal = vec![0.0; heads * rope];
        for (f, d) in parts {
            full.iter_mut().zip(&f).for_each(|(a, b)| *a += b);
            diagonal.iter_mut().zip(&d).for_each(|(a, b)| *a += b);
        }
        let nope_left = full
            .iter()
            .zip(&self.head_weights)
            .map(|(m, tau)| {
                damped_inverse((faer::Scale(f64::from(*tau) / tokens) * m).as_ref(), DAMP)
            })
            .collect::<Result<_, _>>()?;
        let tau = |h: usize| f64::from(self.head_weights[h]) / tokens;
        let by_head: Vec<f64> = (0..heads * rope)
            .map(|i| diagonal[i] * tau(i / rope))
            .collect();
        let rope_left = match side {
            Side::Query => by_head.chunks(rope.max(1)).flat_map(damped_pairs).collect(),
            Side::Key => {
                let sum = |i| (0..heads).map(|h| by_head[h * rope + i]).sum();
                damped_pairs(&(0..rope).map(sum).collect::<Vec<f64>>())
            }
        };
        let (xx, cc) = self.input_moments(layer)?;
        let rope_right = damped_inverse(xx.as_ref(), DAMP)?;
        let nope_right = match side {
            Side::Query => rope_right.clone(),
            Side::Key => damped_inverse(cc.as_ref(), DAMP)?,
        };
        Ok(Preconditioner {
            nope_left,
            nope_right,
            rope_left,
            rope_right,
        })
    }

    /// Mean outer products of the input (with a one below) and of the latent.
    fn input_moments(&self, layer: &MlaAttention) -> Result<(Mat<f64>, Mat<f64>), Error> {
        let (d, r) = (layer.q_nope.ncols(), layer.rank());
        let (mut xx, mut cc) = (Mat::zeros(d + 1, d + 1), Mat::zeros(r, r));
        for block in blocks(&self.train) {
            let x = gather(d + 1, self.hs.window_len(), block, |w| {
                let x_dt = self.input(w);
                let value = |i, t| if i < d { x_dt[(i, t)] } else { 1.0 };
                Ok::<_, Error>(Mat::from_fn(d + 1, x_dt.ncols(), value))
            })?;
            add_outer(xx.as_mut(), x.as_ref(), x.as_ref());
            let c = layer.latent(x.subrows(0, d));
            add_outer(cc.as_mut(), c.as_ref(), c.as_ref());
        }
        let tokens = (self.train.len() * self.hs.window_len()) as f64;
        xx *= 1.0 / tokens;
        cc *= 1.0 / tokens;
        Ok((xx, cc))
    }
}

/// Damping of the preconditioner's factors, as a share of their mean diagonal.
const DAMP: f64 = 1e-3;

/// `Σ_t Cov_{s~a_t}(k_s)`.
fn spread(k_ds: MatRef<'_, f32>, a_st: MatRef<'_, f32>) -> Mat<f32> {
    let weight: Vec<f32> = (0..a_st.nrows())
        .map(|s| (s..a_st.ncols()).map(|t| a_st[(s, t)]).sum())
        .collect();
    let weighted = Mat::from_fn(k_ds.nrows(), k_ds.ncols(), |i, s| k_ds[(i, s)] * weight[s]);
    let mean = mul(k_ds, a_st);
    mul(weighted.as_ref(), k_ds.transpose()) - mul(mean.as_ref(), mean.transpose())
}

/// Inverts a diagonal whose halves are the two channels of each pair, both alike.
fn damped_pairs(diagonal: &[f64]) -> Vec<f64> {
    let half = diagonal.len() / 2;
    let pair = |i: usize| 0.5 * (diagonal[i % half] + diagonal[i % half + half]);
    let mean = diagonal.iter().sum::<f64>() / diagonal.len().max(1) as f64;
    (0..2 * half)
        .map(|i| 1.0 / (pair(i) + DAMP * mean).max(1e-30))
        .collect()
}
