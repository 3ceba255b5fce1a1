//! Corrections of packed tensors: planned, opened, and damaged in every way.

use neuroconv_format::codec::LayoutError;
use neuroconv_format::{
    Artifact, Corrections, CorrectionsPlan, DType, ElementType, PartCodec, PartKind, Tensor,
    TensorCodec, TensorFault, Validate,
};

use crate::artifact::{Case, structure, values};
use crate::build::Dir;
use crate::sample::{Sample, bits_per_weight};

/// Has a correction of rank 2 and three dense columns apart; 17 x 32.
const UP: &str = "blk.0.mlp_up";
/// Has two packed columns apart; 16 x 40.
const GATE: &str = "blk.0.mlp_gate";

fn of(part: PartKind, fault: TensorFault) -> TensorFault {
    TensorFault::Part {
        part,
        fault: Box::new(fault),
    }
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = record_cases();
    cases.extend(place_cases());
    cases.extend(shape_cases());
    cases.extend(value_cases());
    cases
}

fn record_cases() -> Vec<Case> {
    let alone = |part, without| of(part, TensorFault::PartAlone { without });
    let codec = |codec, group| TensorFault::PartCodec { codec, group };
    vec![
        structure(
            "parts of a dense tensor",
            "final_norm",
            TensorFault::DenseParts {
                codec: TensorCodec::Bf16,
            },
            |sample| {
                let part = sample.part(UP, PartKind::LowRankA).clone();
                let record = sample.record("final_norm");
                record.parts.push(part);
                record.bits_per_weight = bits_per_weight(record);
            },
        ),
        structure(
            "half a product",
            UP,
            alone(PartKind::LowRankA, PartKind::LowRankB),
            |sample| drop_part(sample, PartKind::LowRankB),
        ),
        structure(
            "columns without indexes",
            UP,
            alone(PartKind::Columns, PartKind::ColumnIndex),
            |sample| drop_part(sample, PartKind::ColumnIndex),
        ),
        structure(
            "part listed twice",
            UP,
            of(PartKind::LowRankB, TensorFault::ListedTwice),
            |sample| {
                let part = sample.part(UP, PartKind::LowRankB).clone();
                sample.record(UP).parts.push(part);
                sample.record(UP).bits_per_weight = bits_per_weight(sample.record(UP));
            },
        ),
        structure(
            "indexes in half precision",
            UP,
            of(PartKind::ColumnIndex, codec(PartCodec::F16, None)),
            |sample| sample.part(UP, PartKind::ColumnIndex).codec = PartCodec::F16,
        ),
        structure(
            "packed factor",
            UP,
            of(PartKind::LowRankA, codec(PartCodec::Int8, Some(32))),
            |sample| {
                let part = sample.part(UP, PartKind::LowRankA);
                (part.codec, part.group) = (PartCodec::Int8, Some(32));
            },
        ),
        structure(
            "packed columns without a group",
            GATE,
            of(PartKind::Columns, codec(PartCodec::Int8, None)),
            |sample| sample.part(GATE, PartKind::Columns).group = None,
        ),
        structure(
            "dense columns with a group",
            UP,
            of(PartKind::Columns, codec(PartCodec::F16, Some(32))),
            |sample| sample.part(UP, PartKind::Columns).group = Some(32),
        ),
        structure(
            "bits without the parts",
            UP,
            bits_of_codes_alone(),
            |sample| {
                let record = sample.record(UP);
                record.bits_per_weight = record.size as f64 * 8.0 / (17.0 * 32.0);
            },
        ),
    ]
}

fn drop_part(sample: &mut Sample, kind: PartKind) {
    let record = sample.record(UP);
    record.parts.retain(|part| part.kind != kind);
    record.bits_per_weight = bits_per_weight(record);
}

fn bits_of_codes_alone() -> TensorFault {
    let mut sample = Sample::new();
    let record = sample.record(UP);
    TensorFault::BitsPerWeight {
        expected: bits_per_weight(record),
        found: record.size as f64 * 8.0 / (17.0 * 32.0),
    }
}

fn place_cases() -> Vec<Case> {
    let mut sample = Sample::new();
    let a = sample.part(UP, PartKind::LowRankA).clone();
    let columns = sample.part(GATE, PartKind::Columns).clone();
    vec![
        structure(
            "part in no file",
            UP,
            of(PartKind::LowRankA, TensorFault::NotInFile),
            |sample| {
                sample.replace_in_header("mlp_up.low_rank_a", "mlp_up.low_rank_c");
            },
        ),
        structure(
            "part moved",
            UP,
            of(
                PartKind::LowRankA,
                TensorFault::Offset {
                    manifest: a.offset + 2,
                    header: a.offset,
                },
            ),
            |sample| sample.part(UP, PartKind::LowRankA).offset += 2,
        ),
        structure(
            "part grown",
            GATE,
            of(
                PartKind::Columns,
                TensorFault::Size {
                    manifest: columns.size + 64,
                    header: columns.size,
                },
            ),
            |sample| {
                sample.part(GATE, PartKind::Columns).size += 64;
                sample.record(GATE).bits_per_weight = bits_per_weight(sample.record(GATE));
            },
        ),
        structure(
            "part of another type",
            UP,
            of(
                PartKind::LowRankB,
                TensorFault::Dtype {
                    expected: DType::F16,
                    found: ElementType::BF16,
                },
            ),
            |sample| {
                sample.replace_in_header(
                    r#"low_rank_b":{"dtype":"F16""#,
                    r#"low_rank_b":{"dtype":"BF16""#,
                );
            },
        ),
        structure(
            "part in another shape",
            UP,
            of(
                PartKind::LowRankB,
                TensorFault::Shape {
                    expected: vec![17, 2],
                    found: vec![2, 17],
                },
            ),
            |sample| sample.replace_in_header(r#""shape":[17,2]"#, r#""shape":[2,17]"#),
        ),
    ]
}

fn shape_cases() -> Vec<Case> {
    let shape = |expected: [usize; 2], found: [usize; 2]| TensorFault::Shape {
        expected: expected.to_vec(),
        found: found.to_vec(),
    };
    vec![
        structure(
            "factor of other columns",
            UP,
            TensorFault::Rank {
                rank: 32,
                rows: 17,
                cols: 32,
            },
            |sample| turn(sample, PartKind::LowRankA),
        ),
        structure(
            "factor of other rows",
            UP,
            of(PartKind::LowRankB, shape([17, 2], [2, 17])),
            |sample| turn(sample, PartKind::LowRankB),
        ),
        structure(
            "columns of other rows",
            UP,
            of(PartKind::Columns, shape([17, 3], [3, 17])),
            |sample| turn(sample, PartKind::Columns),
        ),
        structure(
            "more packed columns than indexes",
            GATE,
            of(PartKind::Columns, shape([16, 2], [16, 3])),
            |sample| sample.part(GATE, PartKind::Columns).shape = vec![16, 3],
        ),
        structure(
            "more indexes than columns",
            GATE,
            of(PartKind::ColumnIndex, TensorFault::Tail { byte: 4 }),
            |sample| sample.part(GATE, PartKind::ColumnIndex).shape = vec![1],
        ),
        structure(
            "no rank",
            UP,
            of(
                PartKind::LowRankA,
                TensorFault::Layout(LayoutError::Size { rows: 0, cols: 32 }),
            ),
            |sample| sample.part(UP, PartKind::LowRankA).shape = vec![0, 32],
        ),
        structure(
            "far more indexes than bytes",
            UP,
            of(
                PartKind::ColumnIndex,
                TensorFault::LayoutSize {
                    expected: 1 << 42,
                    found: 64,
                },
            ),
            |sample| sample.part(UP, PartKind::ColumnIndex).shape = vec![1 << 40],
        ),
    ]
}

/// Exchanges the dimensions of a part of [`UP`] in the manifest and in the header.
fn turn(sample: &mut Sample, kind: PartKind) {
    let part = sample.part(UP, kind);
    let &[rows, cols] = part.shape.as_slice() else {
        unreachable!("a matrix")
    };
    part.shape = vec![cols, rows];
    let header = |rows, cols| {
        let name = kind.name();
        format!(r#"mlp_up.{name}":{{"dtype":"F16","shape":[{rows},{cols}]"#)
    };
    sample.replace_in_header(&header(rows, cols), &header(cols, rows));
}

fn value_cases() -> Vec<Case> {
    let index = |place, index, least| {
        let fault = TensorFault::ColumnIndex {
            place,
            index,
            least,
            cols: 32,
        };
        of(PartKind::ColumnIndex, fault)
    };
    let mut sample = Sample::new();
    let expected = sample.part(UP, PartKind::Columns).blake3.clone();
    sample.part_bytes(UP, PartKind::Columns)[0] ^= 1;
    let found = blake3::hash(sample.part_bytes(UP, PartKind::Columns));
    let found = found.to_hex().to_string();
    // What is used as an index is checked before anything uses it, whatever else is left out.
    vec![
        structure("an index twice", UP, index(1, 0, 1), |sample| {
            sample.part_bytes(UP, PartKind::ColumnIndex)[4] = 0;
        }),
        structure("indexes that fall", UP, index(2, 8, 10), |sample| {
            sample.part_bytes(UP, PartKind::ColumnIndex)[8] = 8;
        }),
        structure(
            "an index beyond the columns",
            UP,
            index(2, 32, 10),
            |sample| {
                sample.part_bytes(UP, PartKind::ColumnIndex)[8] = 32;
            },
        ),
        structure("the largest index", UP, index(2, u32::MAX, 10), |sample| {
            sample.part_bytes(UP, PartKind::ColumnIndex)[8..12].fill(0xff);
        }),
        structure(
            "behind the indexes",
            UP,
            of(PartKind::ColumnIndex, TensorFault::Tail { byte: 63 }),
            |sample| sample.part_bytes(UP, PartKind::ColumnIndex)[63] = 1,
        ),
        values(
            "a code where a column is apart",
            UP,
            TensorFault::ApartCode { row: 16, col: 9 },
            |sample| {
                // Second panel, row 16, unit 1, column 9.
                sample.bytes(UP)[256 + 64 + 1] ^= 0x04;
            },
        ),
        values(
            "a factor that is not a number",
            UP,
            of(PartKind::LowRankB, TensorFault::NotFinite { element: 33 }),
            |sample| {
                sample.part_bytes(UP, PartKind::LowRankB)[66..].copy_from_slice(&[0x01, 0x7e]);
            },
        ),
        values(
            "a packed column with a code that is none",
            GATE,
            of(
                PartKind::Columns,
                TensorFault::Code {
                    codec: TensorCodec::Int8,
                    byte: 1,
                    value: 0x80,
                },
            ),
            |sample| sample.part_bytes(GATE, PartKind::Columns)[1] = 0x80,
        ),
        values(
            "hash of a part",
            UP,
            of(PartKind::Columns, TensorFault::Hash { expected, found }),
            |sample| sample.part_bytes(UP, PartKind::Columns)[0] ^= 1,
        ),
    ]
}

fn corrections(artifact: &Artifact, name: &str) -> Corrections {
    match artifact.tensor(name).unwrap() {
        Tensor::Packed(packed) => packed.corrections,
        Tensor::Dense(_) => panic!("`{name}` is packed"),
    }
}

#[test]
fn parts_are_opened_as_they_were_written() {
    let dir = Dir::new();
    let mut sample = Sample::new();
    sample.write(&dir);
    let artifact = Artifact::open(dir.path("a"), Validate::Full).unwrap();
    for (name, indexes) in [(UP, &[0, 9, 31][..]), (GATE, &[3, 39])] {
        let found = corrections(&artifact, name);
        assert_eq!(found.columns.as_ref().unwrap().indexes, indexes);
        for (layout, bytes) in found.parts().unwrap() {
            assert_eq!(
                *bytes,
                *sample.part_bytes(name, layout.kind()),
                "{layout:?}"
            );
            if layout.codec() == PartCodec::Int8 {
                assert!((bytes.as_ptr() as usize).is_multiple_of(64));
            }
        }
        assert_eq!(found.low_rank.is_some(), name == UP);
    }
    assert!(corrections(&artifact, "blk.0.attn_q").is_empty());
}

#[test]
fn the_plan_of_parts_is_what_is_stored() {
    let mut sample = Sample::new();
    for (name, shape, plan) in [
        (
            UP,
            (17, 32),
            CorrectionsPlan {
                rank: 2,
                columns: 3,
                column_group: None,
            },
        ),
        (
            GATE,
            (16, 40),
            CorrectionsPlan {
                rank: 0,
                columns: 2,
                column_group: Some(32),
            },
        ),
        ("embed", (20, 40), CorrectionsPlan::default()),
    ] {
        let planned = plan.parts(shape.0, shape.1).unwrap();
        let stored = sample.record(name).parts.clone();
        assert_eq!(planned.len(), stored.len());
        for (planned, stored) in planned.iter().zip(stored) {
            assert_eq!(planned.name(name), format!("{name}.{}", stored.kind.name()));
            assert_eq!(
                (
                    planned.kind(),
                    planned.codec(),
                    planned.shape(),
                    planned.group()
                ),
                (stored.kind, stored.codec, &stored.shape[..], stored.group)
            );
            assert_eq!(planned.size_bytes() as u64, stored.size);
        }
    }
    let huge = CorrectionsPlan {
        rank: usize::MAX,
        ..CorrectionsPlan::default()
    };
    assert!(matches!(huge.parts(16, 32), Err(LayoutError::Size { .. })));
    let group = CorrectionsPlan {
        columns: 3,
        column_group: Some(48),
        ..CorrectionsPlan::default()
    };
    assert_eq!(group.parts(16, 32), Err(LayoutError::Group(48)));
}
