//! A tensor on its way into a foreign file: levels and scales as long as they survive, else numbers.
//!
//! Owns how rows change their order without rounding anything.

use half::f16;
use neuroconv_format::{DType, PackedTensor, Tensor};
use neuroconv_recipes::gguf::gathered;

/// A matrix as levels: a weight is `scale * level + shift`.
#[derive(Clone, Debug)]
pub(crate) struct Levels {
    pub(crate) cols: usize,
    /// Columns that share a scale; the last group of a row may be shorter.
    pub(crate) group: usize,
    /// The levels, `[rows, cols]`.
    pub(crate) codes_nk: Vec<i8>,
    /// `[rows, groups]`.
    pub(crate) scales_ng: Vec<f16>,
    /// `[rows, groups]`, or nothing where there are no shifts.
    pub(crate) shifts_ng: Vec<f16>,
}

impl Levels {
    /// The levels of a packed matrix. Corrections are not looked at.
    pub(crate) fn of(packed: &PackedTensor) -> Self {
        let layout = &packed.layout;
        let (rows, cols, groups) = (layout.rows(), layout.cols(), layout.groups());
        let (bits, offset) = (layout.codec().bits(), layout.codec().offset());
        let mask = (1_u32 << bits) - 1;
        let codes = &packed.bytes[layout.codes()];
        let level = |row, col| {
            let (byte, bit) = layout.code_at(row, col);
            let code = u32::from(codes[byte]) >> bit & mask;
            // Eight-bit codes are signed, all others count from the offset.
            (code as u8).cast_signed() - offset as i8
        };
        let halves = |bytes: &[u8]| -> Vec<f16> {
            let at = |row, group| {
                let start = layout.scale_at(row, group);
                f16::from_le_bytes([bytes[start], bytes[start + 1]])
            };
            let places = (0..rows).flat_map(|row| (0..groups).map(move |group| (row, group)));
            places.map(|(row, group)| at(row, group)).collect()
        };
        let places = (0..rows).flat_map(|row| (0..cols).map(move |col| (row, col)));
        Levels {
            cols,
            group: layout.group(),
            codes_nk: places.map(|(row, col)| level(row, col)).collect(),
            scales_ng: halves(&packed.bytes[layout.scales()]),
            shifts_ng: if layout.shift() {
                halves(&packed.bytes[layout.shifts()])
            } else {
                Vec::new()
            },
        }
    }

    pub(crate) fn rows(&self) -> usize {
        self.codes_nk.len() / self.cols
    }

    pub(crate) fn groups(&self) -> usize {
        self.cols.div_ceil(self.group)
    }

    /// The same matrix with row `from(r)` at row `r`.
    pub(crate) fn reordered(self, from: impl Fn(usize) -> usize) -> Self {
        let rows = self.rows();
        Levels {
            codes_nk: gathered(&self.codes_nk, rows, &from),
            scales_ng: gathered(&self.scales_ng, rows, &from),
            shifts_ng: if self.shifts_ng.is_empty() {
                Vec::new()
            } else {
                gathered(&self.shifts_ng, rows, &from)
            },
            ..self
        }
    }
}

/// `values` as little-endian elements of `dtype`, rounded to nearest; `None` where a value is too
/// large for it.
pub(crate) fn elements(values: &[f32], dtype: DType) -> Option<Vec<u8>> {
    use half::bf16;
    let finite = |bytes: Vec<u8>, overflow: bool| (!overflow).then_some(bytes);
    match dtype {
        DType::F32 => Some(values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        DType::F16 => finite(
            values
                .iter()
                .flat_map(|&v| f16::from_f32(v).to_le_bytes())
                .collect(),
            values.iter().any(|&v| !f16::from_f32(v).is_finite()),
        ),
        DType::BF16 => finite(
            values
                .iter()
                .flat_map(|&v| bf16::from_f32(v).to_le_bytes())
                .collect(),
            values.iter().any(|&v| !bf16::from_f32(v).is_finite()),
        ),
        DType::U8 => None,
    }
}

/// Whether a stored tensor is levels and nothing else.
pub(crate) fn plain_levels(tensor: &Tensor) -> Option<&PackedTensor> {
    match tensor {
        Tensor::Packed(packed) if packed.corrections.is_empty() => Some(packed),
        Tensor::Packed(_) | Tensor::Dense(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use neuroconv_format::Codec;
    use neuroconv_quant::{Levels as Fit, QuantizeSpec, dequantize, quantize};

    use super::*;

    fn wave(count: usize) -> Vec<f32> {
        (0..count)
            .map(|i| (i as f32 * 0.37).sin() * 0.1 + 0.01)
            .collect()
    }

    #[test]
    fn levels_scales_and_shifts_give_the_weights_back() {
        for codec in Codec::ALL {
            for shift in [false, true] {
                let (rows, cols) = (37, 200);
                let w_nk = wave(rows * cols);
                let spec = QuantizeSpec {
                    shift,
                    ..QuantizeSpec::new(Fit::from(codec), 64)
                };
                let (packed, _) = quantize(&w_nk, rows, cols, &spec, None).unwrap();
                let levels = Levels::of(&packed);
                assert_eq!((levels.rows(), levels.groups()), (rows, 4));
                let expected = dequantize(&Tensor::Packed(packed));
                for (at, expected) in expected.iter().enumerate() {
                    let group = at / cols * 4 + at % cols / 64;
                    let scale = levels.scales_ng[group].to_f32();
                    let shift = levels.shifts_ng.get(group).map_or(0.0, |s| s.to_f32());
                    let found = f32::from(levels.codes_nk[at]).mul_add(scale, shift);
                    assert!((found - expected).abs() <= 1e-6, "{codec} {at}");
                }
                let moved = levels.clone().reordered(|row| rows - 1 - row);
                assert_eq!(moved.codes_nk[..cols], levels.codes_nk[(rows - 1) * cols..]);
                assert_eq!(moved.scales_ng[..4], levels.scales_ng[(rows - 1) * 4..]);
            }
        }
    }

    #[test]
    fn numbers_too_large_for_the_type_are_refused() {
        assert!(elements(&[1.0, 70000.0], DType::F16).is_none());
        assert_eq!(elements(&[1.0], DType::BF16), Some(vec![0x80, 0x3f]));
        assert_eq!(elements(&[1.0], DType::F32), Some(vec![0, 0, 0x80, 0x3f]));
    }
}
