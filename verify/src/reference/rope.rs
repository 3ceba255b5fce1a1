//! Rotary position embedding, computed anew from its parameters.

use candle_core::{D, DType, Device, Result, Tensor};
use neuroconv_recipes::{RopeLayout, RopeScaling, RopeSpec};

/// Cosines and sines of every position and pair, `[positions, head_dim / 2]` each.
pub(super) struct Rotary {
    cos: Tensor,
    sin: Tensor,
    layout: RopeLayout,
}

impl Rotary {
    /// The angles of positions `0..positions`, in double precision until the last step.
    pub(super) fn new(rope: &RopeSpec, head_dim: usize, positions: usize) -> Result<Self> {
        let device = &Device::Cpu;
        let pairs = Tensor::arange(0u32, (head_dim / 2) as u32, device)?.to_dtype(DType::F64)?;
        let plain = (pairs * (-2.0 * rope.theta.ln() / head_dim as f64))?.exp()?;
        Self::turning(&stretched(&plain, rope.scaling)?, rope.layout, positions)
    }

    /// The angles of a table of frequencies `[pairs]` in radians per position; pairs lie half a
    /// head apart.
    pub(super) fn of_table(frequencies: &Tensor, positions: usize) -> Result<Self> {
        let frequencies = frequencies.to_dtype(DType::F64)?;
        Self::turning(&frequencies, RopeLayout::Half, positions)
    }

    fn turning(frequencies: &Tensor, layout: RopeLayout, positions: usize) -> Result<Self> {
        let device = &Device::Cpu;
        let position = Tensor::arange(0u32, positions as u32, device)?.to_dtype(DType::F64)?;
        let angle = position.unsqueeze(1)?.matmul(&frequencies.unsqueeze(0)?)?;
        Ok(Rotary {
            cos: angle.cos()?.to_dtype(DType::F32)?,
            sin: angle.sin()?.to_dtype(DType::F32)?,
            layout,
        })
    }

    /// Rotates heads `x_htd` (heads, positions, channels) by their positions from 0 on.
    pub(super) fn rotate(&self, x_htd: &Tensor) -> Result<Tensor> {
        let (heads, len, dim) = x_htd.dims3()?;
        // Bring a pair's two channels into one dimension of length 2, rotate, bring it back.
        let pairs = match self.layout {
            RopeLayout::Half => x_htd.reshape((heads, len, 2, dim / 2))?.transpose(2, 3)?,
            RopeLayout::Interleaved => x_htd.reshape((heads, len, dim / 2, 2))?,
        };
        let (a, b) = (
            pairs.narrow(3, 0, 1)?.squeeze(3)?,
            pairs.narrow(3, 1, 1)?.squeeze(3)?,
        );
        let (cos, sin) = (self.cos.narrow(0, 0, len)?, self.sin.narrow(0, 0, len)?);
        let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
        let second = (a.broadcast_mul(&sin)? + b.broadcast_mul(&cos)?)?;
        match self.layout {
            RopeLayout::Half => Tensor::cat(&[&first, &second], D::Minus1),
            RopeLayout::Interleaved => {
                Tensor::stack(&[&first, &second], 3)?.reshape((heads, len, dim))
            }
        }
    }
}

/// Applies a scaling to plain frequencies in radians per position.
///
/// Llama 3's three cases are one blend with a clamped weight: 1 keeps the frequency, 0 divides
/// it by the factor, and between them the weight is linear in turns per original context.
fn stretched(plain: &Tensor, scaling: RopeScaling) -> Result<Tensor> {
    match scaling {
        RopeScaling::None => Ok(plain.clone()),
        RopeScaling::Linear { factor } => plain / factor,
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_positions,
        } => {
            let turns = (plain * (original_max_positions / std::f64::consts::TAU))?;
            let keep = ((turns - low_freq_factor)? / (high_freq_factor - low_freq_factor))?
                .clamp(0.0, 1.0)?;
            let factors = ((&keep * (1.0 - 1.0 / factor))? + 1.0 / factor)?;
            plain * factors
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(scaling: RopeScaling, layout: RopeLayout) -> RopeSpec {
        RopeSpec {
            theta: 10_000.0,
            layout,
            scaling,
        }
    }

    /// The frequencies agree with those the description computes on its own.
    #[test]
    fn frequencies_agree_with_the_other_formulation() {
        let llama3 = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_positions: 8192.0,
        };
        for scaling in [
            RopeScaling::None,
            RopeScaling::Linear { factor: 4.0 },
            llama3,
        ] {
            let rope = RopeSpec {
                theta: 500_000.0,
                ..spec(scaling, RopeLayout::Half)
            };
            let rotary = Rotary::new(&rope, 128, 2).unwrap();
            let sin: Vec<f32> = rotary.sin.get(1).unwrap().to_vec1().unwrap();
            for (s, f) in sin.iter().zip(rope.inv_freq(128)) {
                assert!(
                    (f64::from(*s) - f.sin()).abs() < 1e-7,
                    "{scaling:?} {s} {f}"
                );
            }
        }
    }

    #[test]
    fn layouts_rotate_the_pairs_they_name() {
        for (layout, pair_of_0) in [(RopeLayout::Half, 2), (RopeLayout::Interleaved, 1)] {
            let rotary = Rotary::new(&spec(RopeScaling::None, layout), 4, 2).unwrap();
            let x = Tensor::new(&[[[1f32, 0., 0., 0.], [1., 0., 0., 0.]]], &Device::Cpu).unwrap();
            let y: Vec<Vec<Vec<f32>>> = rotary.rotate(&x).unwrap().to_vec3().unwrap();
            assert_eq!(y[0][0], [1., 0., 0., 0.]);
            assert!((y[0][1][0] - 1f32.cos()).abs() < 1e-6);
            assert!(
                (y[0][1][pair_of_0] - 1f32.sin()).abs() < 1e-6,
                "{layout:?} {y:?}"
            );
        }
    }
}
