//! Models in memory, made from the tiny checkpoints of the fixtures.

use std::collections::BTreeMap;
use std::path::Path;

use neuroconv_fixtures::golden_dirs;
use neuroconv_format::{
    ActivationBits, Codec, Columns, Corrections, DType, DenseTensor, LowRank, PackedLayout,
    PackedTensor, SharedBytes, Tensor,
};
use neuroconv_quant::{QuantizeSpec, quantize, residual};
use neuroconv_recipes::{ModelSpec, RoleKind, TensorId};
use neuroconv_runtime::{Checkpoint, Error, TextTokenizer, WeightSource};
use neuroconv_verify::{EvalText, Protocol, Window, windows};

/// A model whose description and tensors a test may change.
#[derive(Clone)]
pub(crate) struct Model {
    pub(crate) spec: ModelSpec,
    pub(crate) tensors: BTreeMap<TensorId, Tensor>,
}

impl WeightSource for Model {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn tensor(&self, id: TensorId) -> Result<Tensor, Error> {
        self.tensors.get(&id).cloned().ok_or(Error::NoTensor(id))
    }
}

impl Model {
    /// The golden checkpoint `name`.
    pub(crate) fn golden(name: &str) -> Self {
        let dir = golden_dirs()
            .into_iter()
            .find(|d| d.ends_with(name))
            .expect("a golden folder");
        Model::read(&dir)
    }

    /// The trained fixture model.
    pub(crate) fn trained() -> Self {
        Model::read(&neuroconv_fixtures::tiny_model())
    }

    /// Held-out text in the language of [`Model::trained`].
    pub(crate) fn trained_text() -> EvalText {
        let tokenizer = TextTokenizer::open(&neuroconv_fixtures::tiny_model()).unwrap();
        let text = fs_err::read_to_string(neuroconv_fixtures::tiny_text()).unwrap();
        EvalText::new("eval", &text, tokenizer.encode_plain(&text).unwrap(), None)
    }

    fn read(dir: &Path) -> Self {
        let checkpoint = Checkpoint::open(dir).expect("a sound checkpoint");
        let spec = checkpoint.spec().clone();
        let ids = spec.tensors();
        let tensors = ids
            .iter()
            .map(|(id, _)| (*id, checkpoint.tensor(*id).unwrap()))
            .collect();
        Model { spec, tensors }
    }

    /// The model with its matrices packed.
    pub(crate) fn packed(&self, codec: Codec) -> Self {
        let mut packed = self.clone();
        for (id, tensor) in &mut packed.tensors {
            if matches!(id.role.kind(), RoleKind::Vocab | RoleKind::Linear) {
                let shape = tensor.shape();
                // As in the recipes, the vocabulary stays at eight bits.
                let codec = if id.role.kind() == RoleKind::Vocab {
                    Codec::Int8
                } else {
                    codec
                };
                *tensor = Tensor::Packed(fitted(&values(tensor), [shape[0], shape[1]], codec));
            }
        }
        packed
    }

    /// The model with its linear matrices packed, each with a low-rank product and columns apart.
    pub(crate) fn corrected(&self, codec: Codec) -> Self {
        let mut corrected = self.packed(codec);
        for (id, tensor) in &mut corrected.tensors {
            if id.role.kind() == RoleKind::Linear {
                let shape = [tensor.shape()[0], tensor.shape()[1]];
                let w = values(&self.tensors[id]);
                let corrections = parts(&w, shape, id.layer.is_some_and(|l| l % 2 == 0));
                let rest = residual(&w, shape[1], &corrections);
                *tensor = Tensor::Packed(PackedTensor {
                    corrections,
                    ..fitted(&rest, shape, codec)
                });
            }
        }
        corrected
    }

    /// Replaces a dense tensor's elements by `change` of them.
    pub(crate) fn change(&mut self, id: TensorId, change: impl FnOnce(&mut Vec<f32>)) {
        let tensor = self.tensors.get_mut(&id).expect("a tensor of the model");
        let (shape, mut elements) = (tensor.shape(), values(tensor));
        change(&mut elements);
        *tensor = dense(shape, &elements);
    }

    /// Changes the bytes of a packed tensor.
    pub(crate) fn change_packed(
        &mut self,
        id: TensorId,
        change: impl FnOnce(&PackedLayout, &mut [u8]),
    ) {
        let Some(Tensor::Packed(packed)) = self.tensors.get_mut(&id) else {
            panic!("`{id}` is packed");
        };
        let mut bytes = packed.bytes.to_vec();
        change(&packed.layout, &mut bytes);
        packed.bytes = bytes.into();
    }

    /// The same with a shift of each group of packed matrices inside blocks.
    pub(crate) fn shifted(mut self) -> Self {
        for (id, tensor) in &mut self.tensors {
            if let Tensor::Packed(packed) = tensor
                && id.role.kind() == RoleKind::Linear
            {
                *packed = with_shifts(packed);
            }
        }
        self
    }

    /// The same with activations of packed matrices in sixteen bits.
    pub(crate) fn in_sixteen_bits(mut self) -> Self {
        for tensor in self.tensors.values_mut() {
            if let Tensor::Packed(packed) = tensor {
                packed.activations = ActivationBits::Sixteen;
            }
        }
        self
    }

    /// Changes what a packed tensor has beside its codes.
    pub(crate) fn change_parts(&mut self, id: TensorId, change: impl FnOnce(&mut Corrections)) {
        let Some(Tensor::Packed(packed)) = self.tensors.get_mut(&id) else {
            panic!("`{id}` is packed");
        };
        change(&mut packed.corrections);
    }

    /// Exchanges two tensors of equal shape.
    pub(crate) fn swap(&mut self, a: TensorId, b: TensorId) {
        let (first, second) = (self.tensors[&a].clone(), self.tensors[&b].clone());
        assert_eq!(first.shape(), second.shape(), "{a} and {b}");
        self.tensors.insert(a, second);
        self.tensors.insert(b, first);
    }

    /// Windows of pseudo-random tokens.
    pub(crate) fn windows(&self, ctx: usize, count: usize) -> Vec<Window> {
        windows(&self.text(ctx * count), Protocol::Windows, ctx, None).unwrap()
    }

    /// A text of pseudo-random tokens.
    pub(crate) fn text(&self, tokens: usize) -> EvalText {
        let mut state = 7u64;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % self.spec.vocab as u64) as u32
        };
        EvalText::new(
            "noise",
            "noise",
            (0..tokens).map(|_| next()).collect(),
            None,
        )
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
    PackedTensor::new(layout, bytes)
}

fn fitted(w: &[f32], [rows, cols]: [usize; 2], codec: Codec) -> PackedTensor {
    let how = QuantizeSpec::new(codec, 32);
    quantize(w, rows, cols, &how, None).unwrap().0
}

/// Two rows of `w` times numbers around zero, and three columns apart, packed or not.
fn parts(w: &[f32], [rows, cols]: [usize; 2], in_codes: bool) -> Corrections {
    let b: Vec<f32> = (0..2 * rows)
        .map(|i| (i * 37 % 101) as f32 / 100.0 - 0.5)
        .collect();
    let mut parts = Corrections {
        low_rank: Some(LowRank {
            a: half([2, cols], &w[..2 * cols]),
            b: half([rows, 2], &b),
        }),
        columns: None,
    };
    let rest = residual(w, cols, &parts);
    let indexes = vec![1, cols as u32 / 2, cols as u32 - 1];
    let apart = rest.chunks(cols);
    let apart = apart.flat_map(|row| indexes.iter().map(|&i| row[i as usize]));
    let apart: Vec<f32> = apart.collect();
    parts.columns = Some(if in_codes {
        Columns::packed(indexes, fitted(&apart, [rows, 3], Codec::Int8))
    } else {
        Columns::dense(indexes, half([rows, 3], &apart))
    });
    parts
}

/// A dense tensor in half precision.
pub(crate) fn half(shape: [usize; 2], elements: &[f32]) -> DenseTensor {
    let bytes = elements
        .iter()
        .flat_map(|&x| half::f16::from_f32(x).to_le_bytes());
    DenseTensor {
        dtype: DType::F16,
        shape: shape.to_vec(),
        bytes: bytes.collect::<Vec<u8>>().into(),
    }
}

/// A dense f32 tensor.
pub(crate) fn dense(shape: Vec<usize>, elements: &[f32]) -> Tensor {
    let bytes: Vec<u8> = elements.iter().flat_map(|x| x.to_le_bytes()).collect();
    Tensor::Dense(DenseTensor {
        dtype: DType::F32,
        shape,
        bytes: SharedBytes::from(bytes),
    })
}

fn values(tensor: &Tensor) -> Vec<f32> {
    neuroconv_quant::dequantize(tensor)
}
