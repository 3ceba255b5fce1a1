//! `neuroconv generate`: continues a text.

use std::io::Read;
use std::ops::ControlFlow;
use std::time::Instant;

use anyhow::Context;
use neuroconv_runtime::{Decoder, Sampler, SamplerConfig, Source, Stop};
use rayon::ThreadPoolBuilder;
use serde::Serialize;

use crate::args::GenerateArgs;
use crate::exit::Exit;
use crate::hub::{self, Need};
use crate::ui::Ui;

#[derive(Serialize)]
struct Generated<'a> {
    prompt: &'a str,
    text: String,
    prompt_tokens: usize,
    new_tokens: usize,
    stopped: &'static str,
    prefill_s: f64,
    decode_tok_s: f64,
}

pub(crate) fn run(args: &GenerateArgs, seed: u64, ui: Ui) -> anyhow::Result<Exit> {
    let model = hub::resolve(&args.model, &args.hub, Need::Weights, ui)?;
    let source = super::open_unchecked(&model)?;
    // Words come at once; whether the weights are those that were measured is known soon after, and
    // the run fails where they are not.
    let check = ThreadPoolBuilder::new().num_threads(1).build()?;
    std::thread::scope(|scope| {
        let checked = scope.spawn(|| check.install(|| source.check()));
        let exit = generate(args, &source, seed, ui);
        checked
            .join()
            .map_err(|_| anyhow::anyhow!("the check of the weights broke off"))??;
        exit
    })
}

fn generate(args: &GenerateArgs, source: &Source, seed: u64, ui: Ui) -> anyhow::Result<Exit> {
    let tokenizer = source.tokenizer()?;
    let decoder = Decoder::load(source)?.with_kv(args.kv.into());
    let prompt = prompt(args)?;
    let ids = if args.chat {
        let mut messages = Vec::new();
        if let Some(system) = &args.system {
            messages.push(("system", system.as_str()));
        }
        messages.push(("user", prompt.as_str()));
        let text = neuroconv_runtime::chat_prompt(&source.side()?, &messages, true)?;
        tokenizer.encode_plain(&text)?
    } else {
        tokenizer.encode_prompt(&prompt)?
    };
    let mut sampler = Sampler::new(SamplerConfig {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p.unwrap_or(1.0),
        seed,
    })?;
    if !args.chat {
        ui.piece(&prompt);
    }
    let start = Instant::now();
    let mut first = None;
    let mut stream = tokenizer.stream();
    let mut text = String::new();
    let out = neuroconv_runtime::generate(
        &decoder,
        &ids,
        args.max_tokens as usize,
        &mut sampler,
        &mut |token| {
            first.get_or_insert_with(|| start.elapsed());
            if let Ok(piece) = stream.push(token) {
                ui.piece(&piece);
                text.push_str(&piece);
            }
            ControlFlow::Continue(())
        },
    )?;
    let rest = stream.finish()?;
    ui.piece(&rest);
    text.push_str(&rest);
    ui.result("");
    let prefill_s = first.unwrap_or_else(|| start.elapsed()).as_secs_f64();
    let decode_s = start.elapsed().as_secs_f64() - prefill_s;
    let decode_tok_s = (out.tokens.len().saturating_sub(1)) as f64 / decode_s.max(1e-9);
    ui.detail(format!(
        "{} tokens, {decode_tok_s:.1} tokens/s",
        out.tokens.len()
    ));
    ui.object(&Generated {
        prompt: &prompt,
        text,
        prompt_tokens: ids.len(),
        new_tokens: out.tokens.len(),
        stopped: stop_word(out.stop),
        prefill_s,
        decode_tok_s,
    })?;
    Ok(Exit::Done)
}

fn stop_word(stop: Stop) -> &'static str {
    match stop {
        Stop::EndOfText => "end of text",
        Stop::MaxTokens => "max tokens",
        Stop::ContextFull => "context full",
        Stop::Caller => "caller",
    }
}

fn prompt(args: &GenerateArgs) -> anyhow::Result<String> {
    if args.prompt != "-" {
        return Ok(args.prompt.clone());
    }
    let mut text = String::new();
    std::io::stdin()
        .read_to_string(&mut text)
        .context("cannot read the prompt from standard input")?;
    Ok(text)
}
