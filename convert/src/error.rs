//! Everything that can go wrong between a checkpoint and its artifact.

use std::io;
use std::path::{Path, PathBuf};

use neuroconv_format::codec::LayoutError;
use neuroconv_format::manifest::VerdictStatus;
use neuroconv_format::{DType, ElementType};
use neuroconv_recipes::TensorId;

/// Why a conversion stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file is missing, damaged or not what it claims to be.
    #[error(transparent)]
    Format(#[from] neuroconv_format::Error),
    /// The recipe or the architecture does not fit the model.
    #[error(transparent)]
    Recipe(#[from] neuroconv_recipes::Error),
    /// A plan that learns, and nothing to learn from.
    #[error("recipe `{recipe}` learns from calibration text, but there is none")]
    NoCalibration {
        /// The recipe.
        recipe: String,
    },
    /// An importance matrix does not fit the plan.
    #[error(transparent)]
    Importance(#[from] crate::ImportanceError),
    /// The source's weights were rounded before.
    #[error("`{path}`: its weights were rounded before ({found})")]
    Rounded {
        /// The source.
        path: PathBuf,
        /// How.
        found: String,
    },
    /// The source could not be opened.
    #[error(transparent)]
    Runtime(#[from] neuroconv_runtime::Error),
    /// The model could not be exported.
    #[error(transparent)]
    Export(#[from] crate::export::ExportError),
    /// The conversion could not be split or joined.
    #[error(transparent)]
    Unit(#[from] crate::unit::UnitError),
    /// Attention could not be converted.
    #[error(transparent)]
    Mla(#[from] crate::mla::Error),
    /// Reading or writing failed; the message names the path.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Reading or writing in the middle of a file, or a system call, failed.
    #[error("`{path}`: cannot {action}")]
    File {
        /// What was being done.
        action: &'static str,
        /// File or folder it was done to.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A tensor could not be quantized.
    #[error("tensor `{tensor}`: cannot be quantized")]
    Quantize {
        /// The tensor.
        tensor: TensorId,
        /// Why.
        #[source]
        source: neuroconv_quant::Error,
    },
    /// The asked group size or the shape of the tensor has no packed layout.
    #[error("tensor `{tensor}`: no packed layout")]
    Layout {
        /// The tensor.
        tensor: TensorId,
        /// Why.
        #[source]
        source: LayoutError,
    },
    /// The configuration is not a JSON object in text form.
    #[error("`{path}`: expected a JSON object")]
    ConfigNotObject {
        /// The configuration.
        path: PathBuf,
    },
    /// A recipe packs something that is not a matrix.
    #[error("tensor `{tensor}`: `{scheme}` needs a matrix, found shape {shape:?}")]
    NotAMatrix {
        /// The tensor.
        tensor: TensorId,
        /// Asked scheme.
        scheme: &'static str,
        /// Its dimensions.
        shape: Vec<usize>,
    },
    /// The source holds bytes where numbers are needed.
    #[error("tensor `{name}` (`{tensor}`): expected F32, F16 or BF16, found {found}")]
    SourceDType {
        /// The tensor.
        tensor: TensorId,
        /// Name in the checkpoint.
        name: String,
        /// Its element type.
        found: ElementType,
    },
    /// The source holds NaN or an infinity.
    #[error("tensor `{name}` (`{tensor}`): element {index} is {value}")]
    NonFinite {
        /// The tensor.
        tensor: TensorId,
        /// Name in the checkpoint.
        name: String,
        /// Flat index of the first such element.
        index: usize,
        /// Its value.
        value: f32,
    },
    /// The calibration text takes activations out of range.
    #[error("tensor `{tensor}`: its inputs for the calibration text are not finite")]
    NonFiniteInputs {
        /// The first matrix that reads them.
        tensor: TensorId,
    },
    /// A kept tensor, or a column that is kept apart, does not fit the element type that it is kept in.
    #[error("tensor `{tensor}`: element {index} is {value}, too large for {dtype}")]
    TooLarge {
        /// The tensor.
        tensor: TensorId,
        /// Flat index of the element.
        index: usize,
        /// Its value.
        value: f32,
        /// Asked element type.
        dtype: DType,
    },
    /// A tensor came out in other bytes than were planned.
    #[error("tensor `{tensor}`: planned {expected} bytes, produced {found}")]
    UnplannedSize {
        /// The tensor.
        tensor: TensorId,
        /// Planned bytes.
        expected: u64,
        /// Bytes produced.
        found: u64,
    },
    /// A source file changed while it was being converted.
    #[error("`{path}`: changed while it was being converted")]
    SourceChanged {
        /// The file.
        path: PathBuf,
    },
    /// The output path names no folder that could be made.
    #[error("`{path}`: not a name for an artifact")]
    OutputName {
        /// The path.
        path: PathBuf,
    },
    /// Something stands where the artifact should go.
    #[error("`{path}`: exists already")]
    OutputExists {
        /// The output.
        path: PathBuf,
    },
    /// What stands there was not written by this program, so it is not overwritten either.
    #[error(
        "`{path}`: not overwritten, `{foreign}` does not belong to an artifact of this program"
    )]
    OutputForeign {
        /// The output.
        path: PathBuf,
        /// What does not belong.
        foreign: PathBuf,
    },
    /// The very same conversion was finished by an earlier run, which was killed while cleaning
    /// up; its leftovers are removed now and nothing is left to do.
    #[error("`{path}`: finished by an earlier run, whose leftovers are removed now")]
    AlreadyFinished {
        /// The artifact.
        path: PathBuf,
    },
    /// Another run is working on the same output.
    #[error("`{path}`: locked by another run")]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The staging folder is a link or a file.
    #[error("`{path}`: stands where the staging folder should be made")]
    StagingForeign {
        /// The path.
        path: PathBuf,
    },
    /// There is not enough room.
    #[error("`{path}`: {needed} bytes needed, {free} free")]
    DiskSpace {
        /// A folder on the file system.
        path: PathBuf,
        /// Bytes still to be written.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// Converted attention and exact changes of the graph in one recipe.
    #[error("recipe `{recipe}` both converts attention and rewrites the graph")]
    RewrittenAttention {
        /// The recipe.
        recipe: String,
    },
    /// The user stopped the run; the same command goes on from there.
    #[error("interrupted with {done} of {total} {unit} done")]
    Interrupted {
        /// The staging folder that keeps them, once there is one.
        staging: Option<PathBuf>,
        /// How many are done.
        done: usize,
        /// How many there are.
        total: usize,
        /// What is counted.
        unit: &'static str,
    },
    /// The weights are not the ones that were measured.
    #[error("`{path}`: changed after it was measured, expected sha256 {expected}, found {found}")]
    WeightsChanged {
        /// The weights file.
        path: PathBuf,
        /// SHA-256 when measured.
        expected: String,
        /// SHA-256 now.
        found: String,
    },
    /// Only a verdict of `pass` or `waived` may leave the staging folder.
    #[error("an artifact with the verdict {verdict:?} is not emitted")]
    NotPassed {
        /// The verdict.
        verdict: VerdictStatus,
    },
}

impl Error {
    /// Wraps what the system said about `path`.
    pub(crate) fn file<E: Into<io::Error>>(
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Error {
        move |source| Error::File {
            action,
            path: path.to_owned(),
            source: source.into(),
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Error::Format(e) => return e.hint(),
            Error::Recipe(e) => return e.hint(),
            Error::Runtime(e) => return e.hint(),
            Error::Export(e) => return e.hint(),
            Error::Mla(e) => return e.hint(),
            Error::Unit(e) => e.hint(),
            Error::Importance(e) => return e.hint(),
            Error::Quantize { source, .. } => return source.hint(),
            Error::Rounded { .. } => {
                "start from the original weights, or pass --allow-requantize: it loses twice, and only \
                 the second loss is measured"
            }
            Error::NoCalibration { .. } => "name a text with --calib, or ask for `--method rtn`",
            Error::NotAMatrix { .. } => "give this role the scheme `keep` in the recipe",
            Error::NonFinite { .. } | Error::NonFiniteInputs { .. } => {
                "the checkpoint is damaged or was saved after training diverged; download it again"
            }
            Error::TooLarge { .. } => "keep this role in `bf16` or `f32`",
            Error::SourceChanged { .. } => {
                "run the command again once nothing writes to the source"
            }
            Error::OutputName { .. } => "give the artifact's folder by name, as in `-o out/NAME`",
            Error::OutputExists { .. } => "choose another name, or replace it with `--overwrite`",
            Error::OutputForeign { .. } => {
                "choose another name; `--overwrite` replaces complete artifacts and empty folders only"
            }
            Error::Locked { .. } => "wait until the other run has finished, or choose another name",
            Error::RewrittenAttention { .. } => "drop either `mla`, or `rewrite`",
            Error::StagingForeign { .. } => "move it away, or choose another name",
            Error::DiskSpace { .. } => "make room, or choose an output on another disk",
            Error::Interrupted {
                staging: Some(folder),
                ..
            } => {
                return Some(format!(
                    "the same command goes on from there; the work is kept in `{}`",
                    folder.display()
                ));
            }
            Error::WeightsChanged { .. } => "something else wrote to the staging folder; run again",
            _ => return None,
        };
        Some(hint.to_owned())
    }

    /// Whether the work done so far is worth keeping, so that the same command can go on.
    pub(crate) fn is_resumable(&self) -> bool {
        matches!(
            self,
            Error::Interrupted { .. } | Error::Io(_) | Error::File { .. } | Error::DiskSpace { .. }
        )
    }
}
