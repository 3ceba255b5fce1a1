//! The tensors of an export: what each is computed from, one at a time.
//!
//! Owns the order of rows that engines expect. How a tensor's numbers are stored is the business of the
//! two containers.

use neuroconv_quant::dequantize;
use neuroconv_recipes::gguf::gathered;
use neuroconv_recipes::{Role, TensorId};
use neuroconv_runtime::WeightSource;

use super::ExportError;
use super::matrix::{Levels, plain_levels};

/// What a tensor of the export is computed from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Origin {
    /// One tensor of the model, its rows perhaps in another order.
    Rows(Rows),
    /// Per head of the layer its keys' rows of the latent decoder, scaled, then its values': `[heads *
    /// (head_dim + head_dim), rank]`.
    KeysValues {
        layer: usize,
        heads: usize,
        scale: f32,
    },
    /// Per head of the layer its keys' part of the latent decoder, scaled and transposed: `[heads,
    /// rank, head_dim]`.
    KeysTransposed {
        layer: usize,
        heads: usize,
        scale: f32,
    },
    /// A map to the same channels and one more, which is zero: `[width + 1, width]`.
    Copy { width: usize },
    /// The layer's queries from channels of which the last is one: their matrix, scaled, with the bias as
    /// last column.
    Queries { rows: Rows, undo: f32 },
    /// These numbers.
    Numbers(Vec<f32>),
}

/// Rows in blocks of `head + tail`: the last `tail` rows of each go from halves of pairs to neighbours.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rows {
    pub(crate) id: TensorId,
    pub(crate) head: usize,
    /// Even; zero keeps every row in its place.
    pub(crate) tail: usize,
    /// What the numbers of the tails are multiplied by, if by anything.
    pub(crate) tail_scale: Option<f32>,
}

impl Rows {
    /// All rows as they are.
    pub(crate) const fn plain(id: TensorId) -> Self {
        Rows {
            id,
            head: 1,
            tail: 0,
            tail_scale: None,
        }
    }

    /// The row of the model that stands at row `row` of the export.
    fn from(&self, row: usize) -> usize {
        let block = self.head + self.tail;
        let at = row % block;
        match at.checked_sub(self.head) {
            None => row,
            Some(pair) => row - pair + pair % 2 * (self.tail / 2) + pair / 2,
        }
    }
}

/// A tensor of an export before it is stored.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Foreign {
    pub(crate) name: String,
    /// Dimensions, outermost first.
    pub(crate) shape: Vec<usize>,
    pub(crate) origin: Origin,
}

impl Foreign {
    /// A tensor that is `id` as it is.
    pub(crate) fn plain(name: String, id: TensorId, shape: Vec<usize>) -> Self {
        let origin = Origin::Rows(Rows::plain(id));
        Foreign {
            name,
            shape,
            origin,
        }
    }

    /// The stored tensor whose levels this one can keep, if there is one.
    pub(crate) fn stored(&self) -> Option<TensorId> {
        match &self.origin {
            // A factor would have to go into rounded scales.
            Origin::Rows(rows) => rows.tail_scale.is_none().then_some(rows.id),
            Origin::KeysValues { .. }
            | Origin::KeysTransposed { .. }
            | Origin::Copy { .. }
            | Origin::Queries { .. }
            | Origin::Numbers(_) => None,
        }
    }

    /// The levels of a tensor that [`Foreign::stored`] names and that is packed.
    pub(crate) fn levels(&self, model: &dyn WeightSource) -> Result<Option<Levels>, ExportError> {
        let (Origin::Rows(rows), Some(id)) = (&self.origin, self.stored()) else {
            return Ok(None);
        };
        let tensor = model.tensor(id)?;
        let levels = plain_levels(&tensor).map(Levels::of);
        Ok(levels.map(|levels| levels.reordered(|row| rows.from(row))))
    }

    /// All numbers, row-major.
    pub(crate) fn numbers(&self, model: &dyn WeightSource) -> Result<Vec<f32>, ExportError> {
        Ok(match &self.origin {
            Origin::Numbers(numbers) => numbers.clone(),
            Origin::Copy { width } => {
                let mut numbers = vec![0.0; (width + 1) * width];
                numbers
                    .iter_mut()
                    .step_by(width + 1)
                    .take(*width)
                    .for_each(|one| *one = 1.0);
                numbers
            }
            Origin::Queries { rows, undo } => {
                let bias = TensorId {
                    role: Role::QBias,
                    ..rows.id
                };
                let (w, bias) = (
                    dequantize(&model.tensor(rows.id)?),
                    dequantize(&model.tensor(bias)?),
                );
                let count = bias.len();
                let row = |r: usize| {
                    let from = rows.from(r);
                    let width = w.len() / count;
                    let row = w[from * width..][..width].iter().map(|v| v * undo);
                    row.chain([bias[from]]).collect::<Vec<f32>>()
                };
                (0..count).flat_map(row).collect()
            }
            Origin::Rows(rows) => {
                let tensor = model.tensor(rows.id)?;
                let count = tensor.shape().first().copied().unwrap_or(1);
                let mut numbers = gathered(&dequantize(&tensor), count, |row| rows.from(row));
                if let Some(scale) = rows.tail_scale {
                    let width = numbers.len() / count;
                    let blocks = numbers.chunks_mut((rows.head + rows.tail) * width);
                    let tails = blocks.filter_map(|block| block.get_mut(rows.head * width..));
                    for number in tails.flatten() {
                        *number *= scale;
                    }
                }
                numbers
            }
            Origin::KeysValues {
                layer,
                heads,
                scale,
            } => {
                let [keys, values] = decoder(model, *layer, *scale)?;
                let of_head = keys.len() / heads;
                let pairs = keys.chunks(of_head).zip(values.chunks(of_head));
                pairs.flat_map(|(k, v)| [k, v].concat()).collect()
            }
            Origin::KeysTransposed {
                layer,
                heads,
                scale,
            } => {
                let [keys, _] = decoder(model, *layer, *scale)?;
                let rank = self.shape.get(1).copied().unwrap_or(1);
                let transposed = |k_dr: &[f32]| -> Vec<f32> {
                    let column = |r: usize| k_dr.iter().skip(r).step_by(rank).copied();
                    (0..rank).flat_map(column).collect()
                };
                keys.chunks(keys.len() / heads)
                    .flat_map(transposed)
                    .collect()
            }
        })
    }
}

/// The keys' part, scaled, and the values' part of a layer's latent decoder, both `[heads * head_dim,
/// rank]`.
fn decoder(
    model: &dyn WeightSource,
    layer: usize,
    scale: f32,
) -> Result<[Vec<f32>; 2], ExportError> {
    let read = |role| model.tensor(TensorId::layer(layer, role));
    let mut keys = dequantize(&read(Role::KB)?);
    for key in &mut keys {
        *key *= scale;
    }
    Ok([keys, dequantize(&read(Role::VB)?)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_go_from_halves_to_neighbours() {
        let rows = Rows {
            head: 2,
            tail: 4,
            ..Rows::plain(TensorId::layer(0, Role::Q))
        };
        let order: Vec<usize> = (0..12).map(|row| rows.from(row)).collect();
        assert_eq!(order, [0, 1, 2, 4, 3, 5, 6, 7, 8, 10, 9, 11]);
        let plain = Rows::plain(TensorId::layer(0, Role::Q));
        assert!((0..9).all(|row| plain.from(row) == row));
    }
}
