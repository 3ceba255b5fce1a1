//! Everything that can go wrong while a model is opened or run.

use std::path::PathBuf;

use neuroconv_recipes::TensorId;

/// Why a model could not be opened or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A container on disk is broken.
    #[error(transparent)]
    Format(#[from] neuroconv_format::Error),
    /// A configuration or its tensors do not resolve to a model.
    #[error(transparent)]
    Recipes(#[from] neuroconv_recipes::Error),
    /// The instruction set that the environment asks for cannot be had.
    #[error(transparent)]
    Kernels(#[from] neuroconv_kernels::Error),
    /// A file cannot be read; the error names it.
    #[error(transparent)]
    Io(#[from] std::io::Error),

    /// There is nothing at the path.
    #[error("`{path}` does not exist")]
    NotFound {
        /// What was asked for.
        path: PathBuf,
        /// The neighbour with the most similar name.
        near: Option<String>,
    },
    /// The path is a file, and no GGUF file.
    #[error("`{path}` is neither a model folder nor a GGUF file")]
    NotAFolder {
        /// What was asked for.
        path: PathBuf,
    },
    /// The folder holds neither a checkpoint nor an artifact.
    #[error("`{path}` holds no model: neither `config.json` nor `neuroconv/manifest.json`")]
    NoModel {
        /// What was asked for.
        path: PathBuf,
        /// A folder inside it that does hold one.
        inside: Option<String>,
        /// Whether it holds several GGUF files.
        several: bool,
    },
    /// A model that was split into several GGUF files.
    #[error("`{path}` is one of {files} files of a split model, which are not read")]
    SplitGguf {
        /// The file.
        path: PathBuf,
        /// How many there are.
        files: u64,
    },
    /// A model's files have no such tensor.
    #[error("`{path}` has no tensor `{tensor}`")]
    NoSuchTensor {
        /// The file.
        path: PathBuf,
        /// The name asked for.
        tensor: String,
    },
    /// Weights that are quantized in a way that is not known, or whose parts do not fit.
    #[error("`{path}`: {place} {problem}")]
    Quantization {
        /// The folder or file.
        path: PathBuf,
        /// Key or tensor.
        place: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The tokenizer of a GGUF file cannot be written as a `tokenizer.json`.
    #[error("`{path}`: metadata `{key}`: {problem}")]
    GgufTokenizer {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong with its value.
        problem: String,
    },
    /// The model description in a manifest cannot be read.
    #[error("`{path}`: the model description is not valid: {detail}")]
    ModelSpec {
        /// The artifact.
        path: PathBuf,
        /// What the parser said.
        detail: String,
    },

    /// The model has no such tensor.
    #[error("the model has no tensor `{0}`")]
    NoTensor(TensorId),
    /// A tensor has another shape than the model description says.
    #[error("tensor `{tensor}` has shape {found:?}, expected {expected:?}")]
    Shape {
        /// The tensor.
        tensor: TensorId,
        /// By the model description.
        expected: Vec<usize>,
        /// By the container.
        found: Vec<usize>,
    },
    /// A container holds a tensor that the model does not consist of.
    #[error("`{path}`: tensor `{tensor}` is no part of the model")]
    ExtraTensor {
        /// The artifact.
        path: PathBuf,
        /// Its name in the container.
        tensor: String,
    },
    /// A tensor is stored in a way that it cannot be computed with.
    #[error("tensor `{tensor}` is stored as `{codec}`, which cannot be computed with here")]
    Codec {
        /// The tensor.
        tensor: TensorId,
        /// How it is stored.
        codec: &'static str,
    },

    /// No token to run.
    #[error("there are no tokens to run")]
    NoTokens,
    /// A token id that the vocabulary does not have.
    #[error("token id {token} at place {place} is outside the vocabulary of {vocab}")]
    TokenRange {
        /// The id.
        token: u32,
        /// Its index among the tokens given.
        place: usize,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// More tokens than the model has positions for.
    #[error("{asked} positions are needed, the model handles {limit}")]
    Context {
        /// Positions after the call.
        asked: usize,
        /// Positions the source promises to handle.
        limit: usize,
    },
    /// A cache that was made for a model of another shape.
    #[error("the cache belongs to a model of another shape")]
    ForeignCache,

    /// A logit that no choice can be made from.
    #[error("the logit of token {token} is {value}")]
    BadLogit {
        /// The token.
        token: usize,
        /// NaN or an infinity.
        value: f32,
    },
    /// No logits, or only minus infinity.
    #[error("there is no token to choose from")]
    NoChoice,
    /// A sampling parameter outside its range.
    #[error("`{name}` is {found}, expected {expected}")]
    Sampling {
        /// The parameter.
        name: &'static str,
        /// Its value.
        found: String,
        /// Its range in words.
        expected: &'static str,
    },

    /// A side file of a model is missing.
    #[error("`{path}` is missing")]
    MissingFile {
        /// The file.
        path: PathBuf,
    },
    /// A side file is larger than any honest one.
    #[error("`{path}` has {found} bytes, the limit is {limit}")]
    FileSize {
        /// The file.
        path: PathBuf,
        /// Its size.
        found: u64,
        /// The cap.
        limit: u64,
    },
    /// A side file is not the JSON it should be.
    #[error("`{path}` is not valid: {detail}")]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong and where.
        detail: String,
    },
    /// A tokenizer uses something that is not supported here.
    #[error("`{path}`: {place} uses `{found}`, which is not supported")]
    TokenizerPart {
        /// The tokenizer file.
        path: PathBuf,
        /// Where in the file.
        place: String,
        /// What was found there.
        found: String,
    },
    /// A tokenizer contradicts itself or a limit.
    #[error("`{path}`: {place} {problem}")]
    Tokenizer {
        /// The tokenizer file.
        path: PathBuf,
        /// Where in the file.
        place: String,
        /// What is wrong there.
        problem: String,
    },
    /// The tokenizer library failed on this file or text.
    #[error("`{path}`: the tokenizer failed: {detail}")]
    TokenizerFailed {
        /// The tokenizer file.
        path: PathBuf,
        /// What it said.
        detail: String,
    },

    /// A model without a chat template.
    #[error("`{path}` has no chat template")]
    NoChatTemplate {
        /// The model folder.
        path: PathBuf,
    },
    /// A chat template that does not parse, or fails on these messages.
    #[error("`{path}`: the chat template failed: {detail}")]
    ChatTemplate {
        /// The file that holds the template.
        path: PathBuf,
        /// What the template engine said.
        detail: String,
    },
}

impl Error {
    /// What to do about it, where that can be said.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Format(error) => error.hint(),
            Error::Recipes(error) => error.hint(),
            Error::Kernels(error) => error.hint(),
            Error::NotFound {
                near: Some(near), ..
            } => Some(format!("did you mean `{near}`?")),
            Error::NotAFolder { path } => Some(match path.extension().and_then(|e| e.to_str()) {
                Some("safetensors" | "json") => {
                    "give the folder that holds the file and its `config.json`".to_owned()
                }
                Some("bin" | "pt" | "pth") => {
                    "only safetensors and GGUF weights are read".to_owned()
                }
                _ => "give a folder with `config.json` and safetensors weights, or a `.gguf` file".to_owned(),
            }),
            Error::NoModel {
                inside: Some(inside),
                ..
            } => Some(format!("did you mean the folder `{inside}` inside it?")),
            Error::NoModel { several: true, .. } => {
                Some("give one of its GGUF files by name".to_owned())
            }
            Error::NoModel { .. } => Some(
                "a model is a folder with `config.json` and safetensors weights, a GGUF file, or an artifact"
                    .to_owned(),
            ),
            Error::Quantization { .. } => {
                Some("start from the weights that it was quantized from".to_owned())
            }
            Error::SplitGguf { .. } => {
                Some("join them with `llama-gguf-split --merge`, then give the result".to_owned())
            }
            Error::ModelSpec { .. } | Error::Shape { .. } | Error::ExtraTensor { .. } => {
                Some("convert the model again, this copy is damaged or foreign".to_owned())
            }
            Error::TokenRange { .. } => Some("the tokenizer belongs to another model".to_owned()),
            Error::Context { limit, .. } => Some(format!(
                "shorten the text or the window to at most {limit} tokens"
            )),
            Error::BadLogit { .. } => {
                Some("the weights hold values that the model cannot run with".to_owned())
            }
            Error::MissingFile { path } if path.ends_with("tokenizer.json") => Some(
                "copy `tokenizer.json` of the source model into the folder; \
                 `tokenizer.model` alone is not read"
                    .to_owned(),
            ),
            Error::TokenizerPart { .. } | Error::Tokenizer { .. } => {
                Some("check that `tokenizer.json` is the one published with the model".to_owned())
            }
            Error::NoChatTemplate { .. } => {
                Some("this is a base model: give plain text instead of messages".to_owned())
            }
            _ => None,
        }
    }
}
