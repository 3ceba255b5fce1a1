//! Exact changes of a model's graph: other weights, the same function.
//!
//! Owns which norm gains go into the matrices that read them, whether the residual stream is
//! rotated, and what both do to the description of a model. The arithmetic is for those who have the
//! weights.

use serde::{Deserialize, Serialize};

use crate::role::{Role, TensorId};
use crate::spec::ModelSpec;

/// The exact changes that a recipe asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rewrites {
    /// Norm gains that go into the matrices that read them.
    #[serde(default)]
    pub fold_norms: FoldNorms,
    /// Whether the residual stream is rotated, which takes every gain out of it.
    #[serde(default)]
    pub rotate: bool,
}

/// Which norm gains go into the matrices that read them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FoldNorms {
    /// These.
    These(Vec<TensorId>),
    /// Those where the matrices lose less when they are packed.
    WhereItGains(Auto),
}

/// The word `auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Auto {
    /// Decided by measurement.
    Auto,
}

impl Default for FoldNorms {
    fn default() -> Self {
        FoldNorms::These(Vec::new())
    }
}

impl Rewrites {
    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        *self == Rewrites::default()
    }

    /// Whether the gain of the norm `id` goes into the matrices that read it.
    pub fn folds(&self, id: TensorId) -> bool {
        let asked = matches!(&self.fold_norms, FoldNorms::These(norms) if norms.contains(&id));
        asked
            || (self.rotate && matches!(id.role, Role::AttnNorm | Role::MlpNorm | Role::FinalNorm))
    }

    /// The description of the changed model. A head that is the embedding becomes a matrix of its
    /// own where it reads a folded norm.
    pub fn rewritten(&self, spec: &ModelSpec) -> ModelSpec {
        let unties = self.folds(TensorId::model(Role::FinalNorm));
        ModelSpec {
            tied: spec.tied && !unties,
            ..spec.clone()
        }
    }

    /// The norms of `spec` whose gains can go into matrices without a new matrix.
    pub fn foldable(spec: &ModelSpec) -> impl Iterator<Item = TensorId> {
        let layers = 0..spec.layers.len();
        let of_layers = layers.flat_map(|layer| {
            [Role::AttnNorm, Role::MlpNorm].map(|role| TensorId::layer(layer, role))
        });
        let last = (!spec.tied).then_some(TensorId::model(Role::FinalNorm));
        of_layers.chain(last)
    }
}

impl TensorId {
    /// The norm whose output a matrix reads; `None` where it reads something else.
    pub fn norm(self) -> Option<TensorId> {
        let of_layer = |role| TensorId { role, ..self };
        match self.role {
            Role::Q | Role::K | Role::V => Some(of_layer(Role::AttnNorm)),
            Role::Gate | Role::Up => Some(of_layer(Role::MlpNorm)),
            Role::Head => Some(TensorId::model(Role::FinalNorm)),
            _ => None,
        }
    }
}
