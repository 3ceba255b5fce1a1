//! Products of packed matrices.

use half::f16;
use neuroconv_kernels::layout::{self, Codes, GROUP_SIZES};
use neuroconv_kernels::{
    ActivationBits, Activations, Isa, PackedView, isa, matmul_packed, matmul_packed_all,
    matmul_packed_on, quantize_activations,
};

use crate::{Numbers, assert_same};

/// A packed matrix with random levels, padding included: a path must take zero activations, not
/// zero codes, for padding columns.
pub(crate) struct Matrix {
    kind: Codes,
    rows: usize,
    cols: usize,
    group: usize,
    codes: Vec<u8>,
    scales: Vec<u8>,
    shifts: Option<Vec<u8>>,
}

impl Matrix {
    pub(crate) fn random(
        kind: Codes,
        (rows, cols): (usize, usize),
        group: usize,
        shift: bool,
        numbers: &mut Numbers,
    ) -> Self {
        let blocks = rows.div_ceil(16) * cols.div_ceil(group);
        let byte = |numbers: &mut Numbers| match kind {
            Codes::Ternary => (0..4).fold(0, |byte, _| byte << 2 | numbers.below(3) as u8),
            Codes::Int4 => numbers.below(256) as u8,
            Codes::Int8 => (numbers.below(255) as i32 - 127) as u8,
        };
        let codes = (0..blocks * kind.block_bytes(group))
            .map(|_| byte(numbers))
            .collect();
        let mut halves = || -> Vec<u8> {
            let half = |numbers: &mut Numbers| f16::from_f64(numbers.next() - 0.3).to_le_bytes();
            (0..blocks * 16).flat_map(|_| half(numbers)).collect()
        };
        let (scales, shifts) = (halves(), shift.then(&mut halves));
        Matrix {
            kind,
            rows,
            cols,
            group,
            codes,
            scales,
            shifts,
        }
    }

    pub(crate) fn view(&self) -> PackedView<'_> {
        let shifts = self.shifts.as_deref();
        PackedView::new(
            self.kind,
            self.rows,
            self.cols,
            self.group,
            &self.codes,
            &self.scales,
            shifts,
        )
        .expect("planes of the right length")
    }

    /// The weight in `row` and `col`, from single codes.
    fn weight(&self, row: usize, col: usize) -> f64 {
        let block = row / 16 * self.cols.div_ceil(self.group) + col / self.group;
        let bytes = self.kind.block_bytes(self.group);
        let level = layout::get(
            self.kind,
            &self.codes[block * bytes..(block + 1) * bytes],
            row % 16,
            col % self.group,
        );
        let half = |plane: &[u8]| {
            let at = 2 * (block * 16 + row % 16);
            f16::from_le_bytes([plane[at], plane[at + 1]]).to_f64()
        };
        half(&self.scales) * f64::from(level) + self.shifts.as_deref().map_or(0.0, half)
    }
}

fn product(isa: Isa, w: &Matrix, a: &Activations) -> Vec<f32> {
    let mut y = vec![f32::NAN; a.rows() * w.rows];
    matmul_packed_on(isa, &w.view(), a, &mut y);
    y
}

#[test]
fn every_isa_equals_scalar_bit_for_bit() {
    let mut numbers = Numbers::new(1);
    for kind in Codes::ALL {
        for rows in 1..=40 {
            let (cols, group) = (1 + numbers.below(300), GROUP_SIZES[numbers.below(4)]);
            let (t, shift) = (1 + numbers.below(9), numbers.below(2) == 1);
            let w = Matrix::random(kind, (rows, cols), group, shift, &mut numbers);
            let x = numbers.activations(t * cols);
            for bits in ActivationBits::ALL {
                let a = quantize_activations(&x, t, cols, group, bits);
                let expected = product(Isa::SCALAR, &w, &a);
                for isa in Isa::available() {
                    let what = format!(
                        "{} {kind:?} {rows}x{cols} group {group} t {t} shift {shift} {bits:?}",
                        isa.name()
                    );
                    assert_same(&product(isa, &w, &a), &expected, &what);
                }
            }
        }
    }
}

#[test]
fn every_group_size_row_count_and_shift_equals_scalar() {
    let mut numbers = Numbers::new(2);
    for kind in Codes::ALL {
        for group in GROUP_SIZES {
            for shift in [false, true] {
                let cols = [1, group - 1, group, group + 1, 2 * group + 17][numbers.below(5)];
                let w = Matrix::random(kind, (35, cols), group, shift, &mut numbers);
                for t in (1..=9).chain([15, 16, 23]) {
                    let x = numbers.activations(t * cols);
                    for bits in ActivationBits::ALL {
                        let a = quantize_activations(&x, t, cols, group, bits);
                        let expected = product(Isa::SCALAR, &w, &a);
                        for isa in Isa::available() {
                            let name = isa.name();
                            let what = format!("{name} {kind:?} 35x{cols} group {group} t {t}");
                            assert_same(&product(isa, &w, &a), &expected, &what);
                        }
                    }
                }
            }
        }
    }
}

/// Largest codes of one sign everywhere: sums in 16 bits would overflow if anything did.
#[test]
fn the_largest_sums_are_exact() {
    for (kind, low, high) in [
        (Codes::Ternary, -1, 1),
        (Codes::Int4, -8, 7),
        (Codes::Int8, -127, 127),
    ] {
        for (level, group) in [low, high]
            .into_iter()
            .flat_map(|l| GROUP_SIZES.map(|g| (l, g)))
        {
            let mut codes = vec![0; 2 * kind.block_bytes(group)];
            for (k, block) in (0..group).flat_map(|k| [(k, 0), (k, 1)]) {
                let bytes = kind.block_bytes(group);
                for r in 0..16 {
                    layout::set(
                        kind,
                        &mut codes[block * bytes..(block + 1) * bytes],
                        r,
                        k,
                        level,
                    );
                }
            }
            let scales: Vec<u8> = f16::ONE.to_le_bytes().repeat(32);
            let w = PackedView::new(kind, 16, 2 * group, group, &codes, &scales, None).unwrap();
            for (sign, bits) in [1.0, -1.0]
                .into_iter()
                .flat_map(|sign| ActivationBits::ALL.map(|bits| (sign, bits)))
            {
                let t = 9;
                // The scale is one; in sixteen bits both planes are at their largest.
                let most = match bits {
                    ActivationBits::Eight => 127.0,
                    ActivationBits::Sixteen => 32512.0,
                };
                let x = vec![most * sign; t * 2 * group];
                let a = quantize_activations(&x, t, 2 * group, group, bits);
                let one = (f64::from(level) * f64::from(most * sign) * group as f64) as f32;
                let exact = one + one;
                for isa in Isa::available() {
                    let mut y = vec![0.0; t * 16];
                    matmul_packed_on(isa, &w, &a, &mut y);
                    assert!(
                        y.iter().all(|&y| y == exact),
                        "{} {kind:?} {} != {exact}",
                        isa.name(),
                        y[0]
                    );
                }
            }
        }
    }
}

#[test]
fn scalar_is_the_product_of_what_is_stored() {
    let mut numbers = Numbers::new(3);
    for kind in Codes::ALL {
        for shift in [false, true] {
            let (rows, cols, group, t) = (37, 205, 64, 3);
            let w = Matrix::random(kind, (rows, cols), group, shift, &mut numbers);
            let x = numbers.activations(t * cols);
            for bits in ActivationBits::ALL {
                let a = quantize_activations(&x, t, cols, group, bits);
                let y = product(Isa::SCALAR, &w, &a);
                let mut row = vec![0.0; cols];
                for n in 0..rows {
                    w.view().dequantize_row(n, &mut row);
                    for i in 0..t {
                        let (mut exact, mut size) = (0.0, 0.0);
                        for (k, &stored) in row.iter().enumerate() {
                            let weight = w.weight(n, k);
                            assert!(
                                (f64::from(stored) - weight).abs() <= weight.abs() * 1e-6 + 1e-6
                            );
                            let term = weight
                                * f64::from(a.code(i, k))
                                * f64::from(a.scales(i)[k / group]);
                            exact += term;
                            size += term.abs();
                        }
                        let found = f64::from(y[i * rows + n]);
                        assert!(
                            (found - exact).abs() <= 1e-5 * size,
                            "{kind:?} {found} {exact}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn what_is_not_finite_reaches_the_output() {
    let mut numbers = Numbers::new(4);
    for kind in Codes::ALL {
        let w = Matrix::random(kind, (20, 96), 32, false, &mut numbers);
        let mut x = numbers.activations(9 * 96);
        x[4 * 96 + 40] = f32::INFINITY;
        let a = quantize_activations(&x, 9, 96, 32, ActivationBits::Sixteen);
        for isa in Isa::available() {
            for (t, y) in product(isa, &w, &a).chunks(20).enumerate() {
                assert!(
                    y.iter().all(|y| y.is_nan() == (t == 4)),
                    "{} {t}",
                    isa.name()
                );
            }
        }
    }
}

#[test]
fn several_matrices_in_one_pass_give_what_each_gives() {
    let mut numbers = Numbers::new(8);
    let (cols, t) = (700, 3);
    let ws = [(Codes::Int8, 300), (Codes::Ternary, 33), (Codes::Int4, 500)]
        .map(|(kind, rows)| Matrix::random(kind, (rows, cols), 64, false, &mut numbers));
    let a = quantize_activations(
        &numbers.activations(t * cols),
        t,
        cols,
        64,
        ActivationBits::Eight,
    );
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        let mut ys = ws.each_ref().map(|w| vec![f32::NAN; t * w.rows]);
        let outputs = ys.iter_mut().map(|y| &mut y[..]).collect();
        pool.install(|| matmul_packed_all(&ws.each_ref().map(Matrix::view), &a, outputs));
        for (w, y) in ws.iter().zip(&ys) {
            assert_same(y, &product(Isa::SCALAR, w, &a), "one of three");
        }
    }
}

#[test]
fn threads_and_cache_blocks_change_nothing() {
    let mut numbers = Numbers::new(5);
    // Large enough for several tasks, and for several blocks of activations.
    let (rows, cols, t) = (200, 4096, 70);
    for (kind, bits) in Codes::ALL
        .into_iter()
        .flat_map(|kind| ActivationBits::ALL.map(|bits| (kind, bits)))
    {
        let w = Matrix::random(kind, (rows, cols), 128, false, &mut numbers);
        let x = numbers.activations(t * cols);
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            let a = quantize_activations(&x, t, cols, 128, bits);
            let mut y = vec![0.0; t * rows];
            pool.install(|| matmul_packed(&w.view(), &a, &mut y));
            y
        };
        let one = on(1);
        assert_same(&on(3), &one, "three threads");
        let a = quantize_activations(&x[7 * cols..8 * cols], 1, cols, 128, bits);
        assert_same(
            &product(isa().unwrap(), &w, &a),
            &one[7 * rows..8 * rows],
            "a single row",
        );
    }
}
