//! The N16K4 layout as it stands in the documents, against a second way to say it.

use half::f16;
use neuroconv_format::{Codec, PackedLayout};

/// Packs codes and scales by [`PackedLayout::code_at`] and [`PackedLayout::scale_at`].
pub(crate) fn pack(
    layout: &PackedLayout,
    level: impl Fn(usize, usize) -> i32,
    scale: impl Fn(usize, usize) -> f32,
    shift: f32,
) -> Vec<u8> {
    let codec = layout.codec();
    let mut bytes = vec![0; layout.size_bytes()];
    bytes[layout.codes()].fill(codec.zero_byte());
    for row in 0..layout.rows() {
        for col in 0..layout.cols() {
            let (byte, bit) = layout.code_at(row, col);
            let code = (level(row, col) + codec.offset()) as u8;
            let mask = u8::MAX >> (8 - codec.bits()) << bit;
            bytes[byte] = bytes[byte] & !mask | code << bit & mask;
        }
        for group in 0..layout.groups() {
            let at = layout.scale_at(row, group);
            let start = layout.scales().start + at;
            bytes[start..start + 2]
                .copy_from_slice(&f16::from_f32(scale(row, group)).to_le_bytes());
            if layout.shift() {
                let start = layout.shifts().start + at;
                bytes[start..start + 2].copy_from_slice(&f16::from_f32(shift).to_le_bytes());
            }
        }
    }
    bytes
}

#[test]
fn every_code_has_a_place_of_its_own() {
    for codec in Codec::ALL {
        for (rows, cols, group) in [(16, 32, 32), (33, 100, 64), (5, 300, 128), (17, 257, 256)] {
            let layout = PackedLayout::new(codec, rows, cols, group, true).unwrap();
            let (all_rows, all_cols) = (layout.panels() * 16, layout.groups() * group);
            let mut used = vec![0_u8; layout.codes().end];
            for row in 0..all_rows {
                for col in 0..all_cols {
                    let (byte, bit) = layout.code_at(row, col);
                    let mask = u8::MAX >> (8 - codec.bits()) << bit;
                    assert_eq!(used[byte] & mask, 0);
                    used[byte] |= mask;
                }
            }
            assert!(used.iter().all(|&byte| byte == 0xff));
            let mut scales: Vec<usize> = (0..all_rows)
                .flat_map(|row| (0..layout.groups()).map(move |group| (row, group)))
                .map(|(row, group)| layout.scale_at(row, group))
                .collect();
            scales.sort_unstable();
            let expected: Vec<usize> = (0..layout.scales().len()).step_by(2).collect();
            assert_eq!(scales, expected);
        }
    }
}

#[test]
fn codes_lie_where_the_table_says() {
    let at = |codec, row, col| {
        PackedLayout::new(codec, 32, 256, 64, false)
            .unwrap()
            .code_at(row, col)
    };
    // Panel 0, group 0: the table itself.
    assert_eq!(at(Codec::Ternary, 0, 0), (0, 0));
    assert_eq!(at(Codec::Ternary, 3, 1), (13, 0));
    assert_eq!(at(Codec::Ternary, 3, 13), (13, 6));
    assert_eq!(at(Codec::Ternary, 15, 31), (64 + 63, 6));
    assert_eq!(at(Codec::Int4, 2, 3), (11, 0));
    assert_eq!(at(Codec::Int4, 2, 7), (11, 4));
    assert_eq!(at(Codec::Int4, 2, 8), (64 + 8, 0));
    assert_eq!(at(Codec::Int8, 15, 6), (64 + 62, 0));
    // Panel 1, group 3 begins after 7 blocks.
    assert_eq!(at(Codec::Ternary, 16, 192), (7 * 256, 0));
    assert_eq!(at(Codec::Int4, 16, 192), (7 * 512, 0));
    assert_eq!(at(Codec::Int8, 17, 193), (7 * 1024 + 5, 0));
}
