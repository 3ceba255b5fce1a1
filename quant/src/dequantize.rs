//! From stored bytes back to single precision, and what corrections leave for the codes.

use neuroconv_format::{
    ActivationBits, Codec, Corrections, DenseTensor, LowRank, PackedTensor, Tensor,
};
use neuroconv_kernels::{self as kernels, Codes, PackedView};
use rayon::prelude::*;

/// The planes of a packed tensor as the kernels take them.
///
/// Panics when the tensor does not have the bytes of its layout, which opening or packing it has
/// made sure of.
pub fn packed_view(tensor: &PackedTensor) -> PackedView<'_> {
    let layout = &tensor.layout;
    let bytes: &[u8] = &tensor.bytes;
    assert_eq!(
        bytes.len(),
        layout.size_bytes(),
        "a packed tensor has the bytes of its layout"
    );
    let shifts = layout.shift().then(|| &bytes[layout.shifts()]);
    let (codes, scales) = (&bytes[layout.codes()], &bytes[layout.scales()]);
    let kind = kernel_codes(layout.codec());
    PackedView::new(
        kind,
        layout.rows(),
        layout.cols(),
        layout.group(),
        codes,
        scales,
        shifts,
    )
    .expect("format and kernels agree about layouts")
}

/// How the kernels round the activations that meet a packed tensor.
pub fn activation_bits(tensor: &PackedTensor) -> kernels::ActivationBits {
    match tensor.activations {
        ActivationBits::Eight => kernels::ActivationBits::Eight,
        ActivationBits::Sixteen => kernels::ActivationBits::Sixteen,
    }
}

pub(crate) fn kernel_codes(codec: Codec) -> Codes {
    match codec {
        Codec::Ternary => Codes::Ternary,
        Codec::Int4 => Codes::Int4,
        Codec::Int8 => Codes::Int8,
    }
}

/// All elements of a tensor, row-major, corrections included. Exact but for low-rank products: every
/// stored value is a single-precision number.
pub fn dequantize(tensor: &Tensor) -> Vec<f32> {
    match tensor {
        Tensor::Dense(dense) => dense.to_f32(),
        Tensor::Packed(packed) => {
            let rows = Rows::new(packed);
            let mut out = vec![0.0; rows.view.rows() * rows.view.cols()];
            out.par_chunks_mut(rows.view.cols())
                .enumerate()
                .for_each(|(row, out)| rows.read(row, out));
            out
        }
    }
}

/// Row `row` of a tensor, that is the elements at index `row` of its first dimension.
///
/// Panics when there is no such row or `out` does not have its length.
pub fn dequantize_row(tensor: &Tensor, row: usize, out: &mut [f32]) {
    match tensor {
        Tensor::Dense(dense) => out.copy_from_slice(&dense_row(dense, row, out.len())),
        Tensor::Packed(packed) => Rows::new(packed).read(row, out),
    }
}

fn dense_row(dense: &DenseTensor, row: usize, cols: usize) -> Vec<f32> {
    let bytes = cols * dense.dtype.size();
    let slice = dense
        .bytes
        .slice(row * bytes..(row + 1) * bytes)
        .expect("the tensor has this row");
    let one = DenseTensor {
        dtype: dense.dtype,
        shape: vec![cols],
        bytes: slice,
    };
    one.to_f32()
}

/// A packed matrix to be read row by row.
struct Rows<'t> {
    view: PackedView<'t>,
    tensor: &'t PackedTensor,
    /// The first factor of the low-rank product, `[rank, cols]`.
    a_rk: Vec<f32>,
}

impl<'t> Rows<'t> {
    fn new(tensor: &'t PackedTensor) -> Self {
        let low_rank = tensor.corrections.low_rank.as_ref();
        Rows {
            view: packed_view(tensor),
            tensor,
            a_rk: low_rank.map(|l| l.a.to_f32()).unwrap_or_default(),
        }
    }

    /// The codes, columns that are stored apart in place of theirs, and the low-rank product, whose
    /// sum runs in double precision.
    fn read(&self, row: usize, out: &mut [f32]) {
        self.view.dequantize_row(row, out);
        if let Some(columns) = &self.tensor.corrections.columns {
            let mut values = vec![0.0; columns.indexes.len()];
            dequantize_row(&columns.values, row, &mut values);
            for (&index, value) in columns.indexes.iter().zip(values) {
                out[index as usize] = value;
            }
        }
        if let Some(LowRank { b, .. }) = &self.tensor.corrections.low_rank {
            add_low_rank(out, 1.0, b, row, &self.a_rk);
        }
    }
}

/// Adds `sign` times row `row` of `B A` to `out`.
fn add_low_rank(out: &mut [f32], sign: f64, b: &DenseTensor, row: usize, a_rk: &[f32]) {
    let cols = out.len();
    let b_r = dense_row(b, row, a_rk.len() / cols);
    let mut sums: Vec<f64> = out.iter().map(|&w| f64::from(w)).collect();
    for (&b, a_k) in b_r.iter().zip(a_rk.chunks(cols)) {
        for (sum, &a) in sums.iter_mut().zip(a_k) {
            *sum += sign * f64::from(b) * f64::from(a);
        }
    }
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = sum as f32;
    }
}

/// What `corrections` leave of `w_nk`, `[rows, cols]` row-major, for the codes: the matrix without
/// their low-rank product, and zeros in the columns that are stored apart.
pub fn residual(w_nk: &[f32], cols: usize, corrections: &Corrections) -> Vec<f32> {
    let mut rest = w_nk.to_vec();
    let low_rank = corrections.low_rank.as_ref();
    let a_rk = low_rank.map(|l| l.a.to_f32()).unwrap_or_default();
    for (row, out) in rest.chunks_mut(cols).enumerate() {
        if let Some(LowRank { b, .. }) = low_rank {
            add_low_rank(out, -1.0, b, row, &a_rk);
        }
        for &index in corrections.columns.iter().flat_map(|c| &c.indexes) {
            out[index as usize] = 0.0;
        }
    }
    rest
}
