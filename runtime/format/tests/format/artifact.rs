//! Artifacts: opened, and damaged in every way.

use neuroconv_format::codec::LayoutError;
use neuroconv_format::manifest::TensorCodec;
use neuroconv_format::{
    ActivationBits, Artifact, ArtifactError, DType, ElementType, Error, Tensor, TensorFault,
    Validate,
};

use crate::build::Dir;
use crate::parts;
use crate::sample::{Sample, WEIGHTS};

#[test]
fn an_artifact_is_opened_and_used_in_place() {
    let dir = Dir::new();
    let mut sample = Sample::new();
    sample.write(&dir);
    assert!(Artifact::is_artifact(dir.path("a")));
    assert!(!Artifact::is_artifact(dir.path("")));
    for validate in [Validate::Full, Validate::Structure] {
        let artifact = Artifact::open(dir.path("a"), validate).unwrap();
        assert_eq!(artifact.path(), dir.path("a"));
        assert_eq!(*artifact.manifest(), sample.manifest);
        for record in sample.manifest.tensors.clone() {
            let tensor = artifact.tensor(&record.name).unwrap();
            assert_eq!(
                (tensor.shape(), tensor.codec_name()),
                (record.shape.clone(), record.codec.name())
            );
            let bytes = match &tensor {
                Tensor::Packed(packed) => {
                    assert!((packed.bytes.as_ptr() as usize).is_multiple_of(64));
                    &packed.bytes
                }
                Tensor::Dense(dense) => {
                    assert!((dense.bytes.as_ptr() as usize).is_multiple_of(dense.dtype.size()));
                    &dense.bytes
                }
            };
            assert_eq!(**bytes, *sample.bytes(&record.name));
            assert_eq!(tensor.size_bytes() as u64, record.stored_bytes());
        }
        assert!(matches!(
            artifact.tensor("nothing"),
            Err(Error::NoTensor { .. })
        ));
    }
}

/// A change to the sample and why it is refused then, also where only the structure is checked.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) change: fn(&mut Sample),
    pub(crate) expected: ArtifactError,
    pub(crate) structure: bool,
}

/// The tensors that most cases change.
const Q: &str = "blk.0.attn_q";
const K: &str = "blk.0.attn_k";
const O: &str = "blk.0.attn_o";
const NORM: &str = "blk.0.attn_norm";

pub(crate) fn structure(
    name: &'static str,
    tensor: &str,
    fault: TensorFault,
    change: fn(&mut Sample),
) -> Case {
    let (file, tensor) = (WEIGHTS.to_owned(), tensor.to_owned());
    let expected = ArtifactError::Tensor {
        file,
        tensor,
        fault,
    };
    Case {
        name,
        change,
        expected,
        structure: true,
    }
}

pub(crate) fn values(
    name: &'static str,
    tensor: &str,
    fault: TensorFault,
    change: fn(&mut Sample),
) -> Case {
    Case {
        structure: false,
        ..structure(name, tensor, fault, change)
    }
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = file_cases();
    cases.extend(place_cases());
    cases.extend(layout_cases());
    cases.extend(group_cases());
    cases.extend(value_cases());
    cases.extend(parts::cases());
    cases
}

fn file_cases() -> Vec<Case> {
    let file = |name, expected, change| Case {
        name,
        change,
        expected,
        structure: true,
    };
    vec![
        file(
            "parent",
            ArtifactError::FileName {
                tensor: Q.into(),
                file: "../x.safetensors".into(),
            },
            |sample| sample.record(Q).file = "../x.safetensors".into(),
        ),
        file(
            "no file",
            ArtifactError::NoFile {
                tensor: Q.into(),
                file: "x.safetensors".into(),
            },
            |sample| sample.record(Q).file = "x.safetensors".into(),
        ),
        file(
            "unlisted",
            ArtifactError::Unlisted {
                file: WEIGHTS.into(),
                tensor: "head".into(),
            },
            |sample| drop(sample.manifest.tensors.pop()),
        ),
    ]
}

fn place_cases() -> Vec<Case> {
    let mut sample = Sample::new();
    let (offset, size) = (sample.record(Q).offset, sample.record(Q).size);
    let first = sample.record("embed").offset;
    let dtype = TensorFault::Dtype {
        expected: DType::U8,
        found: ElementType::I8,
    };
    vec![
        structure("listed twice", Q, TensorFault::ListedTwice, |sample| {
            let again = sample.record(Q).clone();
            sample.manifest.tensors.push(again);
        }),
        structure(
            "other name",
            "blk.9.attn_q",
            TensorFault::NotInFile,
            |sample| {
                sample.record(Q).name = "blk.9.attn_q".into();
            },
        ),
        structure("other type in the file", "embed", dtype, |sample| {
            sample.replace_in_header(r#""embed":{"dtype":"U8""#, r#""embed":{"dtype":"I8""#);
        }),
        structure(
            "other codec",
            NORM,
            TensorFault::Dtype {
                expected: DType::BF16,
                found: ElementType::F32,
            },
            |sample| sample.record(NORM).codec = TensorCodec::Bf16,
        ),
        structure(
            "moved",
            Q,
            TensorFault::Offset {
                manifest: offset + 64,
                header: offset,
            },
            |sample| sample.record(Q).offset += 64,
        ),
        structure(
            "grown",
            Q,
            TensorFault::Size {
                manifest: size + 64,
                header: size,
            },
            |sample| sample.record(Q).size += 64,
        ),
        structure(
            "off by one byte",
            "embed",
            TensorFault::Unaligned {
                offset: first + 1,
                alignment: 64,
            },
            |sample| {
                let length = u64::from_le_bytes(*sample.weights.first_chunk().unwrap());
                sample.weights.insert(8 + length as usize, b' ');
                sample.weights[..8].copy_from_slice(&(length + 1).to_le_bytes());
                sample
                    .manifest
                    .tensors
                    .iter_mut()
                    .for_each(|record| record.offset += 1);
            },
        ),
    ]
}

fn layout_cases() -> Vec<Case> {
    let ternary = TensorCodec::Ternary;
    let bad = |codec, shape: &[usize]| TensorFault::BadShape {
        codec,
        shape: shape.to_vec(),
    };
    let shape = TensorFault::Shape {
        expected: vec![4, 10],
        found: vec![40],
    };
    let packed = TensorFault::Shape {
        expected: vec![192],
        found: vec![2, 96],
    };
    vec![
        structure("three dimensions", Q, bad(ternary, &[4, 4, 32]), |sample| {
            sample.record(Q).shape = vec![4, 4, 32];
        }),
        structure("no rows", Q, bad(ternary, &[0, 32]), |sample| {
            sample.record(Q).shape = vec![0, 32];
        }),
        structure("no shape", NORM, bad(TensorCodec::F32, &[]), |sample| {
            sample.record(NORM).shape = Vec::new();
        }),
        structure("dense shape", NORM, shape, |sample| {
            sample.record(NORM).shape = vec![4, 10];
        }),
        structure("packed shape", Q, packed, |sample| {
            sample.replace_in_header(r#""shape":[192]"#, r#""shape":[2,96]"#);
        }),
    ]
}

fn group_cases() -> Vec<Case> {
    let ternary = TensorCodec::Ternary;
    let huge = LayoutError::Size {
        rows: usize::MAX,
        cols: 32,
    };
    vec![
        structure(
            "no group",
            Q,
            TensorFault::NoGroup { codec: ternary },
            |sample| {
                sample.record(Q).group = None;
            },
        ),
        structure(
            "dense group",
            NORM,
            TensorFault::DenseGroup {
                codec: TensorCodec::F32,
            },
            |sample| {
                sample.record(NORM).group = Some(32);
            },
        ),
        structure(
            "dense activations",
            NORM,
            TensorFault::DenseGroup {
                codec: TensorCodec::F32,
            },
            |sample| {
                sample.record(NORM).activation_bits = Some(ActivationBits::Eight);
            },
        ),
        structure(
            "dense shift",
            NORM,
            TensorFault::DenseGroup {
                codec: TensorCodec::F32,
            },
            |sample| {
                sample.record(NORM).shift = true;
            },
        ),
        structure(
            "group",
            Q,
            TensorFault::Layout(LayoutError::Group(48)),
            |sample| {
                sample.record(Q).group = Some(48);
            },
        ),
        structure("huge", Q, TensorFault::Layout(huge), |sample| {
            sample.record(Q).shape = vec![usize::MAX, 32];
        }),
        structure(
            "more rows",
            Q,
            TensorFault::LayoutSize {
                expected: 320,
                found: 192,
            },
            |sample| {
                sample.record(Q).shape = vec![32, 32];
            },
        ),
        structure(
            "other packed codec",
            Q,
            TensorFault::LayoutSize {
                expected: 320,
                found: 192,
            },
            |sample| {
                sample.record(Q).codec = TensorCodec::Int4;
            },
        ),
        structure(
            "bits",
            Q,
            TensorFault::BitsPerWeight {
                expected: 3.0,
                found: 2.125,
            },
            |sample| {
                sample.record(Q).bits_per_weight = 2.125;
            },
        ),
    ]
}

fn value_cases() -> Vec<Case> {
    let mut sample = Sample::new();
    let expected = sample.record(Q).blake3.clone();
    sample.bytes(Q)[0] ^= 0b01;
    let found = blake3::hash(sample.bytes(Q)).to_hex().to_string();
    let code = |codec, value, byte| TensorFault::Code { codec, byte, value };
    vec![
        values(
            "ternary code",
            Q,
            code(TensorCodec::Ternary, 0b0101_1101, 77),
            |sample| {
                sample.bytes(Q)[77] = 0b0101_1101;
            },
        ),
        values(
            "int8 code",
            "embed",
            code(TensorCodec::Int8, 0x80, 300),
            |sample| {
                sample.bytes("embed")[300] = 0x80;
            },
        ),
        values(
            "padded column",
            O,
            TensorFault::Padding { row: 2, col: 40 },
            |sample| {
                sample.bytes(O)[128 + 8] ^= 0b01_0000;
            },
        ),
        values(
            "padded row",
            K,
            TensorFault::Padding { row: 47, col: 31 },
            |sample| {
                sample.bytes(K)[2 * 256 + 255] ^= 0x10;
            },
        ),
        values(
            "scale",
            O,
            TensorFault::Scale { row: 17, group: 1 },
            |sample| {
                let scale = 4 * 128 + 2 * (3 * 16 + 1);
                sample.bytes(O)[scale..scale + 2].copy_from_slice(&[0x00, 0x7c]);
            },
        ),
        values(
            "shift",
            K,
            TensorFault::Shift { row: 32, group: 0 },
            |sample| {
                let shift = 3 * 256 + 3 * 32 + 2 * 32;
                sample.bytes(K)[shift..shift + 2].copy_from_slice(&[0x01, 0xfe]);
            },
        ),
        values("end", Q, TensorFault::Tail { byte: 191 }, |sample| {
            sample.bytes(Q)[191] = 1;
        }),
        values(
            "nan",
            "final_norm",
            TensorFault::NotFinite { element: 31 },
            |sample| {
                sample.bytes("final_norm")[62..].copy_from_slice(&[0xc0, 0x7f]);
            },
        ),
        values("hash", Q, TensorFault::Hash { expected, found }, |sample| {
            sample.bytes(Q)[0] ^= 0b01;
        }),
    ]
}

#[test]
fn every_damage_is_refused_for_its_own_reason() {
    for case in cases() {
        let dir = Dir::new();
        let mut sample = Sample::new();
        (case.change)(&mut sample);
        sample.write(&dir);
        let error = Artifact::open(dir.path("a"), Validate::Full).unwrap_err();
        let Error::Artifact { path, source } = &error else {
            panic!("{}: {error:?}", case.name)
        };
        assert_eq!(
            (&**source, path),
            (&case.expected, &dir.path("a")),
            "{}",
            case.name
        );
        assert!(error.hint().is_some(), "{}", case.name);
        let structure = Artifact::open(dir.path("a"), Validate::Structure);
        assert_eq!(structure.is_err(), case.structure, "{}", case.name);
    }
}

#[test]
fn any_changed_byte_of_a_tensor_is_found_and_the_tensor_named() {
    let dir = Dir::new();
    let sample = Sample::new();
    sample.write(&dir);
    for record in &sample.manifest.tensors {
        let parts = record.parts.iter().map(|part| (part.offset, part.size));
        let places = [(record.offset, record.size)].into_iter().chain(parts);
        for at in places.flat_map(|(offset, size)| offset..offset + size) {
            let mut weights = sample.weights.clone();
            weights[at as usize] ^= 1 << (at % 8);
            dir.write("a/model.safetensors", &weights);
            let error = Artifact::open(dir.path("a"), Validate::Full).unwrap_err();
            let Error::Artifact { source, .. } = &error else {
                panic!("{at}: {error:?}")
            };
            let ArtifactError::Tensor { tensor, .. } = &**source else {
                panic!("{at}: {error:?}")
            };
            assert_eq!(*tensor, record.name, "{at}");
        }
    }
}

#[test]
fn a_changed_byte_of_the_header_entries_is_found() {
    let dir = Dir::new();
    let sample = Sample::new();
    sample.write(&dir);
    let start = sample
        .weights
        .windows(8)
        .position(|text| text == b",\"embed\"")
        .unwrap();
    let end = sample
        .weights
        .windows(3)
        .position(|text| text == b"]}}")
        .unwrap()
        + 3;
    for at in (0..8).chain(start..end) {
        for bit in 0..8 {
            let mut weights = sample.weights.clone();
            weights[at] ^= 1 << bit;
            dir.write("a/model.safetensors", &weights);
            for validate in [Validate::Full, Validate::Structure] {
                assert!(
                    Artifact::open(dir.path("a"), validate).is_err(),
                    "{at} {bit}"
                );
            }
        }
    }
}

#[test]
fn a_cut_weight_file_is_refused() {
    let dir = Dir::new();
    let sample = Sample::new();
    sample.write(&dir);
    for length in (0..sample.weights.len()).step_by(61) {
        dir.write("a/model.safetensors", &sample.weights[..length]);
        let error = Artifact::open(dir.path("a"), Validate::Structure).unwrap_err();
        assert!(matches!(error, Error::Header { .. }), "{length}: {error:?}");
    }
}

#[test]
fn a_folder_without_manifest_is_no_artifact() {
    let dir = Dir::new();
    fs_err::create_dir(dir.path("a")).unwrap();
    let error = Artifact::open(dir.path("a"), Validate::Full).unwrap_err();
    let Error::Artifact { source, .. } = &error else {
        panic!("{error:?}")
    };
    assert_eq!(**source, ArtifactError::NoManifest);
    assert_eq!(
        error.hint().as_deref(),
        Some("name the folder that a conversion gave")
    );
}
