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

use faer::{Mat, MatMut, MatRef};
use rayon::prelude::*;

use super::activations::{Activations, blocks, gather};
use super::attention::{dot, exp, query_blocks, scores, slice};
use super::error::Error;
use super::linalg::{self, add_mul, mul, narrow, set_mul};
use super::moments::add_outer;
use super::rotary::Phases;
use super::source::{Geometry, SourceLayer};
use super::student::{Side, Student, head_terms, turn};

/// The losses of one fit.
#[derive(Clone, Copy, Debug)]
pub struct ScoreFit {
    /// Which side was fitted.
    pub side: Side,
    /// Loss on held-out windows before.
    pub before: f64,
    /// Loss on held-out windows of what was kept.
    pub after: f64,
    /// Steps kept.
    pub steps: usize,
}

/// What the fits of one layer share.
pub struct ScoreProblem<'a> {
    pub(super) g: &'a Geometry,
    source: &'a SourceLayer,
    student: &'a Activations,
    /// Per head `τ_h`.
    pub(super) head_weights: Vec<f32>,
    /// Logarithms of the teacher's weights per window (`None` where it is not used) and head.
    pub(super) teacher: Vec<Option<Vec<Mat<f32>>>>,
    pub(super) train: Vec<usize>,
    held_out: Vec<usize>,
}

/// One side of every part in every window used, rotated.
pub(super) type Turned = Vec<Option<Vec<Mat<f32>>>>;

/// The weights of one side, part by part.
type Weights = Vec<Mat<f64>>;

impl<'a> ScoreProblem<'a> {
    /// Runs the teacher over its residual stream and keeps its attention weights.
    pub fn new(
        g: &'a Geometry,
        source: &'a SourceLayer,
        teacher: &Activations,
        student: &'a Activations,
        head_weights: &[f64],
        train: Vec<usize>,
        held_out: Vec<usize>,
    ) -> Self {
        let phases = Phases::new(&g.inv_freq, teacher.window_len());
        let used = |w: &usize| train.contains(w) || held_out.contains(w);
        let weights = |w: usize| {
            let x_dt = source.attention_input(g, teacher.window(w));
            let rotated = source.attention.project(g, x_dt.as_ref()).rotated(&phases);
            (0..g.heads).map(|h| rotated.log_weights(g, h)).collect()
        };
        let all = (0..teacher.windows()).into_par_iter();
        let teacher = all.map(|w| used(&w).then(|| weights(w))).collect();
        let head_weights = head_weights.iter().map(|&w| w as f32).collect();
        ScoreProblem {
            g,
            source,
            student,
            head_weights,
            teacher,
            train,
            held_out,
        }
    }

    /// Fits one side of `layer` by up to `steps` steps; a side that is not linear in anything stays.
    pub fn fit<S: Student>(
        &self,
        layer: &mut S,
        side: Side,
        steps: usize,
    ) -> Result<ScoreFit, Error> {
        let other = if side == Side::Key {
            Side::Query
        } else {
            Side::Key
        };
        let still = self.turned(layer, other);
        let before = self.loss(layer, side, &still, None, &self.held_out);
        let mut fit = ScoreFit {
            side,
            before,
            after: before,
            steps: 0,
        };
        let Some(start) = layer.weights(side) else {
            return Ok(fit);
        };
        let preconditioner = self.preconditioner(layer, side, &still)?;
        let mut at = start.clone();
        let mut residual = self.gradient(layer, side, &still, &at, true);
        for part in &mut residual {
            *part *= -1.0;
        }
        let mut direction = preconditioner.apply(&residual);
        let mut rz = product(&residual, &direction);
        for step in 1..=steps {
            let curved = self.gradient(layer, side, &still, &direction, false);
            let length = rz / product(&direction, &curved).max(1e-30);
            add_scaled(&mut at, &direction, length);
            let loss = self.loss(layer, side, &still, Some(&at), &self.held_out);
            if loss >= fit.after {
                break;
            }
            (fit.after, fit.steps) = (loss, step);
            layer.store(side, &at);
            if step < steps {
                add_scaled(&mut residual, &curved, -length);
                let mut next = preconditioner.apply(&residual);
                let old = rz;
                rz = product(&residual, &next);
                add_scaled(&mut next, &direction, rz / old.max(1e-30));
                direction = next;
            }
        }
        Ok(fit)
    }

    /// Mean loss per token on the held-out windows.
    pub fn held_out_loss<S: Student>(&self, layer: &S) -> f64 {
        let still = self.turned(layer, Side::Query);
        self.loss(layer, Side::Key, &still, None, &self.held_out)
    }

    pub(super) fn turned<S: Student>(&self, layer: &S, side: Side) -> Turned {
        let phases = self.phases(layer);
        let of = |w: usize| layer.turned(side, &phases, self.input(w).as_ref());
        let all = (0..self.teacher.len()).into_par_iter();
        all.map(|w| self.teacher[w].is_some().then(|| of(w)))
            .collect()
    }

    pub(super) fn phases<S: Student>(&self, layer: &S) -> Phases {
        Phases::new(layer.inv_freq(), self.student.window_len())
    }

    pub(super) fn input(&self, w: usize) -> Mat<f32> {
        self.source.attention_input(self.g, self.student.window(w))
    }

    pub(super) fn tokens(&self) -> usize {
        self.train.len() * self.student.window_len()
    }

    pub(super) fn window_len(&self) -> usize {
        self.student.window_len()
    }

    /// The loss with the weights `at` of `side`, or those `layer` has.
    fn loss<S: Student>(
        &self,
        layer: &S,
        side: Side,
        still: &Turned,
        at: Option<&Weights>,
        windows: &[usize],
    ) -> f64 {
        let phases = self.phases(layer);
        let small = at.map(|at| {
            at.iter()
                .map(|part| narrow(part.as_ref()))
                .collect::<Vec<_>>()
        });
        let of_window = |&w: &usize| {
            let x_dt = self.input(w);
            let moved = match &small {
                None => layer.turned(side, &phases, x_dt.as_ref()),
                Some(at) => moved(layer, side, at, &phases, &layer.inputs(side, x_dt.as_ref())),
            };
            let head =
                |h: usize| self.errors(layer, side, still, &moved, (w, h), true, |_, _, _| ());
            (0..layer.heads()).map(head).sum::<f64>()
        };
        let parts: Vec<f64> = windows.par_iter().map(of_window).collect();
        parts.iter().sum::<f64>() / (windows.len() * self.student.window_len()) as f64
    }

    /// Visits the slopes of the loss by the scores, `τ_h a ∘ (e - mean_a e)`, a block of queries at a
    /// time, and returns the loss; the error `e` counts from the teacher's score or from zero.
    #[expect(
        clippy::too_many_arguments,
        reason = "one step of two loops that share everything"
    )]
    fn errors<S: Student>(
        &self,
        layer: &S,
        side: Side,
        still: &Turned,
        moved: &[Mat<f32>],
        (w, h): (usize, usize),
        target: bool,
        mut visit: impl FnMut(usize, usize, MatRef<'_, f32>),
    ) -> f64 {
        let still = still[w].as_ref().expect("a window of the problem");
        let (k, q) = match side {
            Side::Key => (moved, &still[..]),
            Side::Query => (&still[..], moved),
        };
        let terms = head_terms(&layer.parts(), layer.heads(), k, q, h);
        let log_a = &self.teacher[w].as_ref().expect("a window of the problem")[h];
        let (mut loss, weight) = (0.0, self.head_weights[h]);
        let mut a = vec![0.0; self.student.window_len()];
        for (first, end) in query_blocks(self.student.window_len()) {
            let mut e_st = scores(&terms, first, end);
            for t in first..end {
                let (e, ahead) = slice(e_st.as_mut(), t - first).split_at_mut(t + 1);
                ahead.fill(0.0);
                let (log_a, a) = (&log_a.col_as_slice(t)[..=t], &mut a[..=t]);
                a.iter_mut()
                    .zip(log_a)
                    .for_each(|(a, log_a)| *a = exp(*log_a));
                if target {
                    e.iter_mut().zip(log_a).for_each(|(e, log_a)| *e -= log_a);
                }
                let mean = dot(e, a);
                for e in &mut *e {
                    *e -= mean;
                }
                a.iter_mut().zip(&*e).for_each(|(a, e)| *a *= weight * e);
                loss += 0.5 * f64::from(dot(e, a));
                e.copy_from_slice(a);
            }
            visit(first, end, e_st.as_ref());
        }
        loss
    }

    /// The gradient at `at` per token, or, without the target, the Hessian times `at`.
    pub(super) fn gradient<S: Student>(
        &self,
        layer: &S,
        side: Side,
        still: &Turned,
        at: &Weights,
        target: bool,
    ) -> Weights {
        let phases = self.phases(layer);
        let at: Vec<Mat<f32>> = at.iter().map(|part| narrow(part.as_ref())).collect();
        let mut out: Weights = at
            .iter()
            .map(|p| Mat::zeros(p.nrows(), p.ncols()))
            .collect();
        let (slopes, inputs) = (rows(&at, Mat::nrows), rows(&at, Mat::ncols));
        let total = slopes.last().map_or(0, |&(start, count)| start + count);
        let all = total + inputs.last().map_or(0, |&(start, count)| start + count);
        for block in blocks(&self.train) {
            // Slopes above inputs, so that one pass gathers both.
            let gathered = gather(all, self.student.window_len(), block, |w| {
                let x_dt = self.input(w);
                let read = layer.inputs(side, x_dt.as_ref());
                let moved = moved(layer, side, &at, &phases, &read);
                let mut out = Mat::zeros(all, x_dt.ncols());
                let to = out.subrows_mut(0, total);
                self.slopes(layer, side, still, &moved, w, target, &phases, to);
                for (input, &(start, count)) in read.iter().zip(&inputs) {
                    out.subrows_mut(total + start, count).copy_from(input);
                }
                out
            });
            for (i, part) in out.iter_mut().enumerate() {
                let slope = gathered.subrows(slopes[i].0, slopes[i].1);
                add_outer(
                    part.as_mut(),
                    slope,
                    gathered.subrows(total + inputs[i].0, inputs[i].1),
                );
            }
        }
        let scale = 1.0 / self.tokens() as f64;
        for part in &mut out {
            *part *= scale;
        }
        out
    }

    /// Slopes of the loss by the outputs of `side`, before rotation, part under part.
    #[expect(
        clippy::too_many_arguments,
        reason = "one step of two loops that share everything"
    )]
    fn slopes<S: Student>(
        &self,
        layer: &S,
        side: Side,
        still: &Turned,
        moved: &[Mat<f32>],
        w: usize,
        target: bool,
        phases: &Phases,
        mut out: MatMut<'_, f32>,
    ) {
        let (parts, heads) = (layer.parts(), layer.heads());
        let fixed = still[w].as_ref().expect("a window of the problem");
        for h in 0..heads {
            self.errors(
                layer,
                side,
                still,
                moved,
                (w, h),
                target,
                |first, end, g_st| {
                    let mut row = 0;
                    for ((part, fixed), moved) in parts.iter().zip(fixed).zip(moved) {
                        let (width, own) = (part.width, part.key_of(h, heads) * part.width);
                        match side {
                            Side::Query => {
                                let k = fixed.submatrix(own, 0, width, end);
                                let at = row + h * width;
                                let to = out.as_mut().submatrix_mut(at, first, width, end - first);
                                set_mul(to, k, g_st);
                            }
                            Side::Key => {
                                let q = fixed.submatrix(h * width, first, width, end - first);
                                let to = out.as_mut().submatrix_mut(row + own, 0, width, end);
                                add_mul(to, q, g_st.transpose());
                            }
                        }
                        row += moved.nrows();
                    }
                },
            );
        }
        let mut row = 0;
        for (part, moved) in parts.iter().zip(moved) {
            if part.rotated {
                phases.rotate_back(out.as_mut().subrows_mut(row, moved.nrows()));
            }
            row += moved.nrows();
        }
    }
}

/// The outputs of `side` with the weights `at`, rotated.
fn moved<S: Student>(
    layer: &S,
    side: Side,
    at: &[Mat<f32>],
    phases: &Phases,
    inputs: &[Mat<f32>],
) -> Vec<Mat<f32>> {
    debug_assert_eq!(layer.parts().len(), at.len(), "{side:?}");
    let outputs = at
        .iter()
        .zip(inputs)
        .map(|(w, x)| mul(w.as_ref(), x.as_ref()))
        .collect();
    turn(&layer.parts(), outputs, phases)
}

/// Start and count of each matrix's rows (or columns) where they are stacked.
fn rows(parts: &[Mat<f32>], count: fn(&Mat<f32>) -> usize) -> Vec<(usize, usize)> {
    let mut start = 0;
    let mut place = |part| {
        let count = count(part);
        start += count;
        (start - count, count)
    };
    parts.iter().map(&mut place).collect()
}

pub(super) fn add_scaled(to: &mut Weights, other: &Weights, scale: f64) {
    for (to, other) in to.iter_mut().zip(other) {
        *to += faer::Scale(scale) * other;
    }
}

pub(super) fn product(a: &Weights, b: &Weights) -> f64 {
    a.iter()
        .zip(b)
        .map(|(a, b)| linalg::dot(a.as_ref(), b.as_ref()))
        .sum()
}
