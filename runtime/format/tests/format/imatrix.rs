//! Importance matrices: written, read, and refused.

use std::collections::BTreeMap;

use neuroconv_format::Error;
use neuroconv_format::gguf::{
    Array, GgmlType, GgufError, GgufFile, GgufLayout, Imatrix, Metadata, PlannedGguf, Value,
    imatrix::Importance,
};

use crate::build::{Dir, Random};

fn sample() -> Imatrix {
    let entry = |sums: &[f32], counts: &[f32]| Importance {
        sums: sums.to_vec(),
        counts: counts.to_vec(),
    };
    Imatrix {
        datasets: vec!["calib.txt".to_owned(), "é".to_owned()],
        chunks: 3,
        chunk_tokens: 256,
        entries: BTreeMap::from([
            (
                "blk.0.attn_q.weight".to_owned(),
                entry(&[4.0, 0.0, 2.0], &[2.0]),
            ),
            (
                "blk.0.ffn_up_exps.weight".to_owned(),
                entry(&[1.0, 2.0, 3.0, 4.0], &[1.0, 0.0]),
            ),
            ("blk.0.none.weight".to_owned(), entry(&[0.0], &[0.0])),
        ]),
        ignored: Vec::new(),
    }
}

#[test]
fn what_is_written_is_read() {
    let dir = Dir::new();
    let sample = sample();
    let bytes = sample.to_bytes().unwrap();
    let path = dir.write("i.gguf", &bytes);
    let found = Imatrix::open(&path).unwrap();
    assert_eq!(found, sample);
    assert_eq!(found.to_bytes().unwrap(), bytes);
    let experts = &found.entries["blk.0.ffn_up_exps.weight"];
    assert_eq!((experts.matrices(), experts.columns()), (2, 2));
    // The names and shapes that other programs look for.
    let file = GgufFile::open(&path).unwrap();
    let tensors = file
        .tensors()
        .iter()
        .map(|t| (t.name.as_str(), &t.shape[..]));
    assert_eq!(
        tensors.collect::<Vec<_>>(),
        [
            ("blk.0.attn_q.weight.in_sum2", &[3][..]),
            ("blk.0.attn_q.weight.counts", &[1]),
            ("blk.0.ffn_up_exps.weight.in_sum2", &[2, 2]),
            ("blk.0.ffn_up_exps.weight.counts", &[2, 1]),
            ("blk.0.none.weight.in_sum2", &[1]),
            ("blk.0.none.weight.counts", &[1]),
        ]
    );
}

/// A file of these F32 tensors, or of another type where `kind` says so.
fn file(kind_of_file: Option<&str>, tensors: &[(&str, GgmlType, &[usize], &[f32])]) -> Vec<u8> {
    let mut metadata = Metadata::default();
    if let Some(kind) = kind_of_file {
        metadata.push("general.type", Value::Text(kind.to_owned()));
    }
    metadata.push("imatrix.datasets", Value::Array(Array::U8(vec![1])));
    let planned: Vec<PlannedGguf> = tensors
        .iter()
        .map(|(name, kind, shape, _)| PlannedGguf {
            name: (*name).to_owned(),
            kind: *kind,
            shape: shape.to_vec(),
        })
        .collect();
    let layout = GgufLayout::new(&metadata, &planned).unwrap();
    let mut bytes = layout.header_bytes().to_vec();
    bytes.resize(layout.file_size() as usize, 0);
    for (info, (.., values)) in layout.tensors().iter().zip(tensors) {
        for (i, value) in values.iter().enumerate() {
            let at = info.range.start as usize + 4 * i;
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
    }
    bytes
}

fn refused(bytes: &[u8]) -> GgufError {
    let dir = Dir::new();
    match Imatrix::open(dir.write("i.gguf", bytes)) {
        Err(Error::Gguf { source, .. }) => *source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_no_importance_matrix_is_refused() {
    let f32 = GgmlType::F32;
    let sums = ("a.in_sum2", f32, &[2][..], &[1.0, 2.0][..]);
    let counts = ("a.counts", f32, &[1][..], &[1.0][..]);
    let found = |text: &str| GgufError::NotImatrix {
        found: text.to_owned(),
    };
    let tensor = |name: &str| name.to_owned();
    let imatrix = Some("imatrix");
    assert_eq!(refused(&file(None, &[sums, counts])), found("missing"));
    assert_eq!(
        refused(&file(Some("model"), &[sums, counts])),
        found("`model`")
    );
    assert_eq!(refused(&file(imatrix, &[])), GgufError::NoImportance);
    assert_eq!(
        refused(&file(imatrix, &[sums])),
        GgufError::NoTensor {
            tensor: tensor("a.counts")
        }
    );
    assert_eq!(
        refused(&file(imatrix, &[counts])),
        GgufError::NoTensor {
            tensor: tensor("a.in_sum2")
        }
    );
    let half = ("a.in_sum2", GgmlType::F16, &[2][..], &[][..]);
    assert_eq!(
        refused(&file(imatrix, &[half, counts])),
        GgufError::NotF32 {
            tensor: tensor("a.in_sum2"),
            found: GgmlType::F16
        }
    );
    for (shape, counts_shape, name) in [
        (&[2, 2][..], &[3][..], "a.in_sum2"),
        (&[2, 2], &[], "a.in_sum2"),
        (&[2, 0], &[2], "a.in_sum2"),
        (&[2], &[0], "a.counts"),
        (&[], &[1], "a.in_sum2"),
    ] {
        let error = refused(&file(
            imatrix,
            &[
                ("a.in_sum2", f32, shape, &[]),
                ("a.counts", f32, counts_shape, &[]),
            ],
        ));
        assert!(
            matches!(&error, GgufError::ImportanceShape { tensor, .. } if tensor == name),
            "{error:?}"
        );
    }
    for bad in [-1.0, f32::NAN, f32::INFINITY] {
        let values = [1.0, bad];
        let error = refused(&file(imatrix, &[("a.in_sum2", f32, &[2], &values), counts]));
        assert!(
            matches!(error, GgufError::ImportanceValue { index: 1, .. }),
            "{error:?}"
        );
        let error = refused(&file(imatrix, &[sums, ("a.counts", f32, &[1], &[bad])]));
        assert!(
            matches!(error, GgufError::ImportanceValue { index: 0, .. }),
            "{error:?}"
        );
    }
}

#[test]
fn tensors_of_other_statistics_are_left_alone() {
    let dir = Dir::new();
    let f32 = GgmlType::F32;
    let bytes = file(
        Some("imatrix"),
        &[
            ("a.in_sum2", f32, &[2], &[1.0, 2.0]),
            ("a.in_sum", f32, &[2], &[-1.0, 2.0]),
            ("a.counts", f32, &[1], &[1.0]),
        ],
    );
    let found = Imatrix::open(dir.write("i.gguf", bytes)).unwrap();
    assert_eq!(found.ignored, ["a.in_sum"]);
    assert_eq!(found.entries.len(), 1);
}

#[test]
fn changed_bytes_never_panic() {
    let dir = Dir::new();
    let good = sample().to_bytes().unwrap();
    let mut random = Random(9);
    for _ in 0..4_000 {
        let mut bytes = good.clone();
        for _ in 0..=random.below(3) {
            let at = random.below(bytes.len());
            bytes[at] = random.next() as u8;
        }
        if let Ok(found) = Imatrix::open(dir.write("i.gguf", &bytes)) {
            for entry in found.entries.values() {
                assert_eq!(entry.sums.len(), entry.matrices() * entry.columns());
            }
        }
    }
}

#[test]
fn parts_of_a_text_add_up() {
    let entry = |sums: &[f32], count| Importance {
        sums: sums.to_vec(),
        counts: vec![count],
    };
    let part = |name: &str, entry: Importance| Imatrix {
        datasets: vec![format!("{name}.txt")],
        chunks: 2,
        entries: BTreeMap::from([(name.to_owned(), entry)]),
        ..Imatrix::default()
    };
    let mut all = part("a", entry(&[1.0, 2.0], 10.0));
    all.add(&part("a", entry(&[0.5, 4.0], 6.0))).unwrap();
    all.add(&part("b", entry(&[1.0], 3.0))).unwrap();
    assert_eq!(all.entries["a"], entry(&[1.5, 6.0], 16.0));
    assert_eq!((all.entries["b"].counts[0], all.chunks), (3.0, 6));
    assert_eq!(all.datasets, ["a.txt", "b.txt"]);
    let before = all.clone();
    assert_eq!(
        all.add(&part("b", entry(&[1.0, 1.0], 3.0))),
        Err("b".to_owned())
    );
    assert_eq!(all, before);
}
