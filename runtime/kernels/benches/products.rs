//! Every kernel of every instruction set on the layers of a 1.1B model, on one thread: one row of
//! activations, counted in bytes of weights, and 128 rows, counted in multiplications; activations of
//! packed matrices in eight and in sixteen bits.
//!
//! Matrices are repeated until they fill four times the usual cache, so that one row is read from
//! memory, as in a decoded token.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use neuroconv_kernels::{
    ActivationBits, Codes, DenseSlice, Isa, PackedView, matmul_dense_on, matmul_packed_on,
    quantize_activations,
};

/// Rows and columns of the query, the key, the gate and the down projection.
const LAYERS: [(usize, usize); 4] = [(2048, 2048), (256, 2048), (5632, 2048), (2048, 5632)];
/// Bytes over which one row of activations is spread.
const BYTES: usize = 128 << 20;
const GROUP: usize = 128;

fn activations(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i as f32 * 0.37).sin()).collect()
}

fn packed(c: &mut Criterion) {
    for isa in Isa::available() {
        let mut group = c.benchmark_group(format!("packed/{}", isa.name()));
        for (kind, (rows, cols)) in Codes::ALL.into_iter().flat_map(|k| LAYERS.map(|l| (k, l))) {
            let blocks = rows.div_ceil(16) * cols.div_ceil(GROUP);
            let codes_size = blocks * kind.block_bytes(GROUP);
            let copies = BYTES.div_ceil(codes_size);
            // Not zero, for which no memory would be taken.
            let codes = vec![kind.zero_byte().max(1); copies * codes_size];
            let scales = vec![0x24; blocks * 32];
            let name = format!("{kind:?}/{rows}x{cols}");
            for (t, bits) in [1, 128]
                .into_iter()
                .flat_map(|t| ActivationBits::ALL.map(|b| (t, b)))
            {
                let a = quantize_activations(&activations(t * cols), t, cols, GROUP, bits);
                let mut y = vec![0.0; t * rows];
                let mut copy = codes.chunks(codes_size).cycle();
                group.throughput(if t == 1 {
                    Throughput::Bytes((codes_size + scales.len()) as u64)
                } else {
                    Throughput::Elements((t * rows * cols) as u64)
                });
                let id = BenchmarkId::new(&name, format!("{t} in {bits:?}"));
                group.bench_function(id, |b| {
                    b.iter(|| {
                        let codes = copy.next().unwrap_or_default();
                        let view = PackedView::new(kind, rows, cols, GROUP, codes, &scales, None);
                        if let Ok(view) = view {
                            matmul_packed_on(isa, &view, &a, black_box(&mut y));
                        }
                    });
                });
            }
        }
        group.finish();
    }
}

fn dense(c: &mut Criterion) {
    for isa in Isa::available() {
        let mut group = c.benchmark_group(format!("dense/{}", isa.name()));
        let (rows, cols) = (2048, 2048);
        let bytes = vec![0x3c; 4 * rows * cols];
        let halves = &bytes[..2 * rows * cols];
        let singles = activations(rows * cols);
        for (name, w, size) in [
            ("f32", DenseSlice::F32(&singles), 4),
            ("f16", DenseSlice::F16(halves), 2),
            ("bf16", DenseSlice::Bf16(halves), 2),
        ] {
            for t in [1, 128] {
                let x = activations(t * cols);
                let mut y = vec![0.0; t * rows];
                group.throughput(if t == 1 {
                    Throughput::Bytes((size * rows * cols) as u64)
                } else {
                    Throughput::Elements((t * rows * cols) as u64)
                });
                group.bench_function(BenchmarkId::new(name, t), |b| {
                    b.iter(|| matmul_dense_on(isa, w, rows, cols, &x, t, black_box(&mut y)));
                });
            }
        }
        group.finish();
    }
}

/// The measured functions run on the calling thread.
fn one_thread(_: &mut Criterion) {
    let _ = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build_global();
}

criterion_group! {
    name = products;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(300));
    targets = one_thread, packed, dense
}
criterion_main!(products);
