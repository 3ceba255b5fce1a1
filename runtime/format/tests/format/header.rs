//! Safetensors files: read where they are good, refused where they are not, never a panic.

use neuroconv_format::ElementType;

use crate::build::{Dir, Random, container, entry, header, open};
use crate::hostile::{Case, cases};

#[test]
fn every_hostile_file_is_refused_for_its_own_reason() {
    let dir = Dir::new();
    for Case {
        name,
        bytes,
        expected,
    } in cases()
    {
        let found = open(&dir, &bytes).err();
        assert_eq!(found.as_ref(), Some(&expected), "{name}");
        let (text, hint) = (expected.to_string(), expected.hint());
        assert!(
            text.len() < 2500 && !text.contains(char::is_control),
            "{name}: {text}"
        );
        assert!(hint.is_some_and(|hint| !hint.ends_with('.')), "{name}");
    }
}

/// A small valid file of every kind of tensor, its data a count.
pub(crate) fn small() -> Vec<u8> {
    let entries = [
        r#""__metadata__":{"format":"pt","note":"é"}"#.to_owned(),
        entry("b.weight", "BF16", &[2, 3], [0, 12]),
        entry("a.weight", "F32", &[2], [12, 20]),
        entry("none", "F16", &[4, 0], [20, 20]),
        entry("ids", "I64", &[], [20, 28]),
        entry("fp4", "F4", &[2], [28, 29]),
    ];
    let mut bytes = container(&(header(&entries) + "   "), 29);
    let data = bytes.len() - 29;
    for (i, byte) in bytes[data..].iter_mut().enumerate() {
        *byte = i as u8;
    }
    bytes
}

#[test]
fn a_good_file_is_read_in_the_order_of_its_data() {
    let dir = Dir::new();
    let bytes = small();
    let file = open(&dir, &bytes).unwrap();
    let names: Vec<&str> = file
        .tensors()
        .iter()
        .map(|info| info.name.as_str())
        .collect();
    assert_eq!(names, ["b.weight", "a.weight", "none", "ids", "fp4"]);
    let [b, a, none, ids, _] = file.tensors() else {
        panic!("{names:?}")
    };
    assert_eq!(
        (b.dtype, b.shape.as_slice(), b.size_bytes()),
        (ElementType::BF16, &[2, 3][..], 12)
    );
    assert_eq!(b.range.start, bytes.len() as u64 - 29);
    assert_eq!(file.read(a).unwrap(), [12, 13, 14, 15, 16, 17, 18, 19]);
    assert_eq!(file.read_dense(none).unwrap().shape, [4, 0]);
    assert!(ids.shape.is_empty());
    let error = file.read_dense(ids).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("tensor `ids`: elements of type I64 cannot be read as weights")
    );
    assert_eq!(
        error.hint().as_deref(),
        Some("take a checkpoint stored as BF16, F16 or F32")
    );
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let dir = Dir::new();
    let bytes = small();
    for length in 0..bytes.len() {
        assert!(open(&dir, &bytes[..length]).is_err(), "{length}");
    }
}

#[test]
fn changed_bytes_are_refused_or_still_tile_the_data() {
    let dir = Dir::new();
    let good = small();
    let mut random = Random(2);
    let mut accepted = 0;
    for _ in 0..8_000 {
        let mut bytes = good.clone();
        for _ in 0..=random.below(3) {
            let at = random.below(bytes.len());
            match random.below(4) {
                0 => bytes[at] = random.next() as u8,
                1 => bytes[at] ^= 1 << random.below(8),
                2 => bytes[at] = b"0123456789{}[],:\"\\"[random.below(18)],
                _ => bytes.swap(at, random.below(good.len())),
            }
        }
        let Ok(file) = open(&dir, &bytes) else {
            continue;
        };
        accepted += 1;
        let header = u64::from_le_bytes(*bytes.first_chunk().unwrap());
        let mut end = 8 + header;
        for info in file.tensors() {
            assert_eq!(info.range.start, end);
            end = info.range.end;
            assert_eq!(file.read(info).unwrap().len() as u64, info.size_bytes());
        }
        assert_eq!(end, bytes.len() as u64);
        crate::differential::assert_same(&bytes, &file);
    }
    assert!((50..6_000).contains(&accepted), "{accepted}");
}
