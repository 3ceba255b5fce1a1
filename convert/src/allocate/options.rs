//! The ways to store a matrix that are chosen from.

use neuroconv_recipes::{Method, Packed, PackedKind, Role, RoleKind, Scheme};

/// Columns that share a scale where more bits shall be spent on four-bit levels.
const FINE_GROUP: usize = 32;
/// Rank of the correction that is tried.
const RANK: usize = 16;

/// What is chosen from.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// For matrices of the blocks, beside leaving them as they are.
    pub body: Vec<Packed>,
}

impl Options {
    /// The ways that follow from how each kind of levels is packed: also two ternary planes, finer
    /// groups of four-bit levels and low-rank corrections, where the kinds do not say otherwise.
    pub fn of(kinds: &[Packed]) -> Self {
        let mut body: Vec<Packed> = Vec::new();
        let mut add = |packed: Packed| {
            if !body.contains(&packed) {
                body.push(packed);
            }
        };
        for &packed in kinds {
            add(packed);
            let learns = packed.method == Method::Gptq;
            match packed.kind {
                PackedKind::Ternary if packed.planes == 1 => {
                    add(Packed {
                        planes: 2,
                        ..packed
                    });
                }
                PackedKind::Int4 if packed.group_size > FINE_GROUP => {
                    add(packed.with_group(FINE_GROUP));
                }
                PackedKind::Ternary | PackedKind::Int4 | PackedKind::Int8 => {}
            }
            if learns && packed.correct_rank == 0 && packed.kind != PackedKind::Int8 {
                add(Packed {
                    correct_rank: RANK,
                    ..packed
                });
            }
        }
        Options { body }
    }

    /// The packed ways for a matrix of this role. Tables of the vocabulary are rounded by
    /// themselves and never to three levels.
    pub(super) fn packed(&self, role: Role) -> Vec<Packed> {
        match role.kind() {
            RoleKind::Vocab => {
                let plain = |kind| Packed {
                    method: Method::Rtn,
                    ..Packed::new(kind)
                };
                vec![
                    plain(PackedKind::Int4).with_group(FINE_GROUP),
                    plain(PackedKind::Int8),
                ]
            }
            RoleKind::Linear => self.body.clone(),
            RoleKind::Norm | RoleKind::Bias | RoleKind::Frequency => Vec::new(),
        }
    }

    /// The way whose loss is measured: small errors, in proportion to which all others are taken.
    pub(super) fn probe(role: Role) -> Scheme {
        let packed = Packed {
            method: Method::Rtn,
            ..Packed::new(PackedKind::Int4)
        };
        Scheme::Packed(match role.kind() {
            RoleKind::Vocab => packed.with_group(FINE_GROUP),
            _ => packed,
        })
    }
}
