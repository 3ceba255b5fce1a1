//! The original rounded as `Q8_0` or `Q4_0` round: a measure of what eight or four bits cost this
//! model, taken on the model itself.
//!
//! Owns the two roundings, which are those of llama.cpp's blocks of 32 with a half-precision
//! scale. Codes and scales go into the native layout as they are, so the runtime multiplies them
//! with eight-bit activations in the same groups of 32 as llama.cpp does.

use half::f16;
use neuroconv_format::{Codec, DenseTensor, PackedLayout, PackedTensor, Tensor};
use neuroconv_recipes::{ModelSpec, RoleKind, TensorId};
use neuroconv_runtime::{Error, WeightSource};
use serde::{Deserialize, Serialize};

/// Weights that share a scale.
const BLOCK: usize = 32;

/// How the matrices are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Yardstick {
    /// Eight bits: the largest magnitude of a block is level 127.
    Q8,
    /// Four bits: the value of the largest magnitude is level -8; the vocabulary stays at eight,
    /// as in the files people use.
    Q4,
}

impl Yardstick {
    /// What reports call it.
    pub const fn name(self) -> &'static str {
        match self {
            Yardstick::Q8 => "Q8_0 class",
            Yardstick::Q4 => "Q4_0 class",
        }
    }

    /// Bits per weight of its blocks.
    pub const fn bits_per_weight(self) -> f64 {
        match self {
            Yardstick::Q8 => 8.5,
            Yardstick::Q4 => 4.5,
        }
    }
}

/// A model with its matrices rounded.
pub struct Rounded<'a> {
    base: &'a dyn WeightSource,
    how: Yardstick,
}

impl<'a> Rounded<'a> {
    /// Rounds the matrices of `base` when they are read.
    pub fn new(base: &'a dyn WeightSource, how: Yardstick) -> Self {
        Rounded { base, how }
    }
}

impl WeightSource for Rounded<'_> {
    fn spec(&self) -> &ModelSpec {
        self.base.spec()
    }

    fn tensor(&self, id: TensorId) -> Result<Tensor, Error> {
        let tensor = self.base.tensor(id)?;
        let codec = match (id.role.kind(), self.how) {
            (RoleKind::Vocab, _) | (RoleKind::Linear, Yardstick::Q8) => Codec::Int8,
            (RoleKind::Linear, Yardstick::Q4) => Codec::Int4,
            (RoleKind::Norm | RoleKind::Bias | RoleKind::Frequency, _) => return Ok(tensor),
        };
        Ok(match tensor {
            Tensor::Dense(dense) => match rounded(&dense, codec) {
                Some(packed) => Tensor::Packed(packed),
                None => Tensor::Dense(dense),
            },
            packed @ Tensor::Packed(_) => packed,
        })
    }
}

/// None for what is no matrix or has no layout.
fn rounded(dense: &DenseTensor, codec: Codec) -> Option<PackedTensor> {
    let &[rows, cols] = dense.shape.as_slice() else {
        return None;
    };
    let layout = PackedLayout::new(codec, rows, cols, BLOCK, false).ok()?;
    let mut bytes = vec![0; layout.size_bytes()];
    bytes[layout.codes()].fill(codec.zero_byte());
    for (row, values) in dense.to_f32().chunks(cols).enumerate() {
        for (group, block) in values.chunks(BLOCK).enumerate() {
            let (scale, levels) = match codec {
                Codec::Int4 => q4_0(block),
                Codec::Int8 | Codec::Ternary => q8_0(block),
            };
            let at = layout.scales().start + layout.scale_at(row, group);
            bytes[at..at + 2].copy_from_slice(&scale.to_le_bytes());
            for (i, level) in levels.iter().enumerate() {
                put(&mut bytes, &layout, row, group * BLOCK + i, *level);
            }
        }
    }
    Some(PackedTensor::new(layout, bytes))
}

fn put(bytes: &mut [u8], layout: &PackedLayout, row: usize, col: usize, level: i8) {
    let (byte, bit) = layout.code_at(row, col);
    let code = (i32::from(level) + layout.codec().offset()) as u8;
    let mask = ((1u16 << layout.codec().bits()) - 1) as u8;
    let byte = &mut bytes[byte];
    *byte = *byte & !(mask << bit) | (code & mask) << bit;
}

/// Scale and levels of a `Q8_0` block: `d = max|x| / 127`, `round(x / d)`, halves away from zero.
fn q8_0(block: &[f32]) -> (f16, [i8; BLOCK]) {
    let largest = block.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let d = largest / 127.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    let mut levels = [0; BLOCK];
    for (level, x) in levels.iter_mut().zip(block) {
        *level = (x * inverse).round() as i8;
    }
    (f16::from_f32(d), levels)
}

/// Scale and levels of a `Q4_0` block: `d = m / -8` for the value `m` of the largest magnitude,
/// then `min(15, trunc(x / d + 8.5)) - 8`.
fn q4_0(block: &[f32]) -> (f16, [i8; BLOCK]) {
    let largest = block
        .iter()
        .fold(0.0f32, |m, &x| if x.abs() > m.abs() { x } else { m });
    let d = largest / -8.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    let mut levels = [0; BLOCK];
    for (level, x) in levels.iter_mut().zip(block) {
        *level = ((x * inverse + 8.5) as i8).min(15) - 8;
    }
    (f16::from_f32(d), levels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_round_as_their_formats_say() {
        let mut block = [0.0f32; BLOCK];
        block[..4].copy_from_slice(&[1.27, -0.635, 0.005, 0.0149]);
        let (scale, levels) = q8_0(&block);
        assert_eq!(scale, f16::from_f32(0.01));
        assert_eq!(levels[..4], [127, -64, 1, 1]);
        block[..5].copy_from_slice(&[-8.0, 7.0, 8.0, 0.5, -0.51]);
        let (scale, levels) = q4_0(&block);
        assert_eq!(scale, f16::from_f32(1.0));
        // 8 would be level 8, which four bits do not have.
        assert_eq!(levels[..5], [-8, 7, 7, 1, -1]);
        // The sign of the largest decides that of the scale.
        block[..5].copy_from_slice(&[8.0, 0.0, 0.0, 0.0, 0.0]);
        let (scale, levels) = q4_0(&block);
        assert_eq!((scale, levels[0]), (f16::from_f32(-1.0), -8));
        assert_eq!(q8_0(&[0.0; BLOCK]).1, [0; BLOCK]);
        assert_eq!(q4_0(&[0.0; BLOCK]), (f16::from_f32(-0.0), [0; BLOCK]));
    }

    #[test]
    fn levels_and_scales_land_in_the_layout() {
        let values: Vec<f32> = (0..20 * 64)
            .map(|i| ((i * 37 % 101) as f32 - 50.0) / 16.0)
            .collect();
        let dense = DenseTensor {
            dtype: neuroconv_format::DType::F32,
            shape: vec![20, 64],
            bytes: values
                .iter()
                .flat_map(|x| x.to_le_bytes())
                .collect::<Vec<_>>()
                .into(),
        };
        for (codec, of) in [(Codec::Int8, q8_0 as fn(&[f32]) -> _), (Codec::Int4, q4_0)] {
            let packed = rounded(&dense, codec).unwrap();
            let rows = crate::reference::PackedRows::new(&packed);
            for (row, original) in values.chunks(64).enumerate() {
                let mut found = vec![0.0; 64];
                rows.read(row, &mut found);
                for (group, block) in original.chunks(BLOCK).enumerate() {
                    let (scale, levels): (f16, [i8; BLOCK]) = of(block);
                    for (level, x) in levels.iter().zip(&found[group * BLOCK..]) {
                        let meant = f32::from(*level) * scale.to_f32();
                        assert!((meant - x).abs() <= 0.0, "{meant} {x}");
                    }
                }
            }
        }
    }
}
