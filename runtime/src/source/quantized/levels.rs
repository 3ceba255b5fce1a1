//! Integers with a scale and a zero for every group of columns of a row: what most methods come to.

/// A matrix of levels. A value is `(code - zero) scale`, exact before the last rounding.
pub(super) struct Levels {
    /// Columns.
    pub(super) cols: usize,
    /// Groups of columns.
    pub(super) groups: usize,
    /// The group of each column.
    pub(super) group_of: Vec<usize>,
    /// `[rows, cols]`.
    pub(super) codes: Vec<i32>,
    /// `[rows, groups]`; empty where zero is zero.
    pub(super) zeros: Vec<i32>,
    /// `[rows, groups]`.
    pub(super) scales: Vec<f32>,
}

impl Levels {
    /// Columns in runs of equal length.
    pub(super) fn in_order(cols: usize, groups: usize) -> Vec<usize> {
        let length = cols.div_ceil(groups.max(1)).max(1);
        (0..cols).map(|col| col / length).collect()
    }

    /// Every value, row by row.
    pub(super) fn values(&self) -> Vec<f32> {
        let rows = self.codes.chunks_exact(self.cols).enumerate();
        rows.flat_map(|(row, levels)| {
            levels
                .iter()
                .zip(&self.group_of)
                .map(move |(&level, &group)| {
                    let at = row * self.groups + group;
                    let zero = self.zeros.get(at).copied().unwrap_or(0);
                    (level - zero) as f32 * self.scales[at]
                })
        })
        .collect()
    }
}

/// The numbers of `bits` bits in `words`, lowest first; `bits` divides 32.
pub(super) fn unpacked(words: &[u32], bits: u32) -> impl Iterator<Item = i32> {
    let mask = u32::MAX >> (32 - bits);
    words
        .iter()
        .flat_map(move |word| (0..32 / bits).map(move |at| (word >> (at * bits) & mask) as i32))
}

/// `values`, `[rows, cols]`, by columns.
pub(super) fn turned<T: Copy>(values: &[T], cols: usize) -> Vec<T> {
    let column = |col: usize| values.iter().skip(col).step_by(cols).copied();
    (0..cols).flat_map(column).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_matrices_are_taken_apart() {
        let nibbles: Vec<i32> = unpacked(&[0x8765_4321, 0xf], 4).collect();
        assert_eq!(nibbles[..9], [1, 2, 3, 4, 5, 6, 7, 8, 15]);
        assert_eq!(
            unpacked(&[0xff00_0102], 8).collect::<Vec<_>>(),
            [2, 1, 0, 255]
        );
        assert_eq!(turned(&[1, 2, 3, 4, 5, 6], 3), [1, 4, 2, 5, 3, 6]);
        assert_eq!(Levels::in_order(6, 2), [0, 0, 0, 1, 1, 1]);
    }
}
