//! Kills a conversion at every event that it reports, and goes on with the same command.
//!
//! Runs itself as the child that dies, so it has a `main` of its own: `kill child SOURCE OUTPUT
//! EVENT SYNC_BYTES OVERWRITE` converts and aborts at the event of that number.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(
    clippy::print_stdout,
    reason = "the child tells its events, the parent its findings"
)]

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use neuroconv_convert::{Error, Staging};
use neuroconv_runtime::{Progress, Quiet};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let [_, word, source, output, event, sync_bytes, overwrite] = args.as_slice()
        && word == "child"
    {
        let run = Run {
            sync_bytes: sync_bytes.parse().unwrap(),
            overwrite: overwrite == "true",
        };
        let progress = Dies {
            at: event.parse().unwrap(),
            state: Mutex::default(),
        };
        run.convert(source.as_ref(), output.as_ref(), &progress)
            .unwrap();
        return;
    }
    for (sync_bytes, overwrite) in [(1, false), (1 << 30, true)] {
        let points = Run {
            sync_bytes,
            overwrite,
        }
        .kill_everywhere();
        println!(
            "killed at {points} events (journal every {sync_bytes} bytes, overwriting: {overwrite}): nothing lost"
        );
    }
}

/// One way to run the conversion, the same before and after the kill.
struct Run {
    sync_bytes: u64,
    overwrite: bool,
}

impl Run {
    /// The whole conversion as a program would run it; how many tensors it took over.
    fn convert(
        &self,
        source: &Path,
        output: &Path,
        progress: &dyn Progress,
    ) -> Result<usize, Error> {
        let recipe = common::plain("ternary")?;
        let staging = Staging::open(output, self.overwrite)?.sync_every(self.sync_bytes);
        let staged = common::stage(source, &recipe, staging, progress, &AtomicBool::new(false))?;
        let resumed = staged.resumed();
        staged.emit(&common::passed(), progress)?;
        Ok(resumed)
    }

    /// Kills at every event, then runs again; returns the number of kills.
    fn kill_everywhere(&self) -> usize {
        let dir = tempfile::tempdir().unwrap();
        let [source, old, new] = ["source", "old", "new"].map(|name| dir.path().join(name));
        common::write_checkpoint(&source, 1, |_, _| {});
        self.convert(&source, &new, &Quiet).unwrap();
        let reference = common::tree(&new);
        common::convert(&source, "int8", &old).unwrap();
        for event in 1.. {
            let parent = dir.path().join("out");
            let output = parent.join("model");
            fs_err::create_dir(&parent).unwrap();
            if self.overwrite {
                copy_tree(&old, &output);
            }
            let before = output.exists().then(|| common::tree(&output));
            let child = Command::new(std::env::current_exe().unwrap())
                .args([Path::new("child"), &source, &output])
                .args([
                    event.to_string(),
                    self.sync_bytes.to_string(),
                    self.overwrite.to_string(),
                ])
                .output()
                .unwrap();
            if child.status.success() {
                assert_eq!(common::tree(&output), reference);
                return event - 1;
            }
            let log = String::from_utf8(child.stdout).unwrap();
            assert_eq!(log.lines().count(), event, "the kill did not land: {log}");
            self.check_after_kill(&log, &source, &output, before.as_ref(), &reference);
            assert_eq!(
                common::names(&parent),
                ["model"],
                "leftovers after event {event}"
            );
            fs_err::remove_dir_all(&parent).unwrap();
        }
        unreachable!("a run reports finitely many events")
    }

    fn check_after_kill(
        &self,
        log: &str,
        source: &Path,
        output: &Path,
        before: Option<&common::Tree>,
        reference: &common::Tree,
    ) {
        let event = log.lines().count();
        let found = output.exists().then(|| common::tree(output));
        let published = found.as_ref() == Some(reference);
        assert!(
            published || found.as_ref() == before,
            "partial output after event {event}"
        );
        match self.convert(source, output, &Quiet) {
            Ok(resumed) => {
                let finished = log
                    .lines()
                    .filter(|line| *line == "quantize advance")
                    .count();
                if self.sync_bytes == 1 {
                    assert!(resumed >= finished, "lost work after event {event}");
                }
            }
            Err(Error::AlreadyFinished { .. } | Error::OutputExists { .. }) => {
                assert!(published, "refused to go on after event {event}");
            }
            Err(e) => panic!("after event {event}: {e}"),
        }
        assert_eq!(
            &common::tree(output),
            reference,
            "other bytes after event {event}"
        );
    }
}

/// Copies a folder with all it holds.
fn copy_tree(from: &Path, to: &Path) {
    for (path, bytes) in common::tree(from) {
        let copy = to.join(path);
        fs_err::create_dir_all(copy.parent().unwrap()).unwrap();
        fs_err::write(copy, bytes).unwrap();
    }
}

/// Prints every event and aborts the process at the one numbered `at`.
struct Dies {
    at: usize,
    /// The running stage and the number of events so far.
    state: Mutex<(String, usize)>,
}

impl Dies {
    fn event(&self, stage: Option<&str>, name: &str) {
        let mut state = self.state.lock().unwrap();
        if let Some(stage) = stage {
            stage.clone_into(&mut state.0);
        }
        state.1 += 1;
        println!("{} {name}", state.0);
        if state.1 == self.at {
            std::process::abort();
        }
    }
}

impl Progress for Dies {
    fn start(&self, stage: &str, _total: u64, _unit: &str) {
        self.event(Some(stage), "start");
    }
    fn advance(&self, _steps: u64) {
        self.event(None, "advance");
    }
    fn finish(&self) {
        self.event(None, "finish");
    }
}
