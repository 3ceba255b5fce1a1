//! Artifacts that a faulty converter might make: whole, well-formed, and wrong in one place. No
//! hash tells, for the wrong bytes were hashed. Each must be refused, by parity or by quality.

use std::collections::BTreeSet;

use neuroconv_format::{Codec, PackedLayout};
use neuroconv_recipes::{Limits, Mixer, Role, RopeLayout, RopeScaling, TensorId};
use neuroconv_runtime::{KvCodec, Quiet};
use neuroconv_verify::{
    CheckStatus, Error, EvalText, Protocol, Verdict, Verification, VerifyOptions, verify,
};

use crate::models::Model;

/// The limits of the built-in recipes.
fn options(codec: Codec) -> VerifyOptions {
    let limits = match codec {
        Codec::Int8 => (1.01, 0.01, 0.95, None),
        Codec::Int4 | Codec::Ternary => (1.05, 0.06, 0.88, Some(1.0)),
    };
    VerifyOptions {
        protocol: Protocol::Windows,
        ctx: 128,
        max_tokens: Some(1280),
        stop_early: false,
        limits: Limits {
            max_ppl_ratio: Some(limits.0),
            max_kld: Some(limits.1),
            min_top1: Some(limits.2),
            max_p99_kld: limits.3,
        },
        yardstick: None,
        allow_quality_loss: false,
        parity_windows: 1,
        kv: KvCodec::F32,
        feedback: BTreeSet::new(),
        rewrites: neuroconv_recipes::Rewrites::default(),
        logit_cache: None,
        thorough: false,
    }
}

/// A name, and what is done to a sound artifact.
type Damage = (&'static str, fn(&mut Model));

fn at(layer: usize, role: Role) -> TensorId {
    TensorId::layer(layer, role)
}

fn attention(model: &mut Model, layer: usize) -> &mut neuroconv_recipes::AttentionSpec {
    match &mut model.spec.layers[layer].mixer {
        Mixer::Attention(a) => a,
        other => panic!("{other:?}"),
    }
}

/// Multiplies the scales of some rows and groups.
fn scale(layout: &PackedLayout, bytes: &mut [u8], factor: f32, of: impl Fn(usize, usize) -> bool) {
    for row in 0..layout.rows() {
        for group in (0..layout.groups()).filter(|&g| of(row, g)) {
            let at = layout.scales().start + layout.scale_at(row, group);
            let old = half::f16::from_le_bytes([bytes[at], bytes[at + 1]]);
            let new = half::f16::from_f32(old.to_f32() * factor);
            bytes[at..at + 2].copy_from_slice(&new.to_le_bytes());
        }
    }
}

fn code(layout: &PackedLayout, bytes: &[u8], row: usize, col: usize) -> u8 {
    let (byte, bit) = layout.code_at(row, col);
    bytes[byte] >> bit & ((1u16 << layout.codec().bits()) - 1) as u8
}

fn put(layout: &PackedLayout, bytes: &mut [u8], row: usize, col: usize, value: u8) {
    let (byte, bit) = layout.code_at(row, col);
    let mask = ((1u16 << layout.codec().bits()) - 1) as u8;
    bytes[byte] = bytes[byte] & !(mask << bit) | (value & mask) << bit;
}

/// Gives each row the codes and scales of row `from(row)`.
fn reorder_rows(layout: &PackedLayout, bytes: &mut [u8], from: impl Fn(usize) -> usize) {
    let old = bytes.to_vec();
    for row in 0..layout.rows() {
        for col in 0..layout.cols() {
            put(layout, bytes, row, col, code(layout, &old, from(row), col));
        }
        for group in 0..layout.groups() {
            let place = |row| layout.scales().start + layout.scale_at(row, group);
            let (to, from) = (place(row), place(from(row)));
            bytes[to..to + 2].copy_from_slice(&old[from..from + 2]);
        }
    }
}

/// Of the trained model, whose matrices are packed. Its heads have 32 channels, eight of queries
/// and two of keys and values, its embedding is its head.
const PACKED: [Damage; 38] = [
    ("one group's scale doubled", |m| {
        m.change_packed(at(0, Role::Down), |l, b| {
            scale(l, b, 2.0, |r, g| (r, g) == (3, 1));
        });
    }),
    ("one group's scale lost", |m| {
        m.change_packed(at(2, Role::Up), |l, b| {
            scale(l, b, 0.0, |r, g| (r, g) == (7, 2));
        });
    }),
    ("one row's scales lost", |m| {
        m.change_packed(at(1, Role::O), |l, b| scale(l, b, 0.0, |r, _| r == 100));
    }),
    ("one tensor's scales a tenth too large", |m| {
        m.change_packed(at(3, Role::Gate), |l, b| scale(l, b, 1.1, |_, _| true));
    }),
    ("one row's scales of the other sign", |m| {
        m.change_packed(at(0, Role::V), |l, b| scale(l, b, -1.0, |r, _| r == 5));
    }),
    ("a scale that is not a number", |m| {
        m.change_packed(at(0, Role::K), |l, b| {
            scale(l, b, f32::NAN, |r, g| (r, g) == (0, 0));
        });
    }),
    ("an infinite scale", |m| {
        m.change_packed(at(0, Role::K), |l, b| {
            scale(l, b, f32::INFINITY, |r, g| (r, g) == (0, 0));
        });
    }),
    ("scales of neighbouring groups exchanged", |m| {
        m.change_packed(at(1, Role::Q), |l, b| {
            let old = b.to_vec();
            for row in 0..l.rows() {
                for group in 0..l.groups() {
                    let place = |g| l.scales().start + l.scale_at(row, g);
                    let (to, from) = (place(group), place(group ^ 1));
                    b[to..to + 2].copy_from_slice(&old[from..from + 2]);
                }
            }
        });
    }),
    ("one group of codes zeroed", |m| {
        m.change_packed(at(2, Role::Gate), |l, b| {
            let zero = l.codec().offset() as u8;
            (32..64).for_each(|col| put(l, b, 9, col, zero));
        });
    }),
    ("one tensor's codes one level up", |m| {
        m.change_packed(at(1, Role::Down), |l, b| {
            for row in 0..l.rows() {
                for col in 0..l.cols() {
                    let old = code(l, b, row, col);
                    put(l, b, row, col, old.wrapping_add(1));
                }
            }
        });
    }),
    ("one layer's codes one column on", |m| {
        for role in [
            Role::Q,
            Role::K,
            Role::V,
            Role::O,
            Role::Gate,
            Role::Up,
            Role::Down,
        ] {
            m.change_packed(at(2, role), |l, b| {
                let old = b.to_vec();
                for row in 0..l.rows() {
                    for col in 0..l.cols() {
                        put(l, b, row, col, code(l, &old, row, (col + 1) % l.cols()));
                    }
                }
            });
        }
    }),
    ("codes of a panel one byte on", |m| {
        m.change_packed(at(0, Role::Up), |l, b| b[..l.block_bytes()].rotate_right(1));
    }),
    ("pairs of columns exchanged", |m| {
        m.change_packed(at(3, Role::Up), |l, b| {
            let old = b.to_vec();
            for row in 0..l.rows() {
                for col in 0..l.cols() {
                    put(l, b, row, col, code(l, &old, row, col ^ 4));
                }
            }
        });
    }),
    ("two rows swapped", |m| {
        m.change_packed(at(0, Role::Down), |l, b| {
            reorder_rows(l, b, |r| match r {
                20 => 21,
                21 => 20,
                r => r,
            });
        });
    }),
    ("two panels swapped", |m| {
        m.change_packed(at(1, Role::Gate), |l, b| {
            reorder_rows(l, b, |r| if r < 32 { r ^ 16 } else { r });
        });
    }),
    ("rows of a tensor reversed", |m| {
        m.change_packed(at(3, Role::Down), |l, b| {
            let last = l.rows() - 1;
            reorder_rows(l, b, |r| last - r);
        });
    }),
    ("heads of the queries reversed", |m| {
        m.change_packed(at(1, Role::Q), |l, b| {
            reorder_rows(l, b, |r| (7 - r / 32) * 32 + r % 32);
        });
    }),
    ("key heads permuted", |m| {
        m.change_packed(at(2, Role::K), |l, b| reorder_rows(l, b, |r| r ^ 32));
    }),
    ("value heads permuted", |m| {
        m.change_packed(at(2, Role::V), |l, b| reorder_rows(l, b, |r| r ^ 32));
    }),
    ("query rows in interleaved pairs", |m| {
        m.change_packed(at(0, Role::Q), |l, b| {
            reorder_rows(l, b, |r| r / 32 * 32 + r % 2 * 16 + r % 32 / 2);
        });
    }),
    ("a square matrix transposed", |m| {
        m.change_packed(at(1, Role::O), |l, b| {
            let old = b.to_vec();
            for row in 0..l.rows() {
                for col in 0..l.cols() {
                    put(l, b, row, col, code(l, &old, col, row));
                }
            }
        });
    }),
    ("keys and values swapped", |m| {
        m.swap(at(0, Role::K), at(0, Role::V));
    }),
    ("gate and up swapped", |m| {
        m.swap(at(3, Role::Gate), at(3, Role::Up));
    }),
    ("two layers' queries swapped", |m| {
        m.swap(at(1, Role::Q), at(2, Role::Q));
    }),
    ("a layer is another's", |m| {
        for role in [Role::Gate, Role::Up, Role::Down] {
            let other = m.tensors[&at(1, role)].clone();
            m.tensors.insert(at(2, role), other);
        }
    }),
    ("the norm of a layer dropped", |m| {
        m.change(at(0, Role::AttnNorm), |w| w.fill(1.0));
    }),
    ("a norm misses its one", |m| {
        m.change(at(1, Role::MlpNorm), |w| {
            for x in w {
                *x -= 1.0;
            }
        });
    }),
    ("the last norm two percent too large", |m| {
        m.change(TensorId::model(Role::FinalNorm), |w| {
            for x in w {
                *x *= 1.02;
            }
        });
    }),
    ("one channel of a norm lost", |m| {
        m.change(at(3, Role::AttnNorm), |w| w[17] = 0.0);
    }),
    ("two tokens exchanged", |m| {
        m.change_packed(TensorId::model(Role::Embed), |l, b| {
            reorder_rows(l, b, |r| match r {
                300 => 301,
                301 => 300,
                r => r,
            });
        });
    }),
    ("tokens one id on", |m| {
        m.change_packed(TensorId::model(Role::Embed), |l, b| {
            let rows = l.rows();
            reorder_rows(l, b, |r| (r + 1) % rows);
        });
    }),
    ("a token's row lost", |m| {
        m.change_packed(TensorId::model(Role::Embed), |l, b| {
            scale(l, b, 0.0, |r, _| r == 40);
        });
    }),
    ("the head untied from the embedding", |m| {
        m.spec.tied = false;
        let embed = m.tensors[&TensorId::model(Role::Embed)].clone();
        m.tensors.insert(TensorId::model(Role::Head), embed);
    }),
    ("another base of the rotation", |m| {
        m.spec.rope.theta = 500_000.0;
    }),
    ("a base of the rotation one percent off", |m| {
        m.spec.rope.theta *= 1.01;
    }),
    ("no rotation in one layer", |m| attention(m, 2).rope = false),
    ("attention cut to a window", |m| {
        attention(m, 1).window = Some(100);
    }),
    ("another end of the text", |m| m.spec.special.eos = vec![1]),
];

/// Of tiny models that have what the trained one has not; unpacked.
const DENSE: [(&str, Damage); 11] = [
    (
        "llama",
        ("the rotation pairs other channels", |m| {
            m.spec.rope.layout = match m.spec.rope.layout {
                RopeLayout::Half => RopeLayout::Interleaved,
                RopeLayout::Interleaved => RopeLayout::Half,
            };
        }),
    ),
    (
        "llama",
        ("the head is the embedding", |m| m.spec.tied = true),
    ),
    (
        "llama",
        ("another epsilon of the norms", |m| m.spec.norm_eps *= 100.0),
    ),
    (
        "llama-linear-rope",
        ("the scaling of the rotation lost", |m| {
            m.spec.rope.scaling = RopeScaling::None;
        }),
    ),
    (
        "llama-llama3-rope",
        ("the scaling of the rotation lost", |m| {
            m.spec.rope.scaling = RopeScaling::None;
        }),
    ),
    (
        "llama-mha",
        ("queries and keys swapped", |m| {
            m.swap(at(0, Role::Q), at(0, Role::K));
        }),
    ),
    (
        "qwen2",
        ("a bias dropped", |m| {
            m.change(at(0, Role::QBias), |w| w.fill(0.0));
        }),
    ),
    (
        "qwen2",
        ("a bias of another", |m| {
            m.swap(at(0, Role::KBias), at(0, Role::VBias));
        }),
    ),
    (
        "qwen3",
        ("the norm of the queries dropped", |m| {
            m.change(at(0, Role::QNorm), |w| w.fill(1.0));
        }),
    ),
    (
        "qwen3",
        ("norms of queries and keys exchanged", |m| {
            m.swap(at(1, Role::QNorm), at(1, Role::KNorm));
        }),
    ),
    (
        "mistral",
        ("one weight of the embedding wrong", |m| {
            m.change(TensorId::model(Role::Embed), |w| w[70] += 1.0);
        }),
    ),
];

/// Who refused it, if anyone did.
fn refused(found: &Result<Verification, Error>) -> Option<String> {
    let verification = match found {
        Ok(verification) => verification,
        Err(error) => return Some(error.to_string()),
    };
    if verification.judgement.verdict != Verdict::Fail {
        return None;
    }
    let checks = &verification.judgement.checks;
    let failed = checks.iter().filter(|c| c.status == CheckStatus::Fail);
    let named = failed.map(|c| match &c.detail {
        Some(place) => format!("{} ({place})", c.id),
        None => c.id.clone(),
    });
    Some(named.collect::<Vec<_>>().join(", "))
}

/// Judges each damage; the names of those that passed.
#[expect(
    clippy::print_stdout,
    reason = "each damage is named with what refused it"
)]
fn passed(
    base: &Model,
    sound: &Model,
    text: &EvalText,
    options: &VerifyOptions,
    kind: &str,
    damages: &[Damage],
) -> Vec<String> {
    let text = std::slice::from_ref(text);
    let before = verify(base, sound, text, options, &Quiet).unwrap();
    let checks = &before.judgement.checks;
    assert_eq!(
        before.judgement.verdict,
        Verdict::Pass,
        "{kind}: {checks:?}"
    );
    let mut out = Vec::new();
    for (name, damage) in damages {
        let mut damaged = sound.clone();
        damage(&mut damaged);
        match refused(&verify(base, &damaged, text, options, &Quiet)) {
            Some(by) => println!("{kind}, {name}: refused by {by}"),
            None => out.push(format!("{kind}, {name}")),
        }
    }
    out
}

#[test]
fn every_damage_of_a_packed_artifact_is_refused() {
    let (base, text) = (Model::trained(), Model::trained_text());
    for codec in [Codec::Int8, Codec::Int4] {
        let sound = base.packed(codec);
        let passed = passed(&base, &sound, &text, &options(codec), codec.name(), &PACKED);
        assert!(passed.is_empty(), "not noticed: {passed:#?}");
    }
}

#[test]
fn every_damage_of_a_dense_artifact_is_refused() {
    for (name, damage) in DENSE {
        let base = Model::golden(name);
        let text = base.text(2560);
        let mut options = options(Codec::Int8);
        options.ctx = 64;
        let passed = passed(&base, &base, &text, &options, name, &[damage]);
        assert!(passed.is_empty(), "not noticed: {passed:#?}");
    }
}

/// Noise as large as what a codec leaves does not make the audit of the tensors cry wolf.
/// A name, and what is done to the bytes of a packed matrix.
type BytesDamage = (&'static str, fn(&PackedLayout, &mut [u8]));

/// Matrices that were rounded with feedback are compared by their outputs: what would spoil these is
/// found, and weights that are off without a loss are not held against them.
#[test]
fn outputs_are_audited_where_weights_may_differ() {
    let base = Model::trained();
    let tokens: Vec<u32> = (0..128).map(|i| (i * 7 + 3) % 60).collect();
    let (layer, role) = (1, Role::Up);
    let feedback = BTreeSet::from([at(layer, role).to_string()]);
    let audited = |artifact: &Model| {
        neuroconv_verify::audit::audit(&base, artifact, &feedback, &tokens, &Quiet).unwrap()
    };
    let damages: [BytesDamage; 4] = [
        ("scale off", |layout, bytes| {
            scale(layout, bytes, 1.4, |_, _| true);
        }),
        ("a row turned", |layout, bytes| {
            scale(layout, bytes, -1.0, |row, _| row == 5);
        }),
        ("a row lost", |layout, bytes| {
            scale(layout, bytes, 0.0, |row, _| row == 5);
        }),
        ("codes a column late", |layout, bytes| {
            let codes = layout.codes();
            bytes[codes].rotate_left(4);
        }),
    ];
    for codec in Codec::ALL {
        let sound = base.packed(codec);
        let found = audited(&sound);
        assert!(
            found.worst < 1.0,
            "{codec}: {} {}",
            found.worst,
            found.place
        );
        for (name, damage) in damages {
            let mut damaged = sound.clone();
            damaged.change_packed(at(layer, role), damage);
            let found = audited(&damaged);
            // Three levels may lose a row of little energy by themselves.
            if codec == Codec::Ternary && name == "a row lost" {
                continue;
            }
            assert!(found.worst > 1.0, "{codec}, {name}: {}", found.worst);
            assert!(found.place.contains("blk.1.mlp_up"), "{}", found.place);
        }
    }
}

#[test]
fn every_codec_of_every_family_passes_the_audit() {
    for name in ["llama", "qwen2", "qwen3", "mistral", "smollm3"] {
        let base = Model::golden(name);
        for codec in Codec::ALL {
            let packed = base.packed(codec);
            let found =
                neuroconv_verify::audit::audit(&base, &packed, &BTreeSet::new(), &[1], &Quiet)
                    .unwrap();
            assert!(found.worst <= 0.8, "{name} {codec}: {found:?}");
            assert!(found.compared > 10 && found.differences.is_empty());
        }
    }
    let base = Model::trained();
    for codec in Codec::ALL {
        let corrected = base.corrected(codec);
        let found =
            neuroconv_verify::audit::audit(&base, &corrected, &BTreeSet::new(), &[1], &Quiet)
                .unwrap();
        assert!(found.worst <= 0.9, "{codec}: {found:?}");
        let mut damaged = corrected;
        damaged.change_parts(at(1, Role::Up), |c| c.low_rank = None);
        let found = neuroconv_verify::audit::audit(&base, &damaged, &BTreeSet::new(), &[1], &Quiet)
            .unwrap();
        assert!(found.worst > 1.0, "{codec}: {found:?}");
        let found = neuroconv_verify::audit::audit(
            &base,
            &base.packed(codec),
            &BTreeSet::new(),
            &[1],
            &Quiet,
        )
        .unwrap();
        assert!(found.worst <= 0.9, "{codec}: {found:?}");
    }
}
