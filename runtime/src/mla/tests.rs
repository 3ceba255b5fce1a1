use neuroconv_format::Codec;
use neuroconv_recipes::{
    LatentSpec, LayerSpec, Mixer, MlaEncoder, ModelSpec, QkNorm, Role, TensorId,
};

use super::*;
use crate::cache::KvCache;
use crate::decoder::{Decoder, MixerLayer};
use crate::rope::Rope;
use crate::testing::{Model, spec};

const HIDDEN: usize = 48;

fn mla(rank: usize, rope_dim: usize, encoder: MlaEncoder) -> MlaSpec {
    MlaSpec {
        heads: 4,
        head_dim: 8,
        rank,
        rope_dim,
        encoder,
        latent_norm: None,
    }
}

/// A model whose two layers are `mixers`.
fn model(mixers: [Mixer; 2]) -> Model {
    let layers = mixers.into_iter().map(|mixer| LayerSpec { mixer });
    let mut model = Model::random(ModelSpec {
        layers: layers.collect(),
        ..spec()
    });
    for (id, tensor) in &mut model.tensors {
        if id.role == Role::RopeFreq {
            let pairs = tensor.shape()[0];
            let values: Vec<f32> = (0..pairs).map(|l| 0.7_f32.powi(l as i32 * 2)).collect();
            *tensor = crate::testing::dense(neuroconv_format::DType::F32, vec![pairs], &values);
        }
    }
    model
}

fn every_shape() -> Vec<MlaSpec> {
    let normed = MlaEncoder::Normed { kv_heads: 2 };
    vec![
        mla(12, 6, MlaEncoder::Linear),
        mla(5, 8, MlaEncoder::Linear),
        mla(20, 0, MlaEncoder::Linear),
        mla(12, 6, normed),
        mla(9, 0, normed),
        with_latent_norm(mla(12, 6, MlaEncoder::Linear)),
        with_latent_norm(mla(20, 0, MlaEncoder::Linear)),
    ]
}

fn with_latent_norm(mut shape: MlaSpec) -> MlaSpec {
    shape.latent_norm = Some(1e-3);
    shape
}

fn noise(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i as f32 * 1.7).sin() * 1.5).collect()
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let off = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    off.fold(0.0, f32::max)
}

fn layer_of(decoder: &Decoder) -> &Mla {
    match &decoder.layers[0].mixer {
        MixerLayer::Mla(mla) => mla,
        other => panic!("{other:?}"),
    }
}

#[test]
fn absorbed_and_expanded_agree() {
    for shape in every_shape() {
        for packed in [false, true] {
            let mut model = model([Mixer::Mla(shape.clone()), Mixer::Mla(shape.clone())]);
            if packed {
                model = model.packed(Codec::Int8);
            }
            let decoder = Decoder::load(&model).unwrap();
            let layer = layer_of(&decoder);
            let rope = Rope::new(&model.spec);
            let mut cache = KvCache::new(&model.spec, KvCodec::F32);
            let x = noise(150 * HIDDEN);
            for range in [0..140, 140..141, 141..150] {
                let part = &x[range.start * HIDDEN..range.end * HIDDEN];
                let positions = Positions::new(&rope, range.start, range.len());
                let cache = cache.layer(0);
                let queries = layer.take_in(&mut Input::new(part, HIDDEN), cache, &positions);
                let absorbed = layer.absorbed(&queries, cache);
                let expanded = layer.expanded(&queries, cache);
                let off = worst(&absorbed, &expanded);
                assert!(off < 2e-5, "{shape:?} packed {packed}: {off}");
            }
        }
    }
}

/// The formulas of the module header in double precision, one token and head at a time.
#[test]
fn a_layer_does_what_its_formulas_say() {
    let shape = mla(12, 6, MlaEncoder::Linear);
    check_formulas(&with_latent_norm(shape.clone()));
    check_formulas(&shape);
}

fn check_formulas(shape: &MlaSpec) {
    let model = model([Mixer::Mla(shape.clone()), Mixer::Mla(shape.clone())]);
    let decoder = Decoder::load(&model).unwrap();
    let t = 7;
    let x = noise(t * HIDDEN);
    let of = |role: Role| neuroconv_quant::dequantize(&model.tensors[&TensorId::layer(0, role)]);
    let affine = |w: &[f32], b: &[f32], x: &[f64]| -> Vec<f64> {
        let dot = |row: &[f32]| {
            row.iter()
                .zip(x)
                .map(|(w, x)| f64::from(*w) * x)
                .sum::<f64>()
        };
        w.chunks(x.len())
            .zip(b)
            .map(|(row, b)| dot(row) + f64::from(*b))
            .collect()
    };
    let freq = of(Role::RopeFreq);
    let rotated = |x: &[f64], position: usize| -> Vec<f64> {
        let (re, im) = x.split_at(3);
        let angle = |l: usize| f64::from(freq[l]) * position as f64;
        let first = (0..3).map(|l| re[l] * angle(l).cos() - im[l] * angle(l).sin());
        let second = (0..3).map(|l| re[l] * angle(l).sin() + im[l] * angle(l).cos());
        first.chain(second).collect()
    };
    let wide = |s: usize| -> Vec<f64> {
        x[s * HIDDEN..(s + 1) * HIDDEN]
            .iter()
            .map(|v| f64::from(*v))
            .collect()
    };
    let (q_w, q_b) = (of(Role::Q), of(Role::QBias));
    let (a_w, a_b) = (of(Role::KvA), of(Role::KvABias));
    let (k_b, v_b) = (of(Role::KB), of(Role::VB));
    let none = vec![0.0; 4 * 8];
    let mut mixed = Vec::new();
    for query in 0..t {
        let q = affine(&q_w, &q_b, &wide(query));
        for head in 0..4 {
            let q_h = &q[head * 14..(head + 1) * 14];
            let q_rope = rotated(&q_h[8..], query);
            let (mut weights, mut values) = (Vec::new(), Vec::new());
            for key in 0..=query {
                let mut row = affine(&a_w, &a_b, &wide(key));
                if let Some(eps) = shape.latent_norm {
                    let mean = row[..12].iter().map(|c| c * c).sum::<f64>() / 12.0;
                    let gain = of(Role::KvANorm);
                    for (c, gain) in row.iter_mut().zip(&gain) {
                        *c *= f64::from(*gain) / (mean + eps).sqrt();
                    }
                }
                let rows = head * 8 * 12..(head + 1) * 8 * 12;
                let k = affine(&k_b[rows.clone()], &none, &row[..12]);
                values.push(affine(&v_b[rows], &none, &row[..12]));
                let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                let score = dot(&q_h[..8], &k) + dot(&q_rope, &rotated(&row[12..], key));
                weights.push(score.exp());
            }
            let sum: f64 = weights.iter().sum();
            for d in 0..8 {
                let mix = weights
                    .iter()
                    .zip(&values)
                    .map(|(w, v)| w * v[d])
                    .sum::<f64>();
                mixed.push(mix / sum);
            }
        }
    }
    let (o_w, o_b) = (of(Role::O), of(Role::OBias));
    let expected: Vec<f32> = mixed
        .chunks(32)
        .flat_map(|o| affine(&o_w, &o_b, o))
        .map(|v| v as f32)
        .collect();
    let rope = Rope::new(&model.spec);
    let mut cache = KvCache::new(&model.spec, KvCodec::F32);
    let positions = Positions::new(&rope, 0, t);
    let mut input = Input::new(&x, HIDDEN);
    let found = decoder.layers[0]
        .mixer
        .forward(&mut input, cache.layer(0), &positions);
    assert!(worst(&found, &expected) < 2e-5);
}

/// Norms of queries and keys decide the result, and a query's rotated part comes from its normed
/// form: with the map the identity and no unrotated keys, attention is the source's.
#[test]
fn the_normed_encoder_reproduces_normed_attention() {
    let source = model([Mixer::Latent(latent(32)), Mixer::Latent(latent(32))]);
    let (mut spec, mut tensors) = (source.spec.clone(), source.tensors.clone());
    // Latent attention at full rank with exact rotations against the MLA form with every rotation
    // kept: 2 heads of 8 channels are 16 rotated channels.
    let shape = mla(16, 16, MlaEncoder::Normed { kv_heads: 2 });
    spec.layers = vec![
        LayerSpec {
            mixer: Mixer::Mla(shape)
        };
        2
    ];
    let get = |role| neuroconv_quant::dequantize(&source.tensors[&TensorId::layer(0, role)]);
    let full = Decoder::load(&source).unwrap();
    let pairs: Vec<f32> = source
        .spec
        .rope
        .inv_freq(8)
        .iter()
        .map(|f| *f as f32)
        .collect();
    for layer in 0..2 {
        let from =
            |role| neuroconv_quant::dequantize(&source.tensors[&TensorId::layer(layer, role)]);
        let mut put = |role, shape: Vec<usize>, values: &[f32]| {
            let tensor = crate::testing::dense(neuroconv_format::DType::F32, shape, values);
            tensors.insert(TensorId::layer(layer, role), tensor);
        };
        // Keys and values of the source: rebuilt from its latent in one step.
        let (a, a_bias) = (from(Role::KvA), from(Role::KvABias));
        let (k_b, k_bias, v_b) = (from(Role::KB), from(Role::KBias), from(Role::VB));
        let product = |w: &[f32]| -> Vec<f32> {
            let mut y = vec![0.0; 16 * HIDDEN];
            for (y, w) in y.chunks_mut(HIDDEN).zip(w.chunks(32)) {
                for (r, &w) in w.iter().enumerate() {
                    add(y, w, &a[r * HIDDEN..(r + 1) * HIDDEN]);
                }
            }
            y
        };
        let constant = |w: &[f32], b: &[f32]| -> Vec<f32> {
            let dot = |w: &[f32]| w.iter().zip(&a_bias).map(|(w, a)| w * a).sum::<f32>();
            w.chunks(32).zip(b).map(|(w, b)| dot(w) + b).collect()
        };
        put(Role::K, vec![16, HIDDEN], &product(&k_b));
        put(Role::KBias, vec![16], &constant(&k_b, &k_bias));
        put(Role::V, vec![16, HIDDEN], &product(&v_b));
        put(Role::VBias, vec![16], &constant(&v_b, &[0.0; 16]));
        // The score scale goes into the queries' norm.
        let gain: Vec<f32> = from(Role::QNorm).iter().map(|g| g / 8_f32.sqrt()).collect();
        put(Role::QNorm, vec![8], &gain);
        // Rotated key: both heads' pairs side by side; a query reads those of its own head.
        let mut kv_a = vec![0.0; 32 * 32];
        for v in 0..16 {
            kv_a[v * 32 + 16 + v] = 1.0;
        }
        let mut q_rope = vec![0.0; 4 * 16 * 8];
        for head in 0..2 {
            for channel in 0..8 {
                let slot = channel / 4 * 8 + head * 4 + channel % 4;
                kv_a[(16 + slot) * 32 + head * 8 + channel] = 1.0;
                for query in [2 * head, 2 * head + 1] {
                    q_rope[(query * 16 + slot) * 8 + channel] = 1.0;
                }
            }
        }
        put(Role::KvA, vec![32, 32], &kv_a);
        put(Role::KvABias, vec![32], &[0.0; 32]);
        put(Role::QRope, vec![64, 8], &q_rope);
        put(Role::RopeFreq, vec![8], &[&pairs[..], &pairs[..]].concat());
        put(Role::KB, vec![32, 16], &[0.0; 512]);
        let mut values = vec![0.0; 512];
        for row in 0..32 {
            values[row * 16 + row / 16 * 8 + row % 8] = 1.0;
        }
        put(Role::VB, vec![32, 16], &values);
    }
    assert_eq!(get(Role::QNorm).len(), 8);
    let mla = Decoder::load(&Model { spec, tensors }).unwrap();
    let run = |decoder: &Decoder| {
        decoder
            .hidden(&[3, 1, 4, 1, 5, 9, 2, 6], &mut decoder.new_cache())
            .unwrap()
    };
    assert!(worst(&run(&full), &run(&mla)) < 1e-4);
}

fn add(y: &mut [f32], factor: f32, x: &[f32]) {
    crate::ops::add_scaled(y, factor, x);
}

fn latent(rank: usize) -> LatentSpec {
    LatentSpec {
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        rank,
        qk_norm: QkNorm::PerHead,
    }
}

#[test]
fn one_pass_and_many_agree_and_the_cache_is_as_small_as_promised() {
    let mixed = every_shape().into_iter().map(Mixer::Mla);
    for mixer in mixed.chain([Mixer::Latent(latent(10))]) {
        let model = model([mixer.clone(), Mixer::Mla(mla(12, 6, MlaEncoder::Linear))]);
        let decoder = Decoder::load(&model).unwrap();
        let tokens: Vec<u32> = (0..140).map(|i| (i * 17 + 3) % 50).collect();
        let run = |cuts: &[usize]| -> (Vec<f32>, KvCache) {
            let (mut cache, mut out, mut start) = (decoder.new_cache(), Vec::new(), 0);
            for &cut in cuts {
                out.extend(decoder.hidden(&tokens[start..cut], &mut cache).unwrap());
                start = cut;
            }
            (out, cache)
        };
        let (at_once, _) = run(&[140]);
        let every: Vec<usize> = (1..=140).collect();
        for cuts in [&[1, 127, 128, 140][..], &every] {
            let (found, cache) = run(cuts);
            assert!(worst(&found, &at_once) < 1e-4, "{mixer:?}");
            let numbers = mixer.cached_numbers() + 18;
            assert_eq!(cache.bytes(), 256 * numbers * 4);
            let bytes = |codec| KvCache::bytes_per_token(&model.spec, codec);
            assert_eq!(bytes(KvCodec::F32), numbers * 4);
            assert_eq!(bytes(KvCodec::F16), numbers * 2);
        }
    }
}

/// Latents rounded to fewer bits, their rotated part with a scale of its own.
#[test]
fn latents_of_fewer_bits_are_close_and_cut_as_freely() {
    let mixed = every_shape().into_iter().map(Mixer::Mla);
    for mixer in mixed.chain([Mixer::Latent(latent(10))]) {
        let model = model([mixer.clone(), Mixer::Mla(mla(12, 6, MlaEncoder::Linear))]);
        let tokens: Vec<u32> = (0..140).map(|i| (i * 17 + 3) % 50).collect();
        let run = |kv, cut: usize| -> Vec<f32> {
            let decoder = Decoder::load(&model).unwrap().with_kv(kv);
            let mut cache = decoder.new_cache();
            let mut out = decoder.hidden(&tokens[..cut], &mut cache).unwrap();
            out.extend(decoder.hidden(&tokens[cut..], &mut cache).unwrap());
            out
        };
        let exact = run(KvCodec::F32, 130);
        for (kv, bound) in [(KvCodec::F16, 0.02), (KvCodec::Int8, 0.3)] {
            let found = run(kv, 130);
            let off = worst(&found, &exact);
            assert!(off > 0.0 && off < bound, "{mixer:?} {kv:?}: {off}");
            assert!(worst(&run(kv, 70), &found) < 1e-2, "{mixer:?} {kv:?}");
        }
    }
}
