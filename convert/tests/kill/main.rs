//! Kills conversions before every step that can change a file, and at random moments, and goes on
//! with the same command.
//!
//! Runs itself as the child that dies, so it has a `main` of its own: `kill child WORK SOURCE OUTPUT
//! SYNC_BYTES OVERWRITE` does one work.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(clippy::print_stdout, reason = "tells what was found")]

#[path = "../common/mod.rs"]
mod common;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod trace;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use neuroconv_convert::unit::{Unit, convert_unit, recipe_of, units_beside};
use neuroconv_convert::{Error, Staging, execute, merge, plan};
use neuroconv_runtime::{Checkpoint, Quiet};

/// Units that the works on parts are of.
const UNITS: usize = 2;
/// Kills at random moments of each work.
const RANDOM_KILLS: usize = 100;
/// Kills of one run, one after the other, at most.
const CHAIN: u64 = 4;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let [_, word, work, source, output, sync_bytes, overwrite] = args.as_slice()
        && word == "child"
    {
        let _ = std::io::stdin().read(&mut [0]);
        let work = Work {
            kind: Kind::named(work),
            sync_bytes: sync_bytes.parse().unwrap(),
            overwrite: overwrite == "true",
        };
        work.run(source.as_ref(), output.as_ref()).unwrap();
        return;
    }
    let seed = std::env::var("NEUROCONV_KILL_SEED").map_or(1, |seed| seed.parse().unwrap());
    println!("random moments of seed {seed}");
    let mut random = Random(seed);
    for (kind, sync_bytes, overwrite) in [
        (Kind::Convert, 1, false),
        (Kind::Convert, 1 << 30, true),
        (Kind::Learn, 1, false),
        (Kind::Unit, 1, false),
        (Kind::Merge, 1, true),
    ] {
        let place = Place::new(Work {
            kind,
            sync_bytes,
            overwrite,
        });
        place.kill_everywhere();
        place.kill_at_random(&mut random);
    }
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A whole conversion.
    Convert,
    /// The same with calibration text.
    Learn,
    /// One part of it.
    Unit,
    /// The parts made one.
    Merge,
}

impl Kind {
    const ALL: [(Kind, &str); 4] = [
        (Kind::Convert, "convert"),
        (Kind::Learn, "learn"),
        (Kind::Unit, "unit"),
        (Kind::Merge, "merge"),
    ];

    fn named(name: &str) -> Self {
        Kind::ALL
            .iter()
            .find(|(_, known)| *known == name)
            .unwrap()
            .0
    }

    fn name(self) -> &'static str {
        Kind::ALL.iter().find(|(kind, _)| *kind == self).unwrap().1
    }
}

/// One way to do it, the same before and after the kill.
#[derive(Clone, Copy, Debug)]
struct Work {
    kind: Kind,
    /// How much may be lost.
    sync_bytes: u64,
    overwrite: bool,
}

impl Work {
    /// All of it as a program would do it; how many tensors it took over.
    fn run(self, source: &Path, output: &Path) -> Result<usize, Error> {
        let recipe = common::plain("ternary")?;
        let never = AtomicBool::new(false);
        let staging = || -> Result<Staging, Error> {
            Ok(Staging::open(output, self.overwrite)?.sync_every(self.sync_bytes))
        };
        let staged = match self.kind {
            Kind::Convert => common::stage(source, &recipe, staging()?, &Quiet, &never)?,
            Kind::Learn => {
                let source = Checkpoint::open(source)?;
                let plan = plan(&source, &neuroconv_recipes::builtin("ternary")?)?;
                let text: Vec<Vec<u32>> = (0..4)
                    .map(|window| (0..32).map(|i| (i * 7 + window * 5) % 48).collect())
                    .collect();
                execute(&plan, &source, &text, staging()?, &Quiet, &never)?
            }
            Kind::Unit => {
                let source = Checkpoint::open(source)?;
                let unit = Unit::all(UNITS).last().unwrap();
                let plan = plan(&source, &recipe)?;
                convert_unit(&plan, &source, unit, output, self.overwrite, &Quiet, &never)?;
                return Ok(0);
            }
            Kind::Merge => {
                let source = Checkpoint::open(source)?;
                let units = units_beside(&output.with_file_name("parts"))?;
                let plan = plan(&source, &recipe_of(&units[0])?)?;
                merge(&plan, &source, &units, staging()?, &Quiet, &never)?
            }
        };
        let resumed = staged.resumed();
        staged.emit(&common::passed(), &Quiet)?;
        Ok(resumed)
    }
}

/// A folder to do it in.
struct Place {
    work: Work,
    dir: tempfile::TempDir,
    /// What comes out when nothing is killed.
    reference: common::Tree,
    /// What stands at the output before, and beside it.
    before: Option<common::Tree>,
}

impl Place {
    fn new(work: Work) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let [source, old] = ["source", "old"].map(|name| dir.path().join(name));
        common::write_checkpoint(&source, 1, |_, _| {});
        common::convert(&source, "int8", &old).unwrap();
        let mut place = Place {
            work,
            reference: BTreeMap::new(),
            before: work.overwrite.then(|| common::tree(&old)),
            dir,
        };
        place.begin();
        work.run(&place.source(), &place.output()).unwrap();
        place.reference = common::tree(&place.result());
        place
    }

    fn source(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    fn parent(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    fn output(&self) -> PathBuf {
        self.parent().join("model")
    }

    /// What the work makes.
    fn result(&self) -> PathBuf {
        let name = match self.work.kind {
            Kind::Convert | Kind::Learn | Kind::Merge => "model".to_owned(),
            Kind::Unit => format!("model.unit-{UNITS}-of-{UNITS}"),
        };
        self.parent().join(name)
    }

    /// Brings the folder into the state before the work.
    fn begin(&self) {
        if self.parent().exists() {
            fs_err::remove_dir_all(self.parent()).unwrap();
        }
        fs_err::create_dir(self.parent()).unwrap();
        if let Some(old) = &self.before {
            write_tree(old, &self.output());
        }
        if self.work.kind == Kind::Merge {
            let source = Checkpoint::open(&self.source()).unwrap();
            let plan = plan(&source, &common::plain("ternary").unwrap()).unwrap();
            let (parts, never) = (self.parent().join("parts"), AtomicBool::new(false));
            for unit in Unit::all(UNITS) {
                convert_unit(&plan, &source, unit, &parts, false, &Quiet, &never).unwrap();
            }
        }
    }

    fn child(&self) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["child", self.work.kind.name()]);
        command.args([self.source(), self.output()]);
        command.args([
            self.work.sync_bytes.to_string(),
            self.work.overwrite.to_string(),
        ]);
        command
    }

    /// Kills before every step, each time from the beginning.
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    fn kill_everywhere(&self) {
        let mut calls: BTreeMap<&str, usize> = BTreeMap::new();
        for at in 1.. {
            self.begin();
            match trace::run(&mut self.child(), at) {
                trace::End::Killed { before } => {
                    *calls.entry(before).or_default() += 1;
                    self.check(&format!("a kill before step {at}, {before}"));
                }
                trace::End::Finished { steps } => {
                    assert_eq!(steps, at - 1, "a step was left out");
                    assert_eq!(common::tree(&self.result()), self.reference);
                    println!(
                        "{:?}: killed before each of {steps} steps, {calls:?}",
                        self.work
                    );
                    return;
                }
            }
        }
    }

    #[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
    fn kill_everywhere(&self) {
        println!(
            "{:?}: single steps are not followed on this system",
            self.work
        );
    }

    /// Kills at random moments, some runs several times before they may go on to the end.
    fn kill_at_random(&self, random: &mut Random) {
        self.begin();
        let start = Instant::now();
        assert!(self.finish(Stdio::null()).wait().unwrap().success());
        let whole = start.elapsed();
        let (mut landed, mut chains) = (0, 0);
        while landed < RANDOM_KILLS {
            self.begin();
            for _ in 0..=random.below(CHAIN - 1) {
                let mut child = self.finish(Stdio::null());
                let wait = whole.as_nanos() as u64 * random.below(1100) / 1000;
                std::thread::sleep(Duration::from_nanos(wait));
                // A child that has ended already cannot be killed.
                let ended = child.try_wait().unwrap().is_some();
                child.kill().unwrap();
                child.wait().unwrap();
                landed += usize::from(!ended);
            }
            chains += 1;
            self.check(&format!("random kill {landed}"));
        }
        println!(
            "{:?}: {landed} kills at random moments of {chains} runs",
            self.work
        );
    }

    fn finish(&self, stdin: Stdio) -> std::process::Child {
        let mut command = self.child();
        command
            .stdin(stdin)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.spawn().unwrap()
    }

    /// The output is what it was or what it should be; the same command ends in the same bytes, takes
    /// over what the journal lists, and leaves nothing behind.
    fn check(&self, after: &str) {
        let result = self.result();
        let found = result.exists().then(|| common::tree(&result));
        let old = self
            .before
            .as_ref()
            .filter(|_| self.work.kind != Kind::Unit);
        let published = found.as_ref() == Some(&self.reference);
        assert!(
            published || found.as_ref() == old,
            "a partial output after {after}"
        );
        let journaled = self.journaled();
        match self.work.run(&self.source(), &self.output()) {
            Ok(resumed) if self.work.kind != Kind::Unit && !published => {
                assert!(
                    resumed >= journaled,
                    "lost {journaled} - {resumed} after {after}"
                );
            }
            Ok(_) => {}
            Err(Error::AlreadyFinished { .. } | Error::OutputExists { .. }) => {
                assert!(published, "refused to go on after {after}");
            }
            Err(error) => panic!("after {after}: {error}"),
        }
        assert_eq!(
            common::tree(&result),
            self.reference,
            "other bytes after {after}"
        );
        let hidden = common::names(&self.parent());
        let hidden: Vec<_> = hidden.iter().filter(|name| name.starts_with('.')).collect();
        assert!(hidden.is_empty(), "{hidden:?} are left after {after}");
    }

    /// Tensors that a journal says are finished.
    fn journaled(&self) -> usize {
        let folders = fs_err::read_dir(self.parent()).unwrap();
        let journals = folders.map(|entry| entry.unwrap().path().join("journal"));
        let read = journals.filter_map(|path| fs_err::read_to_string(path).ok());
        read.map(|text| text.matches('\n').count()).sum()
    }
}

/// Writes files with all they hold.
fn write_tree(files: &common::Tree, to: &Path) {
    for (path, bytes) in files {
        let copy = to.join(path);
        fs_err::create_dir_all(copy.parent().unwrap()).unwrap();
        fs_err::write(copy, bytes).unwrap();
    }
}

/// Numbers that a seed decides: xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }
}
