//! An orthogonal turn of the latent: afterwards no channel carries more than its share, so that a
//! quantizer meets no outliers. The layer computes the same.

use faer::Mat;

use super::error::Error;
use super::linalg::{eigen, narrow};

/// An orthogonal `[rank, rank]` matrix, always the same: a Hadamard matrix with random signs where
/// the rank is a power of two, otherwise eigenvectors of a random symmetric matrix.
pub fn mixing(rank: usize) -> Result<Mat<f32>, Error> {
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    if rank.is_power_of_two() {
        let size = (rank as f64).powf(-0.5) as f32;
        let signs: Vec<f32> = (0..rank)
            .map(|_| size.copysign(noise.next() as f32))
            .collect();
        return Ok(Mat::from_fn(rank, rank, |i, j| {
            if (i & j).count_ones() % 2 == 0 {
                signs[j]
            } else {
                -signs[j]
            }
        }));
    }
    let random = Mat::from_fn(rank, rank, |_, _| noise.next());
    let symmetric = Mat::from_fn(rank, rank, |i, j| random[(i.min(j), i.max(j))]);
    Ok(narrow(eigen(symmetric.as_ref())?.1.as_ref()))
}

/// Uniform numbers in `[-1, 1)` (Knuth's linear congruential generator).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }
}
