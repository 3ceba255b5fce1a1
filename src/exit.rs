//! Exit codes: what a script may rely on, and which error gives which.

use std::process::ExitCode;

/// The table of exit codes, as `--help` prints it.
pub(crate) const HELP: &str = "\
Exit codes:
  0    done
  1    internal bug, please report
  2    usage or recipe
  3    quality gate refused the artifact
  4    implementation parity failed
  5    input invalid or unsupported
  6    resources, output exists or is locked
  7    hub or network
  8    gate inconclusive
  130  interrupted, resumable";

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Everything asked for is done.
    Done = 0,
    /// An invariant of ours is broken.
    Bug = 1,
    /// Flags or recipe make no sense.
    Usage = 2,
    /// The artifact is worse than allowed.
    Refused = 3,
    /// The artifact does not do what its weights say.
    Parity = 4,
    /// The model, text or artifact is broken or of an unknown kind.
    Input = 5,
    /// Disk, memory, permissions, or an output that is taken.
    Resources = 6,
    /// The hub refused, or could not be reached.
    Hub = 7,
    /// The evaluation cannot tell.
    Inconclusive = 8,
    /// Stopped from outside.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}
