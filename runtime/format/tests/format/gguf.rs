//! GGUF files: read where they are good, refused where they are not, never a panic.

use neuroconv_format::gguf::{
    Array, GgmlType, GgufError, GgufFile, GgufLayout, Metadata, PlannedGguf, Value,
};
use neuroconv_format::{Disguise, Error, limits};
use proptest::prelude::*;

use crate::build::{Dir, Random};

/// The bytes of a file, written here and not by the crate.
struct Bytes(Vec<u8>);

impl Bytes {
    fn start(tensors: u64, keys: u64) -> Self {
        let mut out = Bytes(b"GGUF".to_vec());
        out.u32(3).u64(tensors).u64(keys);
        out
    }

    fn u32(&mut self, n: u32) -> &mut Self {
        self.0.extend(n.to_le_bytes());
        self
    }

    fn u64(&mut self, n: u64) -> &mut Self {
        self.0.extend(n.to_le_bytes());
        self
    }

    fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend(bytes);
        self
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.u64(text.len() as u64).raw(text.as_bytes())
    }

    /// A tensor's entry, dimensions innermost first.
    fn tensor(&mut self, name: &str, dims: &[u64], kind: u32, offset: u64) -> &mut Self {
        self.text(name).u32(dims.len() as u32);
        for &dim in dims {
            self.u64(dim);
        }
        self.u32(kind).u64(offset)
    }

    fn pad(&mut self, to: usize) -> &mut Self {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
        self
    }
}

fn one_key(kind: u32, value: &[u8]) -> Vec<u8> {
    let mut out = Bytes::start(0, 1);
    out.text("k").u32(kind).raw(value).pad(32);
    out.0
}

fn one_tensor(name: &str, dims: &[u64], kind: u32, offset: u64, data: usize) -> Vec<u8> {
    let mut out = Bytes::start(1, 0);
    out.tensor(name, dims, kind, offset).pad(32);
    out.0.resize(out.0.len() + data, 7);
    out.0
}

fn open(dir: &Dir, bytes: &[u8]) -> Result<GgufFile, GgufError> {
    match GgufFile::open(dir.write("x.gguf", bytes)) {
        Ok(file) => Ok(file),
        Err(Error::Gguf { source, path }) => {
            assert_eq!(path, dir.path("x.gguf"));
            Err(*source)
        }
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn a_good_file_is_read() {
    let mut out = Bytes::start(2, 4);
    out.text("general.architecture").u32(8).text("llama");
    out.text("n").u32(4).u32(7);
    out.text("tokens").u32(9).u32(8).u64(2).text("a").text("é");
    out.text("scores").u32(9).u32(6).u64(2);
    out.raw(&1.5_f32.to_le_bytes()).raw(&(-2_f32).to_le_bytes());
    out.tensor("a", &[3, 2], 0, 0)
        .tensor("b", &[32, 4], 8, 32)
        .pad(32);
    for i in 0..6 {
        out.raw(&(i as f32).to_le_bytes());
    }
    out.pad(32).raw(&[1; 136]);
    let start = out.0.len() as u64 - 136 - 32;
    let dir = Dir::new();
    // The padding of the last tensor may be there or not.
    let mut padded = out.0.clone();
    padded.resize(padded.len() + 24, 0);
    for bytes in [&out.0, &padded] {
        let file = open(&dir, bytes).unwrap();
        let meta = file.metadata();
        assert_eq!(meta.len(), 4);
        assert_eq!(
            meta.get("general.architecture").and_then(Value::text),
            Some("llama")
        );
        assert_eq!(meta.get("n").and_then(Value::count), Some(7));
        let tokens = Array::Text(vec!["a".to_owned(), "é".to_owned()]);
        assert_eq!(meta.get("tokens"), Some(&Value::Array(tokens)));
        let scores = Array::F32(vec![1.5, -2.0]);
        assert_eq!(meta.get("scores"), Some(&Value::Array(scores)));
        let [a, b] = file.tensors() else { panic!() };
        assert_eq!((a.kind, &a.shape[..]), (GgmlType::F32, &[2, 3][..]));
        assert_eq!(file.read_f32(a).unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!((b.kind, &b.shape[..]), (GgmlType::Q8_0, &[4, 32][..]));
        assert_eq!(b.range, start + 32..start + 32 + 136);
        assert_eq!(file.read(b).unwrap(), [1; 136]);
        let error = file.read_f32(b).unwrap_err();
        assert!(matches!(error, Error::Gguf { .. }), "{error:?}");
    }
    let short = &out.0[..out.0.len() - 1];
    assert!(matches!(open(&dir, short), Err(GgufError::DataCut { .. })));
    padded.push(0);
    assert!(matches!(
        open(&dir, &padded),
        Err(GgufError::Trailing { .. })
    ));
}

#[test]
fn version_2_is_read() {
    let mut bytes = one_tensor("t", &[8], 0, 0, 32);
    bytes[4] = 2;
    assert!(open(&Dir::new(), &bytes).is_ok());
}

fn with_version(version: u32) -> Vec<u8> {
    let mut bytes = one_tensor("t", &[8], 0, 0, 32);
    bytes[4..8].copy_from_slice(&version.to_le_bytes());
    bytes
}

fn cases() -> Vec<(Vec<u8>, GgufError)> {
    let mut cases = start_cases();
    cases.extend(metadata_cases());
    cases.extend(name_cases());
    cases.extend(tensor_cases());
    cases
}

fn cut(place: &str, needed: u64, available: u64) -> GgufError {
    let place = place.to_owned();
    GgufError::Cut {
        place,
        needed,
        available,
    }
}

fn start_cases() -> Vec<(Vec<u8>, GgufError)> {
    let start = |tensors, keys| Bytes::start(tensors, keys).0;
    let zip = GgufError::Disguised(Disguise::Zip);
    vec![
        (b"GGUX\x03\0\0\0".to_vec(), GgufError::Magic),
        (b"PK\x03\x04....".to_vec(), zip),
        (vec![], cut("the header", 4, 0)),
        (with_version(1), GgufError::Version { found: 1 }),
        (with_version(4), GgufError::Version { found: 4 }),
        (with_version(3 << 24), GgufError::BigEndian),
        (start(1 << 40, 0), GgufError::TensorCount { found: 1 << 40 }),
        (
            start(0, 1 << 40),
            GgufError::MetadataCount { found: 1 << 40 },
        ),
        (start(0, 1), cut("metadata key 0", 8, 0)),
    ]
}

fn metadata_cases() -> Vec<(Vec<u8>, GgufError)> {
    let key = || "k".to_owned();
    let array = |kind, count| {
        let mut out = Bytes::start(0, 1);
        out.text("k").u32(9).u32(kind).u64(count);
        out.0
    };
    let long = (1_u64 << 50).to_le_bytes();
    let invalid = [1, 0, 0, 0, 0, 0, 0, 0, 0xff];
    let place = "metadata `k`".to_owned();
    let mut twice = Bytes::start(0, 2);
    twice.text("k").u32(0).raw(&[1]).text("k").u32(0).raw(&[2]);
    let mut odd = Bytes::start(0, 1);
    odd.text("general.alignment").u32(4).u32(24);
    let mut wide = Bytes::start(0, 1);
    wide.text("general.alignment").u32(10).u64(32);
    let value_type = |found| GgufError::ValueType { key: key(), found };
    vec![
        (array(6, u64::MAX), cut("metadata `k`", u64::MAX, 0)),
        (array(8, 1 << 40), cut("metadata `k`", 1 << 43, 0)),
        (array(9, 1), GgufError::NestedArray { key: key() }),
        (array(13, 0), value_type(13)),
        (one_key(99, &[]), value_type(99)),
        (
            one_key(7, &[2]),
            GgufError::Bool {
                key: key(),
                found: 2,
            },
        ),
        (one_key(8, &invalid), GgufError::NotText { place }),
        (one_key(8, &long), cut("metadata `k`", 1 << 50, 19)),
        (twice.0, GgufError::DuplicateKey { key: key() }),
        (odd.0, GgufError::Alignment),
        (wide.0, GgufError::Alignment),
    ]
}

fn name_cases() -> Vec<(Vec<u8>, GgufError)> {
    let place = || "the name of tensor 0".to_owned();
    let long = "x".repeat(limits::NAME_BYTES + 1);
    let length = |bytes| GgufError::NameLength {
        place: place(),
        bytes,
    };
    let name = "a\\nb".to_owned();
    let mut same = Bytes::start(2, 0);
    same.tensor("t", &[8], 0, 0).tensor("t", &[8], 0, 32);
    let tensor = "t".to_owned();
    vec![
        (one_tensor("", &[8], 0, 0, 32), length(0)),
        (one_tensor(&long, &[8], 0, 0, 32), length(513)),
        (
            one_tensor("a\nb", &[8], 0, 0, 32),
            GgufError::NameControl {
                place: place(),
                name,
            },
        ),
        (same.0, GgufError::DuplicateTensor { tensor }),
    ]
}

fn tensor_cases() -> Vec<(Vec<u8>, GgufError)> {
    let tensor = || "t".to_owned();
    let one = |dims: &[u64], kind, offset, data| one_tensor("t", dims, kind, offset, data);
    let shape = vec![1 << 40, 1 << 40];
    let errors = [
        GgufError::Rank {
            tensor: tensor(),
            found: 5,
        },
        GgufError::Size {
            tensor: tensor(),
            found: u64::MAX,
        },
        GgufError::Overflow {
            tensor: tensor(),
            shape: shape.clone(),
        },
        GgufError::TensorType {
            tensor: tensor(),
            found: 4,
        },
        GgufError::PartialBlock {
            tensor: tensor(),
            kind: GgmlType::Q4_K,
            columns: 100,
        },
        GgufError::Offset {
            tensor: tensor(),
            expected: 0,
            found: 32,
        },
        GgufError::DataCut {
            tensor: tensor(),
            end: 36,
            available: 32,
        },
        GgufError::Trailing {
            expected: 32,
            found: 64,
        },
    ];
    let files = [
        one(&[1; 5], 0, 0, 32),
        one(&[u64::MAX], 0, 0, 32),
        one(&shape, 0, 0, 32),
        one(&[8], 4, 0, 32),
        one(&[100], 12, 0, 32),
        one(&[8], 0, 32, 64),
        one(&[9], 0, 0, 32),
        one(&[8], 0, 0, 64),
    ];
    files.into_iter().zip(errors).collect()
}

#[test]
fn every_hostile_file_is_refused_for_its_own_reason() {
    let dir = Dir::new();
    for (bytes, expected) in cases() {
        assert_eq!(open(&dir, &bytes).err().as_ref(), Some(&expected));
        let (text, hint) = (expected.to_string(), expected.hint());
        assert!(
            text.len() < 2500 && !text.contains(char::is_control),
            "{text}"
        );
        assert!(hint.is_some_and(|hint| !hint.ends_with('.')), "{text}");
    }
}

/// A small file with something of everything.
fn small() -> Vec<u8> {
    let mut metadata = Metadata::default();
    metadata.push("general.alignment", Value::U32(64));
    metadata.push("flag", Value::Bool(true));
    metadata.push("name", Value::Text("é".to_owned()));
    metadata.push("list", Value::Array(Array::I16(vec![1, -2, 3])));
    metadata.push("words", Value::Array(Array::Text(vec!["a".to_owned(); 3])));
    let tensor = |name: &str, kind, shape: &[usize]| PlannedGguf {
        name: name.to_owned(),
        kind,
        shape: shape.to_vec(),
    };
    let tensors = [
        tensor("w", GgmlType::F32, &[2, 3]),
        tensor("q", GgmlType::Q4_0, &[2, 1, 32]),
        tensor("none", GgmlType::F16, &[0, 4]),
        tensor("one", GgmlType::BF16, &[]),
    ];
    let layout = GgufLayout::new(&metadata, &tensors).unwrap();
    let mut bytes = layout.header_bytes().to_vec();
    bytes.resize(layout.file_size() as usize, 0);
    bytes
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let dir = Dir::new();
    let bytes = small();
    let file = open(&dir, &bytes).unwrap();
    let end = file.tensors().last().unwrap().range.end as usize;
    for length in 0..end {
        assert!(open(&dir, &bytes[..length]).is_err(), "{length}");
    }
}

#[test]
fn changed_bytes_are_refused_or_still_lie_in_the_file() {
    let dir = Dir::new();
    let good = small();
    let mut random = Random(4);
    let mut accepted = 0;
    for _ in 0..8_000 {
        let mut bytes = good.clone();
        for _ in 0..=random.below(3) {
            let at = random.below(bytes.len());
            match random.below(3) {
                0 => bytes[at] = random.next() as u8,
                1 => bytes[at] ^= 1 << random.below(8),
                _ => bytes.swap(at, random.below(good.len())),
            }
        }
        let Ok(file) = open(&dir, &bytes) else {
            continue;
        };
        accepted += 1;
        let mut end = 0;
        for info in file.tensors() {
            assert!(info.range.start >= end && info.range.start.is_multiple_of(8));
            end = info.range.end;
            assert_eq!(file.read(info).unwrap().len() as u64, info.size_bytes());
            let elements: usize = info.shape.iter().product();
            let bytes = elements as u64 / info.kind.block() * info.kind.block_bytes();
            assert_eq!(bytes, info.size_bytes());
        }
        assert!(end <= bytes.len() as u64);
    }
    assert!((200..7_000).contains(&accepted), "{accepted}");
}

fn any_value() -> impl Strategy<Value = Value> {
    let numbers = || prop::collection::vec(any::<u32>(), 0..5);
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        (-1e9_f32..1e9).prop_map(Value::F32),
        any::<bool>().prop_map(Value::Bool),
        ".{0,9}".prop_map(Value::Text),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        (-1e9_f64..1e9).prop_map(Value::F64),
        numbers().prop_map(|v| Value::Array(Array::U32(v))),
        numbers().prop_map(|v| Value::Array(Array::U8(v.iter().map(|&n| n as u8).collect()))),
        numbers().prop_map(|v| Value::Array(Array::I8(v.iter().map(|&n| n as i8).collect()))),
        numbers().prop_map(|v| Value::Array(Array::U16(v.iter().map(|&n| n as u16).collect()))),
        numbers().prop_map(|v| Value::Array(Array::I16(v.iter().map(|&n| n as i16).collect()))),
        numbers().prop_map(|v| Value::Array(Array::I32(v.iter().map(|&n| n as i32).collect()))),
        numbers().prop_map(|v| Value::Array(Array::U64(v.iter().map(|&n| n.into()).collect()))),
        numbers().prop_map(|v| Value::Array(Array::I64(v.iter().map(|&n| n.into()).collect()))),
        numbers().prop_map(|v| Value::Array(Array::F32(v.iter().map(|&n| n as f32).collect()))),
        numbers().prop_map(|v| Value::Array(Array::F64(v.iter().map(|&n| n.into()).collect()))),
        prop::collection::vec(any::<bool>(), 0..5).prop_map(|v| Value::Array(Array::Bool(v))),
        prop::collection::vec(".{0,9}", 0..5).prop_map(|v| Value::Array(Array::Text(v))),
    ]
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        values in prop::collection::vec(any_value(), 0..8),
        shapes in prop::collection::vec(prop::collection::vec(0_usize..9, 0..4), 0..5),
    ) {
        let mut metadata = Metadata::default();
        for (i, value) in values.into_iter().enumerate() {
            metadata.push(format!("key.{i}"), value);
        }
        let planned: Vec<PlannedGguf> = shapes.into_iter().enumerate().map(|(i, shape)| PlannedGguf {
            name: format!("t.{i}"),
            kind: [GgmlType::F32, GgmlType::F64, GgmlType::I8][i % 3],
            shape,
        }).collect();
        let layout = GgufLayout::new(&metadata, &planned).unwrap();
        let mut bytes = layout.header_bytes().to_vec();
        bytes.resize(layout.file_size() as usize, 0);
        let dir = Dir::new();
        let file = open(&dir, &bytes).unwrap();
        prop_assert_eq!(file.metadata(), &metadata);
        prop_assert_eq!(file.tensors(), layout.tensors());
        for (info, planned) in file.tensors().iter().zip(&planned) {
            prop_assert_eq!((&info.name, info.kind, &info.shape), (&planned.name, planned.kind, &planned.shape));
            prop_assert_eq!(layout.range(&info.name), Some(info.range.clone()));
        }
    }
}

#[test]
fn what_would_not_be_read_is_not_written() {
    let twice = [("k", Value::U8(1)), ("k", Value::U8(2))];
    let mut metadata = Metadata::default();
    for (key, value) in twice {
        metadata.push(key, value);
    }
    let error = GgufLayout::new(&metadata, &[]).unwrap_err();
    assert!(matches!(error, Error::GgufLayout(e) if matches!(*e, GgufError::DuplicateKey { .. })));
    let rows = PlannedGguf {
        name: "t".to_owned(),
        kind: GgmlType::Q4_0,
        shape: vec![4, 33],
    };
    let error = GgufLayout::new(&Metadata::default(), &[rows]).unwrap_err();
    assert!(matches!(error, Error::GgufLayout(e) if matches!(*e, GgufError::PartialBlock { .. })));
}
