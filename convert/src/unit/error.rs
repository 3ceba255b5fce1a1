//! What can be wrong with units.

use std::path::PathBuf;

/// Why a conversion cannot be split, or its parts cannot be joined.
#[derive(Debug, thiserror::Error)]
pub enum UnitError {
    /// A unit or part is called otherwise.
    #[error("`{text}` is no unit or part: expected `I/N`, as in `2/4`, with I from 1 to N")]
    Spelled {
        /// What was found.
        text: String,
    },
    /// Parts of the conversion need each other.
    #[error("the conversion cannot be split: {why}")]
    NotSplit {
        /// Why.
        why: &'static str,
    },
    /// There is not so much to do.
    #[error("{units} units, but only {most} layers and tables")]
    TooMany {
        /// Units asked for.
        units: usize,
        /// Units there can be.
        most: usize,
    },
    /// There is not so much text.
    #[error("{parts} parts, but only {windows} windows of calibration text")]
    TooManyParts {
        /// Parts asked for.
        parts: usize,
        /// Windows there are.
        windows: usize,
    },
    /// There is nothing to merge.
    #[error("`{output}`: there are no units of it")]
    None {
        /// The output.
        output: PathBuf,
    },
    /// A folder is no finished unit.
    #[error("`{path}` is no finished unit: {reason}")]
    NotAUnit {
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A unit was made of something else.
    #[error("`{path}` is a unit of another conversion: {what} is `{found}`, expected `{expected}`")]
    Other {
        /// The folder.
        path: PathBuf,
        /// What differs.
        what: String,
        /// As merged.
        expected: String,
        /// As in the unit.
        found: String,
    },
    /// Units are missing.
    #[error("tensor `{tensor}` is in no unit; of {of} there are only {found}")]
    Missing {
        /// The first tensor.
        tensor: String,
        /// Units there should be.
        of: usize,
        /// Those that are there.
        found: String,
    },
    /// The bytes of a tensor are not those that were written.
    #[error("`{path}`: tensor `{tensor}` is damaged")]
    Damaged {
        /// The folder.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
}

impl UnitError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            UnitError::Spelled { .. } => "`neuroconv plan RECIPE MODEL --units N` lists the units",
            UnitError::NotSplit { .. } => {
                "convert on one machine, or round without calibration text: `--calib none`, or \
                 `--method rtn` with `--imatrix FILE`"
            }
            UnitError::TooMany { .. } => "ask for fewer units",
            UnitError::TooManyParts { .. } => {
                "ask for fewer parts, or give a longer text or more --calib-tokens"
            }
            UnitError::None { .. } => {
                "run the same conversion with `--unit I/N` for every I first, or name the folders"
            }
            UnitError::NotAUnit { .. } | UnitError::Damaged { .. } => {
                "remove the folder and run this unit again"
            }
            UnitError::Other { .. } => {
                "run all units with the same model, recipe, flags and version of this program"
            }
            UnitError::Missing { .. } => "run the units that are missing",
        }
    }
}
