//! A verification from texts to verdict.

use neuroconv_format::Codec;
use neuroconv_recipes::{Limits, Role, TensorId};
use neuroconv_runtime::{KvCodec, Quiet};
use neuroconv_verify::{
    Error, EvalText, Protocol, ReferenceScorer, RuntimeScorer, Verdict, VerifyOptions, evaluate,
    verify, windows,
};

use crate::models::Model;

fn options() -> VerifyOptions {
    VerifyOptions {
        protocol: Protocol::Windows,
        ctx: 64,
        max_tokens: None,
        stop_early: false,
        limits: Limits {
            max_ppl_ratio: Some(1.001),
            max_kld: Some(1e-3),
            min_top1: Some(0.95),
            max_p99_kld: Some(0.01),
        },
        yardstick: None,
        allow_quality_loss: false,
        parity_windows: 2,
        kv: KvCodec::F32,
        feedback: std::collections::BTreeSet::new(),
        rewrites: neuroconv_recipes::Rewrites::default(),
        logit_cache: None,
        thorough: false,
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
    // The original runs through the runtime as well, once parity held for it.
    assert!((a.ppl - both.ppl_base.value).abs() < 1e-5 * a.ppl);
    assert!((b.ppl - both.ppl_base.value).abs() < 1e-9 * b.ppl);
    assert!((b.ppl - both.ppl.value).abs() < 1e-9 * b.ppl);
    assert!((a.nll - b.nll).abs() < 1e-5);
    assert_eq!((a.tokens, a.windows, a.ctx), (1008, 16, 64));
}

/// What no check rests on is measured too, and the original's logits are read back exactly.
#[test]
fn details_are_measured_and_cached_logits_change_nothing() {
    let (base, text) = (Model::trained(), Model::trained_text());
    let artifact = base.packed(Codec::Int4);
    let cache = tempfile::tempdir().unwrap();
    let options = VerifyOptions {
        ctx: 64,
        max_tokens: Some(1280),
        thorough: true,
        logit_cache: Some(cache.path().to_owned()),
        yardstick: Some((neuroconv_verify::Yardstick::Q4, 1.5)),
        ..options()
    };
    let texts = [
        text.clone(),
        EvalText {
            name: "again".into(),
            ..text
        },
    ];
    let run = || verify(&base, &artifact, &texts, &options, &Quiet).unwrap();
    let first = run();
    assert_eq!(
        (first.engine, first.texts.len(), first.long.len()),
        ("runtime", 2, 2)
    );
    assert_eq!((first.long[0].ctx, first.layers.len()), (256, 4));
    assert_eq!((first.continuations.len(), first.tokens_saved), (4, 0));
    assert!(
        first
            .layers
            .iter()
            .all(|l| l.snr_db.unwrap() > 5.0 && l.cosine > 0.8)
    );
    let yardstick = first
        .metrics
        .detail
        .as_ref()
        .unwrap()
        .yardstick_kld_ratio
        .unwrap();
    assert!(
        yardstick.value > 0.3 && yardstick.value < 3.0,
        "{yardstick:?}"
    );
    let files = || {
        let dir = fs_err::read_dir(cache.path())
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        let paths = fs_err::read_dir(dir).unwrap().map(|e| e.unwrap().path());
        paths.collect::<Vec<_>>()
    };
    assert_eq!(
        files().len(),
        20,
        "one file per window, equal texts share theirs"
    );
    assert_eq!(run().metrics, first.metrics);
    // A damaged file is as good as none.
    let mut bytes = fs_err::read(&files()[0]).unwrap();
    bytes[100] ^= 1;
    fs_err::write(&files()[0], bytes).unwrap();
    assert_eq!(run().metrics, first.metrics);
}

/// Enough tokens to decide and no more, and the same verdict as with all of them.
#[test]
fn it_stops_when_every_check_is_decided() {
    let (base, text) = (Model::trained(), [Model::trained_text()]);
    for (codec, limit, early, verdict) in [
        (Codec::Int8, 1.2, true, Verdict::Pass),
        (Codec::Ternary, 1.01, true, Verdict::Fail),
    ] {
        let artifact = base.packed(codec);
        let run = |stop_early| {
            let options = VerifyOptions {
                max_tokens: Some(20_480),
                stop_early,
                limits: Limits {
                    max_ppl_ratio: Some(limit),
                    ..Limits::default()
                },
                ..options()
            };
            verify(&base, &artifact, &text, &options, &Quiet).unwrap()
        };
        let (short, long) = (run(true), run(false));
        assert_eq!(short.judgement.verdict, verdict);
        assert_eq!(long.judgement.verdict, verdict);
        assert_eq!((short.tokens_saved > 0, long.tokens_saved), (early, 0));
        assert_eq!(
            short.metrics.eval_tokens + short.tokens_saved,
            long.metrics.eval_tokens
        );
    }
}
