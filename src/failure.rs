//! Which exit code and which hint an error gets.
//!
//! Owns the mapping from every library's error to the table in [`crate::exit`]; the libraries know
//! no exit codes.

use std::io;

use crate::exit::Exit;

/// An error that lies in how the program was called.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Misuse {
    message: String,
    hint: String,
}

impl Misuse {
    pub(crate) fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Misuse { message: message.into(), hint: hint.into() }
    }
}

/// A command that this version does not have.
pub(crate) fn unsupported(command: &str) -> anyhow::Error {
    Misuse::new(
        format!("`neuroconv {command}` is not in this version"),
        "this version has inspect, plan, int8, int4, ternary, run, verify, eval, generate, diff and demo",
    )
    .into()
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
            return Failure { exit: Exit::Usage, hint: Some(misuse.hint.clone()) };
        }
        if let Some(e) = cause.downcast_ref::<neuroconv_convert::Error>() {
            return Failure { exit: convert(e), hint: e.hint() };
        }
        if let Some(e) = cause.downcast_ref::<neuroconv_verify::Error>() {
            return Failure { exit: verify(e), hint: e.hint() };
        }
        if let Some(e) = cause.downcast_ref::<neuroconv_runtime::Error>() {
            return Failure { exit: Exit::Input, hint: e.hint() };
        }
        if let Some(e) = cause.downcast_ref::<neuroconv_recipes::Error>() {
            return Failure { exit: recipes(e), hint: e.hint() };
        }
        if let Some(e) = cause.downcast_ref::<neuroconv_format::Error>() {
            return Failure { exit: Exit::Input, hint: e.hint() };
        }
        if let Some(e) = cause.downcast_ref::<io::Error>() {
            return Failure { exit: io_exit(e), hint: None };
        }
    }
    Failure { exit: Exit::Input, hint: None }
}
