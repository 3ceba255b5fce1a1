//! Every instruction set against the scalar path, the scalar path against the definition.
#![expect(
    clippy::float_cmp,
    reason = "the numbers compared are the same or wrong"
)]

mod dense;
mod packed;

/// Seeded numbers, uniform in 0..1, by xorshift.
struct Numbers(u64);

impl Numbers {
    fn new(seed: u64) -> Self {
        Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() * n as f64) as usize
    }

    /// Activations of either sign whose sizes differ.
    fn activations(&mut self, n: usize) -> Vec<f32> {
        (0..n)
            .map(|_| ((self.next() - 0.5) * 8.0).powi(3) as f32)
            .collect()
    }
}

/// Equal bits, or both NaN.
fn assert_same(a: &[f32], b: &[f32], what: &str) {
    assert_eq!(a.len(), b.len());
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!(
            a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan(),
            "{what}: {a} != {b} at {i}"
        );
    }
}
