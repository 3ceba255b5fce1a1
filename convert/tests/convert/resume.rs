//! Interrupted runs go on where they stopped and write the same bytes.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use neuroconv_convert::{Error, Staging};
use neuroconv_recipes::Recipe;
use neuroconv_runtime::{Progress, Quiet};

use crate::common;

/// Sets `cancel` once `after` tensors are quantized.
struct CancelAfter {
    after: u64,
    quantizing: AtomicBool,
    seen: AtomicU64,
    cancel: AtomicBool,
}

impl CancelAfter {
    fn new(after: u64) -> Self {
        let cancel = AtomicBool::new(false);
        CancelAfter {
            after,
            quantizing: AtomicBool::new(false),
            seen: AtomicU64::new(0),
            cancel,
        }
    }
}

impl Progress for CancelAfter {
    fn start(&self, stage: &str, _total: u64, _unit: &str) {
        let quantizing = stage == "quantize";
        self.quantizing.store(quantizing, Ordering::SeqCst);
        if quantizing && self.after == 0 {
            self.cancel.store(true, Ordering::SeqCst);
        }
    }
    fn advance(&self, _steps: u64) {
        if self.quantizing.load(Ordering::SeqCst)
            && self.seen.fetch_add(1, Ordering::SeqCst) + 1 >= self.after
        {
            self.cancel.store(true, Ordering::SeqCst);
        }
    }
    fn finish(&self) {}
}

/// Runs until `after` tensors are done; the number that really were, and the staging folder.
fn interrupt(source: &Path, recipe: &Recipe, output: &Path, after: u64) -> (usize, PathBuf) {
    let progress = CancelAfter::new(after);
    let staging = Staging::open(output, false).unwrap();
    match common::stage(source, recipe, staging, &progress, &progress.cancel) {
        Err(Error::Interrupted {
            staging: Some(staging),
            done,
            total,
            unit: "tensors",
        }) => {
            assert!(done as u64 >= after && done <= total);
            (done, staging)
        }
        other => panic!("after {after}: {other:?}"),
    }
}

fn finish(source: &Path, recipe: &Recipe, output: &Path) -> (usize, Vec<String>) {
    let staging = Staging::open(output, false).unwrap();
    let staged = common::stage(source, recipe, staging, &Quiet, &AtomicBool::new(false)).unwrap();
    let result = (staged.resumed(), staged.notes().to_vec());
    staged.emit(&common::passed(), &Quiet).unwrap();
    result
}

#[test]
fn a_run_interrupted_anywhere_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    common::write_checkpoint(&source, 2, |_, _| {});
    let recipe = common::plain("ternary").unwrap();
    let output = dir.path().join("reference");
    finish(&source, &recipe, &output);
    let reference = common::tree(&output);
    for after in 0..21 {
        let output = dir.path().join(format!("model{after}"));
        let (done, _) = interrupt(&source, &recipe, &output, after);
        assert!(!output.exists());
        let (resumed, notes) = finish(&source, &recipe, &output);
        assert_eq!(resumed, done, "not all work was taken over");
        assert_eq!(notes.iter().any(|n| n.contains("resumed")), done > 0);
        assert!(common::tree(&output) == reference, "after {after}");
    }
    assert!(
        common::names(dir.path())
            .iter()
            .all(|name| !name.starts_with('.'))
    );
}

/// Something that happens to a staging folder between two runs.
type Damage = fn(&Path);

#[test]
fn a_damaged_journal_or_damaged_weights_cost_work_but_no_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    common::write_checkpoint(&source, 1, |_, _| {});
    let recipe = common::plain("int4").unwrap();
    let output = dir.path().join("reference");
    finish(&source, &recipe, &output);
    let reference = common::tree(&output);
    let cases: [(&str, Damage, usize); 4] = [
        (
            "torn tail",
            |s| edit(&s.join("journal"), |b| b.truncate(b.len() - 5)),
            1,
        ),
        (
            "damaged first line",
            |s| edit(&s.join("journal"), |b| b[3] ^= 1),
            usize::MAX,
        ),
        (
            "no journal",
            |s| fs_err::remove_file(s.join("journal")).unwrap(),
            usize::MAX,
        ),
        (
            "no weights",
            |s| fs_err::remove_file(s.join("artifact/model.safetensors")).unwrap(),
            usize::MAX,
        ),
    ];
    for (name, damage, lost) in cases {
        let output = dir.path().join(name);
        let (done, staging) = interrupt(&source, &recipe, &output, 6);
        damage(&staging);
        let (resumed, _) = finish(&source, &recipe, &output);
        assert_eq!(resumed, done.saturating_sub(lost), "{name}");
        assert!(common::tree(&output) == reference, "{name}");
    }
}

fn edit(path: &Path, change: impl Fn(&mut Vec<u8>)) {
    let mut bytes = fs_err::read(path).unwrap();
    change(&mut bytes);
    fs_err::write(path, bytes).unwrap();
}

#[test]
fn another_recipe_starts_afresh_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (source, output) = (dir.path().join("source"), dir.path().join("model"));
    common::write_checkpoint(&source, 1, |_, _| {});
    let (_, old) = interrupt(&source, &common::plain("int4").unwrap(), &output, 5);
    assert!(old.exists());
    let (resumed, notes) = finish(&source, &common::plain("int8").unwrap(), &output);
    assert_eq!(resumed, 0);
    assert!(
        notes.iter().any(|note| note.contains("starting afresh")),
        "{notes:?}"
    );
    assert!(!old.exists());
    common::convert(&source, "int8", &dir.path().join("fresh")).unwrap();
    assert!(common::tree(&output) == common::tree(&dir.path().join("fresh")));
}

#[test]
fn another_source_starts_afresh() {
    let dir = tempfile::tempdir().unwrap();
    let (source, output) = (dir.path().join("source"), dir.path().join("model"));
    common::write_checkpoint(&source, 1, |_, _| {});
    let recipe = common::plain("int4").unwrap();
    interrupt(&source, &recipe, &output, 5);
    common::write_checkpoint(&source, 1, |name, values| {
        if name == "lm_head.weight" {
            values[0] += 0.5;
        }
    });
    assert_eq!(finish(&source, &recipe, &output).0, 0);
}

#[test]
fn an_interrupt_while_hashing_the_source_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    common::write_checkpoint(&source, 1, |_, _| {});
    let staging = Staging::open(&dir.path().join("model"), false).unwrap();
    let recipe = common::plain("int4").unwrap();
    let stopped = common::stage(&source, &recipe, staging, &Quiet, &AtomicBool::new(true));
    assert!(matches!(
        stopped,
        Err(Error::Interrupted {
            staging: None,
            done: 0,
            ..
        })
    ));
    assert_eq!(common::names(dir.path()), ["source"]);
}
