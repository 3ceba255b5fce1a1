//! Where a model's tensors come from, whatever the container.

use neuroconv_format::Tensor;
use neuroconv_recipes::{ModelSpec, TensorId};

use crate::Error;

/// A model whose tensors can be read one by one, by role.
pub trait WeightSource: Send + Sync {
    /// The resolved description of the model.
    fn spec(&self) -> &ModelSpec;

    /// The tensor `id`, which must be one of [`ModelSpec::tensors`]: the head of a tied model is
    /// not, ask for the embedding.
    fn tensor(&self, id: TensorId) -> Result<Tensor, Error>;

    /// Whether any tensor is packed. Reads tensors up to the first, unless the source knows better.
    fn has_packed(&self) -> Result<bool, Error> {
        for (id, _) in self.spec().tensors() {
            if matches!(self.tensor(id)?, Tensor::Packed(_)) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
