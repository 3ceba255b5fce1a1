//! The preconditioner of score least squares: the Hessian as if it were a Kronecker product of what
//! the side that stands still looks like and the covariance of the input.

use faer::{Mat, MatRef};
use rayon::prelude::*;

use super::activations::{blocks, gather};
use super::attention::{exp, query_blocks};
use super::error::Error;
use super::linalg::{damped_inverse, mul, narrow, par_mul, set_mul, wide};
use super::moments::add_outer;
use super::score_ls::{ScoreProblem, Turned};
use super::student::{Part, Side, Student};

/// Damping of the factors, as a share of their mean diagonal.
const DAMP: f64 = 1e-3;

/// The factors for every part: `left⁻¹ gradient right⁻¹`, both already inverted.
pub(super) struct Preconditioner(Vec<(Left, Mat<f32>)>);

enum Left {
    /// One matrix per block of rows.
    Full(Vec<Mat<f32>>),
    /// One number per row: rotation leaves no more than this in common between pairs.
    Diagonal(Vec<f32>),
}

impl Preconditioner {
    pub(super) fn apply(&self, gradient: &[Mat<f64>]) -> Vec<Mat<f64>> {
        let part = |(gradient, (left, right)): (&Mat<f64>, &(Left, Mat<f32>))| {
            let mut out = par_mul(narrow(gradient.as_ref()).as_ref(), right.as_ref());
            match left {
                Left::Full(blocks) => {
                    let width = out.nrows() / blocks.len().max(1);
                    for (i, left) in blocks.iter().enumerate() {
                        let block = par_mul(left.as_ref(), out.subrows(i * width, width));
                        out.subrows_mut(i * width, width).copy_from(&block);
                    }
                    wide(out.as_ref())
                }
                Left::Diagonal(left) => Mat::from_fn(out.nrows(), out.ncols(), |i, j| {
                    f64::from(left[i] * out[(i, j)])
                }),
            }
        };
        gradient.iter().zip(&self.0).map(part).collect()
    }
}

impl ScoreProblem<'_> {
    pub(super) fn preconditioner<S: Student>(
        &self,
        layer: &S,
        side: Side,
        still: &Turned,
    ) -> Result<Preconditioner, Error> {
        let parts = layer.parts();
        let by_head = |i: usize| {
            let moments = self.still_moments(&parts[i], i, layer.heads(), side, still);
            left(&parts[i], side, &moments)
        };
        let mut rights: Vec<Mat<f64>> = Vec::new();
        for block in blocks(&self.train) {
            let inputs: Vec<_> = block
                .par_iter()
                .map(|&w| layer.inputs(side, self.input(w).as_ref()))
                .collect();
            for i in 0..parts.len() {
                let rows = inputs[0][i].nrows();
                if rights.len() == i {
                    rights.push(Mat::zeros(rows, rows));
                }
                let place = |w: usize| block.iter().position(|&b| b == w).unwrap_or(0);
                let x = gather(rows, self.window_len(), block, |w| {
                    inputs[place(w)][i].clone()
                });
                add_outer(rights[i].as_mut(), x.as_ref(), x.as_ref());
            }
        }
        let scale = 1.0 / self.tokens() as f64;
        let mut out = Vec::with_capacity(parts.len());
        let mut same: Option<(usize, Mat<f32>)> = None;
        for (i, right) in rights.iter().enumerate() {
            let inverse = match same.take() {
                // Both parts of a query read the same input.
                Some((rows, inverse)) if rows == right.nrows() && side == Side::Query => inverse,
                _ => {
                    let right = faer::Scale(scale) * right;
                    narrow(damped_inverse(right.as_ref(), DAMP)?.as_ref())
                }
            };
            same = Some((right.nrows(), inverse.clone()));
            out.push((by_head(i)?, inverse));
        }
        Ok(Preconditioner(out))
    }

    /// Per block of rows of part `i`, how the other side varies, weighted with `τ_h`, per token.
    fn still_moments(
        &self,
        part: &Part,
        i: usize,
        heads: usize,
        side: Side,
        still: &Turned,
    ) -> Vec<Mat<f64>> {
        let width = part.width;
        let count = if side == Side::Query {
            heads
        } else {
            part.keys
        };
        let of_window = |&w: &usize| {
            let fixed = &still[w].as_ref().expect("a window of the problem")[i];
            let log_a = self.teacher[w].as_ref().expect("a window of the problem");
            let mut sums = vec![Mat::<f64>::zeros(width, width); count];
            for (h, log_a) in log_a.iter().enumerate() {
                let own = part.key_of(h, heads);
                let (to, moment) = match side {
                    Side::Query => (h, spread(fixed.subrows(own * width, width), log_a)),
                    Side::Key => {
                        let q = fixed.subrows(h * width, width);
                        (own, mul(q, q.transpose()))
                    }
                };
                sums[to] += faer::Scale(f64::from(self.head_weights[h])) * wide(moment.as_ref());
            }
            sums
        };
        let parts: Vec<_> = self.train.par_iter().map(of_window).collect();
        let mut sums = vec![Mat::<f64>::zeros(width, width); count];
        for part in &parts {
            sums.iter_mut().zip(part).for_each(|(a, b)| *a += b);
        }
        let scale = 1.0 / self.tokens() as f64;
        for sum in &mut sums {
            *sum *= scale;
        }
        sums
    }
}

fn left(part: &Part, side: Side, moments: &[Mat<f64>]) -> Result<Left, Error> {
    if part.rotated {
        let diagonal = moments.iter().flat_map(damped_pairs).collect();
        return Ok(Left::Diagonal(diagonal));
    }
    debug_assert!(!moments.is_empty(), "{side:?}");
    let inverse = |m: &Mat<f64>| Ok::<_, Error>(narrow(damped_inverse(m.as_ref(), DAMP)?.as_ref()));
    Ok(Left::Full(
        moments.par_iter().map(inverse).collect::<Result<_, _>>()?,
    ))
}

/// `Σ_t Cov_{s~a_t}(k_s)`.
fn spread(k_ds: MatRef<'_, f32>, log_a_st: &Mat<f32>) -> Mat<f32> {
    let (width, tokens) = (k_ds.nrows(), k_ds.ncols());
    let mut weight = vec![0.0; tokens];
    let mut mean = Mat::zeros(width, tokens);
    for (first, end) in query_blocks(tokens) {
        let mut a_st = Mat::zeros(end, end - first);
        for t in first..end {
            let to = &mut a_st.col_as_slice_mut(t - first)[..=t];
            let from = log_a_st.col_as_slice(t);
            to.iter_mut()
                .zip(from)
                .for_each(|(a, log_a)| *a = exp(*log_a));
        }
        for t in 0..end - first {
            weight
                .iter_mut()
                .zip(a_st.col_as_slice(t))
                .for_each(|(w, a)| *w += a);
        }
        let to = mean.subcols_mut(first, end - first);
        set_mul(to, k_ds.subcols(0, end), a_st.as_ref());
    }
    let weighted = Mat::from_fn(width, tokens, |i, s| k_ds[(i, s)] * weight[s]);
    mul(weighted.as_ref(), k_ds.transpose()) - mul(mean.as_ref(), mean.transpose())
}

/// Inverts the diagonal of a matrix whose halves are the two channels of each pair, both alike.
fn damped_pairs(moment: &Mat<f64>) -> Vec<f32> {
    let (width, half) = (moment.nrows(), moment.nrows() / 2);
    let diagonal = |i: usize| moment[(i, i)];
    let pair = |i: usize| 0.5 * (diagonal(i % half) + diagonal(i % half + half));
    let mean = (0..width).map(diagonal).sum::<f64>() / width.max(1) as f64;
    let inverse = |i: usize| (1.0 / (pair(i) + DAMP * mean).max(1e-30)) as f32;
    (0..2 * half).map(inverse).collect()
}
