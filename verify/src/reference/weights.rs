//! Tensors of a model as f32, checked against the model's description.

use candle_core::{Device, Tensor as Matrix};
use neuroconv_format::{ActivationBits, DenseTensor, Tensor};
use neuroconv_recipes::TensorId;
use neuroconv_runtime::WeightSource;
use rayon::prelude::*;

use super::decode::{self, PackedRows};
use super::linear::{Activations, Rounding};
use crate::Error;

/// Reads the tensors of one model.
#[derive(Clone, Copy)]
pub(super) struct Weights<'a> {
    source: &'a dyn WeightSource,
    activations: Activations,
}

impl<'a> Weights<'a> {
    pub(super) fn new(source: &'a dyn WeightSource) -> Self {
        Weights {
            source,
            activations: Activations::Full,
        }
    }

    /// The same weights for products with other activations.
    pub(super) fn with(self, activations: Activations) -> Self {
        Weights {
            activations,
            ..self
        }
    }

    /// The whole tensor `id`, which must have the shape `expected`.
    pub(super) fn get(self, id: TensorId, expected: &[usize]) -> Result<Matrix, Error> {
        let values = match self.stored(id, expected)? {
            Tensor::Dense(t) => t.to_f32(),
            Tensor::Packed(t) => {
                let cols = t.layout.cols();
                let mut values = vec![0.0; t.layout.rows() * cols];
                let rows = PackedRows::new(&t);
                values
                    .par_chunks_mut(cols)
                    .enumerate()
                    .for_each(|(row, out)| rows.read(row, out));
                values
            }
        };
        matrix(id, values, expected)
    }

    /// The matrix `id`, its codes and what it has beside them each on its own.
    pub(super) fn parts(self, id: TensorId, expected: [usize; 2]) -> Result<Parts, Error> {
        self.parts_of(id, &self.stored(id, &expected)?)
    }

    fn parts_of(self, id: TensorId, tensor: &Tensor) -> Result<Parts, Error> {
        let of = |tensor: &Tensor| matrix(id, decode::matrix(tensor), &tensor.shape());
        let mut parts = Parts {
            codes_nk: of(tensor)?,
            rounding: None,
            columns: None,
            low_rank: None,
        };
        if let Tensor::Packed(packed) = tensor {
            parts.rounding = (self.activations == Activations::Rounded).then(|| Rounding {
                group: packed.layout.group(),
                levels: match packed.activations {
                    ActivationBits::Eight => 127.0,
                    ActivationBits::Sixteen => 32512.0,
                },
            });
            if let Some(columns) = &packed.corrections.columns {
                let values = self.parts_of(id, &columns.values)?;
                parts.columns = Some((columns.indexes.clone(), Box::new(values)));
            }
            if let Some(low_rank) = &packed.corrections.low_rank {
                let dense = |t: &DenseTensor| of(&Tensor::Dense(t.clone()));
                parts.low_rank = Some((dense(&low_rank.a)?, dense(&low_rank.b)?));
            }
        }
        Ok(parts)
    }

    /// The rows `rows` of the matrix `id`, one after the other, without the rest as f32.
    pub(super) fn rows(
        self,
        id: TensorId,
        expected: [usize; 2],
        rows: &[u32],
    ) -> Result<Matrix, Error> {
        let [count, cols] = expected;
        let stored = self.stored(id, &expected)?;
        if let Some(&token) = rows.iter().find(|&&row| row as usize >= count) {
            let vocab = count;
            return Err(Error::Token { token, vocab });
        }
        let mut values = vec![0.0; rows.len() * cols];
        let places = rows.iter().zip(values.chunks_mut(cols));
        let places = places.map(|(&row, out)| (row as usize, out));
        match &stored {
            Tensor::Packed(t) => {
                let table = PackedRows::new(t);
                places.for_each(|(row, out)| table.read(row, out));
            }
            Tensor::Dense(t) => places.for_each(|(row, out)| {
                let mut one = t.clone();
                let bytes = cols * t.dtype.size();
                one.bytes = t
                    .bytes
                    .slice(row * bytes..(row + 1) * bytes)
                    .expect("the byte count of the tensor was checked when it was read");
                out.copy_from_slice(&one.to_f32());
            }),
        }
        matrix(id, values, &[rows.len(), cols])
    }

    /// The tensor as stored, its shape and byte count checked.
    fn stored(self, id: TensorId, expected: &[usize]) -> Result<Tensor, Error> {
        let tensor = self.source.tensor(id)?;
        let found = tensor.shape();
        if found != expected {
            return Err(Error::Shape {
                id,
                expected: expected.to_vec(),
                found,
            });
        }
        let bytes = match &tensor {
            Tensor::Dense(t) => expected.iter().product::<usize>() * t.dtype.size(),
            Tensor::Packed(t) => t.layout.size_bytes(),
        };
        let found = match &tensor {
            Tensor::Dense(t) => t.bytes.len(),
            Tensor::Packed(t) => t.bytes.len(),
        };
        if found != bytes {
            return Err(Error::Bytes {
                id,
                expected: bytes,
                found,
            });
        }
        Ok(tensor)
    }
}

/// A matrix as it is multiplied.
pub(super) struct Parts {
    /// The codes alone, or all of a dense matrix.
    pub(super) codes_nk: Matrix,
    /// How activations are rounded in products with the codes, where they are.
    pub(super) rounding: Option<Rounding>,
    /// Columns that are stored apart: which, and their values.
    pub(super) columns: Option<(Vec<u32>, Box<Parts>)>,
    /// `A` and `B` of the low-rank product.
    pub(super) low_rank: Option<(Matrix, Matrix)>,
}

fn matrix(id: TensorId, values: Vec<f32>, shape: &[usize]) -> Result<Matrix, Error> {
    Matrix::from_vec(values, shape, &Device::Cpu).map_err(|source| Error::Reference {
        place: format!("tensor `{id}`"),
        source,
    })
}
