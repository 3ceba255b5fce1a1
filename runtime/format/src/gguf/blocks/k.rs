//! Blocks of 256 elements with scales of scales: `Q4_K`, `Q5_K`, `Q6_K`.
//!
//! `Q4_K` and `Q5_K` have eight groups of 32, each with a scale and a minimum of six bits that share
//! twelve bytes; `Q6_K` sixteen groups of 16 with signed scales of eight bits.

use super::half;

/// Groups of `Q4_K` and `Q5_K`.
const GROUPS: usize = 8;

/// `d s code - dmin m`, four-bit codes.
pub(super) fn q4(block: &[u8], out: &mut [f32]) {
    let (d, rest) = half(block);
    let (dmin, rest) = half(rest);
    let Some((packed, codes)) = rest.split_first_chunk() else {
        return;
    };
    grouped(d, dmin, packed, codes, out, |code, _, _| code);
}

/// `d s code - dmin m`, five-bit codes: bit `g` of byte `l` is the fifth of element `l` of group `g`.
pub(super) fn q5(block: &[u8], out: &mut [f32]) {
    let (d, rest) = half(block);
    let (dmin, rest) = half(rest);
    let Some((packed, rest)) = rest.split_first_chunk() else {
        return;
    };
    let Some((high, codes)) = rest.split_first_chunk::<32>() else {
        return;
    };
    grouped(d, dmin, packed, codes, out, |code, group, at| {
        let bits = high.get(at).copied().unwrap_or(0);
        code | (bits >> (group & 7) & 1) << 4
    });
}

/// Fills `out` with groups of 32: 32 bytes hold two of them, low halves first. `whole` completes a
/// four-bit code, given its group and place there.
fn grouped(
    d: f32,
    dmin: f32,
    packed: &[u8; 12],
    codes: &[u8],
    out: &mut [f32],
    whole: impl Fn(u8, usize, usize) -> u8,
) {
    let scales = scales(packed);
    let groups = out.chunks_exact_mut(32).zip(scales).enumerate();
    for (group, (out, (scale, min))) in groups {
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        let bytes = codes.chunks_exact(32).nth(group / 2).unwrap_or_default();
        for (at, (out, &byte)) in out.iter_mut().zip(bytes).enumerate() {
            let code = if group % 2 == 0 {
                byte & 0xf
            } else {
                byte >> 4
            };
            *out = scale * f32::from(whole(code, group, at)) - min;
        }
    }
}

/// Scale and minimum of each group. The first four have theirs in the low six bits of bytes 0 to 3
/// and 4 to 7; the others four bits each in bytes 8 to 11 and the two highest bits of the former.
fn scales(packed: &[u8; 12]) -> [(u8, u8); GROUPS] {
    let [a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3] = *packed;
    let low = |a: u8, b: u8| (a & 63, b & 63);
    let high = |a: u8, b: u8, c: u8| ((c & 0xf) | (a >> 6) << 4, (c >> 4) | (b >> 6) << 4);
    [
        low(a0, b0),
        low(a1, b1),
        low(a2, b2),
        low(a3, b3),
        high(a0, b0, c0),
        high(a1, b1, c1),
        high(a2, b2, c2),
        high(a3, b3, c3),
    ]
}

/// `d s (code - 32)`. Each half of the block has 64 bytes of low and 32 of high bits: quarter `q` of
/// the half takes the low or high halves of bytes, and bits `2 q` and `2 q + 1` of the high ones.
pub(super) fn q6(block: &[u8], out: &mut [f32]) {
    let Some((low, rest)) = block.split_first_chunk::<128>() else {
        return;
    };
    let Some((high, rest)) = rest.split_first_chunk::<64>() else {
        return;
    };
    let Some((scales, rest)) = rest.split_first_chunk::<16>() else {
        return;
    };
    let (d, _) = half(rest);
    // Sixteen elements share a scale, two scales make a run of 32 elements.
    for (run, out) in out.chunks_exact_mut(32).enumerate() {
        let (side, quarter) = (run / 4, run % 4);
        let low = low
            .chunks_exact(32)
            .nth(side.saturating_mul(2) | (quarter % 2));
        let high = high.chunks_exact(32).nth(side);
        let codes = low.unwrap_or_default().iter().zip(high.unwrap_or_default());
        let scales = scales.chunks_exact(2).nth(run).unwrap_or_default();
        for (at, (out, (&low, &high))) in out.iter_mut().zip(codes).enumerate() {
            let nibble = if quarter < 2 { low & 0xf } else { low >> 4 };
            let top = high >> (quarter.saturating_mul(2) & 7) & 3;
            let scale = scales.get(at / 16).copied().unwrap_or(0).cast_signed();
            let code = f32::from(nibble | top << 4) - 32.0;
            *out = d * f32::from(scale) * code;
        }
    }
}
