//! Models in memory, made from the tiny checkpoints of the fixtures.

use std::collections::BTreeMap;
use std::path::Path;

use neuroconv_fixtures::golden_dirs;
use neuroconv_format::{Codec, DType, DenseTensor, PackedLayout, SharedBytes, Tensor};
use neuroconv_quant::{QuantizeSpec, quantize};
use neuroconv_recipes::{ModelSpec, RoleKind, TensorId, Threshold};
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
                let how = QuantizeSpec {
                    codec,
                    group: 32,
                    threshold: Threshold::Mse,
                };
                let (fitted, _) = quantize(&values(tensor), shape[0], shape[1], &how).unwrap();
                *tensor = Tensor::Packed(fitted);
            }
        }
        packed
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
