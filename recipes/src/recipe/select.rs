//! Which tensors a rule speaks of: roles, groups of roles, and layers.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::role::{Role, RoleKind, TensorId};

/// One entry of a rule's `roles`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selector {
    /// Exactly this role.
    Role(Role),
    /// Every role of a group.
    Group(Group),
}

/// Roles that recipes treat alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Every matrix inside a block.
    Linear,
    /// The matrices of attention.
    Attention,
    /// The matrices that make or read a latent.
    Latent,
    /// The matrices of the feed-forward block.
    Mlp,
    /// Embedding and head.
    Vocab,
    /// Norm gains.
    Norm,
    /// Biases.
    Bias,
}

impl Group {
    /// Every group.
    pub const ALL: [Group; 7] = [
        Group::Linear,
        Group::Attention,
        Group::Latent,
        Group::Mlp,
        Group::Vocab,
        Group::Norm,
        Group::Bias,
    ];

    /// The name in recipes.
    pub const fn name(self) -> &'static str {
        match self {
            Group::Linear => "linear",
            Group::Attention => "attention",
            Group::Latent => "latent",
            Group::Mlp => "mlp",
            Group::Vocab => "vocab",
            Group::Norm => "norm",
            Group::Bias => "bias",
        }
    }

    /// Whether `role` belongs to the group.
    pub const fn contains(self, role: Role) -> bool {
        match self {
            Group::Linear => matches!(role.kind(), RoleKind::Linear),
            Group::Attention => {
                matches!(role, Role::Q | Role::K | Role::V | Role::O) || role.is_latent()
            }
            Group::Latent => role.is_latent(),
            Group::Mlp => matches!(role, Role::Gate | Role::Up | Role::Down),
            Group::Vocab => matches!(role.kind(), RoleKind::Vocab),
            Group::Norm => matches!(role.kind(), RoleKind::Norm),
            Group::Bias => matches!(role.kind(), RoleKind::Bias),
        }
    }
}

impl Selector {
    /// Every word that `roles` may hold, groups first.
    pub fn all() -> impl Iterator<Item = Selector> {
        let roles = Role::ALL.into_iter().map(Selector::Role);
        Group::ALL.into_iter().map(Selector::Group).chain(roles)
    }

    /// The word in recipes.
    pub const fn name(self) -> &'static str {
        match self {
            Selector::Role(role) => role.name(),
            Selector::Group(group) => group.name(),
        }
    }

    /// Whether the word names latents and nothing wider.
    pub(super) fn means_latents(self, role: Role) -> bool {
        self.matches(role) && matches!(self, Selector::Role(_) | Selector::Group(Group::Latent))
    }

    /// Whether `role` is meant.
    pub fn matches(self, role: Role) -> bool {
        match self {
            Selector::Role(own) => own == role,
            Selector::Group(group) => group.contains(role),
        }
    }
}

/// A word that is neither a role nor a group of roles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownSelector;

impl FromStr for Selector {
    type Err = UnknownSelector;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Selector::all()
            .find(|s| s.name() == text)
            .ok_or(UnknownSelector)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Selector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        static WORDS: LazyLock<Vec<&'static str>> =
            LazyLock::new(|| Selector::all().map(Selector::name).collect());
        let word = String::deserialize(deserializer)?;
        word.parse()
            .map_err(|UnknownSelector| D::Error::unknown_variant(&word, &WORDS))
    }
}

/// The layers a rule is restricted to.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "LayersTable")]
pub enum LayerSelect {
    /// A share of the layers at each end, rounded up to whole layers.
    Ends {
        /// Share at the beginning, 0 to 1.
        first: f64,
        /// Share at the end, 0 to 1.
        last: f64,
    },
    /// These layers, counted from 0.
    Indices(Vec<usize>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LayersTable {
    first: Option<f64>,
    last: Option<f64>,
    indices: Option<Vec<usize>>,
}

impl TryFrom<LayersTable> for LayerSelect {
    type Error = &'static str;

    fn try_from(table: LayersTable) -> Result<Self, Self::Error> {
        let LayersTable {
            first,
            last,
            indices,
        } = table;
        match (indices, first, last) {
            (Some(indices), None, None) if !indices.is_empty() => Ok(LayerSelect::Indices(indices)),
            (None, first, last) if first.is_some() || last.is_some() => Ok(LayerSelect::Ends {
                first: first.unwrap_or(0.0),
                last: last.unwrap_or(0.0),
            }),
            _ => {
                Err("layers are chosen by `first` and `last`, or by `indices`, which are not empty")
            }
        }
    }
}

impl LayerSelect {
    /// Whether `id` lies in one of the layers of a model of `layers` layers.
    pub(super) fn matches(&self, id: TensorId, layers: usize) -> bool {
        let Some(layer) = id.layer else {
            return false;
        };
        match self {
            LayerSelect::Ends { first, last } => {
                let share = |part: f64| (layers as f64 * part).ceil() as usize;
                layer < share(*first) || layer + share(*last) >= layers
            }
            LayerSelect::Indices(indices) => indices.contains(&layer),
        }
    }
}

impl fmt::Display for LayerSelect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LayerSelect::Ends { first, last } => write!(f, "first = {first:?}, last = {last:?}"),
            LayerSelect::Indices(indices) => write!(f, "indices = {indices:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_distinct_and_round_trip() {
        for selector in Selector::all() {
            assert_eq!(selector.name().parse(), Ok(selector));
        }
        assert_eq!("q_proj".parse::<Selector>(), Err(UnknownSelector));
    }

    #[test]
    fn groups_cover_every_role_and_halves_make_the_whole() {
        for role in Role::ALL {
            let kinds = [Group::Linear, Group::Vocab, Group::Norm, Group::Bias];
            let expected = usize::from(role.kind() != RoleKind::Frequency);
            assert_eq!(
                kinds.iter().filter(|g| g.contains(role)).count(),
                expected,
                "{role}"
            );
            let halves = Group::Attention.contains(role) ^ Group::Mlp.contains(role);
            assert_eq!(halves, Group::Linear.contains(role), "{role}");
        }
    }

    #[test]
    fn ends_are_rounded_up() {
        let chosen = |first, last, layers| {
            let select = LayerSelect::Ends { first, last };
            let matches = |i: &usize| select.matches(TensorId::layer(*i, Role::Q), layers);
            (0..layers).filter(matches).collect::<Vec<_>>()
        };
        assert_eq!(chosen(0.125, 0.125, 6), [0, 5]);
        assert_eq!(chosen(0.125, 0.125, 16), [0, 1, 14, 15]);
        assert_eq!(chosen(0.5, 0.0, 3), [0, 1]);
        assert_eq!(chosen(0.0, 1.0, 2), [0, 1]);
        assert_eq!(chosen(0.125, 0.125, 1), [0]);
        let select = LayerSelect::Ends {
            first: 1.0,
            last: 0.0,
        };
        assert!(!select.matches(TensorId::model(Role::Embed), 4));
    }
}
