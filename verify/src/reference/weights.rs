//! Tensors of a model as f32, checked against the model's description.

use candle_core::{Device, Tensor as Matrix};
use neuroconv_format::Tensor;
use neuroconv_recipes::TensorId;
use neuroconv_runtime::WeightSource;
use rayon::prelude::*;

use super::decode;
use super::linear::Activations;
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
        Ok(self.matrix(id, expected)?.0)
    }

    /// The same, and the columns that share an activation scale in products with it, if any.
    pub(super) fn matrix(
        self,
        id: TensorId,
        expected: &[usize],
    ) -> Result<(Matrix, Option<usize>), Error> {
        let mut group = None;
        let values = match self.stored(id, expected)? {
            Tensor::Dense(t) => t.to_f32(),
            Tensor::Packed(t) => {
                group = (self.activations == Activations::Rounded).then(|| t.layout.group());
                let (rows, cols) = (t.layout.rows(), t.layout.cols());
                let mut values = vec![0.0; rows * cols];
                values
                    .par_chunks_mut(cols)
                    .enumerate()
                    .for_each(|(row, out)| decode::packed_row(&t, row, out));
                values
            }
        };
        Ok((matrix(id, values, expected)?, group))
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
        let mut values = vec![0.0; rows.len() * cols];
        for (&row, out) in rows.iter().zip(values.chunks_mut(cols)) {
            let row = row as usize;
            if row >= count {
                return Err(Error::Token {
                    token: row as u32,
                    vocab: count,
                });
            }
            match &stored {
                Tensor::Packed(t) => decode::packed_row(t, row, out),
                Tensor::Dense(t) => {
                    let mut one = t.clone();
                    let bytes = cols * t.dtype.size();
                    one.bytes = t
                        .bytes
                        .slice(row * bytes..(row + 1) * bytes)
                        .expect("the byte count of the tensor was checked when it was read");
                    out.copy_from_slice(&one.to_f32());
                }
            }
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
        if tensor.size_bytes() != bytes {
            return Err(Error::Bytes {
                id,
                expected: bytes,
                found: tensor.size_bytes(),
            });
        }
        Ok(tensor)
    }
}

fn matrix(id: TensorId, values: Vec<f32>, shape: &[usize]) -> Result<Matrix, Error> {
    Matrix::from_vec(values, shape, &Device::Cpu).map_err(|source| Error::Reference {
        place: format!("tensor `{id}`"),
        source,
    })
}
