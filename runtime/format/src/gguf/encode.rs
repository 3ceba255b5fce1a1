//! Levels and scales as blocks of ggml element types.
//!
//! Owns the types that hold our levels as they are: nothing is rounded but the offset of
//! [`GgmlType::Q4_1`]. A weight is `scale * level + shift`; groups share a scale and a shift, and one or
//! several blocks fill a group.

use half::f16;

use super::GgmlType;

/// One row of a matrix: levels, and for each group of `group` of them a scale and perhaps a shift.
#[derive(Clone, Copy, Debug)]
pub struct RowLevels<'a> {
    /// Levels, code minus offset.
    pub levels: &'a [i8],
    /// Levels that share a scale.
    pub group: usize,
    /// One for each group.
    pub scales: &'a [f16],
    /// One for each group, or none at all.
    pub shifts: &'a [f16],
}

impl GgmlType {
    /// Whether rows of `cols` levels between `lowest` and `highest` in groups of `group`, with shifts
    /// if `shift`, are blocks of this type as they are; of [`GgmlType::Q4_1`], but for the rounding of
    /// its offset to half precision.
    pub fn holds(
        self,
        cols: usize,
        group: usize,
        (lowest, highest): (i32, i32),
        shift: bool,
    ) -> bool {
        let Some((levels, shifted)) = self.levels() else {
            return false;
        };
        let block = usize::try_from(self.block()).unwrap_or(usize::MAX);
        cols.is_multiple_of(block)
            && group.is_multiple_of(block)
            && levels.contains(&lowest)
            && levels.contains(&highest)
            && (shifted || !shift)
    }

    /// The levels that blocks of this type hold, and whether they have an offset of their own.
    const fn levels(self) -> Option<(std::ops::RangeInclusive<i32>, bool)> {
        match self {
            GgmlType::Q8_0 => Some((-127..=127, false)),
            // Of Q4_K, the fixed scales and minima of its parts leave one offset of eight levels.
            GgmlType::Q4_0 | GgmlType::Q4_K => Some((-8..=7, false)),
            GgmlType::Q4_1 => Some((-8..=7, true)),
            GgmlType::Q2_0 | GgmlType::TQ1_0 | GgmlType::TQ2_0 => Some((-1..=1, false)),
            _ => None,
        }
    }

    /// Appends the blocks of a row that this type [`GgmlType::holds`]; false where it does not, or
    /// where an offset is beyond half precision, and then what was appended means nothing.
    pub fn encode(self, row: RowLevels<'_>, out: &mut Vec<u8>) -> bool {
        let block = usize::try_from(self.block()).unwrap_or(usize::MAX);
        if !row.levels.len().is_multiple_of(block) {
            return false;
        }
        for (index, levels) in row.levels.chunks_exact(block).enumerate() {
            let group = index.saturating_mul(block).checked_div(row.group);
            let Some(group) = group else { return false };
            let Some(&scale) = row.scales.get(group) else {
                return false;
            };
            let shift = row.shifts.get(group).copied().unwrap_or(f16::ZERO);
            let done = match self {
                GgmlType::Q8_0 => {
                    out.extend(scale.to_le_bytes());
                    out.extend(levels.iter().map(|level| level.cast_unsigned()));
                    true
                }
                GgmlType::Q4_0 => {
                    out.extend(scale.to_le_bytes());
                    nibbles(levels, out);
                    true
                }
                GgmlType::Q4_1 => {
                    let offset = f16::from_f32(shift.to_f32() - 8.0 * scale.to_f32());
                    out.extend(scale.to_le_bytes());
                    out.extend(offset.to_le_bytes());
                    nibbles(levels, out);
                    offset.is_finite()
                }
                GgmlType::Q4_K => q4_k(scale, levels, out),
                GgmlType::Q2_0 => {
                    out.extend(scale.to_le_bytes());
                    out.extend(levels.chunks(4).map(|four| bits(four.iter())));
                    true
                }
                GgmlType::TQ2_0 => {
                    for half in levels.chunks(128) {
                        let byte = |m: usize| bits(half.iter().skip(m).step_by(32));
                        out.extend((0..32).map(byte));
                    }
                    out.extend(scale.to_le_bytes());
                    true
                }
                GgmlType::TQ1_0 => {
                    let (fives, last) = levels.split_at(240);
                    let (wide, narrow) = fives.split_at(160);
                    out.extend((0..32).map(|m| trits(wide.iter().skip(m).step_by(32), 0)));
                    out.extend((0..16).map(|m| trits(narrow.iter().skip(m).step_by(16), 0)));
                    out.extend((0..4).map(|m| trits(last.iter().skip(m).step_by(4), 1)));
                    out.extend(scale.to_le_bytes());
                    true
                }
                _ => false,
            };
            if !done {
                return false;
            }
        }
        true
    }
}

/// Levels of -8..=7, the first half of them in the low nibbles.
fn nibbles(levels: &[i8], out: &mut Vec<u8>) {
    let (low, high) = levels.split_at(levels.len() / 2);
    let code = |level: &i8| level.wrapping_add(8).cast_unsigned() & 15;
    out.extend(low.iter().zip(high).map(|(l, h)| code(l) | code(h) << 4));
}

/// A super-block whose eight parts all have scale and minimum one.
fn q4_k(scale: f16, levels: &[i8], out: &mut Vec<u8>) -> bool {
    let minimum = f16::from_f32(8.0 * scale.to_f32());
    out.extend(scale.to_le_bytes());
    out.extend(minimum.to_le_bytes());
    out.extend([1, 1, 1, 1, 1, 1, 1, 1, 0x11, 0x11, 0x11, 0x11]);
    levels.chunks(64).for_each(|part| nibbles(part, out));
    minimum.is_finite()
}

/// Up to four levels of -1..=2, two bits each, the first lowest.
fn bits<'a>(levels: impl Iterator<Item = &'a i8>) -> u8 {
    levels.zip([0, 2, 4, 6]).fold(0, |byte, (level, at)| {
        byte | (level.wrapping_add(1).cast_unsigned() & 3) << at
    })
}

/// Up to five levels of -1..=1 as the digits of a fraction of 243, most significant first, `zeros`
/// digits of zero after them; rounded up to a fraction of 256.
fn trits<'a>(levels: impl Iterator<Item = &'a i8>, zeros: u32) -> u8 {
    let digits = levels.fold(0_u32, |digits, level| {
        let trit = u32::from(level.wrapping_add(1).cast_unsigned() % 3);
        digits.wrapping_mul(3).wrapping_add(trit)
    });
    let digits = digits.wrapping_mul(3_u32.pow(zeros));
    u8::try_from(digits.wrapping_mul(256).div_ceil(243)).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_hold_what_fits_into_their_blocks() {
        use GgmlType::{F16, Q2_0, Q4_0, Q4_1, Q4_K, Q8_0, TQ1_0, TQ2_0};
        let ternary = (-1, 1);
        assert!(TQ2_0.holds(512, 256, ternary, false));
        assert!(TQ1_0.holds(512, 256, ternary, false));
        assert!(
            !TQ2_0.holds(512, 128, ternary, false),
            "two scales in one block"
        );
        assert!(!TQ2_0.holds(384, 256, ternary, false), "a block and a half");
        assert!(Q2_0.holds(384, 128, ternary, false));
        assert!(!Q2_0.holds(384, 32, ternary, false));
        assert!(!Q2_0.holds(384, 128, ternary, true));
        assert!(!Q2_0.holds(384, 128, (-8, 7), false));
        assert!(Q4_0.holds(96, 32, (-8, 7), false) && Q4_0.holds(96, 32, ternary, false));
        assert!(!Q4_0.holds(96, 32, (-8, 7), true) && Q4_1.holds(96, 32, (-8, 7), true));
        assert!(!Q4_0.holds(80, 32, (-8, 7), false));
        assert!(Q4_K.holds(512, 256, (-8, 7), false) && !Q4_K.holds(512, 128, (-8, 7), false));
        assert!(Q8_0.holds(96, 32, (-127, 127), false) && !Q4_0.holds(96, 32, (-127, 127), false));
        assert!(!F16.holds(32, 32, ternary, false));
    }

    #[test]
    fn what_is_encoded_is_decoded_to_the_same_weights() {
        use GgmlType::{Q2_0, Q4_0, Q4_1, Q4_K, Q8_0, TQ1_0, TQ2_0};
        for (kind, group, (lowest, highest), shift) in [
            (Q8_0, 128, (-127, 127), false),
            (Q4_0, 64, (-8, 7), false),
            (Q4_0, 32, (-1, 1), false),
            (Q4_1, 32, (-8, 7), true),
            (Q4_1, 64, (-1, 1), true),
            (Q4_K, 256, (-8, 7), false),
            (Q2_0, 64, (-1, 1), false),
            (Q2_0, 256, (-1, 1), false),
            (TQ1_0, 256, (-1, 1), false),
            (TQ2_0, 256, (-1, 1), false),
        ] {
            let cols = 1024;
            assert!(kind.holds(cols, group, (lowest, highest), shift), "{kind}");
            let span = highest - lowest + 1;
            let level = |i: i32| (lowest + (i * i + i / 7) % span) as i8;
            let levels: Vec<i8> = (0..cols as i32).map(level).collect();
            let groups = cols / group;
            let scales: Vec<f16> = (0..groups)
                .map(|g| f16::from_f32(0.01 + 0.003 * g as f32))
                .collect();
            // Multiples of an eighth of the scale, so that the offset is a half exactly.
            let shifts: Vec<f16> = scales
                .iter()
                .map(|s| f16::from_f32(s.to_f32() * 4.0))
                .collect();
            let row = RowLevels {
                levels: &levels,
                group,
                scales: &scales,
                shifts: if shift { &shifts } else { &[] },
            };
            let mut bytes = Vec::new();
            assert!(kind.encode(row, &mut bytes), "{kind}");
            assert_eq!(
                bytes.len() as u64,
                cols as u64 / kind.block() * kind.block_bytes()
            );
            let values = kind.decode(&bytes).unwrap();
            for (at, (value, level)) in values.iter().zip(&levels).enumerate() {
                let scale = scales[at / group].to_f32();
                let shift = if shift { scale * 4.0 } else { 0.0 };
                let expected = scale * f32::from(*level) + shift;
                assert!(
                    (value - expected).abs() <= 1e-6,
                    "{kind} {at}: {value} {expected}"
                );
            }
        }
    }

    #[test]
    fn rows_of_another_length_are_refused() {
        let scale = [f16::ONE];
        let row = RowLevels {
            levels: &[0; 33],
            group: 64,
            scales: &scale,
            shifts: &[],
        };
        assert!(!GgmlType::Q8_0.encode(row, &mut Vec::new()));
        let huge = [f16::from_f32(60000.0)];
        let row = RowLevels {
            levels: &[0; 256],
            group: 256,
            scales: &huge,
            shifts: &[],
        };
        assert!(
            !GgmlType::Q4_K.encode(row, &mut Vec::new()),
            "8 * 60000 is no half"
        );
        assert!(GgmlType::Q4_0.encode(row, &mut Vec::new()));
    }
}
