//! A verification from texts to verdict.

use neuroconv_format::Codec;
use neuroconv_recipes::{Limits, Role, TensorId};
use neuroconv_runtime::{KvCodec, Quiet};
use neuroconv_verify::{
    Error, Protocol, ReferenceScorer, RuntimeScorer, Verdict, VerifyOptions, evaluate, verify,
    windows,
};

use crate::models::Model;

fn options() -> VerifyOptions {
    VerifyOptions {
        protocol: Protocol::Windows,
        ctx: 64,
        max_tokens: None,
        limits: Limits {
            max_ppl_ratio: Some(1.001),
            max_kld: Some(1e-3),
            min_top1: Some(0.95),
            max_p99_kld: Some(0.01),
        },
        allow_quality_loss: false,
        parity_windows: 2,
        kv: KvCodec::F32,
    }
}

#[test]
fn a_model_is_as_good_as_itself() {
    let model = Model::golden("llama");
    let found = verify(&model, &model, &[model.text(1024)], &options(), &Quiet).unwrap();
    assert_eq!(
        (found.judgement.verdict, found.judgement.exit_code()),
        (Verdict::Pass, 0)
    );
    let m = &found.metrics;
    assert!(
        (m.ppl_ratio.value - 1.0).abs() < 1e-5 && m.kld_mean.value < 1e-8,
        "{m:?}"
    );
    assert_eq!(
        (
            m.eval_tokens,
            found.corpora[0].tokens,
            found.corpora[0].windows
        ),
        (1008, 1008, 16)
    );
}

#[test]
fn a_damaged_model_is_refused_and_only_quality_can_be_waived() {
    let base = Model::golden("llama");
    let mut worse = base.clone();
    worse.change(TensorId::layer(0, Role::Down), |w| {
        for x in w {
            *x *= 3.0;
        }
    });
    let text = [base.text(1024)];
    let found = verify(&base, &worse, &text, &options(), &Quiet).unwrap();
    assert!(found.parity.pass);
    assert_eq!(
        (found.judgement.verdict, found.judgement.exit_code()),
        (Verdict::Fail, 3)
    );
    let allow = VerifyOptions {
        allow_quality_loss: true,
        ..options()
    };
    let found = verify(&base, &worse, &text, &allow, &Quiet).unwrap();
    assert_eq!(
        (found.judgement.verdict, found.judgement.exit_code()),
        (Verdict::Waived, 0)
    );

    worse.change(TensorId::model(Role::FinalNorm), |w| w[0] = f32::INFINITY);
    let broken = verify(&base, &worse, &text, &allow, &Quiet);
    assert!(
        matches!(broken, Err(Error::NothingFinite { .. })),
        "{broken:?}"
    );
}

#[test]
fn coarser_codecs_are_farther_from_the_original() {
    let base = Model::golden("llama");
    let text = [base.text(1024)];
    let klds: Vec<f64> = [Codec::Int8, Codec::Int4, Codec::Ternary]
        .into_iter()
        .map(|codec| {
            let found = verify(&base, &base.packed(codec), &text, &options(), &Quiet).unwrap();
            assert!(found.parity.pass, "{codec}: {:?}", found.parity);
            found.metrics.kld_mean.value
        })
        .collect();
    assert!(
        klds[0] * 10.0 < klds[1] && klds[1] * 2.0 < klds[2],
        "{klds:?}"
    );
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let model = Model::golden("llama");
    let text = [model.text(1024)];
    let long = VerifyOptions {
        ctx: model.spec.max_positions + 1,
        ..options()
    };
    let refused = verify(&model, &model, &text, &long, &Quiet);
    assert!(matches!(refused, Err(Error::ContextTooLong { .. })));
    let few = VerifyOptions {
        max_tokens: Some(512),
        ..options()
    };
    let refused = verify(&model, &model, &text, &few, &Quiet);
    assert!(matches!(
        refused,
        Err(Error::TooLittleText {
            scored: 504,
            needed: 512
        })
    ));
    let mut strange = model.text(1024);
    strange.tokens[700] = model.spec.vocab as u32;
    let refused = verify(&model, &model, &[strange], &options(), &Quiet);
    assert!(matches!(refused, Err(Error::Token { .. })), "{refused:?}");
    let other = Model::golden("qwen3");
    if other.spec.vocab != model.spec.vocab {
        let refused = verify(&model, &other, &text, &options(), &Quiet);
        assert!(matches!(refused, Err(Error::Vocabulary { .. })));
    }
}

/// One number three ways: both implementations alone, and the comparison.
#[test]
fn perplexity_is_the_same_alone_and_in_comparison() {
    let model = Model::golden("qwen2");
    let text = model.text(1024);
    let cut = windows(&text, Protocol::Windows, 64, None).unwrap();
    let reference = ReferenceScorer::new(&model).unwrap();
    let runtime = RuntimeScorer::new(&model).unwrap();
    let a = evaluate(&reference, &cut, Protocol::Windows, 64, &Quiet).unwrap();
    let b = evaluate(&runtime, &cut, Protocol::Windows, 64, &Quiet).unwrap();
    let both = verify(&model, &model, &[text], &options(), &Quiet)
        .unwrap()
        .metrics;
    assert!((a.ppl - both.ppl_base.value).abs() < 1e-9 * a.ppl);
    assert!((b.ppl - both.ppl.value).abs() < 1e-9 * b.ppl);
    assert!((a.nll - b.nll).abs() < 1e-5);
    assert_eq!((a.tokens, a.windows, a.ctx), (1008, 16, 64));
}
