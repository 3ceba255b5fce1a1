//! From stored bytes back to single precision.

use neuroconv_format::{Codec, PackedTensor, Tensor};
use neuroconv_kernels::{Codes, PackedView};
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

pub(crate) fn kernel_codes(codec: Codec) -> Codes {
    match codec {
        Codec::Ternary => Codes::Ternary,
        Codec::Int4 => Codes::Int4,
        Codec::Int8 => Codes::Int8,
    }
}

/// All elements of a tensor, row-major. Exact: every stored value is a single-precision number.
pub fn dequantize(tensor: &Tensor) -> Vec<f32> {
    match tensor {
        Tensor::Dense(dense) => dense.to_f32(),
        Tensor::Packed(packed) => {
            let view = packed_view(packed);
            let mut out = vec![0.0; view.rows() * view.cols()];
            out.par_chunks_mut(view.cols())
                .enumerate()
                .for_each(|(row, out)| view.dequantize_row(row, out));
            out
        }
    }
}

/// Row `row` of a tensor, that is the elements at index `row` of its first dimension.
///
/// Panics when there is no such row or `out` does not have its length.
pub fn dequantize_row(tensor: &Tensor, row: usize, out: &mut [f32]) {
    match tensor {
        Tensor::Dense(dense) => {
            let bytes = out.len() * dense.dtype.size();
            let slice = dense
                .bytes
                .slice(row * bytes..(row + 1) * bytes)
                .expect("the tensor has this row");
            let one = neuroconv_format::DenseTensor {
                dtype: dense.dtype,
                shape: vec![out.len()],
                bytes: slice,
            };
            out.copy_from_slice(&one.to_f32());
        }
        Tensor::Packed(packed) => packed_view(packed).dequantize_row(row, out),
    }
}
