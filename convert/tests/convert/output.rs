//! The final name: nothing, the old artifact, or the new one, and nothing beside it.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use neuroconv_convert::{Emission, Error, StagedArtifact, Staging};
use neuroconv_format::manifest::VerdictStatus;
use neuroconv_runtime::Quiet;

use crate::common;

struct Case {
    dir: tempfile::TempDir,
}

impl Case {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        common::write_checkpoint(&dir.path().join("source"), 1, |_, _| {});
        Case { dir }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn stage(&self, recipe: &str, output: &Path, overwrite: bool) -> Result<StagedArtifact, Error> {
        let staging = Staging::open(output, overwrite)?;
        let never = AtomicBool::new(false);
        common::stage(
            &self.path("source"),
            &common::plain(recipe).unwrap(),
            staging,
            &Quiet,
            &never,
        )
    }
}

#[test]
fn a_rejected_artifact_leaves_nothing() {
    let case = Case::new();
    let output = case.path("out/model");
    let staged = case.stage("int4", &output, false).unwrap();
    assert_eq!(
        common::names(&case.path("out")).len(),
        2,
        "staging folder and lock"
    );
    staged.reject().unwrap();
    assert_eq!(common::names(&case.path("out")), [""; 0]);
}

#[test]
fn only_a_verdict_that_allows_it_is_emitted() {
    let case = Case::new();
    let output = case.path("out/model");
    for verdict in [
        VerdictStatus::Unverified,
        VerdictStatus::Fail,
        VerdictStatus::Inconclusive,
    ] {
        let emission = Emission {
            verdict,
            ..common::passed()
        };
        let refused = case
            .stage("int4", &output, false)
            .unwrap()
            .emit(&emission, &Quiet);
        assert!(matches!(refused, Err(Error::NotPassed { verdict: v }) if v == verdict));
        assert!(!output.exists());
    }
    let waived = vec!["ppl_ratio".to_owned()];
    let emission = Emission {
        verdict: VerdictStatus::Waived,
        waived,
        ..common::passed()
    };
    case.stage("int4", &output, false)
        .unwrap()
        .emit(&emission, &Quiet)
        .unwrap();
    let manifest = fs_err::read_to_string(output.join("neuroconv/manifest.json")).unwrap();
    assert!(manifest.contains("\"waived\"") && manifest.contains("\"ppl_ratio\""));
}

#[test]
fn weights_that_were_not_measured_are_not_emitted() {
    let case = Case::new();
    let output = case.path("out/model");
    let staged = case.stage("int4", &output, false).unwrap();
    let weights = staged.path().join("model.safetensors");
    let mut bytes = fs_err::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs_err::write(&weights, bytes).unwrap();
    let refused = staged.emit(&common::passed(), &Quiet);
    assert!(
        matches!(refused, Err(Error::WeightsChanged { .. })),
        "{refused:?}"
    );
    assert!(!output.exists());
    // The damage is found by hash when the same command runs again.
    case.stage("int4", &output, false)
        .unwrap()
        .emit(&common::passed(), &Quiet)
        .unwrap();
    common::convert(&case.path("source"), "int4", &case.path("fresh")).unwrap();
    assert!(common::tree(&output) == common::tree(&case.path("fresh")));
}

#[test]
fn an_output_is_replaced_only_when_asked_and_only_at_the_end() {
    let case = Case::new();
    let output = case.path("out/model");
    common::convert(&case.path("source"), "int8", &output).unwrap();
    let old = common::tree(&output);
    assert!(matches!(
        case.stage("int4", &output, false),
        Err(Error::OutputExists { .. })
    ));
    let staged = case.stage("int4", &output, true).unwrap();
    assert!(common::tree(&output) == old);
    staged.reject().unwrap();
    assert!(common::tree(&output) == old);
    let staged = case.stage("int4", &output, true).unwrap();
    staged.emit(&common::passed(), &Quiet).unwrap();
    common::convert(&case.path("source"), "int4", &case.path("fresh")).unwrap();
    assert!(common::tree(&output) == common::tree(&case.path("fresh")));
    assert_eq!(common::names(&case.path("out")), ["model"]);
}

#[test]
fn an_output_that_appears_meanwhile_is_not_replaced() {
    let case = Case::new();
    let output = case.path("out/model");
    let staged = case.stage("int4", &output, false).unwrap();
    fs_err::create_dir(&output).unwrap();
    fs_err::write(output.join("thesis.tex"), "years of work").unwrap();
    let refused = staged.emit(&common::passed(), &Quiet);
    assert!(
        matches!(refused, Err(Error::OutputExists { .. })),
        "{refused:?}"
    );
    assert_eq!(common::names(&output), ["thesis.tex"]);
}

#[test]
fn work_of_others_is_never_overwritten() {
    let case = Case::new();
    let refuse = |output: &Path| match Staging::open(output, true) {
        Err(Error::OutputForeign { foreign, .. }) => foreign,
        other => panic!("{other:?}"),
    };
    let folder = case.path("folder");
    fs_err::create_dir(&folder).unwrap();
    fs_err::write(folder.join("file"), "").unwrap();
    assert_eq!(refuse(&folder), folder.join("file"));
    assert_eq!(
        refuse(&case.path("source")).parent(),
        Some(&*case.path("source"))
    );
    let file = case.path("folder/file");
    assert_eq!(refuse(&file), file);
    let link = case.path("link");
    fs_err::os::unix::fs::symlink(&folder, &link).unwrap();
    assert_eq!(refuse(&link), link);
    let extended = case.path("extended");
    common::convert(&case.path("source"), "int4", &extended).unwrap();
    fs_err::write(extended.join("notes.md"), "mine").unwrap();
    assert_eq!(refuse(&extended), extended.join("notes.md"));
    fs_err::create_dir(case.path("empty")).unwrap();
    let staged = case.stage("int4", &case.path("empty"), true).unwrap();
    staged.emit(&common::passed(), &Quiet).unwrap();
    for hopeless in ["/", "..", "x/.."] {
        assert!(matches!(
            Staging::open(hopeless.as_ref(), true),
            Err(Error::OutputName { .. })
        ));
    }
}

#[test]
fn two_runs_do_not_work_on_the_same_name() {
    let case = Case::new();
    let first = Staging::open(&case.path("model"), false).unwrap();
    let second = Staging::open(&case.path("model"), false);
    assert!(matches!(second, Err(Error::Locked { .. })), "{second:?}");
    let other = Staging::open(&case.path("model2"), false).unwrap();
    drop((first, other));
    drop(Staging::open(&case.path("model"), false).unwrap());
    assert_eq!(common::names(case.dir.path()), ["source"]);
}

#[test]
fn a_source_with_a_bad_weight_is_refused_by_name_and_leaves_nothing() {
    let case = Case::new();
    common::write_checkpoint(&case.path("source"), 1, |name, values| {
        if name == "model.layers.0.self_attn.k_proj.weight" {
            values[77] = f32::NAN;
        }
    });
    let error = case
        .stage("int4", &case.path("out/model"), false)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "tensor `model.layers.0.self_attn.k_proj.weight` (`blk.0.attn_k`): element 77 is NaN"
    );
    assert!(error.hint().is_some());
    assert_eq!(common::names(&case.path("out")), [""; 0]);
}

#[test]
fn a_staging_path_that_is_a_link_is_not_followed() {
    let case = Case::new();
    let output = case.path("out/model");
    let staged = case.stage("int4", &output, false).unwrap();
    let folder = staged.path().parent().unwrap().to_owned();
    staged.reject().unwrap();
    let elsewhere = case.path("elsewhere");
    fs_err::create_dir(&elsewhere).unwrap();
    fs_err::os::unix::fs::symlink(&elsewhere, &folder).unwrap();
    let refused = case.stage("int4", &output, false);
    assert!(
        matches!(refused, Err(Error::StagingForeign { .. })),
        "{refused:?}"
    );
    assert_eq!(common::names(&elsewhere), [""; 0]);
}

/// Writes to a file of the source once it has been hashed.
struct Meddles<'a>(&'a Path);

impl neuroconv_runtime::Progress for Meddles<'_> {
    fn start(&self, stage: &str, _total: u64, _unit: &str) {
        if stage == "quantize" {
            let mut bytes = fs_err::read(self.0).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            fs_err::write(self.0, bytes).unwrap();
        }
    }
    fn advance(&self, _steps: u64) {}
    fn finish(&self) {}
}

#[test]
fn a_source_that_changes_meanwhile_is_refused() {
    for name in ["model.safetensors", "config.json", "tokenizer.json"] {
        let case = Case::new();
        let changed = case.path("source").join(name);
        let staging = Staging::open(&case.path("out/model"), false).unwrap();
        let refused = common::stage(
            &case.path("source"),
            &common::plain("int4").unwrap(),
            staging,
            &Meddles(&changed),
            &AtomicBool::new(false),
        );
        match refused {
            Err(Error::SourceChanged { path }) => assert_eq!(path, changed),
            other => panic!("{name}: {other:?}"),
        }
        assert_eq!(common::names(&case.path("out")), [""; 0]);
    }
}
