//! The product of a packed matrix with quantized activations: tiling, threads, dispatch.

use std::ops::Range;

use crate::activations::Activations;
use crate::isa::{Isa, Kind, isa};
use crate::layout::{Codes, PANEL_ROWS};
use crate::packed::{PackedView, Panel};
use crate::scalar;
use crate::tasks::{self, Output};

/// Rows of activations that share one pass over a panel.
pub(crate) const TILE_ROWS: usize = 8;
/// Bytes of activation codes that are kept in cache while panels pass by.
const CACHED_ACTIVATIONS: usize = 256 << 10;

/// Fills products of one panel with rows `t0..t0 + y.len()`, at most [`TILE_ROWS`] of them.
pub(crate) type PanelFn = fn(Codes, &Panel<'_>, &Activations, usize, &mut [[f32; PANEL_ROWS]]);

/// `y_tn = a wᵀ`: `y_tn[t * rows + n]` is row `t` of the activations times row `n` of the matrix,
///
/// `y = Σ_groups scale * ascale * Σ level * acode  (+ shift * ascale * Σ acode)`,
///
/// inner sums exact integers, the outer sum in single precision from the first group to the last.
/// Panels are shared among the threads of the current rayon pool. The bits of the result depend on
/// neither threads nor instruction set.
///
/// Panics when columns, groups or the length of `y_tn` do not fit together.
pub fn matmul_packed(w: &PackedView<'_>, a: &Activations, y_tn: &mut [f32]) {
    matmul_packed_on(isa().unwrap_or(Isa::SCALAR), w, a, y_tn);
}

/// [`matmul_packed`] of several matrices with the same activations, in one pass of the threads.
pub fn matmul_packed_all(ws: &[PackedView<'_>], a: &Activations, y_tn: Vec<&mut [f32]>) {
    assert_eq!(ws.len(), y_tn.len(), "matrices and outputs");
    let panel_fn = panel_fn(isa().unwrap_or(Isa::SCALAR));
    let outputs = ws.iter().zip(y_tn);
    let outputs = outputs.map(|(w, y_tn)| output(w, a, y_tn)).collect();
    tasks::for_column_ranges(outputs, |w, panels, columns| {
        fill(panel_fn, &ws[w], a, panels, columns);
    });
}

/// [`matmul_packed`] on a chosen instruction set.
pub fn matmul_packed_on(isa: Isa, w: &PackedView<'_>, a: &Activations, y_tn: &mut [f32]) {
    let panel_fn = panel_fn(isa);
    tasks::for_column_ranges(vec![output(w, a, y_tn)], |_, panels, columns| {
        fill(panel_fn, w, a, panels, columns);
    });
}

/// The work of one product; panics when its lengths do not fit together.
fn output<'y>(w: &PackedView<'_>, a: &Activations, y_tn: &'y mut [f32]) -> Output<'y> {
    assert_eq!(
        (w.cols(), w.group()),
        (a.cols(), a.group()),
        "columns and group of weights and activations"
    );
    assert_eq!(
        y_tn.len(),
        a.rows() * w.rows(),
        "outputs of {} x {}",
        a.rows(),
        w.rows()
    );
    Output {
        y_tn,
        n: w.rows(),
        width: PANEL_ROWS,
        work: w.size_bytes().saturating_mul(a.rows()),
    }
}

fn panel_fn(isa: Isa) -> PanelFn {
    match isa.kind() {
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => crate::x86::avx2::panel,
        #[cfg(target_arch = "x86_64")]
        Kind::AvxVnni => crate::x86::avxvnni::panel,
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512Vnni => crate::x86::avx512vnni::panel,
        _ => scalar::panel,
    }
}

/// Fills the columns of `panels`; `columns[t]` starts at the first row of the first panel.
fn fill(
    panel_fn: PanelFn,
    w: &PackedView<'_>,
    a: &Activations,
    panels: Range<usize>,
    columns: &mut [&mut [f32]],
) {
    let row_bytes = a.bits().planes() * a.groups() * a.group();
    let tiles_cached = (CACHED_ACTIVATIONS / (row_bytes * TILE_ROWS)).max(1);
    let mut tile = [[0.0; PANEL_ROWS]; TILE_ROWS];
    for (block, block_columns) in columns.chunks_mut(tiles_cached * TILE_ROWS).enumerate() {
        let first = block * tiles_cached * TILE_ROWS;
        for p in panels.clone() {
            let panel = w.panel(p);
            let start = (p - panels.start) * PANEL_ROWS;
            for (i, rows) in block_columns.chunks_mut(TILE_ROWS).enumerate() {
                let tile = &mut tile[..rows.len()];
                panel_fn(w.kind(), &panel, a, first + i * TILE_ROWS, tile);
                for (row, tile) in rows.iter_mut().zip(tile) {
                    let end = row.len().min(start + PANEL_ROWS);
                    row[start..end].copy_from_slice(&tile[..end - start]);
                }
            }
        }
    }
}
