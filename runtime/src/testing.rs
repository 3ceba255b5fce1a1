//! Small models in memory for the tests of this crate.

use std::collections::BTreeMap;

use neuroconv_format::{
    ActivationBits, Codec, Columns, Corrections, DType, DenseTensor, LowRank, PackedLayout,
    PackedTensor, Tensor,
};
use neuroconv_quant::{QuantizeSpec, dequantize, quantize, residual};
use neuroconv_recipes::{
    AttentionSpec, Biases, BlockSpec, LayerSpec, Mixer, Mlp, ModelSpec, Norm, Order, QkNorm,
    RoleKind, RopeLayout, RopeScaling, RopeSpec, SpecialTokens, TensorId,
};

use crate::sample::Pcg32;
use crate::{Error, WeightSource};

/// Two layers of grouped heads: one with everything switched on, one without rotation.
pub(crate) fn spec() -> ModelSpec {
    let full = AttentionSpec {
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        rope: true,
        qk_norm: QkNorm::PerHead,
        bias: Biases { qkv: true, o: true },
        window: Some(5),
    };
    let plain = AttentionSpec {
        rope: false,
        qk_norm: QkNorm::None,
        bias: Biases {
            qkv: false,
            o: false,
        },
        window: None,
        ..full.clone()
    };
    let layer = |attention| LayerSpec {
        mixer: Mixer::Attention(attention),
    };
    ModelSpec {
        arch: "test".to_owned(),
        hidden: 48,
        vocab: 50,
        ffn: 72,
        max_positions: 160,
        norm_eps: 1e-5,
        tied: false,
        block: BlockSpec {
            norm: Norm::Rms,
            order: Order::Pre,
            mlp: Mlp::GatedSilu,
            mlp_bias: true,
        },
        rope: RopeSpec {
            theta: 10_000.0,
            layout: RopeLayout::Half,
            scaling: RopeScaling::None,
        },
        layers: vec![layer(full), layer(plain)],
        special: SpecialTokens {
            bos: Some(1),
            eos: vec![2],
        },
    }
}

/// A model with random weights.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) spec: ModelSpec,
    pub(crate) tensors: BTreeMap<TensorId, Tensor>,
}

impl Model {
    /// Single precision, the same for every call.
    pub(crate) fn random(spec: ModelSpec) -> Self {
        let mut rng = Pcg32::new(11, 3);
        let mut uniform = move |width: f64| ((rng.next_f64() * 2.0 - 1.0) * width) as f32;
        let tensors = spec.tensors().into_iter().map(|(id, shape)| {
            let n = shape.iter().product();
            let values: Vec<f32> = match id.role.kind() {
                RoleKind::Norm | RoleKind::Frequency => {
                    (0..n).map(|_| 1.0 + uniform(0.3)).collect()
                }
                RoleKind::Bias => (0..n).map(|_| uniform(0.2)).collect(),
                RoleKind::Vocab => (0..n).map(|_| uniform(1.0)).collect(),
                RoleKind::Linear => {
                    let width = (3.0 / shape[1] as f64).sqrt();
                    (0..n).map(|_| uniform(width)).collect()
                }
            };
            (id, dense(DType::F32, shape, &values))
        });
        Model {
            tensors: tensors.collect(),
            spec,
        }
    }

    /// Every matrix in another dense type.
    pub(crate) fn in_dtype(mut self, dtype: DType) -> Self {
        for tensor in self.tensors.values_mut() {
            if let Tensor::Dense(t) = tensor
                && t.shape.len() == 2
            {
                *tensor = dense(dtype, t.shape.clone(), &t.to_f32());
            }
        }
        self
    }

    /// Every matrix packed, in groups of 32 or 64 by turns.
    pub(crate) fn packed(mut self, codec: Codec) -> Self {
        for (i, tensor) in self.tensors.values_mut().enumerate() {
            if let Tensor::Dense(t) = tensor
                && let &[rows, cols] = t.shape.as_slice()
            {
                let group = if i % 2 == 0 { 32 } else { 64 };
                *tensor = Tensor::Packed(packed(&t.to_f32(), [rows, cols], codec, group));
            }
        }
        self
    }

    /// Every matrix packed, with a low-rank product, columns apart, or both, by turns.
    pub(crate) fn corrected(mut self, codec: Codec) -> Self {
        for (i, tensor) in self.tensors.values_mut().enumerate() {
            if let Tensor::Dense(t) = tensor
                && let &[rows, cols] = t.shape.as_slice()
            {
                let w = t.to_f32();
                let mut corrections = Corrections {
                    low_rank: (i % 3 != 1).then(|| low_rank(&w, [rows, cols])),
                    columns: None,
                };
                let rest = residual(&w, cols, &corrections);
                corrections.columns =
                    (i % 3 != 0).then(|| columns(&rest, [rows, cols], i % 2 == 0));
                let rest = residual(&w, cols, &corrections);
                *tensor = Tensor::Packed(PackedTensor {
                    corrections,
                    ..packed(&rest, [rows, cols], codec, 32)
                });
            }
        }
        self
    }

    /// Every packed matrix with a shift of each group beside its scale.
    pub(crate) fn shifted(mut self) -> Self {
        for tensor in self.tensors.values_mut() {
            if let Tensor::Packed(packed) = tensor {
                *packed = with_shifts(packed);
            }
        }
        self
    }

    /// Every packed matrix for activations in sixteen bits.
    pub(crate) fn in_sixteen_bits(mut self) -> Self {
        for tensor in self.tensors.values_mut() {
            if let Tensor::Packed(packed) = tensor {
                packed.activations = ActivationBits::Sixteen;
            }
        }
        self
    }

    /// Every packed matrix as the single-precision numbers it stands for.
    pub(crate) fn dequantized(mut self) -> Self {
        for tensor in self.tensors.values_mut() {
            if let Tensor::Packed(_) = tensor {
                *tensor = dense(DType::F32, tensor.shape(), &dequantize(tensor));
            }
        }
        self
    }
}

/// The same codes and scales, and shifts from -1/32 to 1/32.
fn with_shifts(packed: &PackedTensor) -> PackedTensor {
    let old = packed.layout;
    let (rows, cols, group) = (old.rows(), old.cols(), old.group());
    let layout = PackedLayout::new(old.codec(), rows, cols, group, true).unwrap();
    let mut bytes = packed.bytes[..old.scales().end].to_vec();
    for i in 0..layout.shifts().len() / 2 {
        let shift = ((i * 37 % 65) as f32 - 32.0) / 1024.0;
        bytes.extend(half::f16::from_f32(shift).to_le_bytes());
    }
    bytes.resize(layout.size_bytes(), 0);
    PackedTensor {
        activations: packed.activations,
        ..PackedTensor::new(layout, bytes)
    }
}

fn packed(w: &[f32], [rows, cols]: [usize; 2], codec: Codec, group: usize) -> PackedTensor {
    let how = QuantizeSpec::new(codec, group);
    quantize(w, rows, cols, &how, None).unwrap().0
}

/// The first two rows of `w` times a random matrix: about as large as `w`.
fn low_rank(w: &[f32], [rows, cols]: [usize; 2]) -> LowRank {
    let mut rng = Pcg32::new(5, 7);
    let b: Vec<f32> = (0..2 * rows).map(|_| rng.next_f64() as f32 - 0.5).collect();
    LowRank {
        a: half([2, cols], &w[..2 * cols]),
        b: half([rows, 2], &b),
    }
}

/// The first, the last and two more columns.
fn columns(w: &[f32], [rows, cols]: [usize; 2], in_codes: bool) -> Columns {
    let indexes: Vec<u32> = [0, 5, cols / 2, cols - 1].map(|i| i as u32).into();
    let values = w.chunks(cols);
    let values = values.flat_map(|row| indexes.iter().map(|&i| row[i as usize]));
    let (values, shape) = (values.collect::<Vec<_>>(), [rows, indexes.len()]);
    if in_codes {
        Columns::packed(indexes, packed(&values, shape, Codec::Int8, 32))
    } else {
        Columns::dense(indexes, half(shape, &values))
    }
}

fn half(shape: [usize; 2], values: &[f32]) -> DenseTensor {
    match dense(DType::F16, shape.to_vec(), values) {
        Tensor::Dense(tensor) => tensor,
        Tensor::Packed(_) => unreachable!("made dense"),
    }
}

impl WeightSource for Model {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn tensor(&self, id: TensorId) -> Result<Tensor, Error> {
        self.tensors.get(&id).cloned().ok_or(Error::NoTensor(id))
    }
}

/// A dense tensor of `values`.
pub(crate) fn dense(dtype: DType, shape: Vec<usize>, values: &[f32]) -> Tensor {
    let bytes: Vec<u8> = match dtype {
        DType::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::F16 => values
            .iter()
            .flat_map(|v| half::f16::from_f32(*v).to_le_bytes())
            .collect(),
        DType::BF16 => values
            .iter()
            .flat_map(|v| half::bf16::from_f32(*v).to_le_bytes())
            .collect(),
        DType::U8 => values.iter().map(|v| *v as u8).collect(),
    };
    Tensor::Dense(DenseTensor {
        dtype,
        shape,
        bytes: bytes.into(),
    })
}
