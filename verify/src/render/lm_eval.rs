//! Results in the form of lm-evaluation-harness, for what reads those.
//!
//! The task is called `neuroconv_ppl`: token perplexity on the report's texts is no task of the
//! harness, whose own are measured per word and per byte.

use serde_json::{Map, Value, json};

use crate::report::Report;
use crate::stats::Interval;

/// Half of a 95 % interval over this is a standard error.
const Z: f64 = 1.96;

/// The report as a results file.
pub fn render_lm_eval(report: &Report) -> String {
    let mut text = serde_json::to_string_pretty(&results(report)).unwrap_or_default();
    text.push('\n');
    text
}

fn results(report: &Report) -> Value {
    let task = "neuroconv_ppl";
    let m = &report.metrics;
    let mut metrics = Map::new();
    metrics.insert("alias".into(), json!(task));
    for (name, interval) in [
        ("token_perplexity", m.ppl),
        ("token_perplexity_ratio", m.ppl_ratio),
        ("kl_divergence", m.kld_mean),
        ("same_top_token", m.top1),
    ] {
        metrics.insert(format!("{name},none"), json!(interval.value));
        metrics.insert(format!("{name}_stderr,none"), error(interval));
    }
    let windows: u64 = report.corpora.iter().map(|c| c.windows).sum();
    let name = &report.artifact.path;
    let sanitized: String = name
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "-_.".contains(c) {
                c
            } else {
                '_'
            }
        })
        .collect();
    json!({
        "results": {task: metrics},
        "group_subtasks": {task: []},
        "configs": {task: {
            "task": task,
            "output_type": "loglikelihood_rolling",
            "metadata": {"version": 1.0, "corpora": report.corpora},
        }},
        "versions": {task: 1.0},
        "n-shot": {task: 0},
        "higher_is_better": {task: {
            "token_perplexity": false,
            "token_perplexity_ratio": false,
            "kl_divergence": false,
            "same_top_token": true,
        }},
        "n-samples": {task: {"original": windows, "effective": windows}},
        "config": {
            "model": "neuroconv",
            "model_args": format!("pretrained={name}"),
            "batch_size": 1,
            "device": "cpu",
            "limit": null,
        },
        "git_hash": report.source.commit,
        "task_hashes": {},
        "model_source": "neuroconv",
        "model_name": name,
        "model_name_sanitized": sanitized,
        "chat_template": null,
        "total_evaluation_time_seconds":
            report.stages.iter().map(|s| s.wall_s).sum::<f64>().to_string(),
    })
}

fn error(interval: Interval) -> Value {
    match (interval.lo, interval.hi) {
        (Some(lo), Some(hi)) => json!((hi - lo) / 2.0 / Z),
        _ => json!("N/A"),
    }
}
