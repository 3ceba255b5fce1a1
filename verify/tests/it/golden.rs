//! The reference forward against logits that the reference implementation of each family gave.

use candle_core::{Device, safetensors};
use neuroconv_fixtures::golden_dirs;
use neuroconv_recipes::{Mixer, RopeLayout, TensorId};
use neuroconv_runtime::{Checkpoint, Quiet};
use neuroconv_verify::{ReferenceScorer, Scorer};

use crate::models::Model;
use neuroconv_recipes::Role;

/// All logits of one window by the reference forward.
fn logits(model: &dyn neuroconv_runtime::WeightSource, tokens: &[u32]) -> Vec<f32> {
    let scorer = ReferenceScorer::new(model).unwrap();
    let hidden = scorer.hidden(&[tokens], &Quiet).unwrap();
    scorer.logits(&hidden[0]).unwrap()
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    // `f32::max` would drop a NaN.
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |m, d| if d > m || d.is_nan() { d } else { m })
}

#[test]
fn recorded_logits_are_reproduced() {
    let dirs = golden_dirs();
    assert!(!dirs.is_empty(), "there are no golden folders");
    for dir in dirs {
        let golden = safetensors::load(dir.join("golden.safetensors"), &Device::Cpu).unwrap();
        let tokens: Vec<i64> = golden["tokens"].flatten_all().unwrap().to_vec1().unwrap();
        let tokens: Vec<u32> = tokens.iter().map(|&t| u32::try_from(t).unwrap()).collect();
        let expected: Vec<f32> = golden["logits"].flatten_all().unwrap().to_vec1().unwrap();
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let worst = worst(&logits(&checkpoint, &tokens), &expected);
        assert!(worst <= 1e-4, "{}: {worst}", dir.display());
    }
}

/// A rotation of neighbouring channels equals one of half-apart channels with reordered rows.
#[test]
fn layouts_of_the_rotation_are_permutations_of_each_other() {
    let half = Model::golden("llama");
    let mut neighbours = half.clone();
    neighbours.spec.rope.layout = match half.spec.rope.layout {
        RopeLayout::Half => RopeLayout::Interleaved,
        RopeLayout::Interleaved => panic!("the golden model pairs channels half a head apart"),
    };
    for (layer, of_layer) in half.spec.layers.iter().enumerate() {
        let Mixer::Attention(a) = &of_layer.mixer else {
            panic!("a checkpoint has plain attention");
        };
        let (dim, width) = (a.head_dim, half.spec.hidden);
        for role in [Role::Q, Role::K] {
            neighbours.change(TensorId::layer(layer, role), |w| {
                let old = w.clone();
                for (row, new) in w.chunks_mut(width).enumerate() {
                    let (head, channel) = (row / dim, row % dim);
                    let from = head * dim + channel / 2 + channel % 2 * (dim / 2);
                    new.copy_from_slice(&old[from * width..(from + 1) * width]);
                }
            });
        }
    }
    let tokens = half.text(40).tokens;
    let difference = worst(&logits(&half, &tokens), &logits(&neighbours, &tokens));
    assert!(difference <= 1e-5, "{difference}");
}

/// What a token sees does not depend on what follows, on other windows of the batch, or on
/// their length.
#[test]
fn windows_of_a_batch_are_independent() {
    let model = Model::golden("qwen3");
    let scorer = ReferenceScorer::new(&model).unwrap();
    let tokens = model.text(60).tokens;
    let batch: [&[u32]; 4] = [&tokens[..60], &tokens[..25], &[], &tokens[30..60]];
    let together = scorer.hidden(&batch, &Quiet).unwrap();
    for (window, states) in batch.iter().zip(&together) {
        assert_eq!(states.len(), window.len() * model.spec.hidden);
        assert_eq!(&scorer.hidden(&[window], &Quiet).unwrap()[0], states);
    }
    assert!(worst(&together[0][..25 * model.spec.hidden], &together[1]) <= 1e-5);
    assert!(worst(&together[0][30 * model.spec.hidden..], &together[3]) > 1e-2);
}
