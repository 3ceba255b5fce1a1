//! A model whose matrices are all plain numbers: what levels and scales mean, without the rounding of
//! activations that kernels for them do.

use neuroconv_format::{DType, DenseTensor, SharedBytes, Tensor};
use neuroconv_quant::dequantize;
use neuroconv_recipes::{ModelSpec, TensorId};

use crate::{Error, WeightSource};

/// A model in single precision.
pub struct AsNumbers<'a>(pub &'a dyn WeightSource);

impl WeightSource for AsNumbers<'_> {
    fn spec(&self) -> &ModelSpec {
        self.0.spec()
    }

    fn tensor(&self, id: TensorId) -> Result<Tensor, Error> {
        let tensor = self.0.tensor(id)?;
        Ok(match tensor {
            Tensor::Dense(_) => tensor,
            Tensor::Packed(_) => {
                let values = dequantize(&tensor);
                let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                Tensor::Dense(DenseTensor {
                    dtype: DType::F32,
                    shape: tensor.shape(),
                    bytes: SharedBytes::from(bytes),
                })
            }
        })
    }
}
