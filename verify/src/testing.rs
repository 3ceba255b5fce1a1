//! A fixed report for tests of what reads or writes one.

use neuroconv_format::manifest::{FileRecord, SourceRecord};

use crate::drift::LayerDrift;
use crate::gate::{Check, CheckClass, CheckStatus, Verdict};
use crate::metrics::{KldHistogram, Metrics, Row};
use crate::parity::{Parity, ParityLimits, Step};
use crate::report::{
    ArtifactRecord, CorpusRecord, MlaRecord, Report, SampleRecord, StageRecord, TensorLine,
    YardstickRecord,
};
use crate::score::TokenScore;
use crate::stats::{Interval, Level};
use crate::tally::{Tally, WindowScores};

/// An interval around a value.
pub(crate) fn interval(value: f64, reach: f64) -> Interval {
    Interval {
        value,
        lo: Some(value - reach),
        hi: Some(value + reach),
    }
}

/// Metrics of a middling artifact.
pub(crate) fn metrics() -> Metrics {
    let counts = (0..36).map(|i| if i < 30 { i * i } else { 0 }).collect();
    Metrics {
        ppl_base: interval(55.5, 0.5),
        ppl: interval(63.25, 0.75),
        ppl_ratio: interval(1.125, 0.015_625),
        kld_mean: interval(0.0625, 0.007_812_5),
        kld_median: 0.03125,
        kld_p90: 0.125,
        kld_p99: 0.5,
        kld_p999: 1.5,
        kld_max: 2.5,
        top1: interval(0.875, 0.015_625),
        top5: 0.984_375,
        top10: 0.992_187_5,
        mean_dp: -0.007_812_5,
        rms_dp: 0.046_875,
        eval_tokens: 40_800,
        not_finite: 0,
        kld_histogram: Some(KldHistogram {
            log10_min: -7.0,
            log10_step: 0.25,
            counts,
        }),
        detail: None,
    }
}

/// Parity well within its limits.
pub(crate) fn parity() -> Parity {
    let limits = ParityLimits {
        max_abs_logit: 0.5,
        rel_l2: 0.0625,
        kld_mean: 0.007_812_5,
        step_rel_l2: 0.001_953_125,
        step_channel: 0.015_625,
    };
    Parity {
        max_abs_logit: 0.125,
        rel_l2: 0.015_625,
        kld_mean: 0.000_244_140_625,
        limits,
        steps: Vec::new(),
        first_bad: None,
        pass: true,
    }
}

/// One check of each ending.
fn checks() -> Vec<Check> {
    use CheckClass::{Parity, Quality};
    use CheckStatus::{Fail, Inconclusive, Pass};
    [
        ("parity.rel_l2", Parity, Pass, 0.0625, 0.015_625),
        ("quality.ppl_ratio", Quality, Fail, 1.0625, 1.125),
        ("quality.kld_mean", Quality, Inconclusive, 0.0625, 0.0625),
        ("quality.top1", Quality, Pass, 0.75, 0.875),
    ]
    .into_iter()
    .map(|(id, class, status, limit, observed)| Check {
        id: id.to_owned(),
        class,
        status,
        limit,
        observed,
        waived: false,
        detail: None,
    })
    .collect()
}

/// A refused artifact whose names try to break out of every format.
pub(crate) fn report() -> Report {
    let tensor = |name: &str, role: &str, codec: &str, bits, rel_mse| TensorLine {
        name: name.to_owned(),
        role: role.to_owned(),
        codec: codec.to_owned(),
        bits_per_weight: bits,
        rel_mse,
        zeros: rel_mse.map(|_| 0.25),
        entropy_bits: rel_mse.map(|_| 1.5),
        output_error: rel_mse.map(|e| e / 10.0),
    };
    Report {
        schema_version: 1,
        verdict: Verdict::Fail,
        exit_code: 3,
        source: SourceRecord {
            id: "small <b>|`model`".into(),
            commit: None,
            arch: "llama".into(),
            params: 11_013_504,
            dtype: "bf16".into(),
            files: vec![FileRecord {
                path: "model.safetensors".into(),
                size: 22_036_200,
                sha256: "ab".repeat(32),
            }],
        },
        artifact: ArtifactRecord {
            path: "out/small-ternary".into(),
            size_bytes: 4_000_000,
            bits_per_weight: 2.875,
            kv_bytes_per_token: 6144,
            kv_bytes_per_token_source: 6144,
        },
        corpora: vec![CorpusRecord {
            name: "\"text\" & </td>".into(),
            sha256: "cd".repeat(32),
            protocol: "windows".into(),
            ctx: 256,
            tokens: 40_800,
            windows: 160,
        }],
        metrics: metrics(),
        parity: parity(),
        mla: None,
        allocation: None,
        texts: Vec::new(),
        long: Vec::new(),
        layers: Vec::new(),
        worst_layer: None,
        samples: Vec::new(),
        engine: "runtime".into(),
        tokens_saved: 0,
        yardstick: None,
        tensors: vec![
            tensor("embed", "embed", "int8", 8.125, Some(0.000_061_035_156_25)),
            tensor("blk.0.attn_q", "attn_q", "ternary", 2.125, Some(0.1875)),
            tensor(
                "blk.0.mlp_down",
                "mlp_down",
                "ternary",
                2.125,
                Some(0.203_125),
            ),
            tensor("final_norm", "final_norm", "f32", 32.0, None),
        ],
        checks: checks(),
        stages: vec![StageRecord {
            name: "quantize".into(),
            wall_s: 1.5,
        }],
        peak_rss_bytes: 123_456_789,
        threads: 2,
        cpu: "x86-64 avx2".into(),
        warnings: vec!["a | b\n<script>alert(1)</script>".into()],
    }
}

/// A report in which every section has something in it.
pub(crate) fn full_report() -> Report {
    let token = |nll: f64| TokenScore {
        nll_base: 2.0 * nll,
        nll: 2.125 * nll,
        kld: 0.25 * nll,
        kld_reverse: 0.5 * nll,
        confidence: 0.5,
        rank: 0,
    };
    let mut tally = Tally::new(None);
    for window in 0..3 {
        let places = (0..4).map(|i| (token(1.0 + f64::from(i)), f64::from(i) / 4.0));
        let scores = WindowScores {
            tokens: places.collect(),
            yardstick: vec![(0.125, 2.0); 4],
            ..WindowScores::default()
        };
        tally.add(window, 0, &scores);
    }
    let detail = Metrics::of(&tally, Level::Final)
        .ok()
        .and_then(|m| m.detail);
    let drift = |layer: usize, snr_db| LayerDrift {
        layer,
        cosine: 0.9375,
        snr_db: Some(snr_db),
        own_snr_db: Some(2.0 * snr_db),
    };
    let mut report = report();
    report.metrics.detail = detail;
    report.texts = Row::of(&tally, Some(0), "prose", 256).into_iter().collect();
    report.long = Row::of(&tally, None, "prose", 2048).into_iter().collect();
    report.layers = vec![drift(0, 16.0), drift(1, 12.0)];
    report.worst_layer = Some(1);
    report.samples = vec![SampleRecord {
        prompt: "Once <b>upon".into(),
        original: " a time".into(),
        artifact: " a tide & more".into(),
        divergence: Some(1),
        tokens: 64,
    }];
    report.yardstick = Some(YardstickRecord {
        name: "Q8_0 class".into(),
        bits_per_weight: 8.5,
        ppl: interval(55.75, 0.5),
        kld_mean: interval(0.001_953_125, 0.000_976_562_5),
        kld_ratio: Some(interval(32.0, 1.0)),
    });
    report.mla = Some(MlaRecord {
        mode: "mla".into(),
        calibrated: true,
        layers: vec![0, 1],
        rank: vec![64, 48],
        rope_dim: 16,
        energy: vec![0.984_375, 0.968_75],
        spectrum: vec![vec![0.75, 0.9375, 1.0], vec![0.5, 0.96875, 1.0]],
        output_error: vec![Some(0.015_625), None],
        kld: vec![0.003_906_25, 0.007_812_5],
        loss_share: vec![0.25, 0.75],
        ppl_partial_rope: Some(56.0),
        ppl_converted: Some(57.5),
    });
    report.parity.steps = vec![Step {
        name: "layer 0".into(),
        rel_l2: 0.000_976_562_5,
        channel: 0.003_906_25,
    }];
    report.checks[1].detail = Some("blk.0.mlp_down, row 3, group 0".into());
    report
}
