//! Blocks of 32 elements under one scale: `Q4_0`, `Q4_1`, `Q5_0`, `Q5_1`, `Q8_0`.
//!
//! Byte `j` of the codes holds elements `j` (low half) and `j + 16` (high half); the fifth bits of
//! Q5 stand in a word of their own, bit `j` for element `j`.

use super::half;

/// `(code - 8) d`.
pub(super) fn q4_0(block: &[u8], out: &mut [f32]) {
    let (d, codes) = half(block);
    nibbles(codes, out, |code, _| (f32::from(code) - 8.0) * d);
}

/// `code d + m`.
pub(super) fn q4_1(block: &[u8], out: &mut [f32]) {
    let (d, rest) = half(block);
    let (m, codes) = half(rest);
    nibbles(codes, out, |code, _| f32::from(code) * d + m);
}

/// `(code - 16) d`.
pub(super) fn q5_0(block: &[u8], out: &mut [f32]) {
    let (d, rest) = half(block);
    let (high, codes) = word(rest);
    nibbles(codes, out, |code, at| {
        (f32::from(code | fifth(high, at)) - 16.0) * d
    });
}

/// `code d + m`.
pub(super) fn q5_1(block: &[u8], out: &mut [f32]) {
    let (d, rest) = half(block);
    let (m, rest) = half(rest);
    let (high, codes) = word(rest);
    nibbles(codes, out, |code, at| {
        f32::from(code | fifth(high, at)) * d + m
    });
}

/// `code d`.
pub(super) fn q8_0(block: &[u8], out: &mut [f32]) {
    let (d, codes) = half(block);
    for (out, &code) in out.iter_mut().zip(codes) {
        *out = f32::from(code.cast_signed()) * d;
    }
}

/// Fills `out` with what `value` says of a four-bit code and its place.
fn nibbles(codes: &[u8], out: &mut [f32], value: impl Fn(u8, u32) -> f32) {
    let (low, high) = out.split_at_mut(out.len() / 2);
    for (((low, high), &byte), at) in low.iter_mut().zip(high).zip(codes).zip(0_u32..) {
        *low = value(byte & 0xf, at);
        *high = value(byte >> 4, at.saturating_add(16));
    }
}

fn word(bytes: &[u8]) -> (u32, &[u8]) {
    match bytes.split_first_chunk() {
        Some((&first, rest)) => (u32::from_le_bytes(first), rest),
        None => (0, &[]),
    }
}

/// Bit `at` of `high`, where the fifth bit of a code belongs.
fn fifth(high: u32, at: u32) -> u8 {
    if high >> (at & 31) & 1 == 1 { 16 } else { 0 }
}
