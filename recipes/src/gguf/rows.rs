//! The `[gguf]` table of an architecture file, and the order of rows that it means.
//!
//! Where llama.cpp rotates neighbouring channels and the checkpoint the two halves of a head, its
//! converter moves row `j * d/2 + i` of each head to row `2 i + j` (`j` is 0 or 1, `d` the width of
//! a head), so that both compute the same scores.

use serde::Deserialize;

use crate::role::Role;
use crate::spec::RopeLayout;

/// How GGUF files write models of an architecture.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GgufRules {
    /// Value of `general.architecture`.
    pub arch: String,
    /// Which channels of a head form a rotated pair there.
    pub rope: RopeLayout,
    /// Whether files with that value are read as this architecture. Exactly one of those that share
    /// a value is.
    pub read: bool,
}

impl GgufRules {
    /// Whether the rows of `role` stand in another order in such files than in a checkpoint whose
    /// heads are rotated in the layout `checkpoint`.
    pub fn reorders(&self, role: Role, checkpoint: RopeLayout) -> bool {
        let rotated = matches!(role, Role::Q | Role::K | Role::QBias | Role::KBias);
        rotated && self.rope != checkpoint
    }

    /// The row of the checkpoint that stands at row `row` of the file, for a role that
    /// [`GgufRules::reorders`], heads of `head_dim` rows.
    pub fn row_of_checkpoint(&self, row: usize, head_dim: usize) -> usize {
        match self.rope {
            RopeLayout::Interleaved => joined(row, head_dim),
            RopeLayout::Half => split(row, head_dim),
        }
    }

    /// The row of the file that stands at row `row` of the checkpoint: the inverse of
    /// [`GgufRules::row_of_checkpoint`].
    pub fn row_of_file(&self, row: usize, head_dim: usize) -> usize {
        match self.rope {
            RopeLayout::Interleaved => split(row, head_dim),
            RopeLayout::Half => joined(row, head_dim),
        }
    }
}

/// Of row `2 i + j` of a head, row `j * head_dim/2 + i`.
fn joined(row: usize, head_dim: usize) -> usize {
    let at = row % head_dim;
    row - at + (at % 2) * (head_dim / 2) + at / 2
}

/// Of row `j * head_dim/2 + i` of a head, row `2 i + j`.
fn split(row: usize, head_dim: usize) -> usize {
    let (at, half) = (row % head_dim, head_dim / 2);
    row - at + 2 * (at % half) + at / half
}

/// `values`, `rows` rows of equal length, in another order: row `from(r)` becomes row `r`. Elements
/// may be numbers or bytes.
pub fn gathered<T: Copy>(values: &[T], rows: usize, from: impl Fn(usize) -> usize) -> Vec<T> {
    let length = values.len().checked_div(rows).unwrap_or(0);
    let mut out = Vec::with_capacity(values.len());
    for row in 0..rows {
        let start = from(row) * length;
        out.extend_from_slice(&values[start..start + length]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::architectures;

    fn rules(rope: RopeLayout) -> GgufRules {
        GgufRules {
            arch: "any".to_owned(),
            rope,
            read: true,
        }
    }

    #[test]
    fn halves_of_a_head_become_neighbours_and_go_back() {
        let rules = rules(RopeLayout::Interleaved);
        // Two heads of six rows: in each, the pairs (0, 3), (1, 4), (2, 5).
        let checkpoint: Vec<u8> = (0..12).collect();
        let file = gathered(&checkpoint, 12, |row| rules.row_of_checkpoint(row, 6));
        assert_eq!(file, [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]);
        assert_eq!(
            gathered(&file, 12, |row| rules.row_of_file(row, 6)),
            checkpoint
        );
        let wide: Vec<u8> = (0..24).collect();
        let moved = gathered(&wide, 12, |row| rules.row_of_checkpoint(row, 6));
        assert_eq!(moved[..4], [0, 1, 6, 7]);
    }

    #[test]
    fn directions_are_inverse_in_either_layout() {
        for rope in [RopeLayout::Interleaved, RopeLayout::Half] {
            let rules = rules(rope);
            for head_dim in [2, 4, 10, 64] {
                for row in 0..3 * head_dim {
                    let there = rules.row_of_checkpoint(row, head_dim);
                    assert_eq!(there / head_dim, row / head_dim);
                    assert_eq!(rules.row_of_file(there, head_dim), row);
                }
            }
        }
    }

    #[test]
    fn only_what_is_rotated_is_reordered() {
        let rules = rules(RopeLayout::Interleaved);
        let moved: Vec<Role> = Role::ALL
            .into_iter()
            .filter(|role| rules.reorders(*role, RopeLayout::Half))
            .collect();
        assert_eq!(moved, [Role::Q, Role::QBias, Role::K, Role::KBias]);
        assert!(!rules.reorders(Role::Q, RopeLayout::Interleaved));
    }

    #[test]
    fn each_value_is_read_as_one_architecture() {
        for arch in architectures() {
            let Some(rules) = arch.gguf() else { continue };
            let readers = architectures().iter().filter(|other| {
                other
                    .gguf()
                    .is_some_and(|other| other.arch == rules.arch && other.read)
            });
            assert_eq!(readers.count(), 1, "{}", rules.arch);
        }
    }
}
