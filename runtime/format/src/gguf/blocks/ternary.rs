//! Blocks of weights of -1, 0 and 1 under one scale: `TQ1_0` and `TQ2_0` of 256, `Q2_0` of 64, which
//! also has 2.

use super::half;

/// Five weights in a byte. A byte is the five digits to base three as a fraction of 256, rounded up:
/// multiplied by `3^n`, its carry into the ninth bit is found by one more multiplication by three.
/// Weights lie in three runs of bytes, of 32, of 16 and of 4 with four digits each; within a run,
/// first come all first digits.
pub(super) fn tq1(block: &[u8], out: &mut [f32]) {
    const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
    let Some((codes, rest)) = block.split_first_chunk::<52>() else {
        return;
    };
    let (d, _) = half(rest);
    let (first, rest) = codes.split_at(32);
    let (second, third) = rest.split_at(16);
    let runs = [(first, 5), (second, 5), (third, 4)];
    let digits = runs.into_iter().flat_map(|(bytes, digits)| {
        let powers = POWERS.iter().take(digits);
        powers.flat_map(move |&power| bytes.iter().map(move |&byte| digit(byte, power)))
    });
    for (out, digit) in out.iter_mut().zip(digits) {
        *out = (f32::from(digit) - 1.0) * d;
    }
}

/// 0, 1 or 2.
fn digit(byte: u8, power: u8) -> u8 {
    let [_, carry] = u16::from(byte.wrapping_mul(power))
        .wrapping_mul(3)
        .to_le_bytes();
    carry
}

/// Four weights in a byte, two bits each. Each half of the block has 32 bytes: first come the lowest
/// bits of all.
pub(super) fn tq2(block: &[u8], out: &mut [f32]) {
    let Some((codes, rest)) = block.split_first_chunk::<64>() else {
        return;
    };
    let (d, _) = half(rest);
    let codes = codes.chunks_exact(32).flat_map(|bytes| {
        [0, 2, 4, 6]
            .into_iter()
            .flat_map(move |shift| bytes.iter().map(move |&byte| byte >> shift & 3))
    });
    for (out, code) in out.iter_mut().zip(codes) {
        *out = (f32::from(code) - 1.0) * d;
    }
}

/// Four weights in a byte, two bits each, the first lowest.
pub(super) fn q2(block: &[u8], out: &mut [f32]) {
    let (d, codes) = half(block);
    let codes = codes
        .iter()
        .flat_map(|byte| [0, 2, 4, 6].into_iter().map(move |shift| byte >> shift & 3));
    for (out, code) in out.iter_mut().zip(codes) {
        *out = (f32::from(code) - 1.0) * d;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_bits_count_from_minus_one() {
        // Scale 0.5, then 0b11_10_01_00 sixteen times: -1, 0, 1, 2.
        let mut block = vec![0x00, 0x38];
        block.extend([0b1110_0100; 16]);
        let mut values = [f32::NAN; 64];
        q2(&block, &mut values);
        for four in values.chunks(4) {
            assert_eq!(four, [-0.5, 0.0, 0.5, 1.0]);
        }
    }
}
