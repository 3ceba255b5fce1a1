//! The scalar truth of the packed product: plain loops over the documented layout.

use crate::activations::{Activations, joined};
use crate::layout::{Codes, PANEL_ROWS, UNIT_BYTES};
use crate::packed::Panel;

/// Products of one panel with rows `t0..t0 + y.len()` of the activations.
///
/// For each group in order, with `acc` the exact integer sum of level times activation code and
/// `asum` that of the codes, both joined from the planes of the activations:
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
        let blocks = panel.codes.chunks_exact(block_bytes);
        for (g, block) in blocks.enumerate() {
            let (ascale, asum) = (a.scales(t)[g], a.sum(t, g));
            let planes = (0..a.bits().planes()).map(|plane| {
                let codes = &a.codes(t, plane)[g * panel.group..(g + 1) * panel.group];
                block_sums(kind, block, codes.as_chunks::<4>().0, a.sums(t, plane)[g])
            });
            let planes: Vec<_> = planes.collect();
            for (r, y) in y.iter_mut().enumerate() {
                let acc = joined(planes.iter().map(|acc| acc[r]));
                *y += acc as f32 * (panel.scale(g, r) * ascale);
                if let Some(shift) = panel.shift(g, r) {
                    *y += shift * (ascale * asum as f32);
                }
            }
        }
    }
}

/// The sums of level times activation code of each row of a block, where `sum` is that of the codes.
fn block_sums(kind: Codes, block: &[u8], words: &[[i8; 4]], sum: i32) -> [i32; PANEL_ROWS] {
    let mut acc = [-kind.offset() * sum; PANEL_ROWS];
    match kind {
        Codes::Ternary => add_units(
            block,
            words,
            &mut acc,
            &[0, 2, 4, 6].map(|s| move |b: u8| i32::from((b >> s) & 3)),
        ),
        Codes::Int4 => add_units(
            block,
            words,
            &mut acc,
            &[0, 4].map(|s| move |b: u8| i32::from((b >> s) & 15)),
        ),
        Codes::Int8 => add_units(block, words, &mut acc, &[|b: u8| i32::from(b as i8)]),
    }
    acc
}

/// Adds the sums of code times activation code of each row of a block, where `places[c]` reads the
/// code that belongs to word `c` of a unit.
fn add_units<const C: usize>(
    block: &[u8],
    words: &[[i8; 4]],
    acc: &mut [i32; PANEL_ROWS],
    places: &[impl Fn(u8) -> i32; C],
) {
    for (unit, words) in block
        .as_chunks::<UNIT_BYTES>()
        .0
        .iter()
        .zip(words.as_chunks::<C>().0)
    {
        for (place, word) in places.iter().zip(words) {
            for (acc, codes) in acc.iter_mut().zip(unit.as_chunks::<4>().0) {
                for (code, a) in codes.iter().zip(word) {
                    *acc += place(*code) * i32::from(*a);
                }
            }
        }
    }
}
