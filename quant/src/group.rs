//! The choice of a group size for a matrix.

use neuroconv_format::Codec;
use neuroconv_format::codec::{GROUP_SIZES, PackedLayout};

/// The group size up to `requested` that stores a `[rows, cols]` matrix in the fewest bytes; of
/// equals the largest. 32 where `requested` is less.
///
/// A group that does not divide `cols` pads each row with codes, so a smaller one can cost less.
pub fn choose_group(codec: Codec, rows: usize, cols: usize, requested: usize) -> usize {
    let size = |group| {
        PackedLayout::new(codec, rows, cols, group, false).map_or(usize::MAX, |l| l.size_bytes())
    };
    GROUP_SIZES
        .into_iter()
        .filter(|&group| group <= requested)
        .rev()
        .min_by_key(|&group| size(group))
        .unwrap_or(GROUP_SIZES[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cheapest_group_wins_and_the_larger_of_equals() {
        assert_eq!(choose_group(Codec::Int4, 64, 512, 128), 128);
        assert_eq!(choose_group(Codec::Int4, 64, 512, 256), 256);
        assert_eq!(choose_group(Codec::Int4, 64, 512, 200), 128);
        assert_eq!(choose_group(Codec::Int4, 64, 64, 256), 64);
        assert_eq!(choose_group(Codec::Int4, 64, 64, 32), 32);
        assert_eq!(choose_group(Codec::Int4, 64, 64, 7), 32);
        // 192 = 3 groups of 64; two of 128 would pad 64 columns.
        assert_eq!(choose_group(Codec::Int8, 64, 192, 256), 64);
        assert_eq!(choose_group(Codec::Ternary, 64, 1, 256), 32);
    }

    #[test]
    fn no_allowed_group_is_cheaper() {
        for codec in Codec::ALL {
            for cols in [1, 31, 33, 96, 100, 250, 288, 384, 768, 1000, 5632] {
                for requested in GROUP_SIZES {
                    let bytes = |g| {
                        PackedLayout::new(codec, 48, cols, g, false)
                            .unwrap()
                            .size_bytes()
                    };
                    let chosen = choose_group(codec, 48, cols, requested);
                    assert!(chosen <= requested);
                    for group in GROUP_SIZES.into_iter().filter(|&g| g <= requested) {
                        assert!(bytes(chosen) <= bytes(group), "{codec} {cols} {requested}");
                    }
                }
            }
        }
    }
}
