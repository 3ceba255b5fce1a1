//! What packed matrices have beside their codes, against the same sums in double precision.

use half::f16;
use neuroconv_format::{
    Codec, Columns, Corrections, DType, DenseTensor, LowRank, PackedTensor, Tensor,
};
use neuroconv_quant::{QuantizeSpec, dequantize, dequantize_row, quantize, relative_mse, residual};

use crate::gaussian;

const ROWS: usize = 21;
const COLS: usize = 150;

fn packed(w: &[f32], rows: usize, codec: Codec) -> PackedTensor {
    let how = QuantizeSpec::new(codec, 64);
    quantize(w, rows, w.len() / rows, &how, None)
        .expect("a matrix to quantize")
        .0
}

fn halves(values: &[f32], shape: [usize; 2]) -> DenseTensor {
    let bytes = values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes());
    DenseTensor {
        dtype: DType::F16,
        shape: shape.to_vec(),
        bytes: bytes.collect::<Vec<u8>>().into(),
    }
}

fn low_rank(rank: usize, seed: u64) -> LowRank {
    let (a, b) = (gaussian(rank * COLS, seed), gaussian(ROWS * rank, seed + 1));
    LowRank {
        a: halves(&a, [rank, COLS]),
        b: halves(&b, [ROWS, rank]),
    }
}

/// The columns `indexes` of `w`, in half precision or packed.
fn columns(w: &[f32], indexes: &[u32], in_codes: bool) -> Columns {
    let rows = w.chunks(COLS);
    let values: Vec<f32> = rows
        .flat_map(|row| indexes.iter().map(|&i| row[i as usize]))
        .collect();
    if in_codes {
        Columns::packed(indexes.to_vec(), packed(&values, ROWS, Codec::Int8))
    } else {
        Columns::dense(indexes.to_vec(), halves(&values, [ROWS, indexes.len()]))
    }
}

fn corrected(w: &[f32], codec: Codec, corrections: Corrections) -> Tensor {
    corrections.check(ROWS, COLS).expect("parts that fit");
    let rest = residual(w, COLS, &corrections);
    Tensor::Packed(PackedTensor {
        corrections,
        ..packed(&rest, ROWS, codec)
    })
}

#[test]
fn a_matrix_is_its_codes_its_columns_and_its_product() {
    let w = gaussian(ROWS * COLS, 3);
    for (codec, in_codes) in Codec::ALL.into_iter().flat_map(|c| [(c, false), (c, true)]) {
        let indexes = [0, 63, 64, 149];
        let mut corrections = Corrections {
            low_rank: Some(low_rank(3, 5)),
            columns: None,
        };
        let rest = residual(&w, COLS, &corrections);
        corrections.columns = Some(columns(&rest, &indexes, in_codes));
        let parts = corrections.clone();
        let tensor = corrected(&w, codec, corrections);
        let Tensor::Packed(stored) = &tensor else {
            unreachable!("packed")
        };
        let codes = PackedTensor::new(stored.layout, stored.bytes.clone());
        let codes = dequantize(&Tensor::Packed(codes));
        let apart = dequantize(&parts.columns.expect("columns").values);
        let LowRank { a, b } = parts.low_rank.expect("a product");
        let (a, b) = (a.to_f32(), b.to_f32());
        let found = dequantize(&tensor);
        for row in 0..ROWS {
            for col in 0..COLS {
                let mut exact = match indexes.iter().position(|&i| i as usize == col) {
                    Some(place) => {
                        assert_eq!(codes[row * COLS + col], 0.0);
                        f64::from(apart[row * indexes.len() + place])
                    }
                    None => f64::from(codes[row * COLS + col]),
                };
                for r in 0..3 {
                    exact += f64::from(b[row * 3 + r]) * f64::from(a[r * COLS + col]);
                }
                assert_eq!(found[row * COLS + col], exact as f32, "{codec} {row} {col}");
            }
            let mut one = vec![0.0; COLS];
            dequantize_row(&tensor, row, &mut one);
            assert_eq!(one, found[row * COLS..(row + 1) * COLS]);
        }
        // What was left for the codes is what they are wrong about.
        let errors = relative_mse(&w, &found);
        let alone = relative_mse(&w, &dequantize(&Tensor::Packed(packed(&w, ROWS, codec))));
        assert!(errors < 20.0 * alone + 1e-6, "{codec} {errors} {alone}");
    }
}

/// `W = W I`: the whole rank needs no codes.
#[test]
fn a_product_of_the_whole_rank_is_the_matrix() {
    // Small multiples of a power of two are exact in half precision.
    let w: Vec<f32> = (0..ROWS * COLS)
        .map(|i| (i * 37 % 101) as f32 / 64.0 - 0.75)
        .collect();
    let identity: Vec<f32> = (0..ROWS * ROWS)
        .map(|i| f32::from(u8::from(i / ROWS == i % ROWS)))
        .collect();
    let corrections = Corrections {
        low_rank: Some(LowRank {
            a: halves(&w, [ROWS, COLS]),
            b: halves(&identity, [ROWS, ROWS]),
        }),
        columns: None,
    };
    assert!(
        residual(&w, COLS, &corrections)
            .iter()
            .all(|&rest| rest == 0.0)
    );
    for codec in Codec::ALL {
        assert_eq!(dequantize(&corrected(&w, codec, corrections.clone())), w);
    }
}

/// Every column apart leaves nothing to the codes, and none leaves everything.
#[test]
fn all_columns_apart_are_the_matrix_in_half_precision() {
    let w = gaussian(ROWS * COLS, 9);
    let all: Vec<u32> = (0..COLS as u32).collect();
    let corrections = Corrections {
        low_rank: None,
        columns: Some(columns(&w, &all, false)),
    };
    let rounded: Vec<f32> = w.iter().map(|&w| f16::from_f32(w).to_f32()).collect();
    for codec in Codec::ALL {
        let tensor = corrected(&w, codec, corrections.clone());
        assert_eq!(dequantize(&tensor), rounded);
        assert_eq!(residual(&w, COLS, &Corrections::default()), w);
    }
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let w = gaussian(ROWS * COLS, 13);
    let product = |rank| Corrections {
        low_rank: Some(low_rank(rank, 1)),
        columns: None,
    };
    assert!(product(ROWS).check(ROWS, COLS).is_ok());
    assert!(product(ROWS + 1).check(ROWS, COLS).is_err());
    assert!(product(2).check(ROWS + 1, COLS).is_err());
    assert!(product(2).check(ROWS, COLS - 1).is_err());
    let apart = |indexes: &[u32]| Corrections {
        low_rank: None,
        columns: Some(columns(&w, indexes, true)),
    };
    assert!(apart(&[1, 2]).check(ROWS, COLS).is_ok());
    assert!(apart(&[1, 149]).check(ROWS, COLS - 1).is_err());
    for indexes in [[2, 2], [2, 1]] {
        assert!(apart(&indexes).check(ROWS, COLS).is_err());
    }
    let mut fewer = apart(&[1, 2]);
    if let Some(columns) = &mut fewer.columns {
        columns.indexes.pop();
    }
    assert!(fewer.check(ROWS, COLS).is_err());
    let mut int4 = apart(&[1, 2]);
    if let Some(columns) = &mut int4.columns {
        *columns.values = Tensor::Packed(packed(&[1.0; 2 * ROWS], ROWS, Codec::Int4));
    }
    assert!(int4.check(ROWS, COLS).is_err());
}
