//! What the matrices of the original read when a text passes through it, layer after layer.

use neuroconv_recipes::TensorId;
use neuroconv_runtime::{OneLayer, WeightSource, embed};

use crate::Error;

/// The original on its way through a text; one layer is held at a time.
pub(crate) struct LayerInputs<'a> {
    base: &'a dyn WeightSource,
    layer: OneLayer,
    index: usize,
    /// Residual stream before the layer, `[t, hidden]`.
    x_td: Vec<f32>,
}

impl<'a> LayerInputs<'a> {
    /// Before the first layer.
    pub(crate) fn new(base: &'a dyn WeightSource, tokens: &[u32]) -> Result<Self, Error> {
        Ok(LayerInputs {
            base,
            layer: OneLayer::load(base, 0)?,
            index: 0,
            x_td: embed(base, &[tokens])?.concat(),
        })
    }

    /// What the matrix `id` reads, `[t, columns]`; ask for the layers in order. `None` for a matrix
    /// that does not read activations as they are.
    pub(crate) fn of(&mut self, id: TensorId) -> Result<Option<Vec<f32>>, Error> {
        let Some(layer) = id.layer else {
            return Ok(None);
        };
        while self.index < layer {
            self.layer.run(&mut self.x_td);
            self.index += 1;
            self.layer = OneLayer::load(self.base, self.index)?;
        }
        Ok(self.layer.input(id.role, &self.x_td))
    }
}
