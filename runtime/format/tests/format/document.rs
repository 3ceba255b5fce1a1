//! The hex dumps of `docs/format.md` are the bytes that the rules of the document give.

use std::fmt::Write as _;

use neuroconv_format::{Codec, PackedLayout};

use crate::packed::pack;

const DOCUMENT: &str = include_str!("../../../../docs/format.md");

/// Lines of an offset and 16 bytes each.
fn dump(bytes: &[u8]) -> String {
    let mut out = String::new();
    for (i, line) in bytes.chunks(16).enumerate() {
        let _ = write!(out, "{:04x} ", 16 * i);
        for byte in line {
            let _ = write!(out, " {byte:02x}");
        }
        out.push('\n');
    }
    out
}

/// The packed 16 x 32 matrix of the document: level `(row + col) mod n + low` of the `n` levels
/// from `low` on, scale `(row + 1) / 16`.
fn example(codec: Codec, low: i32, n: usize) -> Vec<u8> {
    let layout = PackedLayout::new(codec, 16, 32, 32, false).unwrap();
    let level = |row, col| ((row + col) % n) as i32 + low;
    pack(&layout, level, |row, _| (row + 1) as f32 / 16.0, 0.0)
}

#[test]
fn the_dumps_are_real() {
    let ternary = example(Codec::Ternary, -1, 3);
    let int4 = example(Codec::Int4, -8, 16);
    let int8 = example(Codec::Int8, -127, 255);
    for dump in [dump(&ternary), dump(&int4[..64]), dump(&int8[..64])] {
        assert!(DOCUMENT.contains(&dump), "not in docs/format.md:\n{dump}");
    }
}
