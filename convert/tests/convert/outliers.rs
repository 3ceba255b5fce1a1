//! Columns kept apart by the size of their inputs: none, all, and those between.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use half::f16;
use neuroconv_convert::{Error, Plan, StagedArtifact, Staging, Survey, execute, plan};
use neuroconv_format::{Tensor, Validate};
use neuroconv_quant::dequantize;
use neuroconv_recipes::{Apart, Recipe, Role, TensorId, builtin};
use neuroconv_runtime::{Checkpoint, OneLayer, PackedModel, Quiet, WeightSource, embed};

use crate::common;

/// Columns of the residual stream that are large, as happens in real models.
const LARGE: [usize; 2] = [3, 40];

fn source(dir: &Path) -> Checkpoint {
    let path = dir.join("tiny");
    common::write_checkpoint(&path, 2, |name, values| {
        if name.contains("layernorm") {
            values.fill(1.0);
            for column in LARGE {
                values[column] = 9.0;
            }
        }
    });
    Checkpoint::open(&path).unwrap()
}

fn text() -> Vec<Vec<u32>> {
    let window = |w: u32| {
        (0..24)
            .map(move |t| (t * t + 5 * t + w * 11) % 48)
            .collect()
    };
    (0..4).map(window).collect()
}

fn int8(threshold: f64) -> Recipe {
    let mut recipe = builtin("int8").unwrap();
    let apart = Apart::Outliers(threshold);
    recipe
        .set_body("columns", |packed| packed.apart = apart)
        .unwrap();
    recipe
}

fn split(source: &Checkpoint, recipe: &Recipe) -> Plan {
    let mut plan = plan(source, recipe).unwrap();
    assert!(plan.wants_survey());
    let survey = Survey::of(source, &text(), &Quiet, &AtomicBool::new(false)).unwrap();
    plan.split(&survey).unwrap();
    assert!(!plan.wants_survey());
    plan
}

fn staged(source: &Checkpoint, plan: &Plan, output: &Path) -> Result<StagedArtifact, Error> {
    let staging = Staging::open(output, false).unwrap();
    let go_on = AtomicBool::new(false);
    execute(plan, source, &text(), staging, &Quiet, &go_on)
}

fn weights(staged: &StagedArtifact) -> Vec<u8> {
    fs_err::read(staged.path().join("model.safetensors")).unwrap()
}

/// Every packed matrix of the layers.
fn matrices(source: &Checkpoint) -> impl Iterator<Item = TensorId> {
    let tensors = source.spec().tensors().into_iter();
    tensors.filter_map(|(id, shape)| (id.layer.is_some() && shape.len() == 2).then_some(id))
}

fn half_precision(w: &[f32]) -> Vec<f32> {
    w.iter().map(|&w| f16::from_f32(w).to_f32()).collect()
}

#[test]
fn an_infinite_threshold_changes_no_byte() {
    let dir = tempfile::tempdir().unwrap();
    let source = source(dir.path());
    let plain = plan(&source, &builtin("int8").unwrap()).unwrap();
    let plain = weights(&staged(&source, &plain, &dir.path().join("a")).unwrap());
    let none = split(&source, &int8(f64::INFINITY));
    assert!(weights(&staged(&source, &none, &dir.path().join("b")).unwrap()) == plain);
}

#[test]
fn a_threshold_of_zero_keeps_every_weight_in_half_precision() {
    let dir = tempfile::tempdir().unwrap();
    let source = source(dir.path());
    let plan = split(&source, &int8(0.0));
    let staged = staged(&source, &plan, &dir.path().join("out")).unwrap();
    let model = PackedModel::open(&staged.path(), Validate::Full).unwrap();
    for id in matrices(&source) {
        let expected = half_precision(&dequantize(&source.tensor(id).unwrap()));
        assert!(dequantize(&model.tensor(id).unwrap()) == expected, "{id}");
    }
}

/// Columns that reach `threshold`, looked up one by one.
fn expected_columns(source: &Checkpoint, id: TensorId, threshold: f32) -> Vec<u32> {
    let mut streams = embed(source, &text()).unwrap();
    let layer = id.layer.unwrap();
    for index in 0..layer {
        let one = OneLayer::load(source, index).unwrap();
        for x_td in &mut streams {
            one.run(x_td);
        }
    }
    let one = OneLayer::load(source, layer).unwrap();
    let inputs = streams.iter().map(|x_td| one.input(id.role, x_td).unwrap());
    let inputs: Vec<f32> = inputs.flatten().collect();
    let columns = inputs.len() / (4 * 24);
    let reached = |c: &usize| {
        inputs
            .iter()
            .skip(*c)
            .step_by(columns)
            .any(|x| x.abs() >= threshold)
    };
    (0..columns).filter(reached).map(|c| c as u32).collect()
}

#[test]
fn columns_between_are_those_of_large_inputs_and_every_byte_is_planned() {
    let dir = tempfile::tempdir().unwrap();
    let source = source(dir.path());
    let threshold = 6.0;
    // By itself, and through layer files beside a matrix that is rounded with feedback.
    let mut beside = int8(threshold);
    let mixed = "name = 'm'\nextends = 'int8'\nrule = [{ roles = ['attn_o'], scheme = 'int4' }]";
    let mut rules = Recipe::parse(mixed, "m").unwrap().rules;
    rules.truncate(1);
    beside.rules.splice(..0, rules);
    for (name, recipe) in [("a", int8(threshold)), ("b", beside)] {
        let plan = split(&source, &recipe);
        let staged = staged(&source, &plan, &dir.path().join(name)).unwrap();
        assert_eq!(weights(&staged).len() as u64, plan.weights_bytes);
        let model = PackedModel::open(&staged.path(), Validate::Full).unwrap();
        let records = &model.artifact().manifest().tensors;
        for id in matrices(&source).filter(|id| id.role != Role::O) {
            let Tensor::Packed(packed) = model.tensor(id).unwrap() else {
                panic!("a packed matrix");
            };
            let columns = expected_columns(&source, id, threshold as f32);
            let found = packed.corrections.columns.as_ref();
            let found = found.map_or(&[][..], |columns| &columns.indexes);
            assert_eq!(found, columns, "{name} {id}");
            if matches!(id.role, Role::Q | Role::Up) {
                assert!(LARGE.iter().all(|&c| columns.contains(&(c as u32))) && columns.len() < 8);
            }
            let cols = packed.layout.cols();
            let w = dequantize(&source.tensor(id).unwrap());
            let stored = dequantize(&Tensor::Packed(packed));
            let exact = half_precision(&w);
            let apart = |i: &usize| columns.contains(&((i % cols) as u32));
            assert!(
                (0..w.len())
                    .filter(apart)
                    .all(|i| stored[i].to_bits() == exact[i].to_bits())
            );
            let planned = plan.tensors.iter().find(|tensor| tensor.id == id).unwrap();
            let record = records.iter().find(|r| r.name == id.to_string()).unwrap();
            assert_eq!(record.stored_bytes(), planned.bytes);
            let rel_mse = neuroconv_quant::relative_mse(&w, &stored);
            assert!((record.rel_mse.unwrap() / rel_mse - 1.0).abs() < 1e-9);
        }
    }
}

#[test]
fn a_plan_without_its_survey_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let source = source(dir.path());
    let plan = plan(&source, &int8(6.0)).unwrap();
    let refused = staged(&source, &plan, &dir.path().join("out"));
    assert!(matches!(refused, Err(Error::NoCalibration { .. })));
    assert!(int8(6.0).learns() && int8(6.0).without_learning().is_err());
}

#[test]
fn a_weight_beyond_half_precision_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("big");
    common::write_checkpoint(&path, 1, |name, values| {
        if name.ends_with("q_proj.weight") {
            values[5] = 1e5;
        }
    });
    let source = Checkpoint::open(&path).unwrap();
    let plan = split(&source, &int8(0.0));
    match staged(&source, &plan, &dir.path().join("out")) {
        Err(Error::TooLarge {
            tensor, index: 5, ..
        }) => {
            assert_eq!(tensor, TensorId::layer(0, Role::Q));
        }
        other => panic!("{other:?}"),
    }
}
