//! Exactness of the conversion where theory says it is exact, and the arithmetic against brute
//! force. Here: the small layers all of it is tried on.

mod exact;
mod forms;
mod scores;
mod statistics;

use faer::Mat;

use super::activations::Activations;
use super::convert::convert_layer;
use super::layer::MlaAttention;
use super::options::{Converted, Diagnostics, Mode, Options};
use super::rebuilt::LatentAttention;
use super::rotary::Phases;
use super::source::{FeedForward, Geometry, SourceAttention, SourceLayer};
use super::streams::{Streams, attend_as_source};
use super::student::Student;

const TOKENS: usize = 24;

/// Uniform numbers of about unit variance, always the same.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
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
    let inv_freq = (0..head_dim / 2)
        .map(|l| 30f64.powf(-2.0 * l as f64 / head_dim as f64))
        .collect();
    Geometry {
        hidden: 40,
        heads,
        kv_heads,
        head_dim,
        inv_freq,
        window: None,
        norm_eps: 1e-5,
    }
}

fn layer(g: &Geometry, biased: bool, noise: &mut Noise) -> SourceLayer {
    let (d, hd, n) = (g.hidden, g.query_width(), g.key_width());
    let size = if biased { 0.5 } else { 0.0 };
    SourceLayer {
        attn_norm: noise.vector(d, 0.2).iter().map(|v| 1.0 + v).collect(),
        attention: SourceAttention {
            qkv: noise.matrix(hd + 2 * n, d, 0.25),
            qkv_bias: noise.vector(hd + 2 * n, size),
            qk_norm: None,
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

/// The layer with norms on queries and keys.
fn normed(g: &Geometry, layer: SourceLayer, noise: &mut Noise) -> SourceLayer {
    let mut gain = || {
        noise
            .vector(g.head_dim, 0.3)
            .iter()
            .map(|v| 1.0 + v)
            .collect()
    };
    let attention = SourceAttention {
        qk_norm: Some((gain(), gain())),
        ..layer.attention
    };
    SourceLayer { attention, ..layer }
}

fn residual(g: &Geometry, windows: usize, noise: &mut Noise) -> Activations {
    let mut h = Activations::zeros(g.hidden, TOKENS, windows);
    let values: Vec<Mat<f32>> = (0..windows)
        .map(|_| noise.matrix(g.hidden, TOKENS, 1.0))
        .collect();
    h.for_each(|w, mut out| out.copy_from(&values[w]));
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

fn convert_any(
    g: &Geometry,
    l: &SourceLayer,
    h: &Activations,
    o: &Options,
) -> (Converted, Diagnostics) {
    let mut after = h.clone();
    attend_as_source(g, l, &mut after);
    let streams = Streams {
        teacher: h,
        teacher_after: &after,
        student: h,
    };
    convert_layer(g, l, &streams, o).unwrap()
}

fn convert(
    g: &Geometry,
    l: &SourceLayer,
    h: &Activations,
    o: &Options,
) -> (MlaAttention, Diagnostics) {
    match convert_any(g, l, h, o) {
        (Converted::Mla(layer), found) => (layer, found),
        other => panic!("{other:?}"),
    }
}

fn rebuild(
    g: &Geometry,
    l: &SourceLayer,
    h: &Activations,
    o: &Options,
) -> (LatentAttention, Diagnostics) {
    let options = Options {
        mode: Mode::Latent,
        ..o.clone()
    };
    match convert_any(g, l, h, &options) {
        (Converted::Latent(layer), found) => (layer, found),
        other => panic!("{other:?}"),
    }
}

/// Largest difference of the two blocks' outputs relative to the largest output, with every
/// position `turn` times as far.
fn difference<S: Student>(
    g: &Geometry,
    l: &SourceLayer,
    layer: &S,
    h: &Activations,
    turn: f64,
) -> f64 {
    let scaled = |f: &[f64]| Phases::new(&f.iter().map(|f| f * turn).collect::<Vec<_>>(), TOKENS);
    let x = l.attention_input(g, h.window(0));
    let want = l.attention.forward(g, &scaled(&g.inv_freq), x.as_ref());
    let found = layer.forward(&scaled(layer.inv_freq()), x.as_ref());
    f64::from((&want - &found).norm_max() / want.norm_max())
}
