//! The scalar truth of the packed product: plain loops over the documented layout.

use crate::activations::Activations;
use crate::layout::{Codes, PANEL_ROWS, UNIT_BYTES};
use crate::packed::Panel;

/// Products of one panel with rows `t0..t0 + y.len()` of the activations.
///
/// For each group in order, with `acc` the exact integer sum of level times activation code:
/// `y += acc * (scale * ascale)`, then with shifts `y += shift * (ascale * asum)`, every operation
/// rounded on its own.
pub(crate) fn panel(
    kind: Codes,
    panel: &Panel<'_>,
    a: &Activations,
    t0: usize,
    y: &mut [[f32; PANEL_ROWS]],
) {
    let block_bytes = kind.block_bytes(panel.group);
    for (t, y) in (t0..).zip(y) {
        *y = [0.0; PANEL_ROWS];
        let groups = panel
            .codes
            .chunks_exact(block_bytes)
            .zip(a.codes(t).chunks_exact(panel.group));
        for (g, (block, codes)) in groups.enumerate() {
            let acc = block_sums(kind, block, codes, a.sums(t)[g]);
            let ascale = a.scales(t)[g];
            for (r, y) in y.iter_mut().enumerate() {
                *y += acc[r] as f32 * (panel.scale(g, r) * ascale);
                if let Some(shift) = panel.shift(g, r) {
                    *y += shift * (ascale * a.sums(t)[g] as f32);
                }
            }
        }
    }
}

/// The sums of level times activation code of each row of a block. They start where the offset of
/// the stored codes is already taken back.
fn block_sums(kind: Codes, block: &[u8], codes: &[i8], asum: i32) -> [i32; PANEL_ROWS] {
    let bits = kind.bits();
    let mut acc = [-kind.offset() * asum; PANEL_ROWS];
    for (unit, codes) in block
        .chunks_exact(UNIT_BYTES)
        .zip(codes.chunks_exact(kind.unit_cols()))
    {
        for (r, acc) in acc.iter_mut().enumerate() {
            for (k, &a) in codes.iter().enumerate() {
                let byte = unit[4 * r + k % 4];
                let code = match kind {
                    Codes::Int8 => i32::from(byte as i8),
                    Codes::Ternary | Codes::Int4 => {
                        i32::from(byte >> (k / 4 * bits)) & ((1 << bits) - 1)
                    }
                };
                *acc += code * i32::from(a);
            }
        }
    }
    acc
}
