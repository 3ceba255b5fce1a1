//! Importance matrices of other programs: what they weigh, and what is refused.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use neuroconv_convert::{ImportanceError, Plan, Staging, execute, plan};
use neuroconv_format::Validate;
use neuroconv_format::gguf::Imatrix;
use neuroconv_format::gguf::imatrix::Importance;
use neuroconv_quant::{QuantizeSpec, quantize};
use neuroconv_recipes::{Recipe, Role, TensorId, builtin};
use neuroconv_runtime::{Checkpoint, PackedModel, Quiet, WeightSource};

use crate::common;

const LAYERS: usize = 2;

fn source(dir: &Path) -> Checkpoint {
    let path = dir.join("tiny");
    common::write_checkpoint(&path, LAYERS, |_, _| {});
    Checkpoint::open(&path).unwrap()
}

/// Columns whose importance grows, for every matrix of the layers.
fn full(source: &Checkpoint) -> Imatrix {
    let mut imatrix = Imatrix::default();
    for (id, shape) in source.spec().tensors() {
        if let (Some(_), &[_, columns]) = (id.layer, &shape[..]) {
            let sums = (0..columns).map(|c| (c + 10) as f32).collect();
            let counts = vec![7.0];
            let name = id.gguf_name().unwrap();
            imatrix.entries.insert(name, Importance { sums, counts });
        }
    }
    imatrix
}

fn weighed(
    source: &Checkpoint,
    recipe: &Recipe,
    imatrix: &Imatrix,
) -> Result<Plan, ImportanceError> {
    let mut plan = plan(source, recipe).unwrap();
    plan.weigh(imatrix).map(|()| plan)
}

#[test]
fn matrices_are_rounded_with_the_weights_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let source = source(dir.path());
    let recipe = common::plain("ternary").unwrap();
    let mut imatrix = full(&source);
    // Text that never used a matrix says nothing about its columns.
    let unused = TensorId::layer(0, Role::Up);
    let entry = imatrix
        .entries
        .get_mut(&unused.gguf_name().unwrap())
        .unwrap();
    entry.sums.fill(0.0);
    let plan = weighed(&source, &recipe, &imatrix).unwrap();
    let staging = Staging::open(&dir.path().join("out"), false).unwrap();
    let go_on = AtomicBool::new(false);
    let staged = execute(&plan, &source, &[], staging, &Quiet, &go_on).unwrap();
    assert!(staged.importance().unwrap().is_empty());
    let model = PackedModel::open(&staged.path(), Validate::Full).unwrap();
    for (id, importance) in [
        (
            TensorId::layer(1, Role::Down),
            Some((10..106).map(|c| c as f32).collect()),
        ),
        (unused, None::<Vec<f32>>),
    ] {
        let neuroconv_format::Tensor::Packed(found) = model.tensor(id).unwrap() else {
            panic!("a packed matrix");
        };
        let (rows, cols) = (found.layout.rows(), found.layout.cols());
        let w = neuroconv_quant::dequantize(&source.tensor(id).unwrap());
        let spec = QuantizeSpec::new(neuroconv_format::Codec::Ternary, found.layout.group());
        let expected = quantize(&w, rows, cols, &spec, importance.as_deref())
            .unwrap()
            .0;
        let plain = quantize(&w, rows, cols, &spec, None).unwrap().0;
        assert!(found.bytes[..] == expected.bytes[..], "{id}");
        let weighed = found.bytes[..] != plain.bytes[..];
        assert_eq!(weighed, importance.is_some(), "{id}");
    }
    for tensor in &plan.tensors {
        let says = tensor.reason.ends_with("columns weighed by importance");
        assert_eq!(says, tensor.id.layer.is_some() && tensor.shape.len() == 2);
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let source = source(dir.path());
    let recipe = common::plain("int4").unwrap();
    let refused = |change: &dyn Fn(&mut Imatrix)| {
        let mut imatrix = full(&source);
        change(&mut imatrix);
        let error = weighed(&source, &recipe, &imatrix).unwrap_err();
        assert!(error.hint().is_some());
        error
    };
    let q = "blk.1.attn_q.weight";
    let tensor = TensorId::layer(1, Role::Q);
    let name = || q.to_owned();
    let entry = |i: &mut Imatrix, sums: usize, counts: &[f32]| {
        let (sums, counts) = (vec![1.0; sums], counts.to_vec());
        i.entries.insert(q.to_owned(), Importance { sums, counts });
    };
    assert_eq!(
        refused(&|i| drop(i.entries.remove(q))),
        ImportanceError::Missing {
            name: name(),
            tensor
        }
    );
    assert_eq!(
        refused(&|i| entry(i, 65, &[1.0])),
        ImportanceError::Width {
            name: name(),
            tensor,
            expected: 64,
            found: 65
        }
    );
    assert_eq!(
        refused(&|i| entry(i, 128, &[1.0, 1.0])),
        ImportanceError::Several {
            name: name(),
            found: 2
        }
    );
    assert_eq!(
        refused(&|i| entry(i, 64, &[0.0])),
        ImportanceError::NoTokens { name: name() }
    );
    for unknown in [
        "blk.2.attn_q.weight",
        "blk.0.ffn_up_exps.weight",
        "blk.0.attn_norm.weight",
    ] {
        let error = refused(&|i| {
            let entry = i.entries[q].clone();
            i.entries.insert(unknown.to_owned(), entry);
        });
        let name = unknown.to_owned();
        assert_eq!(error, ImportanceError::Unknown { name });
    }
}

#[test]
fn calibration_text_leaves_nothing_to_weigh() {
    let dir = tempfile::tempdir().unwrap();
    let source = source(dir.path());
    let imatrix = full(&source);
    let error = weighed(&source, &builtin("int4").unwrap(), &imatrix).unwrap_err();
    let recipe = "int4".to_owned();
    assert_eq!(error, ImportanceError::Contradiction { recipe });
    // In a mixture each matrix goes its own way.
    let mixed = "name = 'm'\nextends = 'int4'\nrule = [{ roles = ['mlp_down'], scheme = 'int8' }]";
    let plan = weighed(&source, &Recipe::parse(mixed, "m").unwrap(), &imatrix).unwrap();
    let count = plan
        .tensors
        .iter()
        .filter(|t| t.reason.ends_with("by importance"));
    assert_eq!(count.count(), LAYERS);
}

#[test]
fn other_statistics_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let source = source(dir.path());
    let mut imatrix = full(&source);
    imatrix.ignored.push("a.in_sum".to_owned());
    let plan = weighed(&source, &common::plain("int8").unwrap(), &imatrix).unwrap();
    assert!(plan.warnings.iter().any(|w| w.contains("`a.in_sum`")));
}
