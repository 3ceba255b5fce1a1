//! Exactness of the conversion where theory says it is exact, and the arithmetic against brute
//! force.

use faer::{Mat, MatRef, c64};

use super::activations::Activations;
use super::attention::causal_softmax;
use super::convert::{Diagnostics, Options, Streams, convert_layer};
use super::layer::MlaAttention;
use super::linalg::mul;
use super::moments::Moments;
use super::rotary::Phases;
use super::score_fit::{PairFit, accumulate, key_features};
use super::score_ls::{ScoreProblem, Side};
use super::source::{FeedForward, Geometry, SourceAttention, SourceLayer};
use super::teacher::TeacherStats;

const TOKENS: usize = 24;

/// Uniform numbers of about unit variance, always the same.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0) * 1.7
    }

    fn matrix(&mut self, rows: usize, columns: usize, scale: f32) -> Mat<f32> {
        Mat::from_fn(rows, columns, |_, _| self.next() * scale)
    }

    fn vector(&mut self, len: usize, scale: f32) -> Vec<f32> {
        (0..len).map(|_| self.next() * scale).collect()
    }
}

fn geometry(heads: usize, kv_heads: usize, head_dim: usize) -> Geometry {
    let inv_freq = (0..head_dim / 2).map(|l| 30f64.powf(-2.0 * l as f64 / head_dim as f64)).collect();
    Geometry { hidden: 40, heads, kv_heads, head_dim, inv_freq, norm_eps: 1e-5 }
}

fn layer(g: &Geometry, biased: bool, noise: &mut Noise) -> SourceLayer {
    let (d, hd, n) = (g.hidden, g.query_width(), g.key_width());
    let size = if biased { 0.5 } else { 0.0 };
    SourceLayer {
        attn_norm: noise.vector(d, 0.2).iter().map(|v| 1.0 + v).collect(),
        attention: SourceAttention {
            qkv: noise.matrix(hd + 2 * n, d, 0.25),
            qkv_bias: noise.vector(hd + 2 * n, size),
            o: noise.matrix(d, hd, 0.2),
            o_bias: noise.vector(d, size),
        },
        mlp_norm: vec![1.0; d],
        feed_forward: FeedForward {
            gate_up: Mat::zeros(2, d),
            gate_up_bias: vec![0.0; 2],
            down: Mat::zeros(d, 1),
            down_bias: vec![0.0; d],
        },
    }
}

fn residual(g: &Geometry, windows: usize, noise: &mut Noise) -> Activations {
    let mut h = Activations::zeros(g.hidden, TOKENS, windows);
    let values: Vec<Mat<f32>> = (0..windows).map(|_| noise.matrix(g.hidden, TOKENS, 1.0)).collect();
    h.for_each(|w, mut out| {
        out.copy_from(&values[w]);
        Ok::<_, ()>(())
    })
    .unwrap();
    h
}

/// No refits, no constants but one: what is exact is exact by construction alone.
fn plain(rank: usize, rope: usize) -> Options {
    Options {
        best_constant: false,
        balances: vec![1.0],
        refit_input: false,
        refit_output: false,
        score_fits: Vec::new(),
        ..Options::new(rank, rope)
    }
}

fn convert(g: &Geometry, l: &SourceLayer, h: &Activations, o: &Options) -> (MlaAttention, Diagnostics) {
    let phases = Phases::new(&g.inv_freq, TOKENS);
    let mut after = h.clone();
    super::model::attend(g, l, &mut after, |x| l.attention.forward(g, &phases, x)).unwrap();
    let streams = Streams { teacher: h, teacher_after: &after, student: h };
    convert_layer(g, l, &streams, o).unwrap()
}

/// Largest difference of the two blocks' outputs relative to the largest output, with every
/// position `turn` times as far.
fn difference(g: &Geometry, l: &SourceLayer, mla: &MlaAttention, h: &Activations, turn: f64) -> f64 {
    let scaled = |f: &[f64]| Phases::new(&f.iter().map(|f| f * turn).collect::<Vec<_>>(), TOKENS);
    let x = l.attention_input(g, h.window(0));
    let want = l.attention.forward(g, &scaled(&g.inv_freq), x.as_ref());
    let found = mla.forward(&scaled(&mla.inv_freq), x.as_ref());
    f64::from((&want - &found).norm_max() / want.norm_max())
}

#[test]
fn full_rank_is_exact_where_nothing_turns() {
    for (heads, kv_heads, head_dim, biased) in [(4, 4, 8, false), (6, 2, 8, true), (4, 1, 16, true)] {
        let noise = &mut Noise(1);
        let g = geometry(heads, kv_heads, head_dim);
        let (l, h) = (layer(&g, biased, noise), residual(&g, 4, noise));
        for rope in [0, 4, 8] {
            let (mla, _) = convert(&g, &l, &h, &plain(2 * g.key_width() - rope, rope));
            let found = difference(&g, &l, &mla, &h, 0.0);
            assert!(found < 2e-5, "{heads}/{kv_heads} heads of {head_dim}, rope {rope}: {found}");
        }
    }
}

#[test]
fn keeping_every_rotation_is_exact_at_any_unitary_mix() {
    let noise = &mut Noise(2);
    for biased in [false, true] {
        let g = geometry(6, 3, 8);
        let (l, h) = (layer(&g, biased, noise), residual(&g, 4, noise));
        let n = g.key_width();
        let (mla, _) = convert(&g, &l, &h, &plain(n, n));
        assert_eq!(mla.rope(), n);
        let found = difference(&g, &l, &mla, &h, 1.0);
        assert!(found < 2e-5, "{found}");
        // With all refits on there is nothing to repair, so they change nothing.
        let (mla, _) = convert(&g, &l, &h, &Options::new(n, n));
        let found = difference(&g, &l, &mla, &h, 1.0);
        assert!(found < 2e-3, "{found}");
    }
}

#[test]
fn one_key_head_keeps_its_rotation_exactly() {
    let noise = &mut Noise(3);
    let g = geometry(4, 1, 8);
    let (l, h) = (layer(&g, true, noise), residual(&g, 4, noise));
    let (mla, d) = convert(&g, &l, &h, &plain(8, 8));
    assert_eq!(mla.rank(), 8);
    assert!(d.rotation_loss_left < 1e-6);
    let found = difference(&g, &l, &mla, &h, 1.0);
    assert!(found < 2e-5, "{found}");
}

/// Keys whose heads are complex multiples of one key, pair by pair, need one slot per pair.
#[test]
fn planted_rank_one_keys_are_exact() {
    let noise = &mut Noise(4);
    let g = geometry(6, 3, 8);
    let mut l = layer(&g, false, noise);
    let (hd, d, pairs) = (g.query_width(), g.head_dim, g.pairs());
    let first = l.attention.qkv.subrows(hd, d).to_owned();
    for j in 1..g.kv_heads {
        for p in 0..pairs {
            let (re, im) = (noise.next(), noise.next());
            for c in 0..g.hidden {
                let (a, b) = (first[(p, c)], first[(p + pairs, c)]);
                l.attention.qkv[(hd + j * d + p, c)] = re * a - im * b;
                l.attention.qkv[(hd + j * d + p + pairs, c)] = re * b + im * a;
            }
        }
    }
    let h = residual(&g, 4, noise);
    // All rotation in `head_dim` channels; the latent needs no more than the values.
    let (mla, found) = convert(&g, &l, &h, &plain(g.key_width(), d));
    assert!(found.rotation_loss_left < 1e-5, "{}", found.rotation_loss_left);
    let found = difference(&g, &l, &mla, &h, 1.0);
    assert!(found < 5e-5, "{found}");
}

#[test]
fn a_larger_rank_is_never_worse() {
    let noise = &mut Noise(5);
    let g = geometry(4, 2, 8);
    let (l, h) = (layer(&g, true, noise), residual(&g, 16, noise));
    let mut last = (f64::INFINITY, 0.0);
    for rank in [2, 6, 12, 18, 24] {
        let options = Options { balances: vec![1.0], score_fits: Vec::new(), ..Options::new(rank, 8) };
        let (_, d) = convert(&g, &l, &h, &options);
        assert!(d.output_error < last.0 && d.energy > last.1, "rank {rank}: {d:?} after {last:?}");
        last = (d.output_error, d.energy);
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let noise = &mut Noise(6);
    let g = geometry(4, 2, 8);
    let (l, h) = (layer(&g, true, noise), residual(&g, 16, noise));
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| convert(&g, &l, &h, &Options::new(6, 4)).0)
    };
    let (one, three) = (run(1), run(3));
    assert_eq!(one.kv_a, three.kv_a);
    assert_eq!(one.q_rope, three.q_rope);
    assert_eq!(one.kb, three.kb);
    assert_eq!(one.o, three.o);
}

/// One head's weights, keys and queries, and the fit of its pairs.
fn one_head(noise: &mut Noise) -> (Mat<f32>, Mat<f32>, Mat<f32>, Vec<f64>, Vec<PairFit>) {
    let inv_freq = vec![1.0, 0.3, 0.01];
    let (q, k) = (noise.matrix(6, TOKENS, 1.0), noise.matrix(6, TOKENS, 1.0));
    let a = causal_softmax(noise.matrix(TOKENS, TOKENS, 1.0));
    let phases = Phases::new(&inv_freq, TOKENS);
    let mut fits = vec![PairFit::default(); 3];
    accumulate(&mut fits, key_features(k.as_ref(), &phases).as_ref(), a.as_ref(), q.as_ref(), &phases);
    (q, k, a, inv_freq, fits)
}

#[test]
fn the_fitted_loss_is_the_variance_of_the_score_error() {
    let noise = &mut Noise(7);
    let (q, k, a, inv_freq, fits) = one_head(noise);
    let pair = |m: &Mat<f32>, l: usize, t: usize| c64::new(f64::from(m[(l, t)]), f64::from(m[(l + 3, t)]));
    let brute = |l: usize, phi: c64| -> f64 {
        let error = |t: usize, s: usize| {
            let turn = c64::from_polar(1.0, -inv_freq[l] * (t as f64 - s as f64));
            (pair(&q, l, t).conj() * pair(&k, l, s) * (turn - phi)).re
        };
        let of_query = |t: usize| {
            let weight = |s: usize| f64::from(a[(s, t)]);
            let mean: f64 = (0..=t).map(|s| weight(s) * error(t, s)).sum();
            (0..=t).map(|s| weight(s) * (error(t, s) - mean).powi(2)).sum::<f64>()
        };
        (0..TOKENS).map(of_query).sum::<f64>()
    };
    for (l, fit) in fits.iter().enumerate() {
        let best = fit.best();
        for phi in [c64::new(0.0, 0.0), c64::new(1.0, 0.0), c64::new(0.3, -0.7), best] {
            let (want, found) = (brute(l, phi), fit.loss(phi));
            assert!((want - found).abs() < 1e-4 * (1.0 + want), "pair {l} at {phi}: {want} {found}");
        }
        for step in [c64::new(0.05, 0.0), c64::new(0.0, 0.05), c64::new(-0.03, 0.04)] {
            assert!(brute(l, best) < brute(l, best + step));
        }
    }
}

#[test]
fn streamed_moments_are_the_direct_ones() {
    let noise = &mut Noise(8);
    let (x, y) = (noise.matrix(5, 60, 1.0), noise.matrix(3, 60, 1.0));
    let mut moments = Moments::zeros(5, 3);
    for start in (0..60).step_by(20) {
        moments.add_block(x.subcols(start, 20), y.subcols(start, 20));
    }
    let outer = |a: MatRef<'_, f32>, b: MatRef<'_, f32>| mul(a, b.transpose());
    let close = |a: &Mat<f64>, b: Mat<f32>| {
        for j in 0..b.ncols() {
            for i in 0..b.nrows() {
                assert!((a[(i, j)] - f64::from(b[(i, j)])).abs() < 1e-4);
            }
        }
    };
    close(&moments.xx, outer(x.as_ref(), x.as_ref()));
    close(&moments.yx, outer(y.as_ref(), x.as_ref()));
    // A regression that explains everything, and its error from the moments alone.
    let w = noise.matrix(3, 5, 1.0);
    let y = Mat::from_fn(3, 60, |i, t| (0..5).map(|j| w[(i, j)] * x[(j, t)]).sum::<f32>() + 2.0);
    let mut moments = Moments::zeros(5, 3);
    moments.add_block(x.as_ref(), y.as_ref());
    let map = moments.ridge(Mat::zeros(3, 5).as_ref(), 1e-9).unwrap();
    close(&map.weight, w);
    assert!(map.bias.iter().all(|b| (b - 2.0).abs() < 1e-4));
    assert!(moments.relative_error(&map) < 1e-6);
}

#[test]
fn streamed_teacher_statistics_are_the_sum_over_windows() {
    let noise = &mut Noise(9);
    let g = geometry(4, 2, 8);
    let (l, h) = (layer(&g, true, noise), residual(&g, 3, noise));
    let all = TeacherStats::gather(&g, &l, &h, &[0, 1, 2]);
    let parts: Vec<TeacherStats> = (0..3).map(|w| TeacherStats::gather(&g, &l, &h, &[w])).collect();
    assert_eq!(all.tokens, 3 * TOKENS);
    for head in 0..4 {
        let sum: f64 = parts.iter().map(|p| p.sensitivity[head]).sum();
        assert!((all.sensitivity[head] - sum).abs() < 1e-9 * sum);
        let sum: f64 = parts.iter().map(|p| p.fits[head][1].energy).sum();
        assert!((all.fits[head][1].energy - sum).abs() < 1e-9 * sum);
    }
    // The sensitivity against its definition in the residual stream.
    let phases = Phases::new(&g.inv_freq, TOKENS);
    let x = l.attention_input(&g, h.window(0));
    let p = l.attention.project(&g, x.as_ref());
    let a = &p.weights(&g, &phases)[3];
    let vo = mul(l.attention.o.subcols(3 * 8, 8), p.value(&g, 3));
    let mean = mul(vo.as_ref(), a.as_ref());
    let mut want = 0.0;
    for t in 0..TOKENS {
        for s in 0..=t {
            let far: f32 = (0..g.hidden).map(|i| (vo[(i, s)] - mean[(i, t)]).powi(2)).sum();
            want += f64::from(a[(s, t)] * far);
        }
    }
    assert!((parts[0].sensitivity[3] - want).abs() < 1e-3 * want);
}

#[test]
fn score_least_squares_lowers_the_loss_it_names() {
    let noise = &mut Noise(10);
    let g = geometry(4, 2, 8);
    let (l, h) = (layer(&g, true, noise), residual(&g, 32, noise));
    let options = Options { score_fits: Vec::new(), ..Options::new(10, 8) };
    let (mut mla, _) = convert(&g, &l, &h, &options);
    let (held_out, train): (Vec<usize>, Vec<usize>) = (0..32).partition(|w| w % 8 == 7);
    let problem = ScoreProblem::new(&g, &l, &h, &h, &[1.0; 4], train, held_out);
    for side in [Side::Key, Side::Query] {
        let before = problem.held_out_loss(&mla);
        let fit = problem.fit(&mut mla, side, 8).unwrap();
        assert!((fit.before - before).abs() < 1e-12);
        assert!(fit.after < 0.95 * before, "{side:?}: {fit:?}");
        assert!((problem.held_out_loss(&mla) - fit.after).abs() < 1e-9);
    }
}
