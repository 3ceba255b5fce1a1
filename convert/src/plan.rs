//! What will become of every tensor, decided from headers alone.
//!
//! Owns the assignment of storage to tensors and the sizes that follow from it. Reads no
//! weights and writes nothing; any doubt is an error here, before the work begins.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;

use neuroconv_format::codec::{Codec, PackedLayout};
use neuroconv_format::manifest::DroppedRecord;
use neuroconv_format::writer::{self, SafetensorsLayout};
use neuroconv_format::{ActivationBits, CorrectionsPlan, DType, PartLayout, TensorCodec};
use neuroconv_quant::{Levels, QuantizeSpec, choose_group};
use neuroconv_recipes::{
    Apart, Assignment, KeepDtype, MlaRecipe, ModelSpec, Packed, PackedKind, Recipe, Role, RoleKind,
    Scheme, TensorId,
};
use neuroconv_runtime::Checkpoint;
use serde::Serialize;

use crate::Error;
use crate::mla::Options;
use crate::origin::SourceName;
use crate::pass::changed_layers;

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
    #[serde(skip)]
    pub(crate) spec: ModelSpec,
    #[serde(skip)]
    pub(crate) mla: Option<MlaRecipe>,
    #[serde(skip)]
    pub(crate) recipe_toml: String,
    #[serde(skip)]
    pub(crate) layout: SafetensorsLayout,
}

impl Plan {
    /// The description of the model that the artifact will hold.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
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

/// How a tensor will lie in the file.
#[derive(Clone, Debug)]
pub(crate) enum Storage {
    /// Elements of this type.
    Dense(TensorCodec),
    /// Codes in panels.
    Packed(Box<PackedPlan>),
}

/// How a matrix will be packed.
#[derive(Clone, Debug)]
pub(crate) struct PackedPlan {
    /// What to round to.
    pub(crate) spec: QuantizeSpec,
    /// The layout of the result.
    pub(crate) layout: PackedLayout,
    /// How finely activations are rounded that meet the codes.
    pub(crate) activations: ActivationBits,
    /// What it carries beside its codes.
    pub(crate) corrections: CorrectionsPlan,
    /// The same, part by part.
    pub(crate) parts: Vec<PartLayout>,
    /// What the recipe asks for.
    pub(crate) how: Packed,
    /// Columns stored apart in half precision, ascending, once they are known.
    pub(crate) outliers: Option<Arc<[u32]>>,
    /// What the squared error of each column weighs where it is rounded by itself, `[columns]`.
    pub(crate) importance: Option<Arc<[f32]>>,
}

impl PackedPlan {
    /// Bytes of codes, scales, shifts and parts.
    pub(crate) fn stored_bytes(&self) -> usize {
        let parts = self.parts.iter().map(PartLayout::size_bytes);
        parts.fold(self.layout.size_bytes(), usize::saturating_add)
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
        None => (resolved.spec.clone(), Vec::new()),
    };
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
            None => Origin::of_tensor(source, id)?,
        };
        tensors.push(plan_tensor(origin, &shapes[&id], assignment, spec.tied)?);
    }
    let layout = SafetensorsLayout::new(tensors.iter().flat_map(entries).collect())?;
    let weights_bytes = layout.file_size();
    let params = resolved.spec.parameters();
    let mut side_bytes = 0;
    for path in files.side_files()? {
        side_bytes += fs_err::metadata(path)?.len();
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
        warnings: resolved.warnings.iter().cloned().chain(notices).collect(),
        weights_bytes,
        bits_per_weight: weights_bytes as f64 * 8.0 / params as f64,
        peak_memory_bytes: peak_memory(&tensors).max(calibration_memory(recipe, &resolved.spec)),
        disk_bytes: weights_bytes + side_bytes + converted_bytes(&tensors) + REPORTS_BYTES,
        cached_numbers: cached_numbers(&spec),
        cached_numbers_source: cached_numbers(&resolved.spec),
        spec,
        mla: recipe.mla.clone(),
        recipe_toml: recipe.to_toml(),
        layout,
        tensors,
    })
}

/// Room for manifest, recipe, reports, card and journal.
pub(crate) const REPORTS_BYTES: u64 = 16 << 20;

/// Where a planned tensor comes from.
struct Origin {
    /// Its name in the checkpoint, or the names of what it is made of.
    source: String,
    dtype: DType,
    converted: bool,
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
    if tied && id.role == Role::Embed {
        reason += "; also serves as the head";
    }
    let elements: u64 = shape.iter().map(|&d| d as u64).product();
    let (codec, group, bytes) = match &storage {
        Storage::Dense(codec) => (*codec, None, elements * codec.dtype().size() as u64),
        Storage::Packed(packed) => (
            packed.layout.codec().into(),
            Some(packed.layout.group()),
            packed.stored_bytes() as u64,
        ),
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

/// The storage that a scheme comes to, and the group size it asks for.
fn storage(
    id: TensorId,
    shape: &[usize],
    source: DType,
    scheme: &Scheme,
) -> Result<(Storage, Option<usize>), Error> {
    let how = match scheme {
        Scheme::Keep { dtype } => {
            let codec = match (dtype, source) {
                (Some(KeepDtype::F32), _) | (None, DType::F32 | DType::U8) => TensorCodec::F32,
                (Some(KeepDtype::F16), _) | (None, DType::F16) => TensorCodec::F16,
                (Some(KeepDtype::Bf16), _) | (None, DType::BF16) => TensorCodec::Bf16,
            };
            return Ok((Storage::Dense(codec), None));
        }
        Scheme::Packed(packed) => *packed,
    };
    let &[rows, cols] = shape else {
        return Err(Error::NotAMatrix {
            tensor: id,
            scheme: how.kind.name(),
            shape: shape.to_vec(),
        });
    };
    let levels = levels(&how);
    let spec = QuantizeSpec {
        levels,
        group: choose_group(levels.codec(), rows, cols, how.group_size),
        threshold: how.threshold,
        shift: how.shift,
    };
    let layout = PackedLayout::new(levels.codec(), rows, cols, spec.group, spec.shift)
        .map_err(|source| Error::Layout { tensor: id, source })?;
    let corrections = corrections(&how, rows, cols);
    let parts = corrections.parts(rows, cols);
    let parts = parts.map_err(|source| Error::Layout { tensor: id, source })?;
    let packed = PackedPlan {
        spec,
        layout,
        activations: match how.activations {
            16 => ActivationBits::Sixteen,
            _ => ActivationBits::Eight,
        },
        corrections,
        parts,
        how,
        outliers: None,
        importance: None,
    };
    Ok((Storage::Packed(Box::new(packed)), Some(how.group_size)))
}

/// The corrections that a scheme gives a `[rows, cols]` matrix.
fn corrections(how: &Packed, rows: usize, cols: usize) -> CorrectionsPlan {
    let columns = match how.apart {
        // How many outliers there are is found in the calibration text.
        Apart::None | Apart::Outliers(_) => 0,
        Apart::Salient(share) => ((share * cols as f64).ceil() as usize).min(cols),
    };
    let group = choose_group(Codec::Int8, rows, columns.max(1), how.group_size);
    CorrectionsPlan {
        rank: how.correct_rank.min(rows).min(cols),
        columns,
        column_group: (columns > 0).then_some(group),
    }
}

/// The levels that a scheme rounds to.
fn levels(how: &Packed) -> Levels {
    match (how.kind, how.planes) {
        (PackedKind::Ternary, 2) => Levels::Nine,
        (PackedKind::Ternary, _) => Levels::Ternary,
        (PackedKind::Int4, _) => Levels::Int4,
        (PackedKind::Int8, _) => Levels::Int8,
    }
}

/// The entries of a tensor and its parts in the safetensors header.
pub(crate) fn entries(tensor: &PlannedTensor) -> Vec<writer::PlannedTensor> {
    let name = tensor.id.to_string();
    let (dtype, shape, parts) = match &tensor.storage {
        Storage::Dense(codec) => (codec.dtype(), tensor.shape.clone(), &[][..]),
        Storage::Packed(packed) => {
            let size = packed.layout.size_bytes();
            (DType::U8, vec![size], &packed.parts[..])
        }
    };
    let parts: Vec<writer::PlannedTensor> = parts.iter().map(|part| part.entry(&name)).collect();
    let own = writer::PlannedTensor { name, dtype, shape };
    [own].into_iter().chain(parts).collect()
}

/// While tensor `i` is quantized (f32 in, codes out), `i + 1` has been read (source bytes and
/// f32) and `i - 1` is being written.
fn peak_memory(tensors: &[PlannedTensor]) -> u64 {
    (0..tensors.len())
        .map(|i| {
            let before = i.checked_sub(1).map_or(0, |i| tensors[i].bytes);
            let after = tensors
                .get(i + 1)
                .map_or(0, |t| t.source_bytes() + t.elements() * 4);
            before + tensors[i].elements() * 4 + tensors[i].bytes + after
        })
        .max()
        .unwrap_or(0)
}

/// Tokens of calibration text that estimates count with before it is known.
const CALIBRATION_TOKENS: usize = 32_768;

/// The residual streams of source and converted model before and after a layer, and one layer's
/// weights with the sums that its conversion works on; the teacher's attention is bounded by what
/// the arithmetic is given for it. Zero where nothing learns from text.
fn calibration_memory(recipe: &Recipe, spec: &ModelSpec) -> u64 {
    if !recipe.learns() {
        return 0;
    }
    let known = recipe.calibration.as_ref().map(|c| c.tokens);
    let tokens = known.unwrap_or(CALIBRATION_TOKENS) as u64;
    let (hidden, layers) = (spec.hidden as u64, spec.layers.len().max(1) as u64);
    let tables = 2 * spec.vocab as u64 * hidden;
    let layer = spec.parameters().saturating_sub(tables) / layers;
    let sums = 4 * hidden * hidden * 8;
    let scores = (tokens * tokens.min(1024) * 4 * 32).min(Options::new(1, 0).score_bytes as u64);
    3 * tokens * hidden * 4 + 2 * layer * 4 + sums + scores
}

/// Bytes of all source tensors that are used.
fn source_bytes(source: &Checkpoint) -> u64 {
    let slots = source.resolved().slots.iter();
    let infos = slots.filter_map(|slot| source.files().info(&slot.source));
    infos.map(neuroconv_format::TensorInfo::size_bytes).sum()
}

/// Bytes in which converted tensors wait to be stored.
fn converted_bytes(tensors: &[PlannedTensor]) -> u64 {
    let converted = tensors.iter().filter(|t| t.converted);
    converted.map(|t| t.elements() * 4).sum()
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
