//! Least squares on the scores themselves: makes the converted scores follow the teacher's.
//!
//! Minimises `Σ_h τ_h mean_t Var_{s~a_t}(converted score - teacher score)` over the key side or the
//! query side while the other stands still. The score is linear in either side, so this is a convex
//! quadratic, solved by conjugate gradients. The Hessian is close to a Kronecker product of what the
//! other side looks like and the covariance of the input, whose inverses precondition it. After each
//! step the loss on held-out windows decides whether the step is kept.
//!
//! The teacher's scores enter as the logarithm of its attention weights: the two differ by a constant
//! per query, which the variance does not see.

use faer::{Mat, MatRef};

use super::activations::{Activations, blocks, gather};
use super::error::Error;
use super::layer::{MlaAttention, Sides};
use super::linalg::{add_mul, set_mul};
use super::moments::add_outer;
use super::rotary::Phases;
use super::score_weights::Weights;
use super::source::{Geometry, SourceLayer};

/// Which side of the scores is fitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Latent key decoders and the rotated key.
    Key,
    /// Queries of both kinds.
    Query,
}

/// The losses of one fit.
#[derive(Clone, Copy, Debug)]
pub struct ScoreFit {
    /// Loss on held-out windows before.
    pub before: f64,
    /// Loss on held-out windows of what was kept.
    pub after: f64,
    /// Steps kept.
    pub steps: usize,
}

/// What the fits of one layer share.
pub struct ScoreProblem<'a> {
    pub(super) hs: &'a Activations,
    pub(super) attn_norm: &'a SourceLayer,
    pub(super) g: &'a Geometry,
    /// Per head `τ_h`.
    pub(super) head_weights: Vec<f32>,
    /// Teacher weights per window (`None` where the window is not used) and head.
    pub(super) teacher: Vec<Option<Vec<Mat<f32>>>>,
    pub(super) train: Vec<usize>,
    pub(super) held_out: Vec<usize>,
    pub(super) source_phases: Phases,
}

impl<'a> ScoreProblem<'a> {
    /// Runs the teacher over its residual stream `ht` and keeps its attention weights; `hs` is the
    /// student's.
    pub fn new(
        g: &'a Geometry,
        source: &'a SourceLayer,
        ht: &Activations,
        hs: &'a Activations,
        head_weights: &[f64],
        train: Vec<usize>,
        held_out: Vec<usize>,
    ) -> Self {
        use rayon::prelude::*;
        let source_phases = Phases::new(&g.inv_freq, ht.window_len());
        let used = |w: &usize| train.contains(w) || held_out.contains(w);
        let weights = |w: usize| {
            let x_dt = source.attention_input(g, ht.window(w));
            source
                .attention
                .project(g, x_dt.as_ref())
                .weights(g, &source_phases)
        };
        let teacher = (0..ht.windows())
            .into_par_iter()
            .map(|w| used(&w).then(|| weights(w)))
            .collect();
        let head_weights = head_weights.iter().map(|&w| w as f32).collect();
        ScoreProblem {
            hs,
            attn_norm: source,
            g,
            head_weights,
            teacher,
            train,
            held_out,
            source_phases,
        }
    }

    /// Fits one side of `layer` by up to `steps` steps.
    pub fn fit(
        &self,
        layer: &mut MlaAttention,
        side: Side,
        steps: usize,
    ) -> Result<ScoreFit, Error> {
        let before = self.held_out_loss(layer);
        let preconditioner = self.preconditioner(layer, side)?;
        let mut at = Weights::of(layer, side);
        let mut residual = self.gradient(layer, side, &at, true)?;
        residual.nope *= -1.0;
        residual.rope *= -1.0;
        let mut z = preconditioner.apply(&residual);
        let mut direction = z.clone();
        let mut rz = residual.dot(&z);
        let (mut best, mut kept, mut trial) = (before, 0, layer.clone());
        for step in 1..=steps {
            let curved = self.gradient(layer, side, &direction, false)?;
            let length = rz / direction.dot(&curved).max(1e-30);
            at.add_scaled(&direction, length);
            residual.add_scaled(&curved, -length);
            z = preconditioner.apply(&residual);
            let old = rz;
            rz = residual.dot(&z);
            let mut next = z;
            next.add_scaled(&direction, rz / old.max(1e-30));
            direction = next;
            at.store(&mut trial, side);
            let loss = self.held_out_loss(&trial);
            if loss < best {
                (best, kept) = (loss, step);
                *layer = trial.clone();
            } else {
                break;
            }
        }
        Ok(ScoreFit {
            before,
            after: best,
            steps: kept,
        })
    }

    /// Mean loss per token on the held-out windows.
    pub fn held_out_loss(&self, layer: &MlaAttention) -> f64 {
        self.loss(layer, &self.held_out)
    }

    fn loss(&self, layer: &MlaAttention, windows: &[usize]) -> f64 {
        use rayon::prelude::*;
        let phases = self.phases(layer);
        let of_window = |&w: &usize| {
            let x_dt = self.input(w);
            let sides = sides_of(layer, &phases, x_dt.as_ref());
            let head = |h: usize| self.errors(layer, &sides, w, h, true).1;
            (0..layer.heads).map(head).sum::<f64>()
        };
        let parts: Vec<f64> = windows.par_iter().map(of_window).collect();
        parts.iter().sum::<f64>() / (windows.len() * self.hs.window_len()) as f64
    }

    pub(super) fn phases(&self, layer: &MlaAttention) -> Phases {
        Phases::new(&layer.inv_freq, self.source_phases.cos_lt.ncols())
    }

    pub(super) fn input(&self, w: usize) -> Mat<f32> {
        self.attn_norm.attention_input(self.g, self.hs.window(w))
    }

    /// `a ∘ (e - mean_a e)` weighted with `τ_h`, the slope of the loss by the scores, and the loss; the
    /// error `e` counts from the teacher's score or from zero.
    fn errors(
        &self,
        layer: &MlaAttention,
        sides: &Sides,
        w: usize,
        h: usize,
        target: bool,
    ) -> (Mat<f32>, f64) {
        let a_st = &self.teacher[w].as_ref().expect("a window of the problem")[h];
        let mut e_st = sides.scores(layer, h);
        let (mut loss, weight) = (0.0, self.head_weights[h]);
        for t in 0..e_st.ncols() {
            let (a, e) = (a_st.col_as_slice(t), e_st.col_as_slice_mut(t));
            let (a, (e, ahead)) = (&a[..=t], e.split_at_mut(t + 1));
            ahead.fill(0.0);
            if target {
                e.iter_mut()
                    .zip(a)
                    .for_each(|(e, a)| *e -= a.max(1e-30).ln());
            }
            let mean: f32 = e.iter().zip(a).map(|(e, a)| e * a).sum();
            let mut sum = 0.0;
            for (e, a) in e.iter_mut().zip(a) {
                let centred = *e - mean;
                *e = weight * a * centred;
                sum += *e * centred;
            }
            loss += 0.5 * f64::from(sum);
        }
        (e_st, loss)
    }

    /// The gradient at `at` per token, or, without the target, the Hessian times `at`.
    pub(super) fn gradient(
        &self,
        layer: &MlaAttention,
        side: Side,
        at: &Weights,
        target: bool,
    ) -> Result<Weights, Error> {
        let mut moved = layer.clone();
        at.store(&mut moved, side);
        let phases = self.phases(layer);
        let (nope, rope) = (at.nope.nrows(), at.rope.nrows());
        let mut out = at.zeros_like();
        for block in blocks(&self.train) {
            let window = self.hs.window_len();
            // Slopes by both outputs above their inputs, so that one pass gathers all four.
            let (x_rows, c_rows) = (layer.q_nope.ncols() + 1, layer.rank());
            let rows = nope + rope + x_rows + c_rows;
            let all = gather(rows, window, block, |w| {
                let x_dt = self.input(w);
                let c_rt = layer.latent(x_dt.as_ref());
                // The side that stands still comes from `layer`, the other from `moved`.
                let (queries, keys) = match side {
                    Side::Key => (layer, &moved),
                    Side::Query => (&moved, layer),
                };
                let (q_nope, q_rope) = queries.queries(&phases, x_dt.as_ref());
                let (k_nope, k_rope) = keys.keys(&phases, x_dt.as_ref(), c_rt.as_ref());
                let sides = Sides {
                    q_nope,
                    q_rope,
                    k_nope,
                    k_rope,
                };
                let mut out = Mat::zeros(rows, window);
                self.slopes(&moved, &sides, side, w, target, &phases, &mut out);
                out.subrows_mut(nope + rope, x_rows - 1).copy_from(&x_dt);
                out.row_mut(nope + rope + x_rows - 1).fill(1.0);
                out.subrows_mut(nope + rope + x_rows, c_rows)
                    .copy_from(&c_rt);
                Ok::<_, Error>(out)
            })?;
            let x = all.subrows(nope + rope, x_rows);
            let c = all.subrows(nope + rope + x_rows, c_rows);
            let input = if side == Side::Key { c } else { x };
            add_outer(out.nope.as_mut(), all.subrows(0, nope), input);
            add_outer(out.rope.as_mut(), all.subrows(nope, rope), x);
        }
        let tokens = (self.train.len() * self.hs.window_len()) as f64;
        out.nope *= 1.0 / tokens;
        out.rope *= 1.0 / tokens;
        Ok(out)
    }

    /// Slopes of the loss by the side's outputs, before rotation, into the first rows of `out`.
    #[expect(
        clippy::too_many_arguments,
        reason = "one call, and a struct would only rename them"
    )]
    fn slopes(
        &self,
        layer: &MlaAttention,
        sides: &Sides,
        side: Side,
        w: usize,
        target: bool,
        phases: &Phases,
        out: &mut Mat<f32>,
    ) {
        let (nope, rope) = (layer.nope(), layer.rope());
        let total = layer.heads * nope;
        for h in 0..layer.heads {
            let (g_st, _) = self.errors(layer, sides, w, h, target);
            let row = h * nope;
            match side {
                Side::Query => {
                    set_mul(
                        out.subrows_mut(row, nope),
                        sides.k_nope.subrows(row, nope),
                        g_st.as_ref(),
                    );
                    let rotated = out.subrows_mut(total + h * rope, rope);
                    set_mul(rotated, sides.k_rope.as_ref(), g_st.as_ref());
                }
                Side::Key => {
                    let g_ts = g_st.transpose();
                    set_mul(
                        out.subrows_mut(row, nope),
                        sides.q_nope.subrows(row, nope),
                        g_ts,
                    );
                    let rotated = out.subrows_mut(total, rope);
                    add_mul(rotated, sides.q_rope.subrows(h * rope, rope), g_ts);
                }
            }
        }
        let rows = if side == Side::Query {
            layer.heads * rope
        } else {
            rope
        };
        phases.rotate_back(out.subrows_mut(total, rows));
    }
}

pub(super) fn sides_of(layer: &MlaAttention, phases: &Phases, x_dt: MatRef<'_, f32>) -> Sides {
    let c_rt = layer.latent(x_dt);
    let (q_nope, q_rope) = layer.queries(phases, x_dt);
    let (k_nope, k_rope) = layer.keys(phases, x_dt, c_rt.as_ref());
    Sides {
        q_nope,
        q_rope,
        k_nope,
        k_rope,
    }
}
