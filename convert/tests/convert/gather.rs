//! Sums of squares of what matrices read, against a decoder written down once more; in parts, with any
//! number of threads, and what is refused.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use neuroconv_convert::unit::Unit;
use neuroconv_convert::{Error, ImportanceError, gather_importance};
use neuroconv_format::Tensor;
use neuroconv_format::gguf::Imatrix;
use neuroconv_format::gguf::imatrix::Importance;
use neuroconv_quant::dequantize;
use neuroconv_recipes::{LatentSpec, Mixer, ModelSpec, QkNorm, Role, TensorId};
use neuroconv_runtime::{Checkpoint, Quiet, WeightSource};

use crate::common;

const LAYERS: usize = 2;
/// Of the tiny checkpoint.
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 16;

fn source(dir: &Path, change: impl Fn(&str, &mut Vec<f32>)) -> Checkpoint {
    let path = dir.join("tiny");
    common::write_checkpoint(&path, LAYERS, change);
    Checkpoint::open(&path).unwrap()
}

fn text() -> Vec<Vec<u32>> {
    let window = |w: u32| {
        (0..24)
            .map(move |t| (t * t + 5 * t + w * 11) % 48)
            .collect()
    };
    (0..7).map(window).collect()
}

fn gather(
    source: &dyn WeightSource,
    windows: &[Vec<u32>],
) -> Result<BTreeMap<String, Importance>, Error> {
    gather_importance(source, windows, &Quiet, &AtomicBool::new(false))
}

/// A llama in double precision, one token after the other, that shares nothing with the runtime.
struct Naive<'a> {
    source: &'a Checkpoint,
    sums: BTreeMap<String, Vec<f64>>,
}

impl Naive<'_> {
    fn values(&self, id: TensorId) -> Vec<f64> {
        let values = dequantize(&self.source.tensor(id).unwrap());
        values.into_iter().map(f64::from).collect()
    }

    /// What the matrix makes of `x`, whose squares are added to its sums.
    fn read(&mut self, layer: usize, role: Role, x: &[f64]) -> Vec<f64> {
        let id = TensorId::layer(layer, role);
        let sums = self.sums.entry(id.gguf_name().unwrap()).or_default();
        sums.resize(x.len(), 0.0);
        sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += x * x);
        let rows = self.values(id);
        let rows = rows.chunks(x.len());
        rows.map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum())
            .collect()
    }

    fn normed(&self, layer: usize, role: Role, x: &[f64]) -> Vec<f64> {
        let gain = self.values(TensorId::layer(layer, role));
        let square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let scale = (square + 1e-5).sqrt().recip();
        x.iter().zip(gain).map(|(x, g)| x * scale * g).collect()
    }

    fn window(&mut self, tokens: &[u32]) {
        let table = self.values(TensorId::model(Role::Embed));
        let hidden = HEADS * HEAD_DIM;
        let row = |&token: &u32| table[token as usize * hidden..][..hidden].to_vec();
        let mut stream: Vec<Vec<f64>> = tokens.iter().map(row).collect();
        for layer in 0..LAYERS {
            let (mut keys, mut values) = (Vec::new(), Vec::new());
            for (position, x) in stream.iter_mut().enumerate() {
                let h = self.normed(layer, Role::AttnNorm, x);
                let [q, k, v] = [Role::Q, Role::K, Role::V].map(|role| self.read(layer, role, &h));
                keys.push(rotated(&k, position));
                values.push(v);
                let mixed = attention(&rotated(&q, position), &keys, &values);
                add(x, &self.read(layer, Role::O, &mixed));
                let h = self.normed(layer, Role::MlpNorm, x);
                let [gate, up] = [Role::Gate, Role::Up].map(|role| self.read(layer, role, &h));
                let silu = |x: f64| x / (1.0 + (-x).exp());
                let gated: Vec<f64> = gate.iter().zip(up).map(|(g, u)| silu(*g) * u).collect();
                add(x, &self.read(layer, Role::Down, &gated));
            }
        }
    }
}

fn add(x: &mut [f64], more: &[f64]) {
    x.iter_mut().zip(more).for_each(|(x, more)| *x += more);
}

/// Each head, channel `i` turned with `i + HEAD_DIM / 2`.
fn rotated(x: &[f64], position: usize) -> Vec<f64> {
    let mut out = x.to_vec();
    let half = HEAD_DIM / 2;
    for head in out.chunks_mut(HEAD_DIM) {
        for i in 0..half {
            let angle = position as f64 * 10_000_f64.powf(-(i as f64) / half as f64);
            let (a, b) = (head[i], head[i + half]);
            head[i] = a * angle.cos() - b * angle.sin();
            head[i + half] = b * angle.cos() + a * angle.sin();
        }
    }
    out
}

fn attention(q: &[f64], keys: &[Vec<f64>], values: &[Vec<f64>]) -> Vec<f64> {
    let mut out = Vec::new();
    for (head, q) in q.chunks(HEAD_DIM).enumerate() {
        let own = head / (HEADS / KV_HEADS) * HEAD_DIM;
        let own = own..own + HEAD_DIM;
        let score = |k: &Vec<f64>| {
            let products = q.iter().zip(&k[own.clone()]).map(|(q, k)| q * k);
            (products.sum::<f64>() / (HEAD_DIM as f64).sqrt()).exp()
        };
        let weights: Vec<f64> = keys.iter().map(score).collect();
        let total: f64 = weights.iter().sum();
        out.extend(own.clone().map(|channel| {
            let parts = weights.iter().zip(values).map(|(w, v)| w * v[channel]);
            parts.sum::<f64>() / total
        }));
    }
    out
}

/// The largest relative difference of two sums.
fn off(found: &[f32], expected: impl Iterator<Item = f64>) -> f64 {
    let pairs = found.iter().zip(expected);
    let off = pairs.map(|(found, expected)| (f64::from(*found) / expected - 1.0).abs());
    off.fold(0.0, f64::max)
}

#[test]
fn sums_are_those_of_a_decoder_written_down_once_more() {
    let dir = tempfile::tempdir().unwrap();
    // Norms that are not all ones, so that one left out would show.
    let source = source(dir.path(), |name, values| {
        if name.contains("layernorm") {
            (0..)
                .zip(values)
                .for_each(|(i, x)| *x = 0.5 + f32::from(i as u8 % 7) / 4.0);
        }
    });
    let mut naive = Naive {
        source: &source,
        sums: BTreeMap::new(),
    };
    let windows = text();
    for tokens in &windows {
        naive.window(tokens);
    }
    let found = gather(&source, &windows).unwrap();
    assert_eq!(found.len(), 7 * LAYERS);
    assert!(found.keys().eq(naive.sums.keys()));
    for (name, sums) in &naive.sums {
        let entry = &found[name];
        assert_eq!(
            (entry.columns(), &entry.counts[..]),
            (sums.len(), &[7.0 * 24.0][..])
        );
        // Products of some hundred numbers in single precision.
        let off = off(&entry.sums, sums.iter().copied());
        assert!(off < 1e-4, "{name}: {off}");
    }
}

#[test]
fn parts_add_up_to_the_whole_for_any_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    let source = source(dir.path(), |_, _| {});
    let windows = text();
    let whole = gather(&source, &windows).unwrap();
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        let again = pool.build().unwrap().install(|| gather(&source, &windows));
        assert_eq!(again.unwrap(), whole);
    }
    for parts in [1, 2, 3, 7] {
        let mut sum = Imatrix::default();
        for part in Unit::all(parts) {
            let own = &windows[part.windows(windows.len()).unwrap()];
            let entries = gather(&source, own).unwrap();
            assert_eq!(entries == whole, parts == 1, "a part is not the whole");
            let part = Imatrix {
                entries,
                ..Imatrix::default()
            };
            sum.add(&part).unwrap();
        }
        assert!(sum.entries.keys().eq(whole.keys()));
        for (name, entry) in &whole {
            let found = &sum.entries[name];
            assert_eq!(found.counts, entry.counts);
            // Each addition of single precision rounds by half a unit in the last place.
            let off = off(&found.sums, entry.sums.iter().map(|&sum| f64::from(sum)));
            assert!(
                off <= parts as f64 * f64::from(f32::EPSILON),
                "{name}: {off}"
            );
        }
    }
    assert!(gather(&source, &[]).unwrap().is_empty());
}

#[test]
fn a_stop_and_activations_out_of_range_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let large = source(dir.path(), |name, values| {
        if name.ends_with("layers.1.input_layernorm.weight") {
            values[3] = 3e38;
        }
    });
    let stopped = gather_importance(&large, &text(), &Quiet, &AtomicBool::new(true));
    assert!(matches!(
        stopped,
        Err(Error::Interrupted {
            done: 0,
            total: LAYERS,
            ..
        })
    ));
    match gather(&large, &text()) {
        Err(Error::NonFiniteInputs { tensor }) => {
            assert_eq!(tensor, TensorId::layer(1, Role::Q));
        }
        other => panic!("{other:?}"),
    }
}

/// A model of which no weight may be read.
struct Unread(ModelSpec);

impl WeightSource for Unread {
    fn spec(&self) -> &ModelSpec {
        &self.0
    }

    fn tensor(&self, id: TensorId) -> Result<Tensor, neuroconv_runtime::Error> {
        panic!("`{id}` is read")
    }
}

#[test]
fn attention_that_the_form_does_not_know_is_refused_before_a_weight_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = source(dir.path(), |_, _| {}).spec().clone();
    spec.layers[1].mixer = Mixer::Latent(LatentSpec {
        heads: HEADS,
        kv_heads: KV_HEADS,
        head_dim: HEAD_DIM,
        rank: 8,
        qk_norm: QkNorm::None,
    });
    match gather(&Unread(spec), &text()) {
        Err(Error::Importance(ImportanceError::NoPlace { tensor })) => {
            assert_eq!(tensor, TensorId::layer(1, Role::KvA));
        }
        other => panic!("{other:?}"),
    }
}
