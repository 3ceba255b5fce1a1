//! Rotary position embedding (Su et al. 2021) in both layouts of pairs.

use std::cell::OnceCell;
use std::collections::BTreeMap;

use neuroconv_recipes::{Mixer, ModelSpec, RopeLayout};

/// The frequencies of a model, by head width.
#[derive(Debug)]
pub(crate) struct Rope {
    layout: RopeLayout,
    inv_freq: BTreeMap<usize, Vec<f64>>,
}

impl Rope {
    /// For every layer of `spec` that is rotated.
    pub(crate) fn new(spec: &ModelSpec) -> Self {
        let widths = spec.layers.iter().filter_map(|layer| match &layer.mixer {
            Mixer::Attention(attention) => attention.rope.then_some(attention.head_dim),
            Mixer::Latent(latent) => Some(latent.head_dim),
            // Has frequencies of its own.
            Mixer::Mla(_) => None,
        });
        let inv_freq = widths
            .map(|width| (width, spec.rope.inv_freq(width)))
            .collect();
        Rope {
            layout: spec.rope.layout,
            inv_freq,
        }
    }

    /// The rotations of positions `start..start + t`, by head width.
    pub(crate) fn at(&self, start: usize, t: usize) -> Rotations {
        let of_width = |inv_freq: &[f64]| Rotation::new(self.layout, inv_freq, start, t);
        let by_width = self
            .inv_freq
            .iter()
            .map(|(width, f)| (*width, of_width(f)))
            .collect();
        Rotations { by_width }
    }
}

/// Where the tokens of one pass stand.
#[derive(Debug)]
pub(crate) struct Positions<'r> {
    rope: &'r Rope,
    /// Position of the first token.
    pub(crate) start: usize,
    /// Number of tokens.
    pub(crate) count: usize,
    new: Rotations,
    all: OnceCell<Rotations>,
}

impl<'r> Positions<'r> {
    /// `count` tokens from position `start` on.
    pub(crate) fn new(rope: &'r Rope, start: usize, count: usize) -> Self {
        Positions {
            rope,
            start,
            count,
            new: rope.at(start, count),
            all: OnceCell::new(),
        }
    }

    /// The rotations of the tokens of this pass.
    pub(crate) fn rotations(&self) -> &Rotations {
        &self.new
    }

    /// The rotations of all tokens up to the last of this pass.
    pub(crate) fn all_rotations(&self) -> &Rotations {
        self.all
            .get_or_init(|| self.rope.at(0, self.start + self.count))
    }
}

/// The rotations of some positions, for each head width of a model.
#[derive(Debug)]
pub(crate) struct Rotations {
    by_width: BTreeMap<usize, Rotation>,
}

impl Rotations {
    /// Those of heads of `head_dim` channels; `None` where no such head is rotated.
    pub(crate) fn of(&self, head_dim: usize) -> Option<&Rotation> {
        self.by_width.get(&head_dim)
    }
}

/// Cosine and sine of each position and pair.
#[derive(Debug)]
pub(crate) struct Rotation {
    layout: RopeLayout,
    turns_tp: Vec<(f32, f32)>,
}

impl Rotation {
    /// Positions `start..start + t` at `inv_freq` radians per position.
    ///
    /// Angles are formed in double precision: a single loses a thousandth of a radian at
    /// position 10,000.
    pub(crate) fn new(layout: RopeLayout, inv_freq: &[f64], start: usize, t: usize) -> Self {
        let angles = (start..start + t)
            .flat_map(|position| inv_freq.iter().map(move |f| f * position as f64));
        let turns_tp = angles.map(|a| (a.cos() as f32, a.sin() as f32)).collect();
        Rotation { layout, turns_tp }
    }

    /// Rotates every head of `x_thd`, `[t, heads, head_dim]` for the positions of this rotation:
    /// a pair `(a, b)` becomes `(a·cos - b·sin, a·sin + b·cos)`.
    pub(crate) fn apply(&self, x_thd: &mut [f32], heads: usize, head_dim: usize) {
        let pairs = head_dim / 2;
        let turn = |a: &mut f32, b: &mut f32, (cos, sin): (f32, f32)| {
            (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
        };
        for (x_hd, turns) in x_thd
            .chunks_mut(heads * head_dim)
            .zip(self.turns_tp.chunks(pairs))
        {
            for x_d in x_hd.chunks_mut(head_dim) {
                match self.layout {
                    RopeLayout::Half => {
                        let (low, high) = x_d.split_at_mut(pairs);
                        for ((a, b), &by) in low.iter_mut().zip(high).zip(turns) {
                            turn(a, b, by);
                        }
                    }
                    RopeLayout::Interleaved => {
                        for (pair, &by) in x_d.as_chunks_mut::<2>().0.iter_mut().zip(turns) {
                            let [a, b] = pair;
                            turn(a, b, by);
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::spec;

    fn rotated(layout: RopeLayout, x_thd: &[f32], heads: usize, start: usize) -> Vec<f32> {
        let mut spec = spec();
        spec.rope.layout = layout;
        let rope = Rope::new(&spec);
        let head_dim = *rope.inv_freq.keys().next().unwrap();
        let mut x = x_thd.to_vec();
        let rotations = rope.at(start, x.len() / (heads * head_dim));
        rotations
            .of(head_dim)
            .unwrap()
            .apply(&mut x, heads, head_dim);
        x
    }

    /// Channel `2i + j` of an interleaved head lies at `i + j·d/2` of a half one.
    fn to_half(x: &[f32], head_dim: usize) -> Vec<f32> {
        let head = |head: &[f32]| -> Vec<f32> {
            (0..head_dim)
                .map(|c| head[2 * (c % (head_dim / 2)) + c / (head_dim / 2)])
                .collect()
        };
        x.chunks(head_dim).flat_map(head).collect()
    }

    #[test]
    fn the_layouts_are_permutations_of_each_other_and_differ() {
        let x: Vec<f32> = (0..5 * 3 * 8).map(|i| (i as f32 * 1.3).sin()).collect();
        let interleaved = rotated(RopeLayout::Interleaved, &x, 3, 7);
        let half = rotated(RopeLayout::Half, &to_half(&x, 8), 3, 7);
        assert_eq!(to_half(&interleaved, 8), half);
        assert_ne!(rotated(RopeLayout::Half, &x, 3, 7), interleaved);
    }

    #[test]
    fn position_zero_is_left_alone_and_lengths_are_kept() {
        let x: Vec<f32> = (0..2 * 8).map(|i| i as f32 - 5.0).collect();
        let y = rotated(RopeLayout::Half, &x, 1, 0);
        assert_eq!(y[..8], x[..8]);
        let norm = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>();
        assert!((norm(&x[8..]) - norm(&y[8..])).abs() < 1e-3);
        assert_ne!(y[8..], x[8..]);
    }

    #[test]
    fn products_depend_on_the_distance_only() {
        let q: Vec<f32> = (0..8).map(|i| (i as f32).cos()).collect();
        let k: Vec<f32> = (0..8).map(|i| (i as f32 * 0.3).sin()).collect();
        let product = |at_q, at_k| -> f32 {
            let q = rotated(RopeLayout::Half, &q, 1, at_q);
            let k = rotated(RopeLayout::Half, &k, 1, at_k);
            q.iter().zip(&k).map(|(q, k)| q * k).sum()
        };
        assert!((product(9, 4) - product(25, 20)).abs() < 1e-5);
        assert!((product(9, 4) - product(9, 5)).abs() > 1e-3);
    }
}
