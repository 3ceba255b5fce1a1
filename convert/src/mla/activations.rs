//! Activations of a batch of equally long windows of text: one column per token.
//!
//! Owns where a window lies and how windows are worked on in parallel. Knows no model.

use faer::{Mat, MatMut, MatRef};
use rayon::prelude::*;

use super::attention::{dot, slice};

/// `width` numbers for every token of every window.
#[derive(Clone, Debug)]
pub struct Activations {
    width: usize,
    window: usize,
    values: Vec<f32>,
}

impl Activations {
    /// All zero.
    pub fn zeros(width: usize, window: usize, windows: usize) -> Self {
        Activations {
            width,
            window,
            values: vec![0.0; width * window * windows],
        }
    }

    /// Rows of `table` (`[vocab, width]`, row-major) looked up for each token of each window.
    pub fn embed(table: &[f32], width: usize, tokens: &[Vec<u32>]) -> Self {
        let window = tokens.first().map_or(0, Vec::len);
        let row = |&token: &u32| &table[token as usize * width..][..width];
        let values = tokens.iter().flatten().flat_map(row).copied().collect();
        Activations {
            width,
            window,
            values,
        }
    }

    /// Numbers per token.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Tokens per window.
    pub fn window_len(&self) -> usize {
        self.window
    }

    /// Number of windows.
    pub fn windows(&self) -> usize {
        self.values.len() / (self.width * self.window).max(1)
    }

    /// The `[width, tokens]` of window `w`.
    pub fn window(&self, w: usize) -> MatRef<'_, f32> {
        let size = self.width * self.window;
        let values = &self.values[w * size..(w + 1) * size];
        MatRef::from_column_major_slice(values, self.width, self.window)
    }

    /// Lets `update` change every window, in parallel.
    pub fn for_each(&mut self, update: impl Fn(usize, MatMut<'_, f32>) + Sync) {
        let (width, window) = (self.width, self.window);
        let windows = self
            .values
            .par_chunks_mut((width * window).max(1))
            .enumerate();
        windows.for_each(|(w, values)| {
            update(
                w,
                MatMut::from_column_major_slice_mut(values, width, window),
            );
        });
    }

    /// `sum (self - other)² / sum other²`.
    pub fn relative_error(&self, other: &Activations) -> f64 {
        let pairs = self.values.iter().zip(&other.values);
        let error: f64 = pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum();
        error
            / other
                .values
                .iter()
                .map(|&b| f64::from(b).powi(2))
                .sum::<f64>()
    }
}

/// `x / sqrt(mean(x²) + eps) * gain` of every column.
pub fn rms_norm(x_dt: MatRef<'_, f32>, gain: &[f32], eps: f64) -> Mat<f32> {
    let mut y_dt = x_dt.to_owned();
    for t in 0..y_dt.ncols() {
        norm(y_dt.col_as_slice_mut(t), gain, eps);
    }
    y_dt
}

/// [`rms_norm`] of every head of every column in place; a head is as wide as `gain`.
pub fn norm_heads(mut x: MatMut<'_, f32>, gain: &[f32], eps: f64) {
    for t in 0..x.ncols() {
        for head in slice(x.as_mut(), t).chunks_exact_mut(gain.len()) {
            norm(head, gain, eps);
        }
    }
}

fn norm(values: &mut [f32], gain: &[f32], eps: f64) {
    let square = f64::from(dot(values, values));
    let scale = (1.0 / (square / values.len() as f64 + eps).sqrt()) as f32;
    for (value, gain) in values.iter_mut().zip(gain) {
        *value *= scale * gain;
    }
}

/// Windows gathered into one block before their outer products are summed: fixed, so that sums
/// never depend on the number of threads.
const BLOCK: usize = 8;

/// The windows in blocks of the size in which sums are formed.
pub fn blocks(windows: &[usize]) -> impl Iterator<Item = &[usize]> {
    windows.chunks(BLOCK)
}

/// The columns of several windows side by side, each made in parallel by `make`.
pub fn gather(
    rows: usize,
    window: usize,
    windows: &[usize],
    make: impl Fn(usize) -> Mat<f32> + Sync,
) -> Mat<f32> {
    let mut out = Mat::zeros(rows, window * windows.len());
    let columns = out.as_mut().par_col_chunks_mut(window.max(1));
    columns
        .zip(windows)
        .for_each(|(mut columns, &w)| columns.copy_from(make(w)));
    out
}
