//! The values that blocks of quantized elements stand for.
//!
//! Owns the bits of each block and the order of operations, so that values are those of ggml's own
//! decoders, bit for bit. One file per family. Which types a conversion may start from is not known
//! here.

mod k;
mod legacy;
mod ternary;

use super::GgmlType;
use crate::dtype::DType;

/// Writes the values of one block.
type Decoder = fn(&[u8], &mut [f32]);

impl GgmlType {
    /// How a block is decoded; `None` for plain elements and for what is not read.
    fn decoder(self) -> Option<Decoder> {
        Some(match self {
            GgmlType::Q4_0 => legacy::q4_0,
            GgmlType::Q4_1 => legacy::q4_1,
            GgmlType::Q5_0 => legacy::q5_0,
            GgmlType::Q5_1 => legacy::q5_1,
            GgmlType::Q8_0 => legacy::q8_0,
            GgmlType::Q4_K => k::q4,
            GgmlType::Q5_K => k::q5,
            GgmlType::Q6_K => k::q6,
            GgmlType::Q2_0 => ternary::q2,
            GgmlType::TQ1_0 => ternary::tq1,
            GgmlType::TQ2_0 => ternary::tq2,
            _ => return None,
        })
    }

    /// The element type that tensors of this type are read in: plain elements keep theirs, blocks are
    /// decoded to single precision. `None` for what is not read.
    pub fn dense(self) -> Option<DType> {
        match self {
            GgmlType::F32 => Some(DType::F32),
            GgmlType::F16 => Some(DType::F16),
            GgmlType::BF16 => Some(DType::BF16),
            _ => self.decoder().map(|_| DType::F32),
        }
    }

    /// The values of `bytes`, whole blocks of this type; `None` for plain elements and for types that
    /// are not read. Where a block's scale is not finite, neither are its values.
    pub fn decode(self, bytes: &[u8]) -> Option<Vec<f32>> {
        let decode = self.decoder()?;
        let block = usize::try_from(self.block()).ok()?;
        let blocks = bytes.chunks_exact(usize::try_from(self.block_bytes()).ok()?);
        let mut values = vec![0.0; blocks.len().checked_mul(block)?];
        for (block, out) in blocks.zip(values.chunks_exact_mut(block)) {
            decode(block, out);
        }
        Some(values)
    }
}

/// The half-precision number at the start of `bytes`, and the bytes after it.
fn half(bytes: &[u8]) -> (f32, &[u8]) {
    match bytes.split_first_chunk() {
        Some((&first, rest)) => (half::f16::from_le_bytes(first).to_f32(), rest),
        None => (f32::NAN, &[]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_decoded_type_gives_whole_blocks() {
        for id in 0..64 {
            let Some(kind) = GgmlType::from_id(id) else {
                continue;
            };
            let bytes = vec![0; 3 * kind.block_bytes() as usize];
            let values = kind.decode(&bytes);
            let plain = matches!(kind, GgmlType::F32 | GgmlType::F16 | GgmlType::BF16);
            assert_eq!(values.is_some(), kind.dense().is_some() && !plain);
            if let Some(values) = values {
                assert_eq!(values.len(), 3 * kind.block() as usize, "{kind}");
                assert!(values.iter().all(|v| *v == 0.0), "{kind}");
            }
        }
    }
}
