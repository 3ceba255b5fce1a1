//! The first product of a process may come from inside a parallel loop.

use neuroconv_kernels::{DenseSlice, matmul_dense};
use rayon::prelude::*;

/// Every worker asks for the instruction set at once; nobody may wait for a worker that waits. Alone
/// in its process, because the choice is made once.
#[test]
fn the_first_use_in_a_parallel_loop_ends() {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(4)
        .build()
        .unwrap();
    let w: Vec<f32> = (0..64 * 32).map(|i| i as f32).collect();
    let sums: Vec<f32> = pool.install(|| {
        let product = |_| {
            let mut y = vec![0.0; 64];
            matmul_dense(DenseSlice::F32(&w), 64, 32, &w[..32], 1, &mut y);
            y.iter().sum()
        };
        (0..64).into_par_iter().map(product).collect()
    });
    let first = sums[0].to_bits();
    assert!(sums.iter().all(|s| s.to_bits() == first && *s > 0.0));
}
