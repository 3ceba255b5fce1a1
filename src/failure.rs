//! Which exit code and which hint an error gets.
//!
//! Owns the mapping from every library's error to the table in [`crate::exit`]; the libraries know
//! no exit codes.

use std::io;

use neuroconv_convert::export::ExportError;
use neuroconv_convert::hub::HubError;
use neuroconv_convert::unit::UnitError;
use neuroconv_convert::{Error as ConvertError, ImportanceError};
use neuroconv_recipes::Error as RecipeError;
use neuroconv_verify::Error as VerifyError;

use crate::exit::Exit;
use crate::interrupt;
use crate::memory::TooLittleMemory;

/// An error that lies in how the program was called.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Misuse {
    message: String,
    hint: String,
}

impl Misuse {
    pub(crate) fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Misuse {
            message: message.into(),
            hint: hint.into(),
        }
    }
}

/// What an error means for the caller.
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    pub(crate) hint: Option<String>,
}

/// Finds the most specific known error in the chain.
pub(crate) fn classify(error: &anyhow::Error) -> Failure {
    for cause in error.chain() {
        if let Some(misuse) = cause.downcast_ref::<Misuse>() {
            return Failure {
                exit: Exit::Usage,
                hint: Some(misuse.hint.clone()),
            };
        }
        if cause.downcast_ref::<TooLittleMemory>().is_some() {
            return Failure {
                exit: Exit::Resources,
                hint: Some(TooLittleMemory::HINT.to_owned()),
            };
        }
        if let Some(e) = cause.downcast_ref::<ConvertError>() {
            return convert(e);
        }
        if let Some(e) = cause.downcast_ref::<HubError>() {
            return hub(e);
        }
        if let Some(e) = cause.downcast_ref::<VerifyError>() {
            return Failure {
                exit: verify(e),
                hint: e.hint(),
            };
        }
        if let Some(e) = cause.downcast_ref::<neuroconv_runtime::Error>() {
            return Failure {
                exit: Exit::Input,
                hint: e.hint(),
            };
        }
        if let Some(e) = cause.downcast_ref::<RecipeError>() {
            return Failure {
                exit: recipe(e),
                hint: e.hint(),
            };
        }
        if let Some(e) = cause.downcast_ref::<neuroconv_format::Error>() {
            return Failure {
                exit: Exit::Input,
                hint: e.hint(),
            };
        }
        if let Some(e) = cause.downcast_ref::<io::Error>() {
            return Failure {
                exit: io(e),
                hint: None,
            };
        }
    }
    Failure {
        exit: Exit::Input,
        hint: None,
    }
}

fn convert(error: &ConvertError) -> Failure {
    let exit = match error {
        ConvertError::Recipe(e) => recipe(e),
        ConvertError::Io(e) | ConvertError::Export(ExportError::Io(e)) => io(e),
        ConvertError::Export(ExportError::Interrupted) => Exit::Interrupted,
        ConvertError::OutputName { .. }
        | ConvertError::RewrittenAttention { .. }
        | ConvertError::Export(ExportError::Packing { .. } | ExportError::Recipe(_))
        | ConvertError::Unit(
            UnitError::Spelled { .. }
            | UnitError::NotSplit { .. }
            | UnitError::TooMany { .. }
            | UnitError::TooManyParts { .. },
        )
        | ConvertError::Importance(ImportanceError::Contradiction { .. }) => Exit::Usage,
        ConvertError::File { .. }
        | ConvertError::OutputExists { .. }
        | ConvertError::OutputForeign { .. }
        | ConvertError::AlreadyFinished { .. }
        | ConvertError::Locked { .. }
        | ConvertError::StagingForeign { .. }
        | ConvertError::DiskSpace { .. } => Exit::Resources,
        ConvertError::Interrupted { .. } => {
            return Failure {
                exit: Exit::Interrupted,
                hint: interrupt::hint(),
            };
        }
        ConvertError::UnplannedSize { .. } | ConvertError::NotPassed { .. } => Exit::Bug,
        _ => Exit::Input,
    };
    Failure {
        exit,
        hint: error.hint(),
    }
}

fn hub(error: &HubError) -> Failure {
    let exit = match error {
        HubError::Name { .. } | HubError::Setting { .. } => Exit::Usage,
        HubError::Pickle { .. } | HubError::OnlyGguf { .. } | HubError::NoModel { .. } => {
            Exit::Input
        }
        HubError::DiskSpace { .. } | HubError::File { .. } => Exit::Resources,
        HubError::Interrupted { .. } => {
            return Failure {
                exit: Exit::Interrupted,
                hint: Some(interrupt::resume_hint()),
            };
        }
        _ => Exit::Hub,
    };
    Failure {
        exit,
        hint: error.hint(),
    }
}

fn verify(error: &VerifyError) -> Exit {
    match error {
        VerifyError::UnknownProtocol(_)
        | VerifyError::ContextTooShort { .. }
        | VerifyError::ContextTooLong { .. }
        | VerifyError::NoBaseline { .. }
        | VerifyError::OtherBaseline { .. } => Exit::Usage,
        VerifyError::Cache(_) => Exit::Resources,
        VerifyError::Reference { .. } | VerifyError::Report(_) => Exit::Bug,
        _ => Exit::Input,
    }
}

fn recipe(error: &RecipeError) -> Exit {
    match error {
        RecipeError::UnknownRecipe { .. }
        | RecipeError::RecipeSyntax { .. }
        | RecipeError::RecipeTooLong { .. }
        | RecipeError::RecipeSchema { .. }
        | RecipeError::RecipeValue { .. }
        | RecipeError::BadLimit { .. }
        | RecipeError::GroupSize { .. }
        | RecipeError::Threshold { .. }
        | RecipeError::NothingToSet { .. }
        | RecipeError::Packing { .. }
        | RecipeError::NothingToLearnFrom { .. }
        | RecipeError::UnusedRule { .. }
        | RecipeError::NoSuchLayer { .. }
        | RecipeError::NotAMatrix { .. }
        | RecipeError::MlaCacheGrows { .. }
        | RecipeError::MlaRopeDim { .. }
        | RecipeError::MlaStockRope { .. }
        | RecipeError::MlaNoSuchLayer { .. }
        | RecipeError::MlaNothingLeft => Exit::Usage,
        _ => Exit::Input,
    }
}

fn io(error: &io::Error) -> Exit {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
            Exit::Input
        }
        _ => Exit::Resources,
    }
}
