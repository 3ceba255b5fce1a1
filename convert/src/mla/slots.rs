//! Which parts of the keys keep their rotation, and what replaces it for the rest.
//!
//! Every pair turns by the same angle in all key heads, so any unitary mix of one pair over the heads
//! commutes with the rotation. Per pair, the keys' second moment weighted with what un-rotating would
//! cost is decomposed; its eigenvalues are the losses each component avoids by keeping its rotation.
//! The largest over all pairs get the slots of the one rotated key that all heads share.

use faer::{Mat, c64};

use super::error::Error;
use super::linalg;
use super::score_fit::PairFit;
use super::source::Geometry;
use super::teacher::TeacherStats;

/// Where the frequencies of the rotated key come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// Wherever they matter most; the layer stores its own table.
    Own,
    /// Every `head_dim / rope`-th frequency of the source, once each: the table other programs build
    /// for a head of `rope` channels.
    Stock,
}

/// One rotated pair of the shared key.
#[derive(Clone, Debug)]
pub struct Slot {
    /// The source's pair it belongs to.
    pub pair: usize,
    /// Reads the slot from the pair's key heads: `Σ_g encode[g] k_g`.
    pub encode: Vec<c64>,
    /// Gives it back to each key head: `k_g ≈ Σ decode[g] slot`.
    pub decode: Vec<c64>,
}

/// The split of a layer's keys into a rotated and an unrotated part.
#[derive(Clone, Debug)]
pub struct Split {
    /// The rotated pairs, by falling frequency.
    pub slots: Vec<Slot>,
    /// Per head and pair, the unrotated key as a combination of the pair's key heads, `[kv_heads]`:
    /// the constant times what the slots leave.
    pub unrotated: Vec<Vec<Vec<c64>>>,
    /// Share of the loss of un-rotating everything that is left.
    pub loss_left: f64,
}

/// How to choose the split.
#[derive(Clone, Copy, Debug)]
pub struct SplitRule {
    /// Channels of the rotated key.
    pub rope: usize,
    /// Whose frequencies.
    pub table: Table,
    /// Whether unrotated pairs get their best constant; otherwise they get one.
    pub best_constant: bool,
}

/// Chooses the slots from the statistics, then fits the constants to what they leave: `residual`
/// tells, per head and pair, what un-rotating costs of what the given maps leave of each pair.
pub fn split(
    g: &Geometry,
    stats: &TeacherStats,
    rule: SplitRule,
    residual: impl FnOnce(&[Mat<c64>]) -> Vec<Vec<PairFit>>,
) -> Result<Split, Error> {
    let constant = |fit: &PairFit| {
        if rule.best_constant {
            fit.best()
        } else {
            c64::new(1.0, 0.0)
        }
    };
    let weights = stats.head_weights();
    let loss_hl = |fits: &[Vec<PairFit>]| -> Vec<Vec<f64>> {
        fits.iter()
            .map(|row| row.iter().map(|f| f.loss(constant(f))).collect())
            .collect()
    };
    let before = loss_hl(&stats.fits);
    let slots = choose(g, stats, &weights, &before, rule)?;

    let maps = residual_maps(g, &slots);
    let fits = residual(&maps);
    let most = fits.iter().flatten().map(|f| f.square).fold(0.0, f64::max);
    // A pair of which the slots leave nothing has no constant to fit, only rounding.
    let phi = |h: usize, l: usize| {
        if fits[h][l].square > 1e-9 * most {
            constant(&fits[h][l])
        } else {
            c64::new(0.0, 0.0)
        }
    };
    let row = |h: usize, l: usize| {
        let own = h / g.group();
        (0..g.kv_heads)
            .map(|j| phi(h, l) * maps[l][(own, j)])
            .collect()
    };
    let unrotated = (0..g.heads)
        .map(|h| (0..g.pairs()).map(|l| row(h, l)).collect())
        .collect();
    let total = |loss: &[Vec<f64>]| -> f64 {
        loss.iter()
            .zip(&weights)
            .map(|(row, w)| w * row.iter().sum::<f64>())
            .sum()
    };
    let all = total(&before);
    let loss_left = if all > 0.0 {
        total(&loss_hl(&fits)) / all
    } else {
        0.0
    };
    Ok(Split {
        slots,
        unrotated,
        loss_left,
    })
}

fn choose(
    g: &Geometry,
    stats: &TeacherStats,
    weights: &[f64],
    loss: &[Vec<f64>],
    rule: SplitRule,
) -> Result<Vec<Slot>, Error> {
    let (pairs, count) = (g.pairs(), rule.rope / 2);
    if !rule.rope.is_multiple_of(2) || count > pairs * g.kv_heads {
        return Err(Error::RopeDim {
            rope: rule.rope,
            most: g.key_width(),
        });
    }
    // Loss per unit of energy of each key head's pair, as seen by the query heads that read it.
    let tokens = stats.tokens as f64;
    let cost = |l: usize, j: usize| {
        let heads = j * g.group()..(j + 1) * g.group();
        let sum: f64 = heads.map(|h| weights[h] * loss[h][l]).sum();
        sum / tokens / (stats.key_moment[l][(j, j)].re / tokens).max(1e-12)
    };
    let cost: Vec<Vec<f64>> = (0..pairs)
        .map(|l| (0..g.kv_heads).map(|j| cost(l, j)).collect())
        .collect();
    let most = cost.iter().flatten().copied().fold(0.0, f64::max);
    let root = |l: usize, j: usize| (cost[l][j] + 1e-6 * most.max(1e-30)).sqrt();

    let mut found = Vec::with_capacity(pairs * g.kv_heads);
    for (l, moment) in stats.key_moment.iter().enumerate() {
        let weighted = Mat::from_fn(g.kv_heads, g.kv_heads, |i, j| {
            moment[(i, j)] * (root(l, i) * root(l, j) / tokens)
        });
        let (values, vectors) = linalg::hermitian_eigen(weighted.as_ref())?;
        for (c, value) in values.iter().enumerate() {
            let encode = (0..g.kv_heads)
                .map(|j| vectors[(j, c)].conj() * root(l, j))
                .collect();
            let decode = (0..g.kv_heads)
                .map(|j| vectors[(j, c)] * (1.0 / root(l, j)))
                .collect();
            found.push((
                *value,
                c,
                Slot {
                    pair: l,
                    encode,
                    decode,
                },
            ));
        }
    }
    match rule.table {
        Table::Own => {
            found.sort_by(|a, b| b.0.total_cmp(&a.0));
            found.truncate(count);
        }
        Table::Stock => {
            if count == 0 || pairs % count != 0 {
                return Err(Error::StockRopeDim {
                    rope: rule.rope,
                    head_dim: g.head_dim,
                });
            }
            found.retain(|(_, c, slot)| *c == 0 && slot.pair % (pairs / count) == 0);
        }
    }
    found.sort_by_key(|(_, c, slot)| (slot.pair, *c));
    Ok(found.into_iter().map(|(_, _, slot)| slot).collect())
}

/// Per pair, what is left of its key heads once its slots are taken out, `[kv_heads, kv_heads]`.
fn residual_maps(g: &Geometry, slots: &[Slot]) -> Vec<Mat<c64>> {
    let mut maps = vec![Mat::<c64>::identity(g.kv_heads, g.kv_heads); g.pairs()];
    for slot in slots {
        let map = &mut maps[slot.pair];
        for (i, decode) in slot.decode.iter().enumerate() {
            for (j, encode) in slot.encode.iter().enumerate() {
                map[(i, j)] -= decode * encode;
            }
        }
    }
    maps
}

impl Split {
    /// Radians per position of each slot, rounded to what will be stored, so that everything fitted
    /// on top is fitted to it.
    pub fn inv_freq(&self, g: &Geometry) -> Vec<f64> {
        self.slots
            .iter()
            .map(|slot| f64::from(g.inv_freq[slot.pair] as f32))
            .collect()
    }

    /// The map from all keys to the shared rotated key, `[rope, kv_heads * head_dim]`.
    pub fn rotated_key(&self, g: &Geometry) -> Mat<f64> {
        let (count, pairs) = (self.slots.len(), g.pairs());
        let mut out = Mat::zeros(2 * count, g.key_width());
        for (p, slot) in self.slots.iter().enumerate() {
            for (j, &z) in slot.encode.iter().enumerate() {
                let column = j * g.head_dim + slot.pair;
                put(&mut out, (p, p + count), (column, column + pairs), z);
            }
        }
        out
    }

    /// The map from the queries of head `h` to its rotated queries, `[rope, head_dim]`.
    pub fn rotated_query(&self, g: &Geometry, h: usize) -> Mat<f64> {
        let (count, pairs) = (self.slots.len(), g.pairs());
        let mut out = Mat::zeros(2 * count, g.head_dim);
        for (p, slot) in self.slots.iter().enumerate() {
            let z = slot.decode[h / g.group()].conj();
            put(&mut out, (p, p + count), (slot.pair, slot.pair + pairs), z);
        }
        out
    }

    /// The map from all keys to the unrotated key of head `h`, `[head_dim, kv_heads * head_dim]`.
    pub fn unrotated_key(&self, g: &Geometry, h: usize) -> Mat<f64> {
        let pairs = g.pairs();
        let mut out = Mat::zeros(g.head_dim, g.key_width());
        for (l, row) in self.unrotated[h].iter().enumerate() {
            for (j, &z) in row.iter().enumerate() {
                let column = j * g.head_dim + l;
                put(&mut out, (l, l + pairs), (column, column + pairs), z);
            }
        }
        out
    }
}

/// Multiplication by `z` as a real map from the channels `from` to the channels `to` of a pair.
fn put(out: &mut Mat<f64>, to: (usize, usize), from: (usize, usize), z: c64) {
    out[(to.0, from.0)] = z.re;
    out[(to.0, from.1)] = -z.im;
    out[(to.1, from.0)] = z.im;
    out[(to.1, from.1)] = z.re;
}
