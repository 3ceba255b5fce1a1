//! A conversion in parts gives the bytes of the whole.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use neuroconv_convert::unit::{
    Unit, UnitError, convert_unit, recipe_of, unit_folder, units_beside,
};
use neuroconv_convert::{Error, Staging, merge, plan};
use neuroconv_recipes::Recipe;
use neuroconv_runtime::{Checkpoint, Quiet};

use crate::common;

static NEVER: AtomicBool = AtomicBool::new(false);

/// Units of a conversion of `source` to `output`.
fn units(source: &Path, recipe: &Recipe, output: &Path, of: usize) -> Result<Vec<PathBuf>, Error> {
    let source = Checkpoint::open(source)?;
    let plan = plan(&source, recipe)?;
    Unit::all(of)
        .map(|unit| convert_unit(&plan, &source, unit, output, false, &Quiet, &NEVER))
        .collect()
}

/// Merges what was made with the recipe that the units say.
fn merged(source: &Path, output: &Path, units: &[PathBuf]) -> Result<common::Tree, Error> {
    let source = Checkpoint::open(source)?;
    let plan = plan(&source, &recipe_of(&units[0])?)?;
    let staging = Staging::open(output, false)?;
    let staged = merge(&plan, &source, units, staging, &Quiet, &NEVER)?;
    staged.emit(&common::passed(), &Quiet)?;
    Ok(common::tree(output))
}

fn refusal(result: Result<common::Tree, Error>) -> UnitError {
    match result {
        Err(Error::Unit(error)) => error,
        other => panic!("expected a refusal, found {other:?}"),
    }
}

#[test]
fn units_merge_to_the_bytes_of_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    common::write_checkpoint(&source, 4, |_, _| {});
    for name in ["ternary", "int4", "ternary-mixed"] {
        let recipe = common::plain(name).unwrap();
        let whole = dir.path().join(format!("{name}-whole"));
        common::convert(&source, name, &whole).unwrap();
        // Four layers, two tables and the last norm.
        for of in [1, 2, 3, 7] {
            let output = dir.path().join(format!("{name}-{of}"));
            let made = units(&source, &recipe, &output, of).unwrap();
            assert_eq!(made, units_beside(&output).unwrap());
            assert_eq!(
                merged(&source, &output, &made).unwrap(),
                common::tree(&whole)
            );
            let all = common::names(dir.path());
            assert!(!all.iter().any(|name| name.starts_with('.')), "{all:?}");
        }
    }
}

#[test]
fn a_unit_that_is_finished_is_left_alone_and_another_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let [source, output] = ["source", "out"].map(|name| dir.path().join(name));
    common::write_checkpoint(&source, 2, |_, _| {});
    let recipe = common::plain("ternary").unwrap();
    let made = units(&source, &recipe, &output, 2).unwrap();
    let before = common::tree(&made[0]);
    let record = fs_err::metadata(made[0].join("neuroconv/unit.json")).unwrap();
    assert_eq!(units(&source, &recipe, &output, 2).unwrap(), made);
    let again = fs_err::metadata(made[0].join("neuroconv/unit.json")).unwrap();
    assert_eq!(again.modified().unwrap(), record.modified().unwrap());
    let other = common::plain("int8").unwrap();
    assert!(matches!(
        units(&source, &other, &output, 2),
        Err(Error::OutputExists { .. })
    ));
    assert_eq!(common::tree(&made[0]), before);
}

#[test]
fn what_does_not_belong_together_is_not_merged() {
    let dir = tempfile::tempdir().unwrap();
    let [source, output, other] = ["source", "out", "other"].map(|name| dir.path().join(name));
    common::write_checkpoint(&source, 2, |_, _| {});
    let ternary = common::plain("ternary").unwrap();
    let made = units(&source, &ternary, &output, 2).unwrap();
    let target = dir.path().join("merged");
    let missing = refusal(merged(&source, &target, &made[..1]));
    assert!(
        matches!(missing, UnitError::Missing { of: 2, .. }),
        "{missing}"
    );
    let int8 = units(&source, &common::plain("int8").unwrap(), &other, 2).unwrap();
    let mixed = refusal(merged(
        &source,
        &target,
        &[made[0].clone(), int8[1].clone()],
    ));
    assert!(matches!(mixed, UnitError::Other { .. }), "{mixed}");
    let nothing = refusal(merged(&source, &target, &[made[0].clone(), source.clone()]));
    assert!(matches!(nothing, UnitError::NotAUnit { .. }), "{nothing}");

    let weights = made[1].join("model.safetensors");
    let sound = fs_err::read(&weights).unwrap();
    let mut damaged = sound.clone();
    *damaged.last_mut().unwrap() ^= 1;
    fs_err::write(&weights, &damaged).unwrap();
    let found = refusal(merged(&source, &target, &made));
    assert!(matches!(found, UnitError::Damaged { .. }), "{found}");
    fs_err::write(&weights, &sound).unwrap();

    common::write_checkpoint(&source, 2, |name, values| {
        if name.contains("layers.1.mlp.up") {
            values[0] += 1.0;
        }
    });
    let changed = refusal(merged(&source, &target, &made));
    assert!(matches!(changed, UnitError::Other { .. }), "{changed}");
    assert!(!target.exists());
}

#[test]
fn what_needs_the_layers_before_is_not_split() {
    let dir = tempfile::tempdir().unwrap();
    let [source, output] = ["source", "out"].map(|name| dir.path().join(name));
    common::write_checkpoint(&source, 2, |_, _| {});
    let learned = neuroconv_recipes::builtin("ternary").unwrap();
    assert!(learned.learns());
    for (recipe, of) in [(learned, 2), (common::plain("ternary").unwrap(), 6)] {
        let error = units(&source, &recipe, &output, of).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Unit(UnitError::NotSplit { .. } | UnitError::TooMany { most: 5, .. })
            ),
            "{error}"
        );
        assert!(!unit_folder(&output, Unit::all(of).next().unwrap()).exists());
    }
}
