//! Against the reference reader: what is accepted here, it accepts too, with the same tensors.

use std::collections::BTreeMap;

use neuroconv_format::SafetensorsFile;
use proptest::prelude::*;
use safetensors::SafeTensors;

use crate::build::{Dir, container, entry, header, open};

/// Asserts that the reference reader finds the tensors of `file` in `bytes`.
pub(crate) fn assert_same(bytes: &[u8], file: &SafetensorsFile) {
    let reference = SafeTensors::deserialize(bytes).unwrap();
    let expected: BTreeMap<String, _> = reference.tensors().into_iter().collect();
    assert_eq!(file.tensors().len(), expected.len());
    for info in file.tensors() {
        let view = &expected[&info.name];
        assert_eq!(format!("{:?}", view.dtype()), info.dtype.name());
        assert_eq!(view.shape(), info.shape);
        assert_eq!(view.data(), file.read(info).unwrap());
    }
}

const TYPES: [(&str, u64); 22] = [
    ("BOOL", 8),
    ("F4", 4),
    ("F6_E2M3", 6),
    ("F6_E3M2", 6),
    ("U8", 8),
    ("I8", 8),
    ("F8_E5M2", 8),
    ("F8_E4M3", 8),
    ("F8_E8M0", 8),
    ("F8_E4M3FNUZ", 8),
    ("F8_E5M2FNUZ", 8),
    ("I16", 16),
    ("U16", 16),
    ("F16", 16),
    ("BF16", 16),
    ("I32", 32),
    ("U32", 32),
    ("F32", 32),
    ("C64", 64),
    ("F64", 64),
    ("I64", 64),
    ("U64", 64),
];

/// Tensors one after the other: name, element type, shape.
fn tensors() -> impl Strategy<Value = Vec<(String, usize, Vec<u64>)>> {
    let shape = prop::collection::vec(0_u64..5, 0..4);
    prop::collection::vec(("[a-cé\"\\\\]{1,2}", 0..TYPES.len(), shape), 0..6)
}

/// Entries with contiguous offsets, and the bytes of data.
fn entries(tensors: &[(String, usize, Vec<u64>)]) -> (Vec<[u64; 2]>, u64) {
    let mut end = 0;
    let mut offsets = Vec::new();
    for (_, dtype, shape) in tensors {
        let begin = end;
        end += shape.iter().product::<u64>() * TYPES[*dtype].1 / 8;
        offsets.push([begin, end]);
    }
    (offsets, end)
}

proptest! {
    #[test]
    fn what_is_accepted_the_reference_accepts_alike(
        tensors in tensors(),
        at in any::<prop::sample::Index>(),
        wrong in (0..2_usize, -2_i64..=2),
        more in 0..2_usize,
    ) {
        let (mut offsets, data) = entries(&tensors);
        if !offsets.is_empty() {
            let place = &mut offsets[at.index(tensors.len())][wrong.0];
            *place = place.saturating_add_signed(wrong.1);
        }
        let mut entries: Vec<String> = tensors
            .iter()
            .zip(&offsets)
            .map(|((name, dtype, shape), &offsets)| entry(name, TYPES[*dtype].0, shape, offsets))
            .collect();
        entries.reverse();
        let bytes = container(&header(&entries), data as usize + more / 2);
        let dir = Dir::new();
        match open(&dir, &bytes) {
            Ok(file) => assert_same(&bytes, &file),
            Err(error) => {
                // Where nothing was made wrong, only a name can occur twice or a byte be divided.
                let mut names: Vec<_> = tensors.iter().map(|(name, ..)| name).collect();
                names.sort();
                names.dedup();
                let divided = tensors.iter().any(|(_, dtype, shape)| {
                    !(shape.iter().product::<u64>() * TYPES[*dtype].1).is_multiple_of(8)
                });
                let excused = wrong.1 != 0 || names.len() < tensors.len() || divided;
                prop_assert!(excused, "{error}");
            }
        }
    }
}
