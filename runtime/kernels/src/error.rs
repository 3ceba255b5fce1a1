//! Why a view or an instruction set is refused.

/// What can be wrong with what this crate is given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The group size is none that a layout may have.
    #[error("group size {0} is not one of 32, 64, 128, 256")]
    Group(usize),
    /// A plane of a packed matrix does not have the length that its shape asks for.
    #[error("the {plane} of a packed {rows} x {cols} matrix take {expected} bytes, found {found}")]
    Length {
        /// `codes`, `scales` or `shifts`.
        plane: &'static str,
        /// Output features.
        rows: usize,
        /// Input features.
        cols: usize,
        /// Bytes needed.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// A packed matrix has no rows or no columns, or its size overflows.
    #[error("a matrix of {rows} x {cols} cannot be packed")]
    Size {
        /// Output features.
        rows: usize,
        /// Input features.
        cols: usize,
    },
    /// `NEUROCONV_ISA` names no instruction set.
    #[error("`NEUROCONV_ISA` is `{name}`, which names no instruction set")]
    UnknownIsa {
        /// The value found.
        name: String,
    },
    /// `NEUROCONV_ISA` names an instruction set that this processor lacks.
    #[error("`NEUROCONV_ISA` is `{name}`, which this processor does not have")]
    AbsentIsa {
        /// The value found.
        name: &'static str,
    },
    /// An instruction set that this processor says it has computes something else than the scalar
    /// path.
    #[error("`{name}` gives wrong products on this machine")]
    FaultyIsa {
        /// The instruction set.
        name: &'static str,
    },
}

impl Error {
    /// What to do about it, where there is something to do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::UnknownIsa { .. } | Error::AbsentIsa { .. } => {
                let names: Vec<&str> = crate::Isa::available().iter().map(|i| i.name()).collect();
                Some(format!("unset it, or choose one of: {}", names.join(", ")))
            }
            Error::FaultyIsa { .. } => Some(
                "set `NEUROCONV_ISA` to `scalar`, and suspect the processor or the virtual machine"
                    .to_owned(),
            ),
            Error::Group(_) | Error::Length { .. } | Error::Size { .. } => None,
        }
    }
}
