//! The choice of least loss at a size.
//!
//! Owns the Lagrangian: of every matrix only the ways on the lower convex hull of loss over bytes
//! are ever best, and the steps along all hulls, taken in the order of what they gain per byte, run
//! through the best choices of every size.

use std::collections::BTreeMap;

use neuroconv_recipes::{LayerSelect, Recipe, Rule, Scheme, Selector, TensorId};

use super::measure::{Measured, StorageOption};

/// One way to store a matrix, with what it costs.
#[derive(Clone, Debug, PartialEq)]
struct Cost {
    scheme: Scheme,
    bytes: u64,
    loss: f64,
}

/// One step along the hull of a matrix.
struct Step {
    matrix: usize,
    to: usize,
    bytes: u64,
    loss: f64,
}

/// A choice for every matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Allocation {
    /// The choice.
    pub schemes: BTreeMap<TensorId, Scheme>,
    /// Bytes of the matrices that are chosen for.
    pub bytes: u64,
    /// Expected loss: the sum of those of the matrices.
    pub loss: f64,
}

/// What every way to store every matrix costs.
#[derive(Clone, Debug)]
pub struct Allocator {
    /// On the lower convex hull, the smallest first.
    hulls: Vec<(TensorId, Vec<Cost>)>,
}

impl Allocator {
    /// `divergence` is the loss of a model of which only the matrix that it is asked for is rounded
    /// as the probe is.
    pub fn new(measured: &Measured, divergence: impl Fn(TensorId) -> f64) -> Self {
        let hulls = measured.matrices.iter().map(|matrix| {
            let per_error = if matrix.probe_error > 0.0 {
                divergence(matrix.id).max(0.0) / matrix.probe_error
            } else {
                0.0
            };
            let cost = |option: &StorageOption| Cost {
                scheme: option.scheme,
                bytes: option.bytes,
                loss: per_error * option.error,
            };
            (matrix.id, hull(matrix.options.iter().map(cost).collect()))
        });
        Allocator {
            hulls: hulls.collect(),
        }
    }

    /// The best choices, the smallest first; each loses least of all choices of at most its size.
    pub fn front(&self) -> Vec<Allocation> {
        let mut at = vec![0; self.hulls.len()];
        let mut points = vec![self.allocation(&at)];
        for step in self.steps() {
            at[step.matrix] = step.to;
            points.push(self.allocation(&at));
        }
        points
    }

    /// The choice of least loss in at most `bytes`, as nearly as steps fit: the last of the front
    /// that fits, and what still fits beside it. `None` where not even the smallest does.
    pub fn within(&self, bytes: u64) -> Option<Allocation> {
        let mut at = vec![0; self.hulls.len()];
        let mut used = self.allocation(&at).bytes;
        if used > bytes {
            return None;
        }
        for step in self.steps() {
            // A step that does not fit closes its matrix, for later ones begin where it ends.
            if at[step.matrix] + 1 == step.to && used + step.bytes <= bytes {
                at[step.matrix] = step.to;
                used += step.bytes;
            }
        }
        Some(self.allocation(&at))
    }

    /// All steps, those that gain most per byte first.
    fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        for (matrix, (_, hull)) in self.hulls.iter().enumerate() {
            for (from, pair) in hull.windows(2).enumerate() {
                steps.push(Step {
                    matrix,
                    to: from + 1,
                    bytes: pair[1].bytes - pair[0].bytes,
                    loss: pair[0].loss - pair[1].loss,
                });
            }
        }
        let gain = |step: &Step| step.loss / step.bytes as f64;
        steps.sort_by(|a, b| gain(b).total_cmp(&gain(a)));
        steps
    }

    fn allocation(&self, at: &[usize]) -> Allocation {
        let chosen = || {
            self.hulls
                .iter()
                .zip(at)
                .map(|((id, hull), &at)| (id, &hull[at]))
        };
        Allocation {
            schemes: chosen().map(|(id, cost)| (*id, cost.scheme)).collect(),
            bytes: chosen().map(|(_, cost)| cost.bytes).sum(),
            loss: chosen().map(|(_, cost)| cost.loss).sum(),
        }
    }
}

impl Allocation {
    /// `base` with a rule for every matrix before its own.
    pub fn recipe(&self, base: &Recipe) -> Recipe {
        let mut groups: Vec<(Scheme, Selector, Vec<usize>)> = Vec::new();
        for (id, scheme) in &self.schemes {
            let role = Selector::Role(id.role);
            let same = |(s, r, _): &&mut (Scheme, Selector, Vec<usize>)| s == scheme && *r == role;
            match groups.iter_mut().find(same) {
                Some((_, _, layers)) => layers.extend(id.layer),
                None => groups.push((*scheme, role, id.layer.into_iter().collect())),
            }
        }
        let mut rules: Vec<Rule> = Vec::new();
        for (scheme, role, layers) in groups {
            let layers = (!layers.is_empty()).then_some(LayerSelect::Indices(layers));
            let same = |rule: &&mut Rule| rule.scheme == scheme && rule.layers == layers;
            match rules.iter_mut().find(same) {
                Some(rule) => rule.roles.push(role),
                None => rules.push(Rule {
                    roles: vec![role],
                    layers,
                    scheme,
                    reason: Some("loses least for its bytes".to_owned()),
                }),
            }
        }
        rules.extend(base.rules.iter().cloned());
        Recipe {
            rules,
            ..base.clone()
        }
    }
}

/// The lower convex hull of loss over bytes, the smallest first: every step gains, and less per byte
/// than the one before.
fn hull(mut costs: Vec<Cost>) -> Vec<Cost> {
    costs.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.loss.total_cmp(&b.loss)));
    let mut hull: Vec<Cost> = Vec::new();
    for cost in costs {
        if hull.last().is_some_and(|last| cost.loss >= last.loss) {
            continue;
        }
        while let [.., a, b] = &hull[..] {
            let gain =
                |from: &Cost, to: &Cost| (from.loss - to.loss) / (to.bytes - from.bytes) as f64;
            if gain(b, &cost) < gain(a, b) {
                break;
            }
            hull.pop();
        }
        hull.push(cost);
    }
    hull
}
