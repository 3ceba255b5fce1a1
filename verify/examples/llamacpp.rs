//! Prints what llama.cpp's `llama-perplexity --kl-divergence` prints, in its words, for a checkpoint
//! and the same checkpoint rounded to `Q8_0` or `Q4_0` blocks. For holding the two side by side:
//!
//! ```text
//! cargo run --release -p neuroconv-verify --example llamacpp -- MODEL TEXT q8
//! ```

#![expect(clippy::print_stdout, reason = "an example that prints its result")]

use std::error::Error;
use std::path::Path;

use neuroconv_recipes::Limits;
use neuroconv_runtime::{Checkpoint, KvCodec, Quiet, TextTokenizer};
use neuroconv_verify::yardstick::Rounded;
use neuroconv_verify::{EvalText, Protocol, VerifyOptions, Yardstick, verify};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, text, how] = args.as_slice() else {
        return Err("MODEL TEXT q8|q4".into());
    };
    let how = if how == "q4" {
        Yardstick::Q4
    } else {
        Yardstick::Q8
    };
    let base = Checkpoint::open(Path::new(model))?;
    let tokenizer = TextTokenizer::open(Path::new(model))?;
    let text = fs_err::read_to_string(text)?;
    let prompt = tokenizer.encode_prompt("a")?;
    let text = EvalText::new(
        "text",
        &text,
        tokenizer.encode_plain(&text)?,
        prompt.first().copied(),
    );
    let options = VerifyOptions {
        protocol: Protocol::LlamaCpp512,
        ctx: 512,
        max_tokens: None,
        stop_early: false,
        limits: Limits::default(),
        yardstick: None,
        allow_quality_loss: true,
        parity_windows: 1,
        kv: KvCodec::F32,
        feedback: std::collections::BTreeSet::new(),
        rewrites: neuroconv_recipes::Rewrites::default(),
        logit_cache: None,
        thorough: false,
    };
    let found = verify(&base, &Rounded::new(&base, how), &[text], &options, &Quiet)?;
    let m = &found.metrics;
    let d = m.detail.as_ref().ok_or("no detail")?;
    let e = &d.token_errors;
    let row =
        |name: &str, value: f64, error: f64| println!("{name:30}: {value:11.6} ± {error:9.6}");
    row("Mean PPL(Q)", m.ppl.value, e.ppl);
    row("Mean PPL(base)", m.ppl_base.value, e.ppl_base);
    println!(
        "Cor(ln(PPL(Q)), ln(PPL(base))): {:6.2}%",
        100.0 * d.correlation.value
    );
    row(
        "Mean ln(PPL(Q)/PPL(base))",
        m.ppl_ratio.value.ln(),
        e.ln_ppl_ratio,
    );
    row("Mean PPL(Q)/PPL(base)", m.ppl_ratio.value, e.ppl_ratio);
    row(
        "Mean PPL(Q)-PPL(base)",
        d.ppl_difference.value,
        e.ppl_difference,
    );
    row("Mean    KLD", m.kld_mean.value, e.kld_mean);
    let k = &d.kld;
    for (name, value) in [
        ("Maximum KLD", k.max),
        ("99.9%   KLD", k.p999),
        ("99.0%   KLD", k.p99),
        ("95.0%   KLD", k.p95),
        ("90.0%   KLD", k.p90),
        ("Median  KLD", k.p50),
        ("10.0%   KLD", k.p10),
        (" 5.0%   KLD", k.p05),
        (" 1.0%   KLD", k.p01),
        (" 0.1%   KLD", k.p001),
        ("Minimum KLD", k.min),
    ] {
        println!("{name:30}: {value:11.6}");
    }
    let percent = |name: &str, value: f64| println!("{name:30}: {:7.3}%", 100.0 * value);
    row("Mean    Δp", 100.0 * m.mean_dp, 100.0 * e.mean_dp);
    percent("Maximum Δp", d.dp.max);
    percent("99.0%   Δp", d.dp.p99);
    percent("75.0%   Δp", d.dp.p75);
    percent("Median  Δp", d.dp.p50);
    percent(" 1.0%   Δp", d.dp.p01);
    percent("Minimum Δp", d.dp.min);
    row("RMS Δp    ", 100.0 * m.rms_dp, 100.0 * e.rms_dp);
    row("Same top p", 100.0 * m.top1.value, 100.0 * e.top1);
    println!("tokens {}", m.eval_tokens);
    Ok(())
}
