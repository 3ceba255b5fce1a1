//! Norms of activations.

use rayon::prelude::*;

use crate::ops::dot;

/// Elements above which rows are shared among threads.
const PARALLEL_ELEMENTS: usize = 1 << 15;

/// Root-mean-square norm (Zhang and Sennrich 2019): `x / sqrt(mean(x²) + eps) · gain`.
#[derive(Debug)]
pub(crate) struct RmsNorm {
    gain: Vec<f32>,
    eps: f32,
}

impl RmsNorm {
    pub(crate) fn new(gain: Vec<f32>, eps: f64) -> Self {
        RmsNorm {
            gain,
            eps: eps as f32,
        }
    }

    /// Normalises each row of `x`, rows as long as the gain.
    pub(crate) fn apply(&self, x: &mut [f32]) {
        let width = self.gain.len();
        let row = |x: &mut [f32]| {
            let mean = dot(x, x) / width as f32;
            let scale = 1.0 / (mean + self.eps).sqrt();
            for (x, gain) in x.iter_mut().zip(&self.gain) {
                *x = *x * scale * gain;
            }
        };
        if x.len() > PARALLEL_ELEMENTS {
            x.par_chunks_mut(width).for_each(row);
        } else {
            x.chunks_mut(width).for_each(row);
        }
    }

    /// The normalised rows of `x`.
    pub(crate) fn of(&self, x: &[f32]) -> Vec<f32> {
        let mut normed = x.to_vec();
        self.apply(&mut normed);
        normed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_get_unit_mean_square_times_the_gain() {
        let norm = RmsNorm::new(vec![1.0, 2.0, -0.5], 0.0);
        let x = [3.0, -4.0, 12.0, 1.0, 1.0, 1.0];
        let y = norm.of(&x);
        let rms = (169.0_f32 / 3.0).sqrt();
        let expected = [3.0 / rms, -8.0 / rms, -6.0 / rms, 1.0, 2.0, -0.5];
        assert!(
            y.iter().zip(expected).all(|(y, e)| (y - e).abs() < 1e-6),
            "{y:?}"
        );
        let damped = RmsNorm::new(vec![1.0], 3.0).of(&[1.0]);
        assert_eq!(damped, [0.5]);
    }
}
