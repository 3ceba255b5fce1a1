//! Latent attention under the rules of engines that norm the latent.
//!
//! Owns the form in which the norm changes nothing: one more channel of the latent, always the same
//! large number, set by a bias. Then `x / rms(x) · gain` is `x` up to `(|x| / constant)² / 2`. Only an
//! engine with that bias can have it; for others see `normed`.

use neuroconv_format::{DType, DenseTensor, SharedBytes, Tensor};
use neuroconv_quant::dequantize;
use neuroconv_recipes::{Mixer, MlaSpec, ModelSpec, Role, RopeSpec, TensorId};
use neuroconv_runtime::{Error, WeightSource};

use super::engine::LatentFacts;
use super::matrix::elements;

/// How far a frequency may be from the table that engines build, relative.
const SAME_FREQUENCY: f32 = 3e-7;

/// A channel that is always the same, and what the norm of a row with it multiplies others by.
///
/// Of a row `[x, constant]` of `width` channels, a norm leaves `x` times `gain * sqrt(width) / constant`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Constant {
    /// Gain of the channels that count: a power of two, so that it is exact in every type.
    pub(crate) gain: f32,
    /// The constant as it will be stored, whatever the type.
    pub(crate) value: f32,
    /// Gain of the constant channel: it is remembered as about one, which narrow caches keep best.
    pub(crate) own_gain: f32,
    /// What undoes the rounding of the constant, for the matrix behind the norm.
    pub(crate) undo: f32,
}

impl Constant {
    /// The constant of rows of `width` channels, itself counted, for numbers of `dtype`.
    pub(crate) fn new(width: usize, dtype: DType) -> Self {
        let root = (width as f32).sqrt();
        // The constant has to stay below the largest half, even for wide rows.
        let gain = match dtype {
            DType::F16 => (32768.0 / root).log2().floor().exp2(),
            DType::F32 | DType::BF16 | DType::U8 => 16384.0,
        };
        let value = half::bf16::from_f32(gain * root).to_f32();
        Constant {
            gain,
            value,
            own_gain: 1.0 / root,
            undo: value / (gain * root),
        }
    }
}

/// A model of latent attention whose latents have one constant channel and go through a norm that
/// leaves all others as they are.
pub(crate) struct ConstantChannel<'a> {
    model: &'a dyn WeightSource,
    spec: ModelSpec,
    dtype: DType,
}

impl<'a> ConstantChannel<'a> {
    /// `model`, all of whose layers have latent attention by linear encoders, for weights of `dtype`;
    /// `eps` is what the engine's norm adds.
    pub(crate) fn new(model: &'a dyn WeightSource, dtype: DType, eps: f64) -> Self {
        let mut spec = model.spec().clone();
        for layer in &mut spec.layers {
            if let Mixer::Mla(mla) = &mut layer.mixer {
                mla.rank += 1;
                mla.latent_norm = Some(eps);
            }
        }
        ConstantChannel { model, spec, dtype }
    }
}

impl WeightSource for ConstantChannel<'_> {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn tensor(&self, id: TensorId) -> Result<Tensor, Error> {
        let mla = id.layer.and_then(|layer| mla_of(self.model.spec(), layer));
        let Some(&MlaSpec { rank, rope_dim, .. }) = mla else {
            return self.model.tensor(id);
        };
        let read = |role| {
            let of = TensorId { role, ..id };
            self.model.tensor(of).map(|tensor| dequantize(&tensor))
        };
        let wide = rank + 1;
        let constant = Constant::new(wide, self.dtype);
        match id.role {
            Role::KvA => {
                let mut w = read(Role::KvA)?;
                let hidden = w.len() / (rank + rope_dim);
                w.splice(rank * hidden..rank * hidden, vec![0.0; hidden]);
                Ok(dense(vec![wide + rope_dim, hidden], &w))
            }
            Role::KvABias => {
                let mut bias = read(Role::KvABias)?;
                bias.insert(rank, constant.value);
                Ok(dense(vec![wide + rope_dim], &bias))
            }
            Role::KvANorm => {
                let mut gain = vec![constant.gain; wide];
                gain[rank] = constant.own_gain;
                Ok(dense(vec![wide], &gain))
            }
            Role::KB | Role::VB => {
                let w = read(id.role)?;
                let rows = w.chunks(rank).flat_map(|row| {
                    let row = row.iter().map(move |v| v * constant.undo);
                    row.chain([0.0])
                });
                let w: Vec<f32> = rows.collect();
                Ok(dense(vec![w.len() / wide, wide], &w))
            }
            _ => self.model.tensor(id),
        }
    }
}

/// What engines divide scores by. Our queries hold the whole scale already, so it is made good on the
/// side of the keys, whose matrices are written as plain numbers anyway.
pub(crate) fn score_scale(mla: &MlaSpec) -> f32 {
    ((mla.head_dim + mla.rope_dim) as f32).sqrt()
}

/// Latent attention of a layer.
pub(crate) fn mla_of(spec: &ModelSpec, layer: usize) -> Option<&MlaSpec> {
    match &spec.layers.get(layer)?.mixer {
        Mixer::Mla(mla) => Some(mla),
        Mixer::Attention(_) | Mixer::Latent(_) => None,
    }
}

/// A dense tensor of single precision.
pub(crate) fn dense(shape: Vec<usize>, values: &[f32]) -> Tensor {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Tensor::Dense(DenseTensor {
        dtype: DType::F32,
        shape,
        bytes: SharedBytes::from(bytes),
    })
}

/// What the weights of latent attention tell beside their shapes.
pub fn latent_facts(model: &dyn WeightSource) -> Result<LatentFacts, Error> {
    let spec = model.spec();
    let mut facts = LatentFacts::default();
    for (layer, mla) in (0..).map_while(|layer| Some((layer, mla_of(spec, layer)?))) {
        let read = |role| {
            let tensor = model.tensor(TensorId::layer(layer, role));
            tensor.map(|tensor| dequantize(&tensor))
        };
        if mla.rope_dim > 0 {
            let stock = is_stock(&read(Role::RopeFreq)?, &spec.rope);
            facts.stock_table = Some(facts.stock_table != Some(false) && stock);
        }
    }
    Ok(facts)
}

/// Whether `table` is what engines build for a rotated key of its width.
fn is_stock(table: &[f32], rope: &RopeSpec) -> bool {
    let stock = rope.inv_freq(2 * table.len());
    let near = |(&found, stock): (&f32, f64)| {
        (found - stock as f32).abs() <= SAME_FREQUENCY * stock as f32
    };
    table.iter().zip(stock).all(near)
}

/// A model whose numbers are rounded to the element type that they will be written in.
pub struct InType<'a> {
    model: &'a dyn WeightSource,
    dtype: DType,
}

impl<'a> InType<'a> {
    /// `model` with numbers of `dtype`.
    pub fn new(model: &'a dyn WeightSource, dtype: DType) -> Self {
        InType { model, dtype }
    }
}

impl WeightSource for InType<'_> {
    fn spec(&self) -> &ModelSpec {
        self.model.spec()
    }

    fn tensor(&self, id: TensorId) -> Result<Tensor, Error> {
        let tensor = self.model.tensor(id)?;
        let Tensor::Dense(found) = &tensor else {
            return Ok(tensor);
        };
        // Engines build the frequencies themselves.
        if id.role == Role::RopeFreq || found.dtype == self.dtype {
            return Ok(tensor);
        }
        let Some(bytes) = elements(&found.to_f32(), self.dtype) else {
            return Ok(tensor);
        };
        Ok(Tensor::Dense(DenseTensor {
            dtype: self.dtype,
            shape: found.shape.clone(),
            bytes: SharedBytes::from(bytes),
        }))
    }
}
