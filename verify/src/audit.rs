//! Whether the artifact's stored weights and description are those of its original.
//!
//! Text says how far two models are apart; it hardly notices one wrong row among thousands. So
//! every stored tensor that the original has too is decoded and compared with it, group by group or
//! by the outputs it makes, and the description field by field. A tensor that a conversion replaced by others has no
//! counterpart and is left to the text.

use neuroconv_format::{Codec, Tensor};
use neuroconv_recipes::{ModelSpec, Role, TensorId};
use neuroconv_runtime::{Progress, WeightSource};
use rayon::prelude::*;
use std::collections::BTreeSet;

use crate::Error;
use crate::layer_inputs::LayerInputs;
use crate::reference::PackedRows;

/// Groups with less than this share of the tensor's average energy count as having that much: to
/// lose them changes nothing.
const ENERGY_FLOOR: f64 = 0.05;
/// Columns of a group in tensors that have none.
const DENSE_GROUP: usize = 128;

/// What rounding to a codec explains.
struct Bounds {
    /// Squared error of a tensor over its squares.
    rel_mse: f64,
    /// The same of any group.
    group: f64,
    /// How far the best factor between the two is from 1.
    slope: f64,
}

impl Bounds {
    const fn new(rel_mse: f64, group: f64, slope: f64) -> Self {
        Bounds {
            rel_mse,
            group,
            slope,
        }
    }

    /// Far above what any fit leaves on trained weights, and below what a lost group, a foreign
    /// row or a scale that is off by a tenth leaves.
    fn of(tensor: &Tensor) -> Self {
        match tensor {
            Tensor::Dense(_) => Bounds::new(1e-5, 1e-3, 1e-3),
            Tensor::Packed(t) => match t.layout.codec() {
                Codec::Int8 => Bounds::new(2e-3, 0.05, 0.02),
                Codec::Int4 => Bounds::new(0.1, 0.6, 0.05),
                Codec::Ternary => Bounds::new(0.6, 0.97, 0.08),
            },
        }
    }

    /// The same for outputs, of matrices rounded with feedback; a foreign row errs by twice its
    /// energy, a lost one by all of it, a turned one by four times.
    fn of_outputs(tensor: &Tensor) -> Self {
        match tensor {
            Tensor::Dense(_) => Bounds::of(tensor),
            Tensor::Packed(t) => match t.layout.codec() {
                Codec::Int8 => Bounds::of(tensor),
                Codec::Int4 => Bounds::new(0.05, 0.4, 0.04),
                Codec::Ternary => Bounds::new(0.4, 1.8, 0.2),
            },
        }
    }
}

/// The worst of what was found in the stored tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct Audit {
    /// The largest error over what the codec explains: beyond 1 something is wrong.
    pub worst: f64,
    /// Where: tensor, and row and group where one stands out.
    pub place: String,
    /// Tensors that were compared.
    pub compared: usize,
    /// Parts of the description that differ without being converted.
    pub differences: Vec<String>,
}

/// Compares everything that both models have.
///
/// A matrix that was rounded with feedback may have weights far from the original's and still give
/// its outputs. Those named in `feedback` are compared by what they make of the inputs that the
/// original gives them for `tokens`, row by row.
pub fn audit(
    base: &dyn WeightSource,
    artifact: &dyn WeightSource,
    feedback: &BTreeSet<String>,
    tokens: &[u32],
    progress: &dyn Progress,
) -> Result<Audit, Error> {
    let mut inputs = if feedback.is_empty() {
        None
    } else {
        Some(LayerInputs::new(base, tokens)?)
    };
    let mut found = Audit {
        worst: 0.0,
        place: String::new(),
        compared: 0,
        differences: differences(base.spec(), artifact.spec()),
    };
    let originals = base.spec().tensors();
    let tensors = artifact.spec().tensors();
    progress.start("tensors", tensors.len() as u64, "tensors");
    for (id, shape) in tensors {
        let known = originals.iter().any(|(i, s)| *i == id && *s == shape);
        if known
            && !replaced(base.spec(), artifact.spec(), id)
            && let Tensor::Dense(original) = base.tensor(id)?
        {
            let stored = artifact.tensor(id)?;
            let input = match &mut inputs {
                Some(inputs) if feedback.contains(&id.to_string()) => inputs.of(id)?,
                _ => None,
            };
            let seen = Seen {
                id,
                shape: &shape,
                input: input.as_deref(),
            };
            let (worst, place) = seen.compare(&original.to_f32(), &stored);
            found.compared += 1;
            // NaN is worse than anything.
            if worst > found.worst || worst.is_nan() {
                (found.worst, found.place) = (worst, place);
            }
        }
        progress.advance(1);
    }
    progress.finish();
    Ok(found)
}

/// Whether a tensor belongs to a mixer that was converted to another kind: it may be called as
/// before and be another.
fn replaced(base: &ModelSpec, artifact: &ModelSpec, id: TensorId) -> bool {
    let mixer = |spec: &ModelSpec, layer: usize| {
        spec.layers
            .get(layer)
            .map(|l| std::mem::discriminant(&l.mixer))
    };
    let in_block = matches!(
        id.role,
        Role::MlpNorm
            | Role::Gate
            | Role::Up
            | Role::Down
            | Role::GateBias
            | Role::UpBias
            | Role::DownBias
    );
    let changed = |layer| mixer(base, layer) != mixer(artifact, layer);
    !in_block && id.layer.is_some_and(changed)
}

/// Sums over one row.
#[derive(Clone, Default)]
struct RowSums {
    /// Squared error and squares of the original, by group.
    groups: Vec<(f64, f64)>,
    product: f64,
    stored: f64,
}

/// A tensor to be compared, by the outputs it makes where there is an input `[t, columns]`.
struct Seen<'a> {
    id: TensorId,
    shape: &'a [usize],
    input: Option<&'a [f32]>,
}

impl Seen<'_> {
    fn compare(&self, original: &[f32], stored: &Tensor) -> (f64, String) {
        let cols = self.shape.last().copied().unwrap_or(1).max(1);
        let row_sums = |original: &[f32], stored: &[f32], group: usize| match self.input {
            None => row_sums(original, stored, group),
            Some(x_tk) => output_sums(original, stored, x_tk),
        };
        let group = match stored {
            Tensor::Packed(t) => t.layout.group(),
            Tensor::Dense(_) => DENSE_GROUP.min(cols),
        };
        let rows = original.par_chunks(cols).enumerate();
        let rows: Vec<RowSums> = match stored {
            Tensor::Dense(t) => {
                let dense = t.to_f32();
                rows.map(|(row, original)| row_sums(original, &dense[row * cols..][..cols], group))
                    .collect()
            }
            Tensor::Packed(t) => {
                let stored = PackedRows::new(t);
                rows.map(|(row, original)| {
                    let mut values = vec![0.0; cols];
                    stored.read(row, &mut values);
                    row_sums(original, &values, group)
                })
                .collect()
            }
        };
        let bounds = match self.input {
            None => Bounds::of(stored),
            Some(_) => Bounds::of_outputs(stored),
        };
        judge(self.id, &rows, &bounds)
    }
}

fn row_sums(original: &[f32], stored: &[f32], group: usize) -> RowSums {
    let mut sums = RowSums::default();
    for (original, stored) in original.chunks(group).zip(stored.chunks(group)) {
        let (mut error, mut energy) = (0.0, 0.0);
        for (&w, &s) in original.iter().zip(stored) {
            let (w, s) = (f64::from(w), f64::from(s));
            error += (w - s).powi(2);
            energy += w * w;
            sums.product += w * s;
            sums.stored += s * s;
        }
        sums.groups.push((error, energy));
    }
    sums
}

/// The same of what a row makes of inputs `[t, columns]`. Rounding with feedback makes good in one
/// group what it lost in another, so the row is one group.
fn output_sums(original: &[f32], stored: &[f32], x_tk: &[f32]) -> RowSums {
    let mut sums = RowSums::default();
    let (mut error, mut energy) = (0.0, 0.0);
    for x_k in x_tk.chunks(original.len()) {
        let (w, s) = (dot(original, x_k), dot(stored, x_k));
        error += (w - s).powi(2);
        energy += w * w;
        sums.product += w * s;
        sums.stored += s * s;
    }
    sums.groups.push((error, energy));
    sums
}

/// Sums of eight side by side, which the compiler makes one instruction of.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    let (mut lanes, mut rest) = ([0.0_f32; 8], 0.0);
    let ((a8, a1), (b8, b1)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (a, b) in a8.iter().zip(b8) {
        for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += a * b;
        }
    }
    for (a, b) in a1.iter().zip(b1) {
        rest += a * b;
    }
    f64::from(lanes.iter().sum::<f32>() + rest)
}

/// The worst share of its bound in one tensor, and where.
fn judge(id: TensorId, rows: &[RowSums], bounds: &Bounds) -> (f64, String) {
    let groups = || rows.iter().flat_map(|r| &r.groups);
    let error: f64 = groups().map(|g| g.0).sum();
    let energy: f64 = groups().map(|g| g.1).sum();
    let floor = ENERGY_FLOOR * energy / groups().count().max(1) as f64;
    let over = |part: f64, whole: f64| if part == 0.0 { 0.0 } else { part / whole };
    let mut worst = (over(error, energy) / bounds.rel_mse, id.to_string());
    let mut take = |share: f64, place: &dyn Fn() -> String| {
        if share > worst.0 || (share.is_nan() && !worst.0.is_nan()) {
            worst = (share, place());
        }
    };
    let (product, stored) = rows
        .iter()
        .fold((0.0, 0.0), |(p, s), r| (p + r.product, s + r.stored));
    let slope = if stored == 0.0 {
        0.0
    } else {
        (product / stored - 1.0).abs()
    };
    take(slope / bounds.slope, &|| format!("{id}, the scale"));
    for (i, row) in rows.iter().enumerate() {
        for (g, &(error, energy)) in row.groups.iter().enumerate() {
            let share = over(error, energy.max(floor)) / bounds.group;
            take(share, &|| format!("{id}, row {i}, group {g}"));
        }
    }
    worst
}

/// What differs between two descriptions beside what a conversion may change: the mixers, and
/// with them the rotation.
fn differences(base: &ModelSpec, artifact: &ModelSpec) -> Vec<String> {
    let kind = |layer: &neuroconv_recipes::LayerSpec| std::mem::discriminant(&layer.mixer);
    let layers = || base.layers.iter().zip(&artifact.layers);
    let converted = layers().any(|(b, a)| kind(b) != kind(a));
    let mut out = Vec::new();
    let mut differ = |name: &str, differs: bool| {
        if differs {
            out.push(name.to_owned());
        }
    };
    differ("width", base.hidden != artifact.hidden);
    differ("vocabulary", base.vocab != artifact.vocab);
    differ("feed-forward width", base.ffn != artifact.ffn);
    differ(
        "epsilon of the norms",
        base.norm_eps.to_bits() != artifact.norm_eps.to_bits(),
    );
    differ("tied head", base.tied != artifact.tied);
    differ("block", base.block != artifact.block);
    differ("rotation", !converted && base.rope != artifact.rope);
    differ("special tokens", base.special != artifact.special);
    differ(
        "longest position",
        base.max_positions != artifact.max_positions,
    );
    differ(
        "number of layers",
        base.layers.len() != artifact.layers.len(),
    );
    for (i, (b, a)) in layers().enumerate() {
        differ(&format!("mixer of layer {i}"), kind(b) == kind(a) && b != a);
    }
    out
}
