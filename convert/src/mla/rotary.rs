//! Rotary position embedding seen as complex numbers.
//!
//! A head of `2P` channels holds `P` complex numbers: pair `l` is channel `l` plus `i` times channel
//! `l + P`. Position `t` turns pair `l` by `exp(i θ_l t)`, so the score of query `q` at `t` and key
//! `k` at `s` is `Σ_l Re(conj(q_l) k_l exp(-i θ_l (t - s)))`.

use faer::{Mat, MatMut};

/// `exp(i θ_l t)` for each pair `l` and position `t`, both `[pairs, positions]`.
#[derive(Clone, Debug)]
pub struct Phases {
    /// Real parts.
    pub cos_lt: Mat<f32>,
    /// Imaginary parts.
    pub sin_lt: Mat<f32>,
}

impl Phases {
    /// Positions `0..positions` at `inv_freq` radians per position.
    pub fn new(inv_freq: &[f64], positions: usize) -> Self {
        let table = |part: fn(f64) -> f64| {
            Mat::from_fn(inv_freq.len(), positions, |l, t| {
                part(t as f64 * inv_freq[l]) as f32
            })
        };
        Phases {
            cos_lt: table(f64::cos),
            sin_lt: table(f64::sin),
        }
    }

    /// Turns every head of `x`, `[heads * 2 * pairs, positions]`, by its position.
    pub fn rotate(&self, x: MatMut<'_, f32>) {
        self.turn(x, 1.0);
    }

    /// Undoes [`Phases::rotate`].
    pub fn rotate_back(&self, x: MatMut<'_, f32>) {
        self.turn(x, -1.0);
    }

    fn turn(&self, mut x: MatMut<'_, f32>, sign: f32) {
        let pairs = self.cos_lt.nrows();
        if pairs == 0 {
            return;
        }
        for t in 0..x.ncols() {
            let (cos, sin) = (self.cos_lt.col_as_slice(t), self.sin_lt.col_as_slice(t));
            let column = x
                .as_mut()
                .col_mut(t)
                .try_as_col_major_mut()
                .expect("columns are contiguous");
            for head in column.as_slice_mut().chunks_exact_mut(2 * pairs) {
                let (re, im) = head.split_at_mut(pairs);
                for l in 0..pairs {
                    let (a, b) = (re[l], im[l]);
                    let s = sign * sin[l];
                    re[l] = a * cos[l] - b * s;
                    im[l] = a * s + b * cos[l];
                }
            }
        }
    }
}
