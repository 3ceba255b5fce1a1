//! One plane of the cache: the keys or the values of a head, in the number format asked for.
//!
//! Owns rounding and places. A row is rounded alone, when it comes, so what the cache holds does
//! not depend on how a text was cut into passes.

use std::borrow::Cow;

use half::f16;
use neuroconv_kernels::DenseSlice;

/// Positions that lie together in memory, and by which the cache grows.
pub(crate) const PAGE: usize = 128;

/// How the cache stores numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvCodec {
    /// Single precision, as computed.
    #[default]
    F32,
    /// IEEE half precision. A number beyond 65504 becomes infinite, which the logits will tell.
    F16,
    /// Eight bits with a scale per token and head, and one more for the rotated part of a latent.
    Int8,
}

impl KvCodec {
    /// All of them.
    pub const ALL: [KvCodec; 3] = [KvCodec::F32, KvCodec::F16, KvCodec::Int8];
}

/// How the numbers of a page lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// `[PAGE, width]`.
    Rows,
    /// `[width, PAGE]`.
    Columns,
}

/// Rows of `width` numbers in whole pages, zero beyond the last.
#[derive(Clone, Debug)]
pub(crate) struct Plane {
    width: usize,
    /// Columns before it share a scale, and so do those from it on.
    split: usize,
    order: Order,
    numbers: Numbers,
}

#[derive(Clone, Debug)]
enum Numbers {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Int8 {
        codes: Vec<i8>,
        /// `[positions, parts]`.
        scales: Vec<f32>,
    },
}

/// A page as a product takes it.
pub(crate) enum Page<'a> {
    F32(Cow<'a, [f32]>),
    F16(&'a [f16]),
}

impl Page<'_> {
    pub(crate) fn slice(&self) -> DenseSlice<'_> {
        match self {
            Page::F32(numbers) => DenseSlice::F32(numbers),
            Page::F16(numbers) => DenseSlice::F16(bytemuck::cast_slice(numbers)),
        }
    }
}

impl Plane {
    /// No rows, of `width` numbers in parts that end at `split` and at `width`.
    pub(crate) fn new(codec: KvCodec, order: Order, width: usize, split: usize) -> Self {
        let numbers = match codec {
            KvCodec::F32 => Numbers::F32(Vec::new()),
            KvCodec::F16 => Numbers::F16(Vec::new()),
            KvCodec::Int8 => Numbers::Int8 {
                codes: Vec::new(),
                scales: Vec::new(),
            },
        };
        Plane {
            width,
            split,
            order,
            numbers,
        }
    }

    /// Bytes of the pages held.
    pub(crate) fn bytes(&self) -> usize {
        match &self.numbers {
            Numbers::F32(numbers) => size_of_val(&numbers[..]),
            Numbers::F16(numbers) => size_of_val(&numbers[..]),
            Numbers::Int8 { codes, scales } => codes.len() + size_of_val(&scales[..]),
        }
    }

    /// Makes room for whole pages, or forgets them.
    pub(crate) fn resize(&mut self, pages: usize) {
        let (count, parts) = (pages * PAGE * self.width, self.parts());
        match &mut self.numbers {
            Numbers::F32(numbers) => numbers.resize(count, 0.0),
            Numbers::F16(numbers) => numbers.resize(count, f16::ZERO),
            Numbers::Int8 { codes, scales } => {
                codes.resize(count, 0);
                scales.resize(pages * PAGE * parts, 0.0);
            }
        }
    }

    /// Stores the row of a position there is room for.
    pub(crate) fn put(&mut self, position: usize, row: &[f32]) {
        let (width, split, parts) = (self.width, self.split, self.parts());
        let (first, step) = match self.order {
            Order::Rows => (position * width, 1),
            Order::Columns => (position / PAGE * PAGE * width + position % PAGE, PAGE),
        };
        match &mut self.numbers {
            Numbers::F32(numbers) => {
                let places = numbers[first..].iter_mut().step_by(step);
                places.zip(row).for_each(|(place, &x)| *place = x);
            }
            Numbers::F16(numbers) => {
                let places = numbers[first..].iter_mut().step_by(step);
                places
                    .zip(row)
                    .for_each(|(place, &x)| *place = f16::from_f32(x));
            }
            Numbers::Int8 { codes, scales } => {
                let (low, high) = row.split_at(split);
                let mut places = codes[first..].iter_mut().step_by(step);
                let scales = &mut scales[position * parts..][..parts];
                for (part, scale) in [low, high].into_iter().zip(scales) {
                    let inverse;
                    (*scale, inverse) = scale_of(part);
                    for (&x, place) in part.iter().zip(&mut places) {
                        *place = (x * inverse).round_ties_even() as i8;
                    }
                }
            }
        }
    }

    /// A page, in the order of the plane.
    pub(crate) fn page(&self, page: usize) -> Page<'_> {
        match &self.numbers {
            Numbers::F16(numbers) => {
                let size = PAGE * self.width;
                Page::F16(&numbers[page * size..(page + 1) * size])
            }
            _ => Page::F32(self.floats(page * PAGE..(page + 1) * PAGE)),
        }
    }

    /// Some positions in single precision: any of a plane in rows, one whole page of another.
    pub(crate) fn floats(&self, positions: std::ops::Range<usize>) -> Cow<'_, [f32]> {
        let range = positions.start * self.width..positions.end * self.width;
        match &self.numbers {
            Numbers::F32(numbers) => Cow::Borrowed(&numbers[range]),
            Numbers::F16(numbers) => {
                Cow::Owned(numbers[range].iter().map(|x| x.to_f32()).collect())
            }
            Numbers::Int8 { codes, scales } => {
                let parts = self.parts();
                let scales = &scales[positions.start * parts..positions.end * parts];
                Cow::Owned(self.decoded(&codes[range], scales))
            }
        }
    }

    /// Codes times the scales of their positions.
    fn decoded(&self, codes: &[i8], scales: &[f32]) -> Vec<f32> {
        let value = |(&code, &scale): (&i8, &f32)| f32::from(code) * scale;
        let mut numbers = Vec::with_capacity(codes.len());
        match self.order {
            Order::Rows => {
                let rows = codes.chunks_exact(self.width);
                for (row, scales) in rows.zip(scales.chunks_exact(self.parts())) {
                    let (low, high) = row.split_at(self.split);
                    for (part, scale) in [low, high].into_iter().zip(scales) {
                        numbers.extend(part.iter().map(|code| value((code, scale))));
                    }
                }
            }
            Order::Columns => {
                for column in codes.chunks_exact(PAGE) {
                    numbers.extend(column.iter().zip(scales).map(value));
                }
            }
        }
        numbers
    }

    /// Scales of a row.
    fn parts(&self) -> usize {
        if self.split < self.width { 2 } else { 1 }
    }
}

/// The step between codes of `x`, and its inverse. Where a number is not finite the step is NaN, and
/// so is all that is computed with it.
fn scale_of(x: &[f32]) -> (f32, f32) {
    let largest = x.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
    let inverse = 127.0 / largest;
    if x.iter().any(|x| !x.is_finite()) {
        (f32::NAN, 0.0)
    } else if inverse.is_finite() {
        (largest / 127.0, inverse)
    } else {
        (0.0, 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows with a large second part, so that a shared scale would be noticed.
    fn row(position: usize, width: usize) -> Vec<f32> {
        (0..width)
            .map(|d| {
                let size = if d < 6 { 1.0 } else { 100.0 };
                ((position * 31 + d * 7) as f32).sin() * size
            })
            .collect()
    }

    #[test]
    fn every_codec_gives_back_rows_to_its_precision() {
        for (order, codec) in [Order::Rows, Order::Columns]
            .into_iter()
            .flat_map(|order| KvCodec::ALL.map(|codec| (order, codec)))
        {
            let (width, split) = if order == Order::Rows { (8, 6) } else { (5, 5) };
            let mut plane = Plane::new(codec, order, width, split);
            plane.resize(2);
            for position in 0..200 {
                plane.put(position, &row(position, width));
            }
            let bytes = match codec {
                KvCodec::F32 => 256 * width * 4,
                KvCodec::F16 => 256 * width * 2,
                KvCodec::Int8 => 256 * (width + if split < width { 8 } else { 4 }),
            };
            assert_eq!(plane.bytes(), bytes);
            let pages = [plane.floats(0..PAGE), plane.floats(PAGE..2 * PAGE)];
            for position in 0..256 {
                let expected = if position < 200 {
                    row(position, width)
                } else {
                    vec![0.0; width]
                };
                for (d, x) in expected.iter().enumerate() {
                    let place = position % PAGE;
                    let at = match order {
                        Order::Rows => place * width + d,
                        Order::Columns => d * PAGE + place,
                    };
                    let found = pages[position / PAGE][at];
                    let size = if d < 6 { 1.0 } else { 100.0 };
                    let bound = match codec {
                        KvCodec::F32 => 0.0,
                        KvCodec::F16 => x.abs() / 2000.0 + 1e-7,
                        KvCodec::Int8 => size / 253.0,
                    };
                    assert!(
                        (found - x).abs() <= bound,
                        "{codec:?} {order:?} {position} {d}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        for codec in KvCodec::ALL {
            for bad in [f32::NAN, f32::INFINITY] {
                let mut plane = Plane::new(codec, Order::Rows, 3, 3);
                plane.resize(1);
                plane.put(1, &[1.0, bad, 1.0]);
                assert!(plane.floats(1..2).iter().any(|x| !x.is_finite()));
                assert!(plane.floats(0..1).iter().all(|&x| x == 0.0));
            }
        }
    }
}
