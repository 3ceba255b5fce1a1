//! One file per command: resolves what was typed, calls the libraries, prints through `ui`.

pub(crate) mod convert;
pub(crate) mod demo;
pub(crate) mod diff;
pub(crate) mod eval;
pub(crate) mod generate;
pub(crate) mod inspect;
pub(crate) mod plan;
pub(crate) mod verify;
