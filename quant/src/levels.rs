//! The sets of levels that weights are rounded to, and the codec that stores each.

use neuroconv_format::Codec;

/// A set of levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Levels {
    /// -1, 0, 1.
    Ternary,
    /// -4..=4: two ternary planes `3 · t₁ + t₂` whose scales are tied.
    Nine,
    /// -8..=7.
    Int4,
    /// -127..=127.
    Int8,
}

impl Levels {
    /// How codes are stored.
    pub const fn codec(self) -> Codec {
        match self {
            Levels::Ternary => Codec::Ternary,
            Levels::Nine | Levels::Int4 => Codec::Int4,
            Levels::Int8 => Codec::Int8,
        }
    }

    /// The lowest and the highest.
    pub const fn range(self) -> (i8, i8) {
        match self {
            Levels::Ternary => (-1, 1),
            Levels::Nine => (-4, 4),
            Levels::Int4 => (-8, 7),
            Levels::Int8 => (-127, 127),
        }
    }
}

impl From<Codec> for Levels {
    /// All levels that a codec has.
    fn from(codec: Codec) -> Self {
        match codec {
            Codec::Ternary => Levels::Ternary,
            Codec::Int4 => Levels::Int4,
            Codec::Int8 => Levels::Int8,
        }
    }
}
