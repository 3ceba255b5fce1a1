//! What will become of every tensor, decided from headers alone.
//!
//! Owns the assignment of storage to tensors and the sizes that follow from it. Reads no
//! weights and writes nothing; any doubt is an error here, before the work begins.

mod estimate;
mod storage;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::ops::Range;

use neuroconv_format::manifest::DroppedRecord;
use neuroconv_format::writer::SafetensorsLayout;
use neuroconv_format::{DType, TensorCodec};
use neuroconv_recipes::{
    Assignment, Limits, MlaRecipe, ModelSpec, Recipe, Rewrites, Role, RoleKind, Scheme, TensorId,
};
use neuroconv_runtime::{Checkpoint, Rewritten};
use serde::Serialize;

use crate::export::{EngineVerdict, LatentFacts};
use crate::job::sha256;
use crate::origin::SourceName;
use crate::pass::changed_layers;
use crate::{Error, rounded};

pub(crate) use estimate::REPORTS_BYTES;
pub(crate) use storage::{PackedPlan, Storage, entries, storage};

/// The fate of a whole checkpoint.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Where the weights come from.
    pub source: PlannedSource,
    /// Name of the recipe.
    pub recipe: String,
    /// Every tensor of the artifact, in storage order.
    pub tensors: Vec<PlannedTensor>,
    /// Source tensors that are left out.
    pub dropped: Vec<DroppedRecord>,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// Size of the weights file, header and padding included.
    pub weights_bytes: u64,
    /// `8 * weights_bytes` over the parameters.
    pub bits_per_weight: f64,
    /// Estimate of the most memory held at a time: one tensor being quantized, its neighbours
    /// being read and written.
    pub peak_memory_bytes: u64,
    /// Free space the conversion needs: weights and copied files.
    pub disk_bytes: u64,
    /// Numbers that the artifact remembers per token, all layers together.
    pub cached_numbers: usize,
    /// The same of the source.
    pub cached_numbers_source: usize,
    /// Which engines can run what `export` makes of the artifact.
    pub engines: Vec<EngineVerdict>,
    #[serde(skip)]
    pub(crate) spec: ModelSpec,
    #[serde(skip)]
    pub(crate) mla: Option<MlaRecipe>,
    pub(crate) rewrites: Rewrites,
    #[serde(skip)]
    pub(crate) recipe_toml: String,
    /// SHA-256 of the recipe without what only the verdict rests on.
    #[serde(skip)]
    pub(crate) work_sha256: String,
    #[serde(skip)]
    pub(crate) layout: SafetensorsLayout,
}

impl Plan {
    /// The description of the model that the artifact will hold.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// `source` with the exact changes of its graph that the plan asks for.
    pub fn rewritten<'a>(&'a self, source: &'a Checkpoint) -> Rewritten<'a> {
        Rewritten::new(source, &self.rewrites)
    }

    /// The norms whose gains go into matrices.
    pub(crate) fn folded(&self) -> impl Iterator<Item = TensorId> + '_ {
        let ids = self.tensors.iter().map(|tensor| tensor.id);
        ids.filter(|id| self.rewrites.folds(*id))
    }

    /// How the tensor `id` is packed, if it is.
    pub(crate) fn packed(&self, id: TensorId) -> Option<(&PlannedTensor, &PackedPlan)> {
        let tensor = self.tensors.iter().find(|tensor| tensor.id == id)?;
        Some((tensor, tensor.packed()?))
    }

    /// The matrices of a layer that are packed.
    pub(crate) fn of_layer(
        &self,
        layer: usize,
    ) -> impl Iterator<Item = (&PlannedTensor, &PackedPlan)> {
        let own = self
            .tensors
            .iter()
            .filter(move |t| t.id.layer == Some(layer));
        own.filter_map(|tensor| Some((tensor, tensor.packed()?)))
    }

    /// Number of matrices of layers that are packed.
    pub(crate) fn matrices(&self) -> usize {
        let of_layers = self.tensors.iter().filter(|t| t.id.layer.is_some());
        of_layers.filter(|t| t.packed().is_some()).count()
    }

    /// Whether any matrix is fitted to calibration text.
    pub fn learns(&self) -> bool {
        let of_layers = self.tensors.iter().filter(|t| t.id.layer.is_some());
        of_layers
            .filter_map(PlannedTensor::packed)
            .any(|p| p.how.learns())
    }

    /// Columns of the widest matrix that is fitted to calibration text; 0 where none is.
    pub fn widest_learned(&self) -> usize {
        let of_layers = self.tensors.iter().filter(|t| t.id.layer.is_some());
        let packed = of_layers.filter_map(PlannedTensor::packed);
        let learned = packed.filter(|p| p.how.learns());
        learned.map(|p| p.layout.cols()).max().unwrap_or(0)
    }

    /// Where the parts of a tensor lie in the weights file.
    pub(crate) fn part_ranges(&self, tensor: &PlannedTensor) -> Vec<Range<u64>> {
        let name = tensor.id.to_string();
        let parts = tensor.packed().map_or(&[][..], |packed| &packed.parts);
        parts
            .iter()
            .map(|part| self.range(&part.name(&name)))
            .collect()
    }

    /// Where a tensor lies in the weights file.
    pub(crate) fn range(&self, name: &str) -> Range<u64> {
        self.layout
            .range(name)
            .expect("the layout was made of the planned tensors")
    }
}

/// Where the weights of a plan come from.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedSource {
    /// `org/name` where the folder is a snapshot in the hub's cache, else its name. Never a path.
    pub id: String,
    /// Commit of the hub repository, where the folder tells it.
    pub commit: Option<String>,
    /// Architecture.
    pub arch: String,
    /// Number of parameters, a tied head counted once.
    pub params: u64,
    /// Element type of the weights: the one, or those joined by `+`.
    pub dtype: String,
    /// Bytes of all source tensors that are used.
    pub bytes: u64,
}

/// The fate of one tensor.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedTensor {
    /// Name in the artifact.
    pub id: TensorId,
    /// Name in the checkpoint; of a tensor that a conversion makes, the names of those it is made
    /// of.
    pub source: String,
    /// Whether a conversion of attention makes it.
    pub converted: bool,
    /// Whether norms were folded into it, or it was rotated.
    pub rewritten: bool,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Element type in the checkpoint.
    pub source_dtype: DType,
    /// What the recipe asks for.
    pub scheme: Scheme,
    /// What it comes to.
    pub codec: TensorCodec,
    /// Columns that share a scale, for packed codecs.
    pub group: Option<usize>,
    /// Stored bytes.
    pub bytes: u64,
    /// Stored bits per weight, everything counted.
    pub bits_per_weight: f64,
    /// Why.
    pub reason: String,
    #[serde(skip)]
    pub(crate) storage: Storage,
}

impl PlannedTensor {
    /// Number of weights.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&d| d as u64).product()
    }

    /// How it is packed, if it is.
    pub(crate) fn packed(&self) -> Option<&PackedPlan> {
        match &self.storage {
            Storage::Dense(_) => None,
            Storage::Packed(packed) => Some(packed),
        }
    }

    /// Bytes in the checkpoint.
    fn source_bytes(&self) -> u64 {
        self.elements() * self.source_dtype.size() as u64
    }
}

/// Plans the conversion of `source` by `recipe`.
///
/// Errors name the tensor: a scheme that does not fit it, a rule that matches nothing, an
/// element type that weights are not read from.
pub fn plan(source: &Checkpoint, recipe: &Recipe) -> Result<Plan, Error> {
    let files = source.files();
    let resolved = source.resolved();
    let (spec, notices) = match &recipe.mla {
        Some(mla) => mla.converted(&resolved.spec)?,
        None => (recipe.rewrites.rewritten(&resolved.spec), Vec::new()),
    };
    if recipe.mla.is_some() && !recipe.rewrites.is_empty() {
        return Err(Error::RewrittenAttention {
            recipe: recipe.name.clone(),
        });
    }
    let rewritten = Rewritten::new(source, &recipe.rewrites);
    let shapes: BTreeMap<TensorId, Vec<usize>> = spec.tensors().into_iter().collect();
    let changed: BTreeSet<usize> = changed_layers(&resolved.spec, &spec).collect();
    let mut tensors = Vec::new();
    for assignment in recipe.assign(&spec)? {
        let id = assignment.id;
        let origin = match id
            .layer
            .filter(|l| id.role.is_mixer() && changed.contains(l))
        {
            Some(layer) => Origin::of_mixer(source, layer)?,
            None if rewritten.changes(id) => Origin::of_rewritten(source, id)?,
            None => Origin::of_tensor(source, id)?,
        };
        tensors.push(plan_tensor(origin, &shapes[&id], assignment, spec.tied)?);
    }
    let layout = SafetensorsLayout::new(tensors.iter().flat_map(entries).collect())?;
    let weights_bytes = layout.file_size();
    let params = resolved.spec.parameters();
    let mut side_bytes = 0;
    for file in files.side_files()? {
        side_bytes += file.size()?;
    }
    let name = SourceName::of(files.path());
    Ok(Plan {
        source: PlannedSource {
            id: name.id,
            commit: name.commit,
            arch: spec.arch.clone(),
            params,
            dtype: dtypes(&tensors),
            bytes: source_bytes(source),
        },
        recipe: recipe.name.clone(),
        dropped: resolved
            .dropped
            .iter()
            .map(|d| DroppedRecord {
                source: d.source.clone(),
                reason: d.reason.clone(),
            })
            .collect(),
        warnings: resolved
            .warnings
            .iter()
            .cloned()
            .chain(notices)
            .chain(rounded::warning(source, &tensors))
            .collect(),
        weights_bytes,
        bits_per_weight: weights_bytes as f64 * 8.0 / params as f64,
        peak_memory_bytes: estimate::memory(recipe, &resolved.spec, &tensors),
        disk_bytes: weights_bytes + side_bytes + estimate::waiting_bytes(&tensors) + REPORTS_BYTES,
        cached_numbers: cached_numbers(&spec),
        cached_numbers_source: cached_numbers(&resolved.spec),
        engines: EngineVerdict::all(&spec, latent_facts(recipe)),
        spec,
        mla: recipe.mla.clone(),
        rewrites: recipe.rewrites.clone(),
        recipe_toml: recipe.to_toml(),
        work_sha256: work_sha256(recipe),
        layout,
        tensors,
    })
}

fn work_sha256(recipe: &Recipe) -> String {
    let mut recipe = recipe.clone();
    recipe.limits = Limits::default();
    sha256(recipe.to_toml().as_bytes())
}

/// What is known of converted attention before it is converted.
fn latent_facts(recipe: &Recipe) -> LatentFacts {
    LatentFacts {
        stock_table: recipe.mla.as_ref().map(|mla| mla.stock_rope),
    }
}

/// Where a planned tensor comes from.
struct Origin {
    /// Its name in the checkpoint, or the names of what it is made of.
    source: String,
    dtype: DType,
    converted: bool,
    rewritten: bool,
}

impl Origin {
    /// The tensor of the same role.
    fn of_tensor(source: &Checkpoint, id: TensorId) -> Result<Self, Error> {
        let slots = &source.resolved().slots;
        let slot = slots.iter().find(|slot| slot.id == id);
        let slot = slot.ok_or(neuroconv_runtime::Error::NoTensor(id))?;
        let info = source.files().info(&slot.source);
        let found = info.ok_or(neuroconv_runtime::Error::NoTensor(id))?.dtype;
        let dtype = found.dense().ok_or_else(|| Error::SourceDType {
            tensor: id,
            name: slot.source.clone(),
            found,
        })?;
        Ok(Origin {
            source: slot.source.clone(),
            dtype,
            converted: false,
            rewritten: false,
        })
    }

    /// A tensor that exact changes of the graph make of one and of a norm.
    fn of_rewritten(source: &Checkpoint, id: TensorId) -> Result<Self, Error> {
        let unties = id.role == Role::Head && source.resolved().spec.tied;
        let role = if unties { Role::Embed } else { id.role };
        Ok(Origin {
            rewritten: true,
            ..Origin::of_tensor(source, TensorId { role, ..id })?
        })
    }

    /// All that mixes tokens in `layer`; the element type is that of the queries.
    fn of_mixer(source: &Checkpoint, layer: usize) -> Result<Self, Error> {
        let slots = source.resolved().slots.iter();
        let of_layer = slots.filter(|s| s.id.layer == Some(layer) && s.id.role.is_mixer());
        let mut names = Vec::new();
        for slot in of_layer {
            Origin::of_tensor(source, slot.id)?;
            names.push(slot.source.as_str());
        }
        Ok(Origin {
            source: names.join(", "),
            dtype: Origin::of_tensor(source, TensorId::layer(layer, Role::Q))?.dtype,
            converted: true,
            rewritten: false,
        })
    }
}

fn plan_tensor(
    origin: Origin,
    shape: &[usize],
    assignment: Assignment,
    tied: bool,
) -> Result<PlannedTensor, Error> {
    let Assignment {
        id,
        scheme,
        mut reason,
    } = assignment;
    let (storage, asked) = storage(id, shape, origin.dtype, &scheme)?;
    if origin.converted && id.role.kind() != RoleKind::Frequency {
        reason = format!("converted attention; {reason}");
    }
    if origin.rewritten {
        reason = format!("rewritten; {reason}");
    }
    if tied && id.role == Role::Embed {
        reason += "; also serves as the head";
    }
    let elements: u64 = shape.iter().map(|&d| d as u64).product();
    let bytes = storage.bytes(elements);
    let (codec, group) = match &storage {
        Storage::Dense(codec) => (*codec, None),
        Storage::Packed(packed) => (packed.layout.codec().into(), Some(packed.layout.group())),
    };
    if let (Some(group), Some(asked)) = (group, asked)
        && group != asked
    {
        let cols = shape.last().copied().unwrap_or_default();
        let _ = write!(
            reason,
            "; groups of {group} instead of {asked}: padding {cols} columns would cost more"
        );
    }
    Ok(PlannedTensor {
        id,
        source: origin.source,
        converted: origin.converted,
        rewritten: origin.rewritten,
        shape: shape.to_vec(),
        source_dtype: origin.dtype,
        scheme,
        codec,
        group,
        bytes,
        bits_per_weight: bytes as f64 * 8.0 / elements as f64,
        reason,
        storage,
    })
}

/// Bytes of all source tensors that are used.
fn source_bytes(source: &Checkpoint) -> u64 {
    let slots = source.resolved().slots.iter();
    let infos = slots.filter_map(|slot| source.files().info(&slot.source));
    infos.map(neuroconv_format::TensorInfo::size_bytes).sum()
}

fn cached_numbers(spec: &ModelSpec) -> usize {
    let layers = spec.layers.iter();
    layers.map(|layer| layer.mixer.cached_numbers()).sum()
}

fn dtypes(tensors: &[PlannedTensor]) -> String {
    let mut names: Vec<&str> = tensors.iter().map(|t| t.source_dtype.name()).collect();
    names.sort_unstable();
    names.dedup();
    names.join("+").to_lowercase()
}
