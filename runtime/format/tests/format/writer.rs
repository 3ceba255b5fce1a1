//! Layouts of files to be written, read back by this crate and by the reference reader.

use neuroconv_format::{DType, Error, HeaderError, PlannedTensor, SafetensorsLayout, limits};
use proptest::prelude::*;

use crate::build::{Dir, open};
use crate::differential::assert_same;

fn planned(name: &str, dtype: DType, shape: &[usize]) -> PlannedTensor {
    PlannedTensor {
        name: name.to_owned(),
        dtype,
        shape: shape.to_vec(),
    }
}

#[test]
fn packed_tensors_come_first_and_everything_is_aligned() {
    let layout = SafetensorsLayout::new(vec![
        planned("half", DType::BF16, &[3, 5]),
        planned("norm", DType::F32, &[7]),
        planned("packed.1", DType::U8, &[192]),
        planned("packed.0", DType::U8, &[64]),
        planned("gain", DType::F32, &[1]),
    ])
    .unwrap();
    let header = layout.header_bytes();
    let start = header.len() as u64;
    assert!(start.is_multiple_of(64));
    assert_eq!(
        start,
        8 + u64::from_le_bytes(*header.first_chunk().unwrap())
    );
    let at = |name| {
        let range = layout.range(name).unwrap();
        (range.start - start, range.end - start)
    };
    let places = ["packed.1", "packed.0", "norm", "gain", "half"].map(at);
    assert_eq!(
        places,
        [(0, 192), (192, 256), (256, 284), (284, 288), (288, 318)]
    );
    assert_eq!(layout.file_size(), start + 318);
    assert_eq!(layout.range("nothing"), None);
    assert!(
        header[8..]
            .starts_with(br#"{"__metadata__":{"format":"neuroconv"},"packed.1":{"dtype":"U8","#)
    );
}

#[test]
fn what_could_not_be_read_is_not_laid_out() {
    let refused = |tensors: Vec<PlannedTensor>| match SafetensorsLayout::new(tensors) {
        Err(Error::Layout(error)) => *error,
        other => panic!("{other:?}"),
    };
    let t = || "t".to_owned();
    let twice = vec![
        planned("t", DType::F32, &[1]),
        planned("t", DType::F16, &[1]),
    ];
    assert_eq!(refused(twice), HeaderError::DuplicateTensor { tensor: t() });
    let huge = refused(vec![planned("t", DType::F32, &[usize::MAX, 2])]);
    assert_eq!(
        huge,
        HeaderError::Overflow {
            tensor: t(),
            shape: vec![u64::MAX, 2]
        }
    );
    let empty = refused(vec![planned("", DType::F32, &[1])]);
    assert_eq!(
        empty,
        HeaderError::NameLength {
            tensor: String::new(),
            bytes: 0
        }
    );
    let one = |i: usize| planned(&format!("{i}"), DType::F32, &[0]);
    let many = refused((0..=limits::TENSORS_PER_FILE).map(one).collect());
    assert_eq!(many, HeaderError::TensorCount);
    let long = |i: usize| planned(&format!("{i}{}", "n".repeat(500)), DType::F32, &[0]);
    let header = refused((0..190_000).map(long).collect());
    assert!(matches!(header, HeaderError::HeaderLength { .. }));
    let error = SafetensorsLayout::new(vec![planned("t", DType::U8, &[65])]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "packed tensor `t`: 65 bytes are not a multiple of 64"
    );
}

proptest! {
    #[test]
    fn what_is_laid_out_both_readers_read(
        sizes in prop::collection::vec((0..4_usize, prop::collection::vec(0..5_usize, 1..4)), 0..8)
    ) {
        let types = [DType::U8, DType::F32, DType::F16, DType::BF16];
        let tensors: Vec<PlannedTensor> = sizes
            .iter()
            .enumerate()
            .map(|(i, (dtype, shape))| match types[*dtype] {
                DType::U8 => planned(&format!("t{i}"), DType::U8, &[64 * shape[0]]),
                dtype => planned(&format!("t\"{i}"), dtype, shape),
            })
            .collect();
        let layout = SafetensorsLayout::new(tensors.clone()).unwrap();
        let mut bytes = layout.header_bytes();
        let start = bytes.len();
        bytes.resize(layout.file_size() as usize, 0);
        for (i, byte) in bytes[start..].iter_mut().enumerate() {
            *byte = i as u8;
        }
        let file = open(&Dir::new(), &bytes).unwrap();
        assert_same(&bytes, &file);
        prop_assert_eq!(file.tensors(), layout.tensors());
        prop_assert_eq!(file.tensors().len(), tensors.len());
        for tensor in &tensors {
            let range = layout.range(&tensor.name).unwrap();
            let alignment = if tensor.dtype == DType::U8 { 64 } else { tensor.dtype.size() };
            prop_assert!(range.start.is_multiple_of(alignment as u64));
            let bytes = tensor.shape.iter().product::<usize>() * tensor.dtype.size();
            prop_assert_eq!(range.end - range.start, bytes as u64);
        }
    }
}
