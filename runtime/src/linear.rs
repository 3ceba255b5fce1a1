//! Matrix products `y = W x + b` over dense and packed weights.
//!
//! Owns the choice of kernel by codec. Packed weights take activations in eight bits, quantized
//! once per group size and shared by all matrices that read the same activations.

use neuroconv_format::{DType, PackedTensor, SharedBytes, Tensor};
use neuroconv_kernels::{
    Activations, DenseSlice, PackedView, matmul_dense, matmul_packed, matmul_packed_all,
    quantize_activations,
};
use neuroconv_quant::packed_view;
use neuroconv_recipes::TensorId;

use crate::Error;
use crate::ops::add_scaled;

/// Activations `[t, cols]` and their quantized forms, made when first asked for.
#[derive(Debug)]
pub(crate) struct Input<'x> {
    x_tk: &'x [f32],
    t: usize,
    cols: usize,
    quantized: Vec<Activations>,
}

impl<'x> Input<'x> {
    /// `x_tk` as rows of `cols` elements.
    pub(crate) fn new(x_tk: &'x [f32], cols: usize) -> Self {
        Input {
            x_tk,
            t: x_tk.len() / cols,
            cols,
            quantized: Vec::new(),
        }
    }

    /// Quantized in groups of `group` columns.
    fn quantized(&mut self, group: usize) -> &Activations {
        let known = self.quantized.iter().position(|a| a.group() == group);
        let index = known.unwrap_or_else(|| {
            self.quantized
                .push(quantize_activations(self.x_tk, self.t, self.cols, group));
            self.quantized.len() - 1
        });
        &self.quantized[index]
    }
}

/// One matrix `[rows, cols]` with an optional bias `[rows]`.
#[derive(Debug)]
pub(crate) struct Linear {
    rows: usize,
    cols: usize,
    weight: Weight,
    bias: Option<Vec<f32>>,
}

#[derive(Debug)]
enum Weight {
    /// Aligned for single precision.
    F32(SharedBytes),
    F16(SharedBytes),
    Bf16(SharedBytes),
    /// With the bytes of its layout.
    Packed(PackedTensor),
}

impl Linear {
    /// The matrix `tensor`, called `id` in errors, whose shape the caller has checked.
    pub(crate) fn new(id: TensorId, tensor: Tensor, bias: Option<Vec<f32>>) -> Result<Self, Error> {
        let codec = tensor.codec_name();
        let unusable = || Error::Codec { tensor: id, codec };
        let shape = tensor.shape();
        let &[rows, cols] = shape.as_slice() else {
            return Err(unusable());
        };
        let weight = match tensor {
            Tensor::Dense(dense) => {
                if rows.checked_mul(cols) != Some(dense.len()) {
                    return Err(unusable());
                }
                match dense.dtype {
                    DType::F32 => Weight::F32(aligned(dense.bytes)),
                    DType::F16 => Weight::F16(dense.bytes),
                    DType::BF16 => Weight::Bf16(dense.bytes),
                    DType::U8 => return Err(unusable()),
                }
            }
            Tensor::Packed(packed) => {
                if packed.bytes.len() != packed.layout.size_bytes() {
                    return Err(unusable());
                }
                Weight::Packed(packed)
            }
        };
        Ok(Linear {
            rows,
            cols,
            weight,
            bias,
        })
    }

    /// `y[t, rows] = W x + b` for each row of `x`.
    pub(crate) fn forward(&self, x: &mut Input<'_>) -> Vec<f32> {
        let mut y_tn = vec![0.0; x.t * self.rows];
        match &self.weight {
            Weight::F32(bytes) => {
                self.dense(DenseSlice::F32(bytemuck::cast_slice(bytes)), x, &mut y_tn);
            }
            Weight::F16(bytes) => self.dense(DenseSlice::F16(bytes), x, &mut y_tn),
            Weight::Bf16(bytes) => self.dense(DenseSlice::Bf16(bytes), x, &mut y_tn),
            Weight::Packed(packed) => {
                let view = packed_view(packed);
                matmul_packed(&view, x.quantized(view.group()), &mut y_tn);
            }
        }
        self.add_bias(&mut y_tn);
        y_tn
    }

    /// [`Linear::forward`] of several matrices that read the same activations: where all are packed
    /// alike, threads are woken once for all.
    pub(crate) fn forward_all<const N: usize>(
        linears: [&Linear; N],
        x: &mut Input<'_>,
    ) -> [Vec<f32>; N] {
        let views: Vec<PackedView<'_>> = linears.iter().filter_map(|l| l.packed()).collect();
        let alike = views.windows(2).all(|v| v[0].group() == v[1].group());
        if views.len() < N || !alike {
            return linears.map(|linear| linear.forward(x));
        }
        let mut all = linears.map(|linear| vec![0.0; x.t * linear.rows]);
        if let Some(first) = views.first() {
            let outputs = all.iter_mut().map(|y_tn| &mut y_tn[..]).collect();
            matmul_packed_all(&views, x.quantized(first.group()), outputs);
        }
        for (linear, y_tn) in linears.into_iter().zip(&mut all) {
            linear.add_bias(y_tn);
        }
        all
    }

    fn packed(&self) -> Option<PackedView<'_>> {
        match &self.weight {
            Weight::Packed(packed) => Some(packed_view(packed)),
            Weight::F32(_) | Weight::F16(_) | Weight::Bf16(_) => None,
        }
    }

    fn add_bias(&self, y_tn: &mut [f32]) {
        if let Some(bias) = &self.bias {
            for y_n in y_tn.chunks_mut(self.rows) {
                add_scaled(y_n, 1.0, bias);
            }
        }
    }

    fn dense(&self, w: DenseSlice<'_>, x: &Input<'_>, y_tn: &mut [f32]) {
        matmul_dense(w, self.rows, self.cols, x.x_tk, x.t, y_tn);
    }

    /// Rows of the matrix.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes of the matrix, all of which a product reads.
    pub(crate) fn weight_bytes(&self) -> usize {
        match &self.weight {
            Weight::F32(bytes) | Weight::F16(bytes) | Weight::Bf16(bytes) => bytes.len(),
            Weight::Packed(packed) => packed.bytes.len(),
        }
    }
}

/// The same bytes where they can be read as singles in place, else a copy that can.
fn aligned(bytes: SharedBytes) -> SharedBytes {
    struct Floats(Vec<f32>);
    impl AsRef<[u8]> for Floats {
        fn as_ref(&self) -> &[u8] {
            bytemuck::cast_slice(&self.0)
        }
    }
    if bytemuck::try_cast_slice::<u8, f32>(&bytes).is_ok() {
        return bytes;
    }
    let floats = bytes
        .as_chunks()
        .0
        .iter()
        .map(|b| f32::from_le_bytes(*b))
        .collect();
    SharedBytes::new(std::sync::Arc::new(Floats(floats)))
}
