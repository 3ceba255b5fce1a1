//! Errors of a converter or a runtime, made on one side only: parity must notice each.

use neuroconv_format::Codec;
use neuroconv_recipes::{Mixer, Role, RopeLayout, RopeScaling, TensorId};
use neuroconv_runtime::{Quiet, WeightSource};
use neuroconv_verify::{Parity, ParityLimits, ReferenceScorer, RuntimeScorer};

use crate::models::{Model, half};

/// Parity between what `meant` says and what the runtime does with `run`.
fn parity(meant: &Model, run: &Model) -> Parity {
    let reference = ReferenceScorer::new(meant as &dyn WeightSource).unwrap();
    let runtime = RuntimeScorer::new(run as &dyn WeightSource).unwrap();
    let windows = meant.windows(48, 2);
    let limits = ParityLimits::of(run).unwrap();
    Parity::measure(&reference, &runtime, &windows, limits, &Quiet).unwrap()
}

#[test]
fn sound_models_pass() {
    for name in [
        "llama",
        "llama-bias",
        "llama-llama3-rope",
        "mistral",
        "qwen2",
        "qwen3",
        "smollm3",
    ] {
        let model = Model::golden(name);
        let found = parity(&model, &model);
        assert!(found.pass, "{name}: {found:?}");
        for codec in Codec::ALL {
            for packed in [
                model.packed(codec),
                model.corrected(codec),
                model.corrected(codec).in_sixteen_bits(),
                model.packed(codec).shifted(),
            ] {
                let found = parity(&packed, &packed);
                assert!(found.pass, "{name} {codec}: {found:?}");
            }
        }
    }
}

/// What is done to a sound model.
type Damage = fn(&mut Model);

/// Errors by the golden model they are made on.
const DAMAGES: [(&str, &str, Damage); 11] = [
    ("llama", "the rotation pairs other channels", |m| {
        m.spec.rope.layout = match m.spec.rope.layout {
            RopeLayout::Half => RopeLayout::Interleaved,
            RopeLayout::Interleaved => RopeLayout::Half,
        };
    }),
    ("llama", "no rotation at all", |m| {
        for layer in &mut m.spec.layers {
            match &mut layer.mixer {
                Mixer::Attention(a) => a.rope = false,
                other => panic!("{other:?}"),
            }
        }
    }),
    (
        "llama-linear-rope",
        "the scaling of the rotation is ignored",
        |m| {
            assert_ne!(m.spec.rope.scaling, RopeScaling::None);
            m.spec.rope.scaling = RopeScaling::None;
        },
    ),
    ("llama-mha", "queries and keys are swapped", |m| {
        m.swap(TensorId::layer(0, Role::Q), TensorId::layer(0, Role::K));
    }),
    ("llama", "keys and values are swapped", |m| {
        m.swap(TensorId::layer(0, Role::K), TensorId::layer(0, Role::V));
    }),
    ("llama", "gate and up are swapped", |m| {
        m.swap(TensorId::layer(1, Role::Gate), TensorId::layer(1, Role::Up));
    }),
    ("llama", "two layers are swapped", |m| {
        for role in [Role::Q, Role::K, Role::V, Role::O] {
            m.swap(TensorId::layer(0, role), TensorId::layer(1, role));
        }
    }),
    ("llama", "a norm misses its one", |m| {
        m.change(TensorId::layer(0, Role::AttnNorm), |w| {
            for x in w {
                *x -= 1.0;
            }
        });
    }),
    ("qwen3", "the norm of the queries is left out", |m| {
        m.change(TensorId::layer(0, Role::QNorm), |w| w.fill(1.0));
    }),
    ("qwen2", "a bias is left out", |m| {
        m.change(TensorId::layer(0, Role::QBias), |w| w.fill(0.0));
    }),
    ("llama", "the head is the embedding", |m| {
        assert!(!m.spec.tied);
        m.spec.tied = true;
    }),
];

#[test]
fn every_damage_is_noticed_in_dense_and_packed_models() {
    for (name, what, damage) in DAMAGES {
        let model = Model::golden(name);
        for meant in [
            model.clone(),
            model.packed(Codec::Int8),
            model.packed(Codec::Ternary),
        ] {
            let mut damaged = meant.clone();
            damage(&mut damaged);
            let kind = meant.tensors[&TensorId::layer(0, Role::Q)].codec_name();
            let found = parity(&meant, &damaged);
            assert!(
                !found.pass,
                "{name} {kind}: {what} was not noticed: {found:?}"
            );
            let found = parity(&damaged, &meant);
            assert!(
                !found.pass,
                "{name} {kind}: {what} in the reference was not noticed"
            );
        }
    }
}

/// A runtime that leaves a part of a matrix out, or takes it for another.
#[test]
fn every_part_of_a_corrected_matrix_matters() {
    let damages: [(&str, Damage); 5] = [
        ("no product", |m| {
            m.change_parts(TensorId::layer(1, Role::Up), |c| c.low_rank = None);
        }),
        ("no columns", |m| {
            m.change_parts(TensorId::layer(1, Role::O), |c| c.columns = None);
        }),
        ("another column", |m| {
            m.change_parts(TensorId::layer(1, Role::Down), |c| {
                if let Some(columns) = &mut c.columns {
                    columns.indexes[0] = 0;
                }
            });
        }),
        ("a row of the second factor lost", |m| {
            m.change_parts(TensorId::layer(1, Role::V), |c| {
                if let Some(low_rank) = &mut c.low_rank {
                    let mut b = low_rank.b.to_f32();
                    b[6..8].fill(0.0);
                    low_rank.b = half([low_rank.b.shape[0], 2], &b);
                }
            });
        }),
        ("the first factor of another matrix", |m| {
            let mut other = None;
            m.change_parts(TensorId::layer(1, Role::Up), |c| other = c.low_rank.clone());
            m.change_parts(TensorId::layer(1, Role::Gate), |c| c.low_rank = other);
        }),
    ];
    for codec in [Codec::Int4, Codec::Ternary] {
        let meant = Model::golden("llama").corrected(codec);
        for (what, damage) in &damages {
            let mut damaged = meant.clone();
            damage(&mut damaged);
            for found in [parity(&meant, &damaged), parity(&damaged, &meant)] {
                assert!(!found.pass, "{codec}: {what} was not noticed");
                assert_eq!(found.first_bad.as_deref(), Some("layer 1"), "{what}");
            }
        }
    }
}

/// A shift that a runtime loses, and activations that it rounds too far.
#[test]
fn shifts_and_the_bits_of_activations_matter() {
    for codec in Codec::ALL {
        let meant = Model::golden("llama").packed(codec).shifted();
        let mut damaged = meant.clone();
        damaged.change_packed(TensorId::layer(1, Role::Up), |layout, bytes| {
            bytes[layout.shifts()].fill(0);
        });
        for found in [parity(&meant, &damaged), parity(&damaged, &meant)] {
            assert!(!found.pass, "{codec}: lost shifts were not noticed");
            assert_eq!(found.first_bad.as_deref(), Some("layer 1"), "{codec}");
        }
        // Eight bits for sixteen are within the limits, and measured all the same.
        let coarse = Model::golden("llama").packed(codec);
        let fine = coarse.clone().in_sixteen_bits();
        let layers = |found: &Parity| -> f64 { found.steps.iter().map(|s| s.rel_l2).sum() };
        let (same, other) = (parity(&fine, &fine), parity(&fine, &coarse));
        assert!(layers(&other) > 20.0 * layers(&same), "{codec}");
        assert!(same.rel_l2 < other.rel_l2 / 20.0, "{codec}");
    }
}

/// One group of one row of hundreds is lost, and the layer that has it is named.
#[test]
fn a_lost_group_is_noticed_and_placed() {
    for codec in Codec::ALL {
        let meant = Model::golden("llama").packed(codec);
        let mut damaged = meant.clone();
        damaged.change_packed(TensorId::layer(1, Role::Down), |layout, bytes| {
            let at = layout.scales().start + layout.scale_at(3, 0);
            bytes[at..at + 2].fill(0);
        });
        let found = parity(&meant, &damaged);
        assert!(!found.pass, "{codec}: {found:?}");
        assert_eq!(found.first_bad.as_deref(), Some("layer 1"), "{codec}");
    }
}
