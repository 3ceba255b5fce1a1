//! What a packed matrix has beside its codes: `y += values x[apart] + B (A x)`.
//!
//! Owns the order of these sums, which is the same for any number of rows. The packed product
//! itself sees zeros in the columns that are stored apart.

use neuroconv_format::{Corrections as Stored, LowRank, Tensor};
use neuroconv_recipes::TensorId;

use crate::Error;
use crate::linear::{Input, Linear};
use crate::ops::add;

/// The parts of a packed matrix `[rows, cols]` as matrices of their own.
#[derive(Debug)]
pub(crate) struct Corrections {
    /// `A` `[rank, cols]` and `B` `[rows, rank]`.
    low_rank: Option<[Linear; 2]>,
    /// Which columns are stored apart, and their values `[rows, columns]`.
    columns: Option<(Vec<u32>, Linear)>,
}

impl Corrections {
    /// The parts of the tensor `id`, which fit it; `None` where there are none.
    pub(crate) fn new(id: TensorId, stored: &Stored) -> Result<Option<Self>, Error> {
        let linear = |tensor| Linear::new(id, tensor, None);
        let low_rank = |LowRank { a, b }: &LowRank| {
            Ok::<_, Error>([
                linear(Tensor::Dense(a.clone()))?,
                linear(Tensor::Dense(b.clone()))?,
            ])
        };
        let low_rank = stored.low_rank.as_ref().map(low_rank).transpose()?;
        let columns = stored.columns.as_ref();
        let columns =
            columns.map(|c| Ok::<_, Error>((c.indexes.clone(), linear((*c.values).clone())?)));
        let columns = columns.transpose()?;
        let some = low_rank.is_some() || columns.is_some();
        Ok(some.then_some(Corrections { low_rank, columns }))
    }

    /// The columns that are stored apart, ascending.
    pub(crate) fn apart(&self) -> &[u32] {
        self.columns.as_ref().map_or(&[], |(indexes, _)| indexes)
    }

    /// Adds the products of all parts with `x` to `y_tn`.
    pub(crate) fn add(&self, x: &Input<'_>, y_tn: &mut [f32]) {
        if let Some((indexes, values)) = &self.columns {
            let x_tc = x.columns(indexes);
            add(y_tn, &values.forward(&mut Input::new(&x_tc, indexes.len())));
        }
        if let Some([a, b]) = &self.low_rank {
            let h_tr = a.forward(&mut Input::new(x.x_tk, x.cols));
            add(y_tn, &b.forward(&mut Input::new(&h_tr, a.rows())));
        }
    }
}

#[cfg(test)]
mod tests {
    use neuroconv_format::{Codec, PackedTensor};
    use neuroconv_recipes::Role;

    use super::*;
    use crate::testing::{Model, spec};

    /// The matrix of the role in layer 0, with both kinds of parts or as they are in the model.
    fn stored(role: Role, codec: Codec) -> (TensorId, PackedTensor) {
        let id = TensorId::layer(0, role);
        match Model::random(spec()).corrected(codec).tensors.remove(&id) {
            Some(Tensor::Packed(packed)) => (id, packed),
            other => panic!("{other:?}"),
        }
    }

    fn product(id: TensorId, tensor: &PackedTensor, x_tk: &[f32]) -> Vec<f32> {
        let linear = Linear::new(id, Tensor::Packed(tensor.clone()), None).unwrap();
        linear.forward(&mut Input::new(x_tk, tensor.layout.cols()))
    }

    /// Two rows of activations, one column far larger than the others.
    fn activations(cols: usize, large: usize) -> Vec<f32> {
        let x = (0..2 * cols).map(|i| (i as f32 * 0.7).sin());
        let mut x: Vec<f32> = x.collect();
        x[large] = 1000.0;
        x
    }

    #[test]
    fn products_are_those_of_the_parts_in_double_precision() {
        for role in [
            Role::Q,
            Role::K,
            Role::V,
            Role::O,
            Role::Gate,
            Role::Up,
            Role::Down,
        ] {
            for codec in Codec::ALL {
                let (id, tensor) = stored(role, codec);
                let (rows, cols) = (tensor.layout.rows(), tensor.layout.cols());
                let x_tk = activations(cols, 7);
                let found = product(id, &tensor, &x_tk);
                let mut x_seen = x_tk.clone();
                let columns = tensor.corrections.columns.as_ref();
                for &index in columns.iter().flat_map(|c| &c.indexes) {
                    for t in 0..2 {
                        x_seen[t * cols + index as usize] = 0.0;
                    }
                }
                let codes = PackedTensor::new(tensor.layout, tensor.bytes.clone());
                let codes = product(id, &codes, &x_seen);
                // What the parts alone add, of exact weights.
                let mut rest = PackedTensor::new(tensor.layout, tensor.bytes.clone());
                let whole = neuroconv_quant::dequantize(&Tensor::Packed(tensor.clone()));
                rest.corrections = neuroconv_format::Corrections::default();
                let plain = neuroconv_quant::dequantize(&Tensor::Packed(rest));
                for t in 0..2 {
                    for n in 0..rows {
                        let (mut exact, mut size) = (f64::from(codes[t * rows + n]), 0.0);
                        for k in 0..cols {
                            let w = f64::from(whole[n * cols + k]) - f64::from(plain[n * cols + k]);
                            let x = f64::from(x_tk[t * cols + k]);
                            exact += w * x;
                            // Others that share its scale are at most one.
                            size += (w * x.abs().max(1.0)).abs();
                        }
                        let off = (f64::from(found[t * rows + n]) - exact).abs();
                        // Packed columns take their activations in sixteen bits, and sums round in
                        // single precision.
                        let sums = f64::from(codes[t * rows + n].abs());
                        let bound = 2e-5 * size + 1e-6 * sums + 1e-5;
                        assert!(off <= bound, "{role} {codec} {off} of {size} and {sums}");
                    }
                }
            }
        }
    }

    #[test]
    fn without_parts_nothing_changes() {
        let model = Model::random(spec()).packed(Codec::Int4);
        let id = TensorId::layer(0, Role::Up);
        let Tensor::Packed(packed) = &model.tensors[&id] else {
            panic!("packed")
        };
        assert!(Corrections::new(id, &packed.corrections).unwrap().is_none());
        let x_tk = activations(48, 7);
        let mut y_tn = vec![0.0; 2 * packed.layout.rows()];
        let view = neuroconv_quant::packed_view(packed);
        let bits = neuroconv_quant::activation_bits(packed);
        let a = neuroconv_kernels::quantize_activations(&x_tk, 2, 48, view.group(), bits);
        neuroconv_kernels::matmul_packed(&view, &a, &mut y_tn);
        assert_eq!(product(id, packed, &x_tk), y_tn);
    }

    /// A large activation in a column that is apart leaves the rounding of the others alone.
    #[test]
    fn columns_apart_take_no_part_in_rounding() {
        let found = [Role::Q, Role::K, Role::V, Role::O, Role::Gate, Role::Up, Role::Down]
            .into_iter()
            .map(|role| stored(role, Codec::Int8))
            .find(|(_, t)| matches!(&t.corrections.columns, Some(c) if matches!(*c.values, Tensor::Dense(_))));
        let (id, tensor) = found.unwrap();
        let cols = tensor.layout.cols();
        let y = |large: f32| {
            let mut x = activations(cols, 5);
            x[5] = large;
            product(id, &tensor, &x)
        };
        let rows = tensor.layout.rows();
        let (small, large) = (y(0.0), y(1000.0));
        let w = neuroconv_quant::dequantize(&Tensor::Packed(tensor.clone()));
        for n in 0..rows {
            let difference = f64::from(large[n]) - f64::from(small[n]);
            let exact = 1000.0 * f64::from(w[n * cols + 5]);
            assert!(
                (difference - exact).abs() <= 1e-5 * exact.abs() + 1e-4,
                "{n}"
            );
        }
    }
}
