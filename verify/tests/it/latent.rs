//! Attention over latents: the runtime's two forms against the reference's one.

use neuroconv_format::Codec;
use neuroconv_recipes::{MlaMode, MlaRecipe, RoleKind, TensorId};
use neuroconv_runtime::{Decoder, Quiet};
use neuroconv_verify::{ReferenceScorer, Scorer};

use crate::models::{Model, dense};

/// The golden checkpoint `name` with latent attention of arbitrary weights.
fn model(name: &str, mode: MlaMode, budget: f64) -> Model {
    let golden = Model::golden(name);
    let recipe = MlaRecipe {
        mode,
        kv_budget: Some(budget),
        ..MlaRecipe::default()
    };
    let (spec, _) = recipe.converted(&golden.spec).unwrap();
    let mut tensors = golden.tensors;
    for (at, (id, shape)) in spec.tensors().into_iter().enumerate() {
        let n = shape.iter().product::<usize>();
        let noise = |i: usize| ((i * 31 + at * 17) as f32 * 12.9898).sin();
        let values: Vec<f32> = (0..n)
            .map(|i| match id.role.kind() {
                RoleKind::Frequency => 0.6_f32.powi(i as i32),
                RoleKind::Norm => 1.0 + 0.2 * noise(i),
                RoleKind::Bias => 0.3 * noise(i),
                RoleKind::Linear | RoleKind::Vocab => noise(i) * (2.0 / shape[1] as f32).sqrt(),
            })
            .collect();
        if tensors.get(&id).is_none_or(|t| t.shape() != shape) || id.role.is_latent() {
            tensors.insert(id, dense(shape, &values));
        }
    }
    Model { spec, tensors }
}

fn runtime(model: &Model, tokens: &[u32]) -> Vec<f32> {
    let decoder = Decoder::load(model).unwrap();
    let hidden = decoder.hidden(tokens, &mut decoder.new_cache()).unwrap();
    decoder.logits(&hidden)
}

fn reference(model: &Model, tokens: &[u32]) -> Vec<f32> {
    let scorer = ReferenceScorer::new(model).unwrap();
    let hidden = scorer.hidden(&[tokens], &Quiet).unwrap();
    scorer.logits(&hidden[0]).unwrap()
}

/// The largest difference relative to the largest logit.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    let largest = b.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
    let off = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    off.fold(0.0, |m, d| if d > m || d.is_nan() { d } else { m }) / largest
}

#[test]
fn runtime_and_reference_agree_in_every_form() {
    for (name, mode, budget) in [
        ("llama", MlaMode::Mla, 0.5),
        ("llama", MlaMode::Mla, 0.95),
        ("qwen2", MlaMode::Mla, 0.6),
        ("qwen3", MlaMode::Mla, 0.5),
        ("llama", MlaMode::Latent, 0.5),
        ("qwen3", MlaMode::Latent, 0.7),
    ] {
        let model = model(name, mode, budget);
        let tokens = model.text(60).tokens;
        let found = difference(&runtime(&model, &tokens), &reference(&model, &tokens));
        assert!(found < 1e-4, "{name} {mode:?}: {found}");
        let packed = model.packed(Codec::Int8);
        let found = difference(&runtime(&packed, &tokens), &reference(&packed, &tokens));
        assert!(found < 0.05, "{name} {mode:?} packed: {found}");
    }
}

#[test]
fn every_tensor_of_a_latent_layer_matters() {
    for (name, mode) in [
        ("llama", MlaMode::Mla),
        ("qwen3", MlaMode::Mla),
        ("qwen3", MlaMode::Latent),
    ] {
        let sound = model(name, mode, 0.6);
        let tokens = sound.text(60).tokens;
        let expected = reference(&sound, &tokens);
        let ids: Vec<TensorId> = sound.spec.tensors().into_iter().map(|(id, _)| id).collect();
        for id in ids.into_iter().filter(|id| id.layer == Some(1)) {
            let mut damaged = sound.clone();
            damaged.change(id, |values| {
                values
                    .iter_mut()
                    .step_by(2)
                    .for_each(|v| *v = *v * 0.5 + 0.25);
            });
            let found = difference(&runtime(&damaged, &tokens), &expected);
            assert!(found > 2e-4, "{name} {mode:?} {id}: {found}");
        }
    }
}
