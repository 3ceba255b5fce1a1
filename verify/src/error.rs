//! Everything that can go wrong while models are compared and reports are written.

use neuroconv_recipes::TensorId;

/// Why a model could not be measured, judged or reported on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A model could not be read or run.
    #[error(transparent)]
    Model(#[from] neuroconv_runtime::Error),

    /// A tensor does not have the shape that the model description gives it.
    #[error("tensor `{id}`: expected shape {expected:?}, found {found:?}")]
    Shape {
        /// The tensor.
        id: TensorId,
        /// What the description says.
        expected: Vec<usize>,
        /// What was read.
        found: Vec<usize>,
    },

    /// A tensor's bytes are not as many as its layout or shape needs.
    #[error("tensor `{id}`: expected {expected} bytes, found {found}")]
    Bytes {
        /// The tensor.
        id: TensorId,
        /// What layout or shape need.
        expected: usize,
        /// What was read.
        found: usize,
    },

    /// The reference forward could not compute a step.
    #[error("reference forward failed at {place}")]
    Reference {
        /// Layer or step.
        place: String,
        /// The tensor library's reason.
        #[source]
        source: candle_core::Error,
    },

    /// A token id that the model has no embedding for.
    #[error("token id {token} is outside of the model's vocabulary of {vocab}")]
    Token {
        /// The id.
        token: u32,
        /// Number of ids the model knows.
        vocab: usize,
    },

    /// Original and artifact do not speak of the same tokens.
    #[error("vocabulary of the original is {base}, of the artifact {artifact}")]
    Vocabulary {
        /// Token ids of the original.
        base: usize,
        /// Token ids of the artifact.
        artifact: usize,
    },

    /// The system gives no more threads.
    #[error("cannot start a thread")]
    Threads(#[source] rayon::ThreadPoolBuildError),

    /// Too few tokens would be scored to say anything.
    #[error("{scored} tokens would be scored, at least {needed} are needed")]
    TooLittleText {
        /// Tokens that the text yields.
        scored: usize,
        /// Fewest tokens that are judged.
        needed: usize,
    },

    /// A window this short scores nothing.
    #[error("a context of {ctx} tokens scores nothing under protocol `{protocol}`")]
    ContextTooShort {
        /// Tokens per window.
        ctx: usize,
        /// The protocol's name.
        protocol: &'static str,
    },

    /// A window longer than the model promises to handle.
    #[error("a context of {ctx} tokens is longer than the {max} positions of the model")]
    ContextTooLong {
        /// Tokens per window.
        ctx: usize,
        /// Positions the model promises to handle.
        max: usize,
    },

    /// A word that names no protocol.
    #[error("`{0}` is not an evaluation protocol")]
    UnknownProtocol(String),

    /// The model that everything is compared with, or the only one, gives NaN or infinity.
    #[error("the measured model gives values that are not finite in window {window}")]
    NotFinite {
        /// Index of the first such window.
        window: usize,
    },

    /// The artifact gives NaN or infinity wherever it is asked.
    #[error("the artifact's logits are finite in none of {windows} windows")]
    NothingFinite {
        /// Windows that were scored.
        windows: usize,
    },

    /// The folder of cached logits cannot be read or written.
    #[error("the cache of logits cannot be used")]
    Cache(#[source] std::io::Error),

    /// A file that is no baseline of a version known here.
    #[error("not a baseline")]
    NotABaseline(#[source] serde_json::Error),

    /// A baseline that says nothing of this export.
    #[error("the baseline has no entry `{key}`")]
    NoBaseline {
        /// Source and recipe.
        key: String,
    },

    /// A baseline that was measured in another way.
    #[error("the baseline was measured with other {what}")]
    OtherBaseline {
        /// What is different.
        what: &'static str,
    },

    /// A report that cannot be written, most often because a number in it is not finite.
    #[error("the report cannot be written")]
    Report(#[source] serde_json::Error),

    /// A file that is not a report of a version known here.
    #[error("not a report of version {expected}")]
    NotAReport {
        /// The version written and read here.
        expected: u32,
        /// What the parser says.
        #[source]
        source: serde_json::Error,
    },
}

impl Error {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Model(e) => e.hint(),
            Error::TooLittleText { .. } => {
                Some("give a longer text, or a smaller `--ctx` if the text is all there is".into())
            }
            Error::ContextTooShort { .. } => Some("raise `--ctx`".into()),
            Error::ContextTooLong { max, .. } => Some(format!("use `--ctx {max}` or less")),
            Error::UnknownProtocol(_) => Some("use `windows` or `llamacpp-512`".into()),
            Error::Token { .. } | Error::Vocabulary { .. } => {
                Some("tokenizer and weights must come from the same checkpoint".into())
            }
            Error::NotFinite { .. } => Some(
                "the checkpoint itself is broken or overflows; nothing can be compared with it"
                    .into(),
            ),
            Error::NoBaseline { .. } | Error::OtherBaseline { .. } => {
                Some("measure anew with `--update-baseline`, and look at what changes".into())
            }
            Error::Cache(_) => Some("name another folder, or none".into()),
            _ => None,
        }
    }
}
