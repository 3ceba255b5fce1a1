//! Ctrl-C: says how to go on and leaves. Staged work is journaled, so nothing is lost.

use std::io::Write;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::exit::Exit;
use crate::pipeline::INTERRUPTED;

/// How long the running tensor may take to end before the process is left where it is.
const GRACE: Duration = Duration::from_millis(1500);

/// From now on ctrl-C stops at the next tensor, or after a moment wherever the run is, and tells
/// that the same command resumes it.
pub(crate) fn watch_resumable() {
    // The only error is a handler that is already there, and that one does the same.
    let _ = ctrlc::set_handler(|| {
        INTERRUPTED.store(true, Ordering::Relaxed);
        std::thread::sleep(GRACE);
        let text = format!("\nerror: interrupted\nhint: {}\n", resume_hint());
        let _ = std::io::stderr().lock().write_all(text.as_bytes());
        leave();
    });
}

/// From now on ctrl-C stops at the next tensor, or after a moment wherever the run is. Nothing is kept.
pub(crate) fn watch() {
    let _ = ctrlc::set_handler(|| {
        INTERRUPTED.store(true, Ordering::Relaxed);
        std::thread::sleep(GRACE);
        let text = "\nerror: interrupted; nothing was written under the final name\n";
        let _ = std::io::stderr().lock().write_all(text.as_bytes());
        leave();
    });
}

/// What to do after an interruption.
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
