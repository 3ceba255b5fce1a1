//! The product of a dense matrix with single-precision activations.

use std::ops::Range;

use crate::isa::{Isa, Kind, isa};
use crate::tasks;

/// Lanes of partial sums: column `k` adds to lane `k % LANES`.
pub(crate) const LANES: usize = 16;
/// Bytes of activations that are kept in cache while rows of the matrix pass by.
const CACHED_ACTIVATIONS: usize = 256 << 10;
/// Most rows of the matrix, and of the activations, that one tile multiplies.
pub(crate) const TILE: usize = 4;

/// The elements of a dense matrix, row-major; half-precision ones as little-endian bytes.
#[derive(Clone, Copy, Debug)]
pub enum DenseSlice<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// IEEE half precision.
    F16(&'a [u8]),
    /// Upper halves of singles.
    Bf16(&'a [u8]),
}

/// Element types of a dense matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    F32,
    F16,
    Bf16,
}

impl Element {
    pub(crate) const fn size(self) -> usize {
        match self {
            Element::F32 => 4,
            Element::F16 | Element::Bf16 => 2,
        }
    }

    /// The elements of `bytes`, at most [`LANES`], followed by zeros.
    pub(crate) fn read(self, bytes: &[u8]) -> [f32; LANES] {
        let mut values = [0.0; LANES];
        match self {
            Element::F32 => {
                for (value, b) in values.iter_mut().zip(bytes.as_chunks().0) {
                    *value = f32::from_le_bytes(*b);
                }
            }
            Element::F16 => {
                for (value, b) in values.iter_mut().zip(bytes.as_chunks().0) {
                    *value = half::f16::from_le_bytes(*b).to_f32();
                }
            }
            Element::Bf16 => {
                for (value, b) in values.iter_mut().zip(bytes.as_chunks().0) {
                    *value = half::bf16::from_le_bytes(*b).to_f32();
                }
            }
        }
        values
    }
}

/// Rows of a matrix and rows of activations, both of `cols` elements.
#[derive(Clone, Copy)]
pub(crate) struct DenseTile<'a> {
    pub(crate) element: Element,
    pub(crate) cols: usize,
    /// `[rows, cols]` elements, `1..=TILE` rows.
    pub(crate) w: &'a [u8],
    /// `[rows, cols]`, `1..=TILE` rows.
    pub(crate) x: &'a [f32],
}

impl DenseTile<'_> {
    /// Rows of the matrix.
    pub(crate) fn w_rows(&self) -> usize {
        self.w.len() / (self.cols * self.element.size())
    }
    /// Rows of the activations.
    pub(crate) fn x_rows(&self) -> usize {
        self.x.len() / self.cols
    }
    /// Makes sure that there are `1..=TILE` whole rows of both; panics otherwise.
    pub(crate) fn check(&self) {
        let (w, x) = (self.w_rows(), self.x_rows());
        assert!(
            (1..=TILE).contains(&w) && (1..=TILE).contains(&x),
            "a tile of {w} x {x}"
        );
        assert!(
            self.w.len() == w * self.cols * self.element.size() && self.x.len() == x * self.cols
        );
    }
}

/// Products `[row of x][row of w]` of a tile; the unused are left alone.
pub(crate) type TileFn = fn(&DenseTile<'_>, &mut [[f32; TILE]; TILE]);

/// `y_tn = x_tk wᵀ` with `w_nk` of `[rows, cols]` and `t` rows of activations.
///
/// Every output is the sum of 16 lanes: lane `l` adds the products of the columns `l, l + 16, …`
/// in order, products and sums rounded on their own; then lane `l` takes lane `l + 8`, `l + 4`,
/// `l + 2`, `l + 1`. The bits of the result depend on neither threads nor instruction set, and its
/// error is at most `(cols / 16 + 6) * 2⁻²⁴ * Σ |w x|` to first order.
///
/// Panics when a length does not fit the shape.
pub fn matmul_dense(
    w_nk: DenseSlice<'_>,
    rows: usize,
    cols: usize,
    x_tk: &[f32],
    t: usize,
    y_tn: &mut [f32],
) {
    matmul_dense_on(
        isa().unwrap_or(Isa::SCALAR),
        w_nk,
        rows,
        cols,
        x_tk,
        t,
        y_tn,
    );
}

/// [`matmul_dense`] on a chosen instruction set.
pub fn matmul_dense_on(
    isa: Isa,
    w_nk: DenseSlice<'_>,
    rows: usize,
    cols: usize,
    x_tk: &[f32],
    t: usize,
    y_tn: &mut [f32],
) {
    let (element, w) = match w_nk {
        DenseSlice::F32(w) => (Element::F32, bytemuck::cast_slice(w)),
        DenseSlice::F16(w) => (Element::F16, w),
        DenseSlice::Bf16(w) => (Element::Bf16, w),
    };
    assert!(rows > 0 && cols > 0, "a matrix of {rows} x {cols}");
    assert_eq!(
        w.len(),
        rows * cols * element.size(),
        "bytes of {rows} x {cols}"
    );
    assert_eq!(x_tk.len(), t * cols, "activations of {t} x {cols}");
    assert_eq!(y_tn.len(), t * rows, "outputs of {t} x {rows}");
    let tile_fn = tile_fn(isa);
    let output = tasks::Output {
        y_tn,
        n: rows,
        width: TILE,
        work: w.len().saturating_mul(t),
    };
    tasks::for_column_ranges(vec![output], |_, blocks, columns| {
        let end = rows.min(blocks.end * TILE);
        let w = &w[blocks.start * TILE * cols * element.size()..end * cols * element.size()];
        fill(
            tile_fn,
            &DenseTile {
                element,
                cols,
                w,
                x: x_tk,
            },
            0..end - blocks.start * TILE,
            columns,
        );
    });
}

fn tile_fn(isa: Isa) -> TileFn {
    match isa.kind() {
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 | Kind::AvxVnni => crate::x86::avx2_dense::tile,
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512Vnni => crate::x86::avx512_dense::tile,
        _ => scalar_tile,
    }
}

/// Fills `columns[t][n]` for the rows `n` of `all.w` and every row `t` of `all.x`.
fn fill(tile_fn: TileFn, all: &DenseTile<'_>, rows: Range<usize>, columns: &mut [&mut [f32]]) {
    let row_bytes = all.cols * all.element.size();
    let cached = (CACHED_ACTIVATIONS / (all.cols * 4 * TILE)).max(1) * TILE;
    let mut tile = [[0.0; TILE]; TILE];
    for (block_x, block_columns) in all
        .x
        .chunks(cached * all.cols)
        .zip(columns.chunks_mut(cached))
    {
        for (n, w) in rows
            .clone()
            .step_by(TILE)
            .zip(all.w.chunks(TILE * row_bytes))
        {
            let count = w.len() / row_bytes;
            for (x, columns) in block_x
                .chunks(TILE * all.cols)
                .zip(block_columns.chunks_mut(TILE))
            {
                tile_fn(&DenseTile { w, x, ..*all }, &mut tile);
                for (row, tile) in columns.iter_mut().zip(&tile) {
                    row[n..n + count].copy_from_slice(&tile[..count]);
                }
            }
        }
    }
}

/// The scalar truth of a tile.
fn scalar_tile(tile: &DenseTile<'_>, y: &mut [[f32; TILE]; TILE]) {
    let size = tile.element.size();
    for (x, y) in tile.x.chunks_exact(tile.cols).zip(y) {
        for (w, y) in tile.w.chunks_exact(tile.cols * size).zip(y) {
            let mut lanes = [0.0; LANES];
            for (w, x) in w.chunks(LANES * size).zip(x.chunks(LANES)) {
                let w = tile.element.read(w);
                for (lane, (w, x)) in lanes.iter_mut().zip(w.iter().zip(x)) {
                    *lane += w * x;
                }
            }
            *y = reduce(lanes);
        }
    }
}

/// The sum of all lanes, halves first.
pub(crate) fn reduce(mut lanes: [f32; LANES]) -> f32 {
    for half in [8, 4, 2, 1] {
        for l in 0..half {
            lanes[l] += lanes[l + half];
        }
    }
    lanes[0]
}
