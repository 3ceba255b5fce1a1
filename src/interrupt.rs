//! Ctrl-C: says how to go on and leaves. Staged work is journaled, so nothing is lost.

use std::io::Write;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use crate::exit::Exit;
use crate::pipeline::INTERRUPTED;

/// How long the running tensor may take to end before the process is left where it is.
const GRACE: Duration = Duration::from_millis(1500);

/// What an interruption leaves behind, as the values of [`LEAVES`].
const NOTHING_TO_SAY: u8 = 0;
const WORK: u8 = 1;
const NO_OUTPUT: u8 = 2;

/// What the run that is watched would leave behind.
static LEAVES: AtomicU8 = AtomicU8::new(NOTHING_TO_SAY);

/// From now on ctrl-C stops at the next tensor or block, or after a moment wherever the run is, and tells
/// that the same command resumes it.
pub(crate) fn watch_resumable() {
    watch_for(WORK);
}

/// From now on ctrl-C stops at the next tensor, or after a moment wherever the run is. Nothing is kept.
pub(crate) fn watch() {
    watch_for(NO_OUTPUT);
}

/// From now on ctrl-C ends the program at once, as if nobody had watched.
pub(crate) fn unwatch() {
    LEAVES.store(NOTHING_TO_SAY, Ordering::Relaxed);
}

fn watch_for(leaves: u8) {
    LEAVES.store(leaves, Ordering::Relaxed);
    // The only error is that the handler is there already.
    let _ = ctrlc::set_handler(interrupted);
}

fn interrupted() {
    let leaves = LEAVES.load(Ordering::Relaxed);
    if leaves == NOTHING_TO_SAY {
        leave();
    }
    INTERRUPTED.store(true, Ordering::Relaxed);
    std::thread::sleep(GRACE);
    let text = match leaves {
        WORK => format!("\nerror: interrupted\nhint: {}\n", resume_hint()),
        _ => "\nerror: interrupted; nothing was written under the final name\n".to_owned(),
    };
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
    leave();
}

/// What to do after an interruption of the run that is watched.
pub(crate) fn hint() -> Option<String> {
    match LEAVES.load(Ordering::Relaxed) {
        WORK => Some(resume_hint()),
        NO_OUTPUT => Some("nothing was kept; the same command begins again".to_owned()),
        _ => None,
    }
}

/// What to do after an interruption that leaves work.
pub(crate) fn resume_hint() -> String {
    let command: Vec<String> = std::env::args().collect();
    format!(
        "the same command takes over what is finished:\n  {}",
        command.join(" ")
    )
}

#[expect(
    clippy::exit,
    reason = "a signal handler has nobody to return an exit code to"
)]
fn leave() -> ! {
    std::process::exit(Exit::Interrupted as i32)
}
