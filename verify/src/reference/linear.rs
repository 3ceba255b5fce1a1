//! A projection of the reference, with the rounded activations of packed products on request.

use candle_core::{Device, Result, Tensor};
use neuroconv_recipes::{Role, TensorId};

use super::weights::{Parts, Weights};
use crate::Error;

/// Whether products with packed matrices see activations as the format defines them for such
/// products, in eight or sixteen bits per group, or in full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activations {
    /// In single precision everywhere: what the weights mean.
    Full,
    /// Rounded before packed matrices: what a runtime must compute, but for the order of sums.
    Rounded,
}

/// How activations are rounded.
#[derive(Clone, Copy)]
pub(super) struct Rounding {
    /// Columns that share a scale.
    pub(super) group: usize,
    /// Levels on either side of zero.
    pub(super) levels: f32,
}

/// A projection `y = x Wᵀ + b`. Clones share the matrix.
#[derive(Clone)]
pub(super) struct Linear {
    /// The codes of packed matrices, all of dense ones.
    weight_nk: Tensor,
    bias_n: Option<Tensor>,
    rounding: Option<Rounding>,
    /// Columns that are stored apart.
    columns: Option<Box<Apart>>,
    /// `A` and `B` of a low-rank product.
    low_rank: Option<(Tensor, Tensor)>,
}

/// Columns that products with the codes do not see.
#[derive(Clone)]
struct Apart {
    /// Their indexes.
    indexes_c: Tensor,
    /// 0 in these columns and 1 in the others.
    others_k: Tensor,
    values: Linear,
}

impl Linear {
    /// The matrix `role` of layer `index`, of the shape `[n, k]`, and its bias.
    pub(super) fn load(
        weights: Weights<'_>,
        index: usize,
        role: Role,
        shape: [usize; 2],
        bias: Option<Role>,
    ) -> std::result::Result<Self, Error> {
        let bias = bias.map(|role| weights.get(TensorId::layer(index, role), &shape[..1]));
        Ok(Linear {
            bias_n: bias.transpose()?,
            ..Linear::plain(weights, TensorId::layer(index, role), shape)?
        })
    }

    /// The matrix `id` without a bias.
    pub(super) fn plain(
        weights: Weights<'_>,
        id: TensorId,
        shape: [usize; 2],
    ) -> std::result::Result<Self, Error> {
        let parts = weights.parts(id, shape)?;
        Linear::of(parts).map_err(|source| Error::Reference {
            place: format!("tensor `{id}`"),
            source,
        })
    }

    fn of(parts: Parts) -> Result<Self> {
        let apart = |(indexes, values): (Vec<u32>, Box<Parts>)| {
            let mut others = vec![1.0f32; parts.codes_nk.dim(1)?];
            for &index in &indexes {
                others[index as usize] = 0.0;
            }
            Ok::<_, candle_core::Error>(Box::new(Apart {
                indexes_c: Tensor::new(indexes, &Device::Cpu)?,
                others_k: Tensor::new(others, &Device::Cpu)?,
                values: Linear::of(*values)?,
            }))
        };
        Ok(Linear {
            columns: parts.columns.map(apart).transpose()?,
            weight_nk: parts.codes_nk,
            bias_n: None,
            rounding: parts.rounding,
            low_rank: parts.low_rank,
        })
    }

    /// The same with activations in full, whatever was asked for.
    pub(super) fn exact(mut self) -> Self {
        self.rounding = None;
        self.columns = self.columns.map(|apart| {
            Box::new(Apart {
                values: apart.values.exact(),
                ..*apart
            })
        });
        self
    }

    pub(super) fn forward(&self, x_tk: &Tensor) -> Result<Tensor> {
        let mut seen_tk = x_tk.clone();
        if let Some(apart) = &self.columns {
            seen_tk = seen_tk.broadcast_mul(&apart.others_k)?;
        }
        if let Some(rounding) = self.rounding {
            seen_tk = rounded(&seen_tk, rounding)?;
        }
        let mut y_tn = seen_tk.matmul(&self.weight_nk.t()?)?;
        if let Some(apart) = &self.columns {
            let x_tc = x_tk.index_select(&apart.indexes_c, 1)?;
            y_tn = (y_tn + apart.values.forward(&x_tc)?)?;
        }
        if let Some((a_rk, b_nr)) = &self.low_rank {
            y_tn = (y_tn + x_tk.matmul(&a_rk.t()?)?.matmul(&b_nr.t()?)?)?;
        }
        match &self.bias_n {
            Some(bias) => y_tn.broadcast_add(bias),
            None => Ok(y_tn),
        }
    }
}

/// `x` with each group of a row replaced by so many levels on either side of zero: the largest
/// magnitude is the last level, other values go to the nearest, ties to the even one. Written
/// anew from the format's definition.
fn rounded(x_tk: &Tensor, Rounding { group, levels }: Rounding) -> Result<Tensor> {
    let (rows, cols) = x_tk.dims2()?;
    let mut values: Vec<f32> = x_tk.flatten_all()?.to_vec1()?;
    for group in values
        .chunks_mut(cols)
        .flat_map(|row| row.chunks_mut(group))
    {
        let largest = group.iter().fold(0.0f32, |m, x| {
            if x.abs() > m || x.is_nan() {
                x.abs()
            } else {
                m
            }
        });
        let per_level = levels / largest;
        if !per_level.is_finite() {
            // Nothing to scale, or nothing that can be: infinities stay and spoil the row.
            group
                .iter_mut()
                .filter(|x| x.is_finite())
                .for_each(|x| *x = 0.0);
            continue;
        }
        for x in group {
            *x = (*x * per_level).round_ties_even() * (largest / levels);
        }
    }
    Tensor::from_vec(values, (rows, cols), &Device::Cpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activations_round_to_levels_of_their_group() {
        let x = Tensor::new(
            &[[127.0f32, 0.5, 1.5, -2.4, 0.0, 0.0, 1e-3, 1e-3]],
            &Device::Cpu,
        );
        let x = x.unwrap();
        let found = |levels| -> Vec<f32> {
            let rounded = rounded(&x, Rounding { group: 4, levels }).unwrap();
            rounded.flatten_all().unwrap().to_vec1().unwrap()
        };
        assert_eq!(found(127.0), [127.0, 0.0, 2.0, -2.0, 0.0, 0.0, 1e-3, 1e-3]);
        // Steps of 1/256.
        assert_eq!(found(32512.0)[..4], [127.0, 0.5, 1.5, -614.0 / 256.0]);
    }
}
