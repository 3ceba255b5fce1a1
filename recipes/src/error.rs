//! Everything that can be wrong with a configuration, a list of tensors or a recipe.

use std::fmt;

use crate::role::TensorId;
use crate::suggest::listed;

/// How many of many tensors a message names.
pub(crate) const NAMED: usize = 5;

/// Why a checkpoint or a recipe was refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A configuration file holds something other than an object.
    #[error("{file}: expected a JSON object")]
    NotAnObject {
        /// Name of the file.
        file: &'static str,
    },
    /// The configuration says neither `architectures` nor `model_type`.
    #[error("config.json: neither `architectures` nor `model_type` says what this model is")]
    NoArchitecture,
    /// No architecture file knows this name.
    #[error("architecture `{found}` is not supported")]
    UnknownArchitecture {
        /// The name given.
        found: String,
        /// A supported name like it.
        near: Option<String>,
        /// Every supported name of the same kind.
        supported: Vec<String>,
    },
    /// A key without which the model cannot be described.
    #[error("{file}: `{key}` is missing")]
    MissingKey {
        /// Name of the file.
        file: &'static str,
        /// Path of the key.
        key: String,
    },
    /// A value of the wrong type or out of range.
    #[error("{file}: `{key}`: expected {expected}, found `{found}`")]
    BadValue {
        /// Name of the file.
        file: &'static str,
        /// Path of the key.
        key: String,
        /// What may stand there.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// A setting that changes the arithmetic in a way the runtime does not have.
    #[error("{file}: `{key}` is `{found}`, supported is only {supported}")]
    Unsupported {
        /// Name of the file.
        file: &'static str,
        /// Path of the key.
        key: String,
        /// What stands there.
        found: String,
        /// What is supported.
        supported: String,
    },
    /// Two settings that contradict each other.
    #[error("config.json: `{key}` is `{value}`, but `{other_key}` is `{other_value}`")]
    Conflict {
        /// Path of one key.
        key: String,
        /// Its value.
        value: String,
        /// Path of the other key.
        other_key: String,
        /// Its value.
        other_value: String,
    },
    /// A model description, such as that of a manifest, that no model can have.
    #[error("model description: `{field}`: expected {expected}, found `{found}`")]
    InvalidSpec {
        /// Path of the field.
        field: String,
        /// What may stand there.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// A checkpoint lists a name twice.
    #[error("tensor `{name}` appears more than once")]
    DuplicateTensor {
        /// Name in the checkpoint.
        name: String,
    },
    /// Tensors the model needs and the checkpoint lacks.
    #[error("{} missing: {}", counted(*.count), named(.first, *.count))]
    MissingTensors {
        /// The first of them.
        first: Vec<MissingTensor>,
        /// How many there are.
        count: usize,
        /// A tensor of the checkpoint that nothing uses and whose name is like the first one's.
        near: Option<String>,
    },
    /// Tensors of the checkpoint that the architecture does not know.
    #[error("{} unknown to architecture `{arch}`: {}", counted(*.count), named(.first, *.count))]
    UnknownTensors {
        /// Name of the architecture file.
        arch: String,
        /// The first of them.
        first: Vec<UnknownTensor>,
        /// How many there are.
        count: usize,
    },
    /// Tensors whose shape is not the one the configuration asks for.
    #[error("{} of the wrong shape: {}", counted(*.count), named(.first, *.count))]
    WrongShapes {
        /// The first of them.
        first: Vec<WrongShape>,
        /// How many there are.
        count: usize,
    },
    /// No built-in recipe has this name.
    #[error("there is no built-in recipe `{name}`")]
    UnknownRecipe {
        /// The name given.
        name: String,
        /// A built-in name like it.
        near: Option<String>,
        /// Every built-in name.
        known: Vec<String>,
    },
    /// A recipe that is not TOML or uses words recipes do not have.
    #[error("{origin}: {detail}")]
    RecipeSyntax {
        /// Where the text comes from.
        origin: String,
        /// Line, column, an excerpt with a caret, and what is wrong.
        detail: String,
        /// A word that may have been meant.
        near: Option<String>,
    },
    /// A recipe larger than any recipe is.
    #[error("{origin}: a recipe has at most {limit} bytes, found {found}")]
    RecipeTooLong {
        /// Where the text comes from.
        origin: String,
        /// Bytes a recipe may have.
        limit: usize,
        /// Bytes found.
        found: usize,
    },
    /// A recipe of another version of the language.
    #[error("{origin}: recipe schema {found} is not supported, supported is 1")]
    RecipeSchema {
        /// Where the text comes from.
        origin: String,
        /// The schema asked for.
        found: u32,
    },
    /// A well-formed setting of a recipe with a value that makes no sense.
    #[error("{place}: `{key}`: expected {expected}, found `{found}`")]
    RecipeValue {
        /// Recipe or rule.
        place: String,
        /// The setting.
        key: &'static str,
        /// What may stand there.
        expected: &'static str,
        /// What stands there.
        found: String,
    },
    /// A layer that latent attention cannot stand for.
    #[error("layer {layer}: cannot become latent attention: {reason}")]
    MlaUnsupported {
        /// The layer.
        layer: usize,
        /// Why.
        reason: &'static str,
    },
    /// Latent attention that would remember more per token than its source.
    #[error(
        "layer {layer}: rank {rank} and rope dimension {rope_dim} would cache {} numbers per token, \
         the source {source_numbers}",
        rank + rope_dim
    )]
    MlaCacheGrows {
        /// The layer.
        layer: usize,
        /// Width of the latent.
        rank: usize,
        /// Width of the rotated key.
        rope_dim: usize,
        /// Numbers the source caches.
        source_numbers: usize,
    },
    /// More rotated channels than there are.
    #[error("layer {layer}: rope dimension {asked}, but the keys have {most} channels")]
    MlaRopeDim {
        /// The layer.
        layer: usize,
        /// Channels asked for.
        asked: usize,
        /// Channels there are.
        most: usize,
    },
    /// Stock frequencies for a width they do not exist for.
    #[error(
        "layer {layer}: stock frequencies need a rope dimension that divides {head_dim}, found {asked}"
    )]
    MlaStockRope {
        /// The layer.
        layer: usize,
        /// Channels asked for.
        asked: usize,
        /// Width of one head.
        head_dim: usize,
    },
    /// A layer to be kept that does not exist.
    #[error("layer {layer} is to be kept, but the model has {layers}")]
    MlaNoSuchLayer {
        /// The layer.
        layer: usize,
        /// Layers of the model.
        layers: usize,
    },
    /// All layers are to be kept.
    #[error("every layer is to be kept, so nothing would become latent attention")]
    MlaNothingLeft,
    /// A limit that could never be judged.
    #[error("limit `{key}`: expected {expected}, found `{found}`")]
    BadLimit {
        /// The limit.
        key: &'static str,
        /// What may stand there.
        expected: &'static str,
        /// What stands there.
        found: f64,
    },
    /// A group size that no packed layout has.
    #[error("group size {found} is not one of 32, 64, 128, 256")]
    GroupSize {
        /// The size asked for.
        found: usize,
    },
    /// A way of packing that cannot be.
    #[error("`{key}` of a scheme of type `{kind}`: {reason}")]
    Packing {
        /// The key of the scheme.
        key: &'static str,
        /// Its type.
        kind: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A recipe that learns, without anything to learn from.
    #[error("recipe `{recipe}` learns from calibration text, but there is none")]
    NothingToLearnFrom {
        /// The recipe.
        recipe: String,
    },
    /// A word that names no threshold.
    #[error("`{found}` is not a ternary threshold")]
    Threshold {
        /// The word given.
        found: String,
    },
    /// An override that finds nothing to override.
    #[error("recipe `{recipe}` has no rule that {what} could apply to")]
    NothingToSet {
        /// Name of the recipe.
        recipe: String,
        /// The setting.
        what: &'static str,
    },
    /// A rule that selects no tensor of this model.
    #[error("recipe `{recipe}`: rule {rule} ({selects}) matches no tensor of this model")]
    UnusedRule {
        /// Name of the recipe.
        recipe: String,
        /// Number of the rule, counted from 1.
        rule: usize,
        /// What the rule asks for.
        selects: String,
    },
    /// A rule that names a layer the model does not have.
    #[error("recipe `{recipe}`: rule {rule}: layer {layer} does not exist, the model has {layers}")]
    NoSuchLayer {
        /// Name of the recipe.
        recipe: String,
        /// Number of the rule, counted from 1.
        rule: usize,
        /// The layer asked for.
        layer: usize,
        /// Layers of the model.
        layers: usize,
    },
    /// A packed scheme for something that is no matrix.
    #[error("recipe `{recipe}`: {place} packs `{tensor}` as {scheme}, but it is no matrix")]
    NotAMatrix {
        /// Name of the recipe.
        recipe: String,
        /// The rule, or `otherwise`.
        place: String,
        /// The tensor.
        tensor: TensorId,
        /// Name of the scheme.
        scheme: &'static str,
    },
}

/// A tensor the model needs and the checkpoint lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingTensor {
    /// Name it would have in the checkpoint.
    pub name: String,
    /// What it is for.
    pub id: TensorId,
}

/// A tensor the architecture does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownTensor {
    /// Name in the checkpoint.
    pub name: String,
    /// Why it has no place, where that is known.
    pub reason: Option<UnknownReason>,
}

/// Why a tensor has no place in a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnknownReason {
    /// The name belongs to a layer beyond the last.
    LayerBeyond {
        /// Layers of the model.
        layers: usize,
    },
    /// The architecture has a place for it that this configuration turns off.
    TurnedOff(TensorId),
    /// It may be a misspelt form of this name.
    Near(String),
}

/// A tensor whose shape is not the one the configuration asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrongShape {
    /// Name in the checkpoint.
    pub name: String,
    /// What it is for.
    pub id: TensorId,
    /// Shape the configuration asks for.
    pub expected: Vec<usize>,
    /// Shape of the tensor.
    pub found: Vec<usize>,
}

impl fmt::Display for MissingTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` (`{}`)", self.name, self.id)
    }
}

impl fmt::Display for UnknownTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.name)
    }
}

impl fmt::Display for WrongShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WrongShape {
            name,
            id,
            expected,
            found,
        } = self;
        write!(
            f,
            "`{name}` (`{id}`): expected {expected:?}, found {found:?}"
        )
    }
}

/// "1 tensor" or "7 tensors".
fn counted(count: usize) -> String {
    format!("{count} tensor{}", if count == 1 { "" } else { "s" })
}

/// The named ones, and how many more there are.
fn named<T: fmt::Display>(items: &[T], count: usize) -> String {
    let mut out: Vec<String> = items.iter().map(ToString::to_string).collect();
    if count > items.len() {
        out.push(format!("and {} more", count - items.len()));
    }
    out.join(", ")
}

impl Error {
    /// What the reader can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::NotAnObject { .. } => Some("the file may be damaged; fetch it again".to_owned()),
            Error::NoArchitecture => Some(
                "add \"architectures\" to config.json, as the tool that saved the model would".to_owned(),
            ),
            Error::UnknownArchitecture { near, supported, .. } => Some(with_list(near.as_ref(), supported)),
            Error::MissingKey { .. } => Some(
                "its absence has no agreed meaning for this architecture; take it from the model's origin"
                    .to_owned(),
            ),
            Error::BadValue { .. } | Error::NothingToSet { .. } | Error::RecipeTooLong { .. } => None,
            Error::Unsupported { .. } => Some(
                "the model computes something the runtime does not, so a conversion would be wrong; \
                 remove the key only if the model is known to ignore it"
                    .to_owned(),
            ),
            Error::Conflict { .. } => {
                Some("keep the one the model was trained with and remove the other".to_owned())
            }
            Error::InvalidSpec { .. } => {
                Some("the description was damaged or made by hand; convert the model again".to_owned())
            }
            Error::DuplicateTensor { .. } => Some("two shards hold it; fetch the checkpoint again".to_owned()),
            Error::MissingTensors { near, .. } => Some(match near {
                Some(name) => format!("the checkpoint has `{name}`, which nothing uses"),
                None => "a shard may be missing or the download cut short".to_owned(),
            }),
            Error::UnknownTensors { first, .. } => first.first().and_then(UnknownTensor::hint),
            Error::WrongShapes { first, .. } => first.first().map(WrongShape::hint),
            Error::UnknownRecipe { near, known, .. } => Some(with_list(near.as_ref(), known)),
            Error::RecipeSyntax { near, .. } => near.as_ref().map(|n| format!("did you mean `{n}`?")),
            Error::RecipeSchema { .. } => Some("write `schema = 1`, or use a newer neuroconv".to_owned()),
            Error::RecipeValue { .. } | Error::BadLimit { .. } => {
                Some("leave the key out for the default".to_owned())
            }
            Error::Packing { .. } => Some("leave the key out for the default".to_owned()),
            Error::NothingToLearnFrom { .. } => {
                Some("name a text with --calib, or leave out corrections and columns".to_owned())
            }
            Error::GroupSize { .. } => Some("128 suits most models, 64 small ones".to_owned()),
            Error::Threshold { .. } => Some(
                "thresholds are `mse`, `twn`, `entropy-max`, `sparsity:0.5` and `rd:LAMBDA`".to_owned(),
            ),
            Error::UnusedRule { .. } => {
                Some("remove the rule, or choose roles and layers that this model has".to_owned())
            }
            Error::MlaUnsupported { layer, .. } => Some(format!("keep the layer as it is: --keep-layers {layer}")),
            Error::MlaCacheGrows { source_numbers, rope_dim, .. } => Some(format!(
                "ask for --kv-budget 0.5 or a rank below {}; --force converts all the same",
                source_numbers.saturating_sub(*rope_dim)
            )),
            Error::MlaRopeDim { most, .. } => Some(format!("ask for --rope-dim {most} or less")),
            Error::MlaStockRope { head_dim, .. } => {
                Some(format!("ask for --rope-dim {head_dim} or {}", head_dim / 2))
            }
            Error::MlaNothingLeft => Some("keep fewer layers".to_owned()),
            Error::MlaNoSuchLayer { .. } | Error::NoSuchLayer { .. } => Some("layers are counted from 0".to_owned()),
            Error::NotAMatrix { .. } => {
                Some("put a rule before it that keeps `norm` and `bias` as `f32`".to_owned())
            }
        }
    }
}

impl UnknownTensor {
    fn hint(&self) -> Option<String> {
        Some(match self.reason.as_ref()? {
            UnknownReason::LayerBeyond { layers } => {
                format!("config.json gives the model {layers} layers")
            }
            UnknownReason::TurnedOff(id) => {
                format!("it would be `{id}`, which config.json turns off")
            }
            UnknownReason::Near(name) => format!("did you mean `{name}`?"),
        })
    }
}

impl WrongShape {
    fn hint(&self) -> String {
        let turned: Vec<usize> = self.found.iter().rev().copied().collect();
        if turned == self.expected {
            "the matrix lies transposed".to_owned()
        } else {
            "config.json and weights belong to different models, or tensors were swapped".to_owned()
        }
    }
}

/// "did you mean …; supported are …".
fn with_list(near: Option<&String>, all: &[String]) -> String {
    match near {
        Some(name) => format!("did you mean `{name}`? supported: {}", listed(all)),
        None => format!("supported: {}", listed(all)),
    }
}
