//! The choice against all choices, and what is measured against what comes of it.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::sync::atomic::AtomicBool;

use neuroconv_fixtures::{tiny_model, tiny_text};
use neuroconv_recipes::{Packed, PackedKind, Role, Scheme, TensorId, builtin};
use neuroconv_runtime::{Checkpoint, Quiet, TextTokenizer};
use proptest::prelude::*;

use super::{Allocation, Allocator, Measured, MeasuredMatrix, Options, StorageOption, measure};
use crate::plan;

/// Options of one matrix as bytes and errors.
type Table = Vec<Vec<(u64, f64)>>;

/// A scheme that tells options apart.
fn numbered(number: usize) -> Scheme {
    let mut packed = Packed::new(PackedKind::Int4);
    packed.correct_rank = number;
    Scheme::Packed(packed)
}

fn measured(table: &Table) -> Measured {
    let matrices = table.iter().enumerate().map(|(layer, options)| {
        let option = |(number, &(bytes, error)): (usize, &(u64, f64))| StorageOption {
            scheme: numbered(number),
            bytes,
            error,
        };
        MeasuredMatrix {
            id: TensorId::layer(layer, Role::Q),
            probe_error: 1.0,
            options: options.iter().enumerate().map(option).collect(),
        }
    });
    Measured {
        matrices: matrices.collect(),
        streams: Vec::new(),
        probes: Vec::new(),
        probe_tokens: 0,
    }
}

/// Bytes and loss of every choice there is.
fn all(table: &Table) -> Vec<(u64, f64)> {
    let mut sums = vec![(0, 0.0)];
    for options in table {
        let with = |&(bytes, loss): &(u64, f64)| {
            let more = options.iter();
            more.map(move |(b, l)| (bytes + b, loss + l))
                .collect::<Vec<_>>()
        };
        sums = sums.iter().flat_map(with).collect();
    }
    sums
}

/// What an allocation says it costs is what its options cost.
fn check(table: &Table, allocation: &Allocation) {
    let (mut bytes, mut loss) = (0, 0.0);
    for (layer, options) in table.iter().enumerate() {
        let scheme = allocation.schemes[&TensorId::layer(layer, Role::Q)];
        let number = scheme.as_packed().unwrap().correct_rank;
        bytes += options[number].0;
        loss += options[number].1;
    }
    assert_eq!(bytes, allocation.bytes);
    assert!((loss - allocation.loss).abs() < 1e-9);
}

proptest! {
    #[test]
    fn no_choice_of_the_size_loses_less_than_the_front(
        table in prop::collection::vec(
            prop::collection::vec((1_u64..40, 0.0..10.0), 1..5), 1..5),
    ) {
        let table: Table = table;
        let all = all(&table);
        let allocator = Allocator::new(&measured(&table), |_| 1.0);
        let front = allocator.front();
        prop_assert!(front.is_sorted_by(|a, b| a.bytes < b.bytes && a.loss >= b.loss));
        for point in &front {
            check(&table, point);
            let fits = all.iter().filter(|(bytes, _)| *bytes <= point.bytes);
            let best = fits.map(|(_, loss)| *loss).fold(f64::INFINITY, f64::min);
            prop_assert!((point.loss - best).abs() < 1e-9, "{} {best}", point.loss);
        }
        for budget in 0..160 {
            let least = all.iter().map(|(bytes, _)| *bytes).min().unwrap();
            let Some(found) = allocator.within(budget) else {
                prop_assert!(front[0].bytes > budget && least <= front[0].bytes);
                continue;
            };
            check(&table, &found);
            prop_assert!(found.bytes <= budget);
            let before = front.iter().rfind(|point| point.bytes <= budget).unwrap();
            prop_assert!(found.loss <= before.loss + 1e-9);
        }
    }
}

#[test]
fn a_matrix_that_matters_more_gets_more() {
    let options = vec![(1, 1.0), (2, 0.3), (4, 0.0)];
    let table = vec![options.clone(), options];
    let matters = TensorId::layer(1, Role::Q);
    let allocator = Allocator::new(
        &measured(&table),
        |id| if id == matters { 5.0 } else { 1.0 },
    );
    let found = allocator.within(5).unwrap();
    assert_eq!(found.schemes[&matters], numbered(2));
    assert_eq!(found.schemes[&TensorId::layer(0, Role::Q)], numbered(0));
}

/// What was measured of the trained model, once for all tests.
static MEASURED: LazyLock<Measured> = LazyLock::new(measured_model);

fn measured_model() -> Measured {
    let source = Checkpoint::open(&tiny_model()).unwrap();
    let tokenizer = TextTokenizer::open(&tiny_model()).unwrap();
    let text = fs_err::read_to_string(tiny_text()).unwrap();
    let tokens = tokenizer.encode_plain(&text[..6144]).unwrap();
    let windows: Vec<Vec<u32>> = tokens.chunks_exact(128).map(<[u32]>::to_vec).collect();
    let recipe = builtin("int4").unwrap();
    let kinds: Vec<Packed> = [PackedKind::Ternary, PackedKind::Int4, PackedKind::Int8]
        .map(Packed::new)
        .to_vec();
    let go_on = AtomicBool::new(false);
    let options = Options::of(&kinds);
    let found = measure(&source, &recipe, &options, &windows, &Quiet, &go_on);
    found.unwrap()
}

#[test]
fn more_bits_of_a_trained_matrix_lose_less() {
    let measured = &*MEASURED;
    let source = Checkpoint::open(&tiny_model()).unwrap();
    let matrices = plan(&source, &builtin("int4").unwrap()).unwrap();
    let packed = matrices.tensors.iter().filter(|t| t.group.is_some());
    assert_eq!(measured.matrices.len(), packed.count());
    assert_eq!(measured.probes.len(), measured.matrices.len());
    for matrix in &measured.matrices {
        let errors: BTreeMap<String, f64> = matrix
            .options
            .iter()
            .map(|option| (option.scheme.label(), option.error))
            .collect();
        let ordered: &[&str] = match matrix.id.layer {
            Some(_) => &["ternary", "ternary x2", "int4", "int4 g32", "int8", "keep"],
            None => &["int4 g32", "int8", "keep"],
        };
        let errors: Vec<f64> = ordered.iter().map(|way| errors[*way]).collect();
        assert!(
            errors.is_sorted_by(|a, b| a > b),
            "{}: {errors:?}",
            matrix.id
        );
        assert!(matrix.probe_error > 0.0);
    }
    for probe in measured.probes.iter().filter(|p| !p.streams.is_empty()) {
        assert_ne!(probe.streams, measured.streams, "{}", probe.id);
    }
}

#[test]
fn a_correction_never_makes_it_worse() {
    for matrix in &MEASURED.matrices {
        let error = |way: &str| {
            let mut options = matrix.options.iter();
            options.find(|o| o.scheme.label() == way).map(|o| o.error)
        };
        for way in ["ternary", "int4"] {
            if let (Some(plain), Some(corrected)) = (error(way), error(&format!("{way} r16"))) {
                assert!(
                    corrected < plain,
                    "{} {way}: {corrected} {plain}",
                    matrix.id
                );
            }
        }
    }
}

#[test]
fn an_allocation_is_a_recipe_that_plans_to_its_size() {
    let source = Checkpoint::open(&tiny_model()).unwrap();
    let base = builtin("int4").unwrap();
    let allocator = Allocator::new(&MEASURED, |_| 1.0);
    for allocation in allocator.front() {
        let recipe = allocation.recipe(&base);
        let text = recipe.to_toml();
        let read = neuroconv_recipes::Recipe::parse(&text, "recipe").unwrap();
        assert_eq!(read, recipe);
        let planned = plan(&source, &recipe).unwrap();
        let chosen = planned
            .tensors
            .iter()
            .filter(|t| allocation.schemes.contains_key(&t.id));
        let bytes: u64 = chosen.clone().map(|t| t.bytes).sum();
        assert_eq!(bytes, allocation.bytes);
        for tensor in chosen {
            assert_eq!(
                tensor.scheme, allocation.schemes[&tensor.id],
                "{}",
                tensor.id
            );
        }
    }
}
