//! Levels, scales and shifts to packed bytes, panel by panel.

use neuroconv_format::codec::PANEL_ROWS;
use neuroconv_format::{PackedLayout, PackedTensor};
use neuroconv_kernels::layout::{self, Codes};
use rayon::prelude::*;

use crate::dequantize::kernel_codes;
use crate::fit::GroupFit;

/// The bytes of a matrix that is being packed.
pub(crate) struct Packing {
    layout: PackedLayout,
    bytes: Vec<u8>,
}

/// The bytes of one panel.
pub(crate) struct Panel<'a> {
    kind: Codes,
    group: usize,
    codes: &'a mut [u8],
    scales: &'a mut [u8],
    /// Empty without shifts.
    shifts: &'a mut [u8],
}

impl Packing {
    pub(crate) fn new(layout: PackedLayout) -> Self {
        let mut bytes = vec![0; layout.size_bytes()];
        bytes[layout.codes()].fill(kernel_codes(layout.codec()).zero_byte());
        Packing { layout, bytes }
    }

    /// All panels, in order.
    pub(crate) fn panels(&mut self) -> impl IndexedParallelIterator<Item = Panel<'_>> {
        let layout = self.layout;
        let (kind, group, panels) = (
            kernel_codes(layout.codec()),
            layout.group(),
            layout.panels(),
        );
        let (codes, rest) = self.bytes.split_at_mut(layout.codes().end);
        let (scales, rest) = rest.split_at_mut(layout.scales().len());
        let per_panel = |len: usize| len / panels;
        let (codes_step, scales_step) = (per_panel(codes.len()), per_panel(scales.len()));
        let shifts_step = per_panel(layout.shifts().len());
        let mut shifts: Vec<&mut [u8]> = rest[..layout.shifts().len()]
            .chunks_mut(shifts_step.max(1))
            .collect();
        shifts.resize_with(panels, Default::default);
        codes
            .par_chunks_mut(codes_step)
            .zip(scales.par_chunks_mut(scales_step))
            .zip(shifts)
            .map(move |((codes, scales), shifts)| Panel {
                kind,
                group,
                codes,
                scales,
                shifts,
            })
    }

    /// The packed matrix.
    pub(crate) fn finish(self) -> PackedTensor {
        PackedTensor::new(self.layout, self.bytes)
    }
}

impl Panel<'_> {
    /// Stores row `r` of the panel: `levels` of all columns, `fits` of all groups.
    pub(crate) fn store(&mut self, r: usize, levels: &[i8], fits: &[GroupFit]) {
        let blocks = self.codes.chunks_mut(self.kind.block_bytes(self.group));
        for (levels, block) in levels.chunks(self.group).zip(blocks) {
            layout::pack_row(self.kind, block, r, levels);
        }
        let scales = self.scales.chunks_mut(2 * PANEL_ROWS);
        for (fit, scales) in fits.iter().zip(scales) {
            scales[2 * r..2 * r + 2].copy_from_slice(&fit.scale.to_le_bytes());
        }
        let shifts = self.shifts.chunks_mut(2 * PANEL_ROWS);
        for (fit, shifts) in fits.iter().zip(shifts) {
            shifts[2 * r..2 * r + 2].copy_from_slice(&fit.shift.to_le_bytes());
        }
    }
}
