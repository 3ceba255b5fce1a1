//! The fits against brute force, whole matrices against their definition, one decomposition
//! against another.
#![expect(
    clippy::float_cmp,
    reason = "the numbers compared are the same or wrong"
)]

mod corrections;
mod fits;
mod gptq;
mod linalg;
mod matrices;

/// Seeded standard normal numbers, by Box and Muller over xorshift.
fn gaussian(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1_u64 << 53) as f64
    };
    (0..n)
        .map(|_| {
            let radius = (-2.0 * (1.0 - uniform()).ln()).sqrt();
            (radius * (std::f64::consts::TAU * uniform()).cos()) as f32
        })
        .collect()
}
