//! From the records of a manifest to the corrections of a packed tensor.

use crate::artifact::{check_alignment, check_place, check_shape};
use crate::artifact_error::TensorFault;
use crate::codec::{ActivationBits, Codec, PackedLayout, UNIT_BYTES};
use crate::corrections::{
    Columns, Corrections, LowRank, PartCodec, PartKind, PartLayout, read_indexes,
};
use crate::dtype::DType;
use crate::error::shown;
use crate::header::TensorInfo;
use crate::manifest::{PartRecord, TensorRecord};
use crate::tensor::{DenseTensor, PackedTensor, SharedBytes, Tensor};

/// The corrections that `record` lists, taken out of the weight file by name. `layout` is that of
/// the codes.
pub(crate) fn corrections(
    record: &TensorRecord,
    layout: &PackedLayout,
    mut take: impl FnMut(&str) -> Option<(TensorInfo, SharedBytes)>,
) -> Result<Corrections, TensorFault> {
    let mut found = Found::default();
    for part in &record.parts {
        let of = |fault| of(part.kind, fault);
        let alone = !record.parts.iter().any(|p| p.kind == part.kind.partner());
        if alone {
            return Err(of(TensorFault::PartAlone {
                without: part.kind.partner(),
            }));
        }
        if found.has(part.kind) {
            return Err(of(TensorFault::ListedTwice));
        }
        let part_layout = layout_of(part).map_err(of)?;
        let (info, bytes) =
            take(&part_layout.name(&record.name)).ok_or_else(|| of(TensorFault::NotInFile))?;
        check_entry(part, &part_layout, &info).map_err(of)?;
        found.put(&part_layout, bytes).map_err(of)?;
    }
    let corrections = found.corrections();
    corrections.check(layout.rows(), layout.cols())?;
    Ok(corrections)
}

fn of(part: PartKind, fault: TensorFault) -> TensorFault {
    TensorFault::Part {
        part,
        fault: Box::new(fault),
    }
}

fn layout_of(part: &PartRecord) -> Result<PartLayout, TensorFault> {
    let (kind, codec) = (part.kind, part.codec);
    if !kind.takes(codec) || part.group.is_some() != (codec == PartCodec::Int8) {
        return Err(TensorFault::PartCodec {
            codec,
            group: part.group,
        });
    }
    PartLayout::new(kind, codec, part.shape.clone(), part.group).map_err(TensorFault::Layout)
}

fn check_entry(
    part: &PartRecord,
    layout: &PartLayout,
    info: &TensorInfo,
) -> Result<(), TensorFault> {
    check_place(layout.codec().dtype(), part.offset, part.size, info)?;
    let (expected, found) = (layout.size_bytes() as u64, part.size);
    if expected != found {
        return Err(TensorFault::LayoutSize { expected, found });
    }
    check_shape(&layout.header_shape(), &info.shape)?;
    check_alignment(
        part.offset,
        match layout.codec().dtype() {
            DType::U8 => UNIT_BYTES,
            dtype => dtype.size(),
        },
    )
}

/// The parts found so far.
#[derive(Default)]
struct Found {
    a: Option<DenseTensor>,
    b: Option<DenseTensor>,
    values: Option<Tensor>,
    indexes: Option<Vec<u32>>,
}

impl Found {
    fn has(&self, kind: PartKind) -> bool {
        match kind {
            PartKind::LowRankA => self.a.is_some(),
            PartKind::LowRankB => self.b.is_some(),
            PartKind::Columns => self.values.is_some(),
            PartKind::ColumnIndex => self.indexes.is_some(),
        }
    }

    fn put(&mut self, part: &PartLayout, bytes: SharedBytes) -> Result<(), TensorFault> {
        let shape = part.shape().to_vec();
        let dense = |bytes| DenseTensor {
            dtype: DType::F16,
            shape: shape.clone(),
            bytes,
        };
        match part.kind() {
            PartKind::LowRankA => self.a = Some(dense(bytes)),
            PartKind::LowRankB => self.b = Some(dense(bytes)),
            PartKind::Columns => {
                self.values = Some(match (part.group(), shape.as_slice()) {
                    (Some(group), &[rows, cols]) => {
                        let layout = PackedLayout::new(Codec::Int8, rows, cols, group, false)
                            .map_err(TensorFault::Layout)?;
                        Tensor::Packed(PackedTensor {
                            activations: ActivationBits::Sixteen,
                            ..PackedTensor::new(layout, bytes)
                        })
                    }
                    _ => Tensor::Dense(dense(bytes)),
                });
            }
            PartKind::ColumnIndex => {
                let count = shape.iter().product();
                self.indexes = Some(read_indexes(&bytes, count)?);
            }
        }
        Ok(())
    }

    fn corrections(self) -> Corrections {
        Corrections {
            low_rank: self.a.zip(self.b).map(|(a, b)| LowRank { a, b }),
            columns: self
                .indexes
                .zip(self.values)
                .map(|(indexes, values)| Columns {
                    indexes,
                    values: Box::new(values),
                }),
        }
    }
}

/// Compares the bytes of every part with its hash.
pub(crate) fn check_hashes(
    record: &TensorRecord,
    corrections: &Corrections,
) -> Result<(), TensorFault> {
    for (layout, bytes) in corrections.parts().map_err(TensorFault::Layout)? {
        let expected = record.parts.iter().find(|part| part.kind == layout.kind());
        let expected = expected.map_or("", |part| &part.blake3);
        let found = blake3::hash(&bytes).to_hex().to_string();
        if found != expected {
            let expected = shown(expected);
            return Err(of(layout.kind(), TensorFault::Hash { expected, found }));
        }
    }
    Ok(())
}
