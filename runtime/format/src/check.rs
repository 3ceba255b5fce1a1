//! The values of stored tensors: codes that exist, padding that means nothing, finite numbers.

use crate::artifact_error::TensorFault;
use crate::codec::{Codec, PANEL_ROWS, PackedLayout};
use crate::corrections::{Columns, LowRank, PartKind};
use crate::tensor::{DenseTensor, PackedTensor, Tensor, first, first_non_finite_f16};

/// Checks every byte of `tensor`.
pub(crate) fn check_values(tensor: &Tensor) -> Result<(), TensorFault> {
    match tensor {
        Tensor::Packed(packed) => {
            check_packed(packed)?;
            check_corrections(packed)
        }
        Tensor::Dense(dense) => check_dense(dense),
    }
}

fn check_dense(dense: &DenseTensor) -> Result<(), TensorFault> {
    match dense.first_non_finite() {
        Some(element) => Err(TensorFault::NotFinite { element }),
        None => Ok(()),
    }
}

/// The numbers of every part, and that codes of columns that are stored apart mean zero.
fn check_corrections(tensor: &PackedTensor) -> Result<(), TensorFault> {
    let of = |part: PartKind| {
        move |fault| TensorFault::Part {
            part,
            fault: Box::new(fault),
        }
    };
    if let Some(LowRank { a, b }) = &tensor.corrections.low_rank {
        check_dense(a).map_err(of(PartKind::LowRankA))?;
        check_dense(b).map_err(of(PartKind::LowRankB))?;
    }
    if let Some(Columns { indexes, values }) = &tensor.corrections.columns {
        check_values(values).map_err(of(PartKind::Columns))?;
        let layout = &tensor.layout;
        let codes = tensor.bytes.get(layout.codes()).unwrap_or_default();
        let apart = (0..layout.rows()).flat_map(|r| indexes.iter().map(move |&c| (r, c as usize)));
        if let Some((row, col)) = first_not_zero(layout, codes, apart) {
            return Err(TensorFault::ApartCode { row, col });
        }
    }
    Ok(())
}

fn check_packed(tensor: &PackedTensor) -> Result<(), TensorFault> {
    let (layout, bytes) = (tensor.layout, &tensor.bytes);
    let plane = |range| bytes.get(range).unwrap_or_default();
    let codes = plane(layout.codes());
    let bad_code = match layout.codec() {
        Codec::Ternary => first(codes, |&byte| byte & (byte >> 1) & 0b0101_0101 != 0),
        Codec::Int4 => None,
        Codec::Int8 => first(codes, |&byte| byte == 0x80),
    };
    if let Some(byte) = bad_code {
        let value = codes.get(byte).copied().unwrap_or_default();
        return Err(TensorFault::Code {
            codec: layout.codec().into(),
            byte,
            value,
        });
    }
    if let Some((row, col)) = bad_padding(&layout, codes) {
        return Err(TensorFault::Padding { row, col });
    }
    if let Some((row, group)) = non_finite(&layout, plane(layout.scales())) {
        return Err(TensorFault::Scale { row, group });
    }
    if let Some((row, group)) = non_finite(&layout, plane(layout.shifts())) {
        return Err(TensorFault::Shift { row, group });
    }
    let end = layout.shifts().end;
    let tail = plane(end..layout.size_bytes());
    match tail.iter().position(|&byte| byte != 0) {
        Some(at) => Err(TensorFault::Tail {
            byte: end.saturating_add(at),
        }),
        None => Ok(()),
    }
}

/// Row and group of the first scale or shift of a plane that is not finite.
fn non_finite(layout: &PackedLayout, plane: &[u8]) -> Option<(usize, usize)> {
    let at = first_non_finite_f16(plane)?;
    let block = at.checked_div(PANEL_ROWS)?;
    let panel = block.checked_div(layout.groups())?;
    let row = panel
        .checked_mul(PANEL_ROWS)?
        .checked_add(at.checked_rem(PANEL_ROWS)?)?;
    Some((row, block.checked_rem(layout.groups())?))
}

/// Row and column of the first code outside the matrix that does not mean zero.
fn bad_padding(layout: &PackedLayout, codes: &[u8]) -> Option<(usize, usize)> {
    let padded_rows = layout.rows().next_multiple_of(PANEL_ROWS);
    let padded_cols = layout.cols().next_multiple_of(layout.group());
    let right = (0..layout.rows()).flat_map(|r| (layout.cols()..padded_cols).map(move |c| (r, c)));
    let below = (layout.rows()..padded_rows).flat_map(|r| (0..padded_cols).map(move |c| (r, c)));
    first_not_zero(layout, codes, right.chain(below))
}

/// The first of `places`, rows and columns, whose code does not mean zero.
fn first_not_zero(
    layout: &PackedLayout,
    codes: &[u8],
    mut places: impl Iterator<Item = (usize, usize)>,
) -> Option<(usize, usize)> {
    let codec = layout.codec();
    let mask = u8::MAX >> 8_usize.saturating_sub(codec.bits());
    places.find(|&(row, col)| {
        let (byte, bit) = layout.code_at(row, col);
        let difference = codes.get(byte).copied().unwrap_or_default() ^ codec.zero_byte();
        difference >> bit & mask != 0
    })
}
