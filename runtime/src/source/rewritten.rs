//! A model with other weights and the same function.
//!
//! Owns two exact changes. The gain `g` of a norm goes into the matrices that read it,
//! `W (g ∘ n) = (W diag(g)) n`, and becomes one. The residual stream `x` is rotated to `Qᵀ x` by an
//! orthogonal `Q`: an RMS norm without gain does not see it, what reads the stream becomes `W Q`, what
//! writes to it `Qᵀ W`. `Q` is a diagonal of signs, then a Hadamard matrix of the largest power of two
//! in the width, times a cosine transform for what is left of it; it spreads channels that stand out
//! over all ([QuaRot](https://arxiv.org/abs/2404.00456), section 3). All sums are in double precision.

use std::borrow::Cow;
use std::f64::consts::PI;

use neuroconv_format::{DType, DenseTensor, Tensor};
use neuroconv_recipes::{ModelSpec, Rewrites, Role, TensorId};

use crate::{Error, WeightSource};

/// A model with other weights and the same function.
pub struct Rewritten<'a> {
    base: &'a dyn WeightSource,
    rewrites: &'a Rewrites,
    spec: ModelSpec,
}

impl<'a> Rewritten<'a> {
    /// `base` changed as `rewrites` say; without any, `base` itself.
    pub fn new(base: &'a dyn WeightSource, rewrites: &'a Rewrites) -> Self {
        Rewritten {
            base,
            rewrites,
            spec: rewrites.rewritten(base.spec()),
        }
    }

    /// Whether a tensor is other than that of the base.
    pub fn changes(&self, id: TensorId) -> bool {
        let folds = |norm: Option<TensorId>| norm.is_some_and(|norm| self.rewrites.folds(norm));
        let unties = id.role == Role::Head && self.base.spec().tied;
        let rotated = self.rewrites.rotate && place(id.role) != Place::Elsewhere;
        self.rewrites.folds(id) || folds(id.norm()) || unties || rotated
    }

    /// The tensor that a changed one is made of.
    fn original(&self, id: TensorId) -> Result<Tensor, Error> {
        let unties = id.role == Role::Head && self.base.spec().tied;
        let from = if unties { Role::Embed } else { id.role };
        self.base.tensor(TensorId { role: from, ..id })
    }

    /// A changed tensor, in single precision.
    pub fn dense(&self, id: TensorId) -> Result<DenseTensor, Error> {
        let (shape, mut values) = floats(id, &self.original(id)?)?;
        if self.rewrites.folds(id) {
            values.fill(1.0);
        }
        if let Some(norm) = id.norm().filter(|norm| self.rewrites.folds(*norm)) {
            let (_, gain) = floats(norm, &self.base.tensor(norm)?)?;
            for row in values.chunks_mut(gain.len()) {
                row.iter_mut().zip(&gain).for_each(|(w, g)| *w *= g);
            }
        }
        if self.rewrites.rotate {
            let rotation = Rotation::new(self.spec.hidden);
            match place(id.role) {
                Place::Reads => {
                    let rows = values.chunks_mut(self.spec.hidden);
                    rows.for_each(|row| rotation.turn(row));
                }
                Place::Writes => {
                    let cols = values.len() / self.spec.hidden;
                    let mut column = vec![0.0; self.spec.hidden];
                    for c in 0..cols {
                        let of_column = |i: usize| i * cols + c;
                        (0..column.len()).for_each(|i| column[i] = values[of_column(i)]);
                        rotation.turn(&mut column);
                        (0..column.len()).for_each(|i| values[of_column(i)] = column[i]);
                    }
                }
                Place::Elsewhere => {}
            }
        }
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|&v| (v as f32).to_le_bytes())
            .collect();
        Ok(DenseTensor {
            dtype: DType::F32,
            shape,
            bytes: bytes.into(),
        })
    }
}

impl WeightSource for Rewritten<'_> {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn tensor(&self, id: TensorId) -> Result<Tensor, Error> {
        if self.changes(id) {
            Ok(Tensor::Dense(self.dense(id)?))
        } else {
            self.base.tensor(id)
        }
    }
}

/// How a tensor meets the residual stream.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Its rows are multiplied with the stream, or are the stream.
    Reads,
    /// Its output is added to the stream.
    Writes,
    /// Not at all.
    Elsewhere,
}

fn place(role: Role) -> Place {
    match role {
        Role::Embed | Role::Head | Role::Q | Role::K | Role::V | Role::Gate | Role::Up => {
            Place::Reads
        }
        Role::O | Role::OBias | Role::Down | Role::DownBias => Place::Writes,
        _ => Place::Elsewhere,
    }
}

fn floats(id: TensorId, tensor: &Tensor) -> Result<(Vec<usize>, Vec<f64>), Error> {
    match tensor {
        Tensor::Dense(dense) => {
            let values: Cow<'_, [f32]> = dense.to_f32().into();
            Ok((
                dense.shape.clone(),
                values.iter().map(|&v| f64::from(v)).collect(),
            ))
        }
        packed @ Tensor::Packed(_) => Err(Error::Codec {
            tensor: id,
            codec: packed.codec_name(),
        }),
    }
}

/// An orthogonal matrix `Q = D (C ⊗ H)`: signs, a cosine transform, a Hadamard matrix.
struct Rotation {
    signs: Vec<f64>,
    /// The power of two in the width.
    power: usize,
    /// `[rest, rest]`, rows are outputs.
    cosine: Vec<f64>,
}

impl Rotation {
    fn new(width: usize) -> Self {
        let power = 1 << width.trailing_zeros();
        let rest = width / power;
        let cosine = (0..rest * rest).map(|place| {
            let (k, n) = ((place / rest) as f64, (place % rest) as f64);
            let scale = if place < rest { 1.0 } else { 2.0 } / rest as f64;
            scale.sqrt() * (PI * (n + 0.5) * k / rest as f64).cos()
        });
        Rotation {
            signs: signs(width),
            power,
            cosine: cosine.collect(),
        }
    }

    /// `Qᵀ x`, which is also `x Q` of a row.
    fn turn(&self, x: &mut [f64]) {
        x.iter_mut()
            .zip(&self.signs)
            .for_each(|(x, sign)| *x *= sign);
        for block in x.chunks_mut(self.power) {
            hadamard(block);
        }
        let rest = x.len() / self.power;
        let mut column = vec![0.0; rest];
        for i in 0..if rest > 1 { self.power } else { 0 } {
            let across = |n: usize| n * self.power + i;
            (0..rest).for_each(|n| column[n] = x[across(n)]);
            for k in 0..rest {
                let row = &self.cosine[k * rest..(k + 1) * rest];
                x[across(k)] = row.iter().zip(&column).map(|(c, v)| c * v).sum();
            }
        }
    }
}

/// The fast Walsh-Hadamard transform, scaled to be orthogonal.
fn hadamard(x: &mut [f64]) {
    let mut half = 1;
    while half < x.len() {
        for pair in x.chunks_mut(2 * half) {
            let (a, b) = pair.split_at_mut(half);
            for (a, b) in a.iter_mut().zip(b) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
    let scale = 1.0 / (x.len() as f64).sqrt();
    for x in x {
        *x *= scale;
    }
}

/// Signs that look random and are the same everywhere: the top bits of a Weyl sequence, mixed once.
fn signs(width: usize) -> Vec<f64> {
    let sign = |i: u64| {
        let mixed = (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        if mixed >> 63 == 0 { 1.0 } else { -1.0 }
    };
    (0..width as u64).map(sign).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotation_is_orthogonal_and_spreads() {
        for width in [1, 3, 8, 48, 64, 384] {
            let rotation = Rotation::new(width);
            let columns: Vec<Vec<f64>> = (0..width)
                .map(|i| {
                    let mut x = vec![0.0; width];
                    x[i] = 1.0;
                    rotation.turn(&mut x);
                    x
                })
                .collect();
            for (i, a) in columns.iter().enumerate() {
                for (j, b) in columns.iter().enumerate() {
                    let dot: f64 = a.iter().zip(b).map(|(a, b)| a * b).sum();
                    let expected = f64::from(u8::from(i == j));
                    assert!((dot - expected).abs() < 1e-12, "{width}: {i} {j} {dot}");
                }
                let largest = a.iter().fold(0.0_f64, |most, v| most.max(v.abs()));
                assert!(largest * (width as f64).sqrt() < 1.5, "{width}: {largest}");
            }
        }
    }
}
