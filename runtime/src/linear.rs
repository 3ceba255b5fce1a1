//! Matrix products `y = W x + b` over dense and packed weights.
//!
//! Owns the choice of kernel by codec. Packed weights take activations in eight or sixteen bits,
//! quantized once per group size and shared by all matrices that read the same activations. What a packed
//! matrix has beside its codes is added by [`crate::corrections`].

use neuroconv_format::{DType, PackedTensor, SharedBytes, Tensor};
use neuroconv_kernels::{
    ActivationBits, Activations, DenseSlice, PackedView, matmul_dense, matmul_packed,
    matmul_packed_all, quantize_activations,
};
use neuroconv_quant::{activation_bits, packed_view};
use neuroconv_recipes::TensorId;

use crate::Error;
use crate::corrections::Corrections;
use crate::ops::add_scaled;

/// Activations `[t, cols]` and their quantized forms, made when first asked for.
#[derive(Debug)]
pub(crate) struct Input<'x> {
    pub(crate) x_tk: &'x [f32],
    t: usize,
    pub(crate) cols: usize,
    /// With the columns that were left out.
    quantized: Vec<(Vec<u32>, Activations)>,
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

    /// Quantized as `as_for` says.
    fn quantized(&mut self, as_for: Rounding<'_>) -> &Activations {
        let Rounding { group, bits, apart } = as_for;
        let mut known = self.quantized.iter();
        let known = known
            .position(|(without, a)| (a.group(), a.bits()) == (group, bits) && without == apart);
        let index = known.unwrap_or_else(|| {
            let quantize =
                |x_tk: &[f32]| quantize_activations(x_tk, self.t, self.cols, group, bits);
            let activations = if apart.is_empty() {
                quantize(self.x_tk)
            } else {
                quantize(&self.without(apart))
            };
            self.quantized.push((apart.to_vec(), activations));
            self.quantized.len() - 1
        });
        &self.quantized[index].1
    }

    fn without(&self, apart: &[u32]) -> Vec<f32> {
        let mut x_tk = self.x_tk.to_vec();
        for x_k in x_tk.chunks_mut(self.cols) {
            for &index in apart {
                x_k[index as usize] = 0.0;
            }
        }
        x_tk
    }

    /// `[t, indexes]`: the columns `indexes` alone.
    pub(crate) fn columns(&self, indexes: &[u32]) -> Vec<f32> {
        let rows = self.x_tk.chunks(self.cols);
        rows.flat_map(|x_k| indexes.iter().map(|&index| x_k[index as usize]))
            .collect()
    }
}

/// How a packed matrix takes its activations: in groups of `group` columns, in `bits` bits, and with
/// zeros in the columns `apart`.
#[derive(Clone, Copy, PartialEq)]
struct Rounding<'w> {
    group: usize,
    bits: ActivationBits,
    apart: &'w [u32],
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
    Packed(Box<Packed>),
}

/// Codes with the bytes of their layout, and what there is beside them.
#[derive(Debug)]
struct Packed {
    tensor: PackedTensor,
    corrections: Option<Corrections>,
}

impl Packed {
    fn rounding(&self) -> Rounding<'_> {
        Rounding {
            group: self.tensor.layout.group(),
            bits: activation_bits(&self.tensor),
            apart: self.corrections.as_ref().map_or(&[], Corrections::apart),
        }
    }
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
                let fits = packed.corrections.check(rows, cols).is_ok();
                if packed.bytes.len() != packed.layout.size_bytes() || !fits {
                    return Err(unusable());
                }
                let corrections = Corrections::new(id, &packed.corrections)?;
                Weight::Packed(Box::new(Packed {
                    tensor: packed,
                    corrections,
                }))
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
                let view = packed_view(&packed.tensor);
                matmul_packed(&view, x.quantized(packed.rounding()), &mut y_tn);
            }
        }
        self.add_rest(x, &mut y_tn);
        y_tn
    }

    /// [`Linear::forward`] of several matrices that read the same activations: where all are packed
    /// alike, threads are woken once for all.
    pub(crate) fn forward_all<const N: usize>(
        linears: [&Linear; N],
        x: &mut Input<'_>,
    ) -> [Vec<f32>; N] {
        let packed: Vec<&Packed> = linears.iter().filter_map(|l| l.packed()).collect();
        let alike = |pair: &[&Packed]| pair[0].rounding() == pair[1].rounding();
        if packed.len() < N || !packed.windows(2).all(alike) {
            return linears.map(|linear| linear.forward(x));
        }
        let mut all = linears.map(|linear| vec![0.0; x.t * linear.rows]);
        if let Some(first) = packed.first() {
            let outputs = all.iter_mut().map(|y_tn| &mut y_tn[..]).collect();
            let views = packed.iter().map(|packed| packed_view(&packed.tensor));
            let views: Vec<PackedView<'_>> = views.collect();
            matmul_packed_all(&views, x.quantized(first.rounding()), outputs);
        }
        for (linear, y_tn) in linears.into_iter().zip(&mut all) {
            linear.add_rest(x, y_tn);
        }
        all
    }

    fn packed(&self) -> Option<&Packed> {
        match &self.weight {
            Weight::Packed(packed) => Some(packed),
            Weight::F32(_) | Weight::F16(_) | Weight::Bf16(_) => None,
        }
    }

    /// Adds what is stored beside the codes, and the bias.
    fn add_rest(&self, x: &Input<'_>, y_tn: &mut [f32]) {
        if let Some(corrections) = self.packed().and_then(|p| p.corrections.as_ref()) {
            corrections.add(x, y_tn);
        }
        if let Some(bias) = &self.bias {
            for y_n in y_tn.chunks_mut(self.rows) {
                add_scaled(y_n, 1.0, bias);
            }
        }
    }

    fn dense(&self, w: DenseSlice<'_>, x: &Input<'_>, y_tn: &mut [f32]) {
        matmul_dense(w, self.rows, self.cols, x.x_tk, x.t, y_tn);
    }

    /// Columns of the matrix.
    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// Rows of the matrix.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes of the matrix, all of which a product reads.
    pub(crate) fn weight_bytes(&self) -> usize {
        match &self.weight {
            Weight::F32(bytes) | Weight::F16(bytes) | Weight::Bf16(bytes) => bytes.len(),
            Weight::Packed(packed) => packed.tensor.size_bytes(),
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
