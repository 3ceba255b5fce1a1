//! Whole matrices: what is stored is what was meant, for any number of threads.

use half::f16;
use neuroconv_format::{Codec, PackedTensor, Tensor};
use neuroconv_kernels::layout;
use neuroconv_quant::{
    Error, FitStats, QuantizeSpec, Threshold, dequantize, dequantize_row, packed_view, quantize,
    relative_mse,
};

use crate::gaussian;

fn spec(codec: Codec, group: usize) -> QuantizeSpec {
    QuantizeSpec::new(codec, group)
}

fn quantized(w: &[f32], rows: usize, codec: Codec, group: usize) -> (PackedTensor, FitStats) {
    quantize(w, rows, w.len() / rows, &spec(codec, group), None).expect("a matrix to quantize")
}

#[test]
fn gaussian_weights_cost_what_theory_says() {
    let w = gaussian(256 * 1024, 7);
    let figures = |codec| {
        let stats = quantized(&w, 256, codec, 128).1;
        (stats.rel_mse, stats.zeros, stats.entropy_bits)
    };
    let (error, zeros, entropy) = figures(Codec::Ternary);
    // The optimum for a known Gaussian is .1902 with 46 % zeros; fitted to 128 samples, less.
    assert!((0.186..0.1905).contains(&error), "{error}");
    assert!(
        (0.45..0.47).contains(&zeros) && (1.52..1.55).contains(&entropy),
        "{zeros} {entropy}"
    );
    let (error, _, entropy) = figures(Codec::Int4);
    assert!((0.0088..0.0098).contains(&error), "{error}");
    assert!((3.4..3.8).contains(&entropy), "{entropy}");
    let (error, _, entropy) = figures(Codec::Int8);
    assert!((2e-5..5e-5).contains(&error), "{error}");
    assert!((7.2..7.8).contains(&entropy), "{entropy}");
}

#[test]
fn the_error_reported_is_the_error_stored() {
    for codec in Codec::ALL {
        for (rows, cols, group) in [
            (1, 1, 32),
            (16, 128, 128),
            (37, 300, 64),
            (5, 1000, 256),
            (40, 33, 32),
        ] {
            let w = gaussian(rows * cols, 11);
            let (tensor, stats) = quantized(&w, rows, codec, group);
            let approx = dequantize(&Tensor::Packed(tensor.clone()));
            let stored = relative_mse(&w, &approx);
            assert!(
                (stats.rel_mse - stored).abs() <= 1e-9 * stored,
                "{codec} {rows} {cols}"
            );
            let mut row = vec![0.0; cols];
            for r in 0..rows {
                dequantize_row(&Tensor::Packed(tensor.clone()), r, &mut row);
                assert_eq!(row, approx[r * cols..(r + 1) * cols]);
            }
            let zeros = approx.iter().filter(|&&w| w == 0.0).count() as f64 / w.len() as f64;
            assert_eq!(stats.zeros, zeros);
        }
    }
}

/// The documented layout, read without the kernels.
#[test]
fn bytes_lie_where_the_format_says() {
    let (rows, cols, group) = (21, 150, 64);
    let w = gaussian(rows * cols, 13);
    for codec in Codec::ALL {
        let (tensor, _) = quantized(&w, rows, codec, group);
        let l = tensor.layout;
        let approx = dequantize(&Tensor::Packed(tensor.clone()));
        let (codes, scales) = (&tensor.bytes[l.codes()], &tensor.bytes[l.scales()]);
        for row in 0..l.panels() * 16 {
            for col in 0..l.groups() * group {
                let block = row / 16 * l.groups() + col / group;
                let (r, k) = (row % 16, col % group);
                let unit = k / codec.unit_cols();
                let byte = codes[block * l.block_bytes() + unit * 64 + 4 * r + k % 4];
                let level = match codec {
                    Codec::Ternary => i32::from(byte >> (2 * (k / 4 % 4)) & 3) - codec.offset(),
                    Codec::Int4 => i32::from(byte >> (4 * (k / 4 % 2)) & 15) - codec.offset(),
                    Codec::Int8 => i32::from(byte as i8),
                };
                let at = 2 * (block * 16 + r);
                let scale = f16::from_le_bytes([scales[at], scales[at + 1]]).to_f32();
                if row < rows && col < cols {
                    assert_eq!(scale * level as f32, approx[row * cols + col]);
                } else {
                    assert_eq!(level, 0, "padding");
                }
                assert!(row < rows || scale == 0.0);
            }
        }
        assert!(tensor.bytes[l.scales().end..].iter().all(|&b| b == 0));
    }
}

#[test]
fn format_and_kernels_agree_about_layouts() {
    assert_eq!(neuroconv_format::codec::PANEL_ROWS, layout::PANEL_ROWS);
    assert_eq!(neuroconv_format::codec::UNIT_BYTES, layout::UNIT_BYTES);
    assert_eq!(neuroconv_format::codec::GROUP_SIZES, layout::GROUP_SIZES);
    for codec in Codec::ALL {
        let tensor = quantized(&[1.0; 64], 1, codec, 64).0;
        let kind = packed_view(&tensor).kind();
        assert_eq!(
            (kind.bits(), kind.offset(), kind.unit_cols()),
            (codec.bits(), codec.offset(), codec.unit_cols())
        );
        assert_eq!(kind.block_bytes(64), tensor.layout.block_bytes());
    }
}

#[test]
fn quantizing_again_changes_nothing() {
    let (rows, cols) = (33, 500);
    let w: Vec<f32> = gaussian(rows * cols, 17).iter().map(|w| 0.03 * w).collect();
    for codec in Codec::ALL {
        let first = quantized(&w, rows, codec, 128).0;
        let values = dequantize(&Tensor::Packed(first.clone()));
        let (second, stats) = quantized(&values, rows, codec, 128);
        assert_eq!(
            dequantize(&Tensor::Packed(second.clone())),
            values,
            "{codec}"
        );
        assert_eq!(stats.rel_mse, 0.0);
        // An INT4 group with only even levels may as well be stored as their halves.
        if codec != Codec::Int4 {
            assert_eq!(*first.bytes, *second.bytes, "{codec}");
        }
    }
}

#[test]
fn threads_change_nothing() {
    let (rows, cols) = (200, 384);
    let w = gaussian(rows * cols, 19);
    for codec in Codec::ALL {
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| quantized(&w, rows, codec, 128))
        };
        let (one, stats) = on(1);
        for threads in 2..=4 {
            let (many, same) = on(threads);
            assert_eq!(*one.bytes, *many.bytes);
            assert_eq!(stats, same);
        }
    }
}

#[test]
fn zeros_stay_zeros() {
    for codec in Codec::ALL {
        let (tensor, stats) = quantized(&[0.0; 16 * 64], 16, codec, 64);
        assert!(tensor.bytes[tensor.layout.scales()].iter().all(|&b| b == 0));
        assert_eq!(
            stats,
            FitStats {
                rel_mse: 0.0,
                zeros: 1.0,
                entropy_bits: 0.0
            }
        );
    }
}

#[test]
fn tiny_weights_keep_their_precision_where_f16_can() {
    // Around f16's subnormals the scale is coarse; it must still be no worse than a zero.
    for magnitude in [1e-3_f32, 1e-5, 1e-6, 1e-7, 1e-8, 1e-12, 1e-40] {
        let w: Vec<f32> = gaussian(64 * 64, 23)
            .iter()
            .map(|w| w * magnitude)
            .collect();
        for codec in Codec::ALL {
            let error = quantized(&w, 64, codec, 64).1.rel_mse;
            assert!(error <= 1.0, "{codec} {magnitude} {error}");
        }
    }
}

#[test]
fn bad_matrices_are_refused_by_name() {
    let (rows, cols) = (40, 100);
    let refused = |w: &[f32], codec| quantize(w, rows, cols, &spec(codec, 32), None).unwrap_err();
    for codec in Codec::ALL {
        let mut w = gaussian(rows * cols, 29);
        w[33 * cols + 70] = f32::INFINITY;
        w[35 * cols] = f32::NAN;
        assert_eq!(
            refused(&w, codec),
            Error::NotFinite {
                row: 33,
                col: 70,
                value: f32::INFINITY
            }
        );
        w[33 * cols + 70] = 1e9;
        w[35 * cols] = 1.0;
        assert_eq!(
            refused(&w, codec),
            Error::ScaleOverflow {
                row: 33,
                group: 2,
                largest: 1e9
            }
        );
        assert_eq!(
            refused(&w[1..], codec),
            Error::Length {
                rows,
                cols,
                found: 3999
            }
        );
        assert!(matches!(
            quantize(&w, rows, cols, &spec(codec, 48), None),
            Err(Error::Layout(_))
        ));
        assert!(matches!(
            quantize(&[], 0, cols, &spec(codec, 32), None),
            Err(Error::Layout(_))
        ));
    }
    let bad = QuantizeSpec {
        threshold: Threshold::Sparsity(1.5),
        ..spec(Codec::Ternary, 32)
    };
    assert_eq!(
        quantize(&[1.0; 64], 1, 64, &bad, None).unwrap_err(),
        Error::Sparsity(1.5)
    );
}
