//! `neuroconv bench`: how fast a model runs, against how fast memory can be read.
//!
//! Owns the order of measurements: every repetition reads memory, takes in a prompt and generates
//! after it, so that a share is a ratio of neighbours in time.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Instant;

use memmap2::MmapMut;
use neuroconv_kernels::stream_read;
use neuroconv_runtime::{Decoder, KvCache, Sampler};
use rayon::{ThreadPool, ThreadPoolBuilder};
use serde::Serialize;

use crate::args::BenchArgs;
use crate::exit::Exit;
use crate::failure::Misuse;
use crate::hub::{self, Need};
use crate::machine;
use crate::present;
use crate::ui::Ui;

/// Memory that one measurement of its bandwidth reads: far more than any cache.
const STREAM_BYTES: usize = 512 << 20;

#[derive(Serialize)]
struct Measured {
    isa: &'static str,
    cpu: String,
    model: String,
    weights_bytes: usize,
    /// What a token adds to the cache.
    kv_bytes_per_token: usize,
    /// Seconds from the path to a model ready to run.
    load_s: f64,
    /// Seconds to check every byte of the weights after that.
    check_s: f64,
    prompt: u32,
    #[serde(rename = "gen")]
    generate: u32,
    repetitions: u32,
    /// Gigabytes per second by number of threads.
    stream_gb_s: BTreeMap<usize, f64>,
    runs: Vec<Run>,
}

/// Medians of one number of threads, and how far its repetitions lie apart.
#[derive(Serialize)]
struct Run {
    threads: usize,
    prefill_tok_s: f64,
    prefill_range: [f64; 2],
    decode_tok_s: f64,
    decode_range: [f64; 2],
    /// Weights and cache that a generated token reads.
    bytes_per_token: usize,
    gb_s: f64,
    /// Of the bandwidth in the same repetition.
    share: f64,
    share_range: [f64; 2],
}

pub(crate) fn run(args: &BenchArgs, threads: &[u16], seed: u64, ui: Ui) -> anyhow::Result<Exit> {
    let model = hub::resolve(&args.model, &args.hub, Need::Weights, ui)?;
    let start = Instant::now();
    let source = super::open_unchecked(&model)?;
    let decoder = Decoder::load(&source)?.with_kv(args.kv.into());
    let load_s = start.elapsed().as_secs_f64();
    let start = Instant::now();
    source.check()?;
    let check_s = start.elapsed().as_secs_f64();
    let limit = decoder.spec().max_positions;
    let asked = args.prompt as usize + args.generate as usize;
    if asked > limit {
        let message = format!("{asked} tokens are asked for, the model has {limit} positions");
        return Err(Misuse::new(message, "give a smaller `--prompt` or `--gen`").into());
    }
    let counts: Vec<usize> = match threads {
        [] => vec![rayon::current_num_threads()],
        some => some.iter().map(|&n| usize::from(n)).collect(),
    };
    let memory = stream_memory()?;
    let mut measured = Measured {
        isa: neuroconv_kernels::isa()?.name(),
        cpu: machine::cpu(),
        model: model.name,
        weights_bytes: decoder.bytes_per_token(),
        kv_bytes_per_token: KvCache::bytes_per_token(decoder.spec(), decoder.kv()),
        load_s,
        check_s,
        prompt: args.prompt,
        generate: args.generate,
        repetitions: args.repeat,
        stream_gb_s: BTreeMap::new(),
        runs: Vec::new(),
    };
    let progress = ui.progress();
    progress.start(
        "bench",
        (counts.len() * args.repeat as usize) as u64,
        "runs",
    );
    let bench = Bench {
        decoder: &decoder,
        prompt: prompt(args.prompt, decoder.spec().vocab, seed),
        generate: args.generate as usize,
        memory: &memory,
    };
    for threads in counts {
        let pool = ThreadPoolBuilder::new().num_threads(threads).build()?;
        bench.once(&pool, 2)?;
        let mut samples = Vec::new();
        for _ in 0..args.repeat {
            samples.push(bench.once(&pool, bench.generate)?);
            progress.advance(1);
        }
        let of = |figure: fn(&Sample) -> f64| sorted(samples.iter().map(figure));
        measured
            .stream_gb_s
            .insert(threads, median(&of(|s| s.stream_gb_s)));
        measured
            .runs
            .push(summary(threads, bench.bytes_per_token(), &samples));
    }
    progress.finish();
    show(&measured, ui);
    ui.object(&measured)?;
    Ok(Exit::Done)
}

/// Memory to read, in large pages where the system has them, so that it is read as fast as can be.
fn stream_memory() -> std::io::Result<MmapMut> {
    let mut memory = MmapMut::map_anon(STREAM_BYTES)?;
    #[cfg(target_os = "linux")]
    {
        let _ = memory.advise(memmap2::Advice::HugePage);
    }
    memory.fill(1);
    Ok(memory)
}

/// Pseudo-random tokens, by a linear congruential generator.
fn prompt(len: u32, vocab: usize, seed: u64) -> Vec<u32> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        ((state >> 33) % vocab as u64) as u32
    };
    (0..len).map(|_| next()).collect()
}

struct Bench<'a> {
    decoder: &'a Decoder,
    prompt: Vec<u32>,
    generate: usize,
    memory: &'a [u8],
}

struct Sample {
    stream_gb_s: f64,
    prefill_tok_s: f64,
    decode_tok_s: f64,
    /// Achieved over streaming bandwidth.
    share: f64,
}

impl Bench<'_> {
    /// What a token in the middle of the generated ones reads.
    fn bytes_per_token(&self) -> usize {
        let held = self.prompt.len() + self.generate / 2;
        let cache = KvCache::bytes_per_token(self.decoder.spec(), self.decoder.kv());
        self.decoder.bytes_per_token() + held * cache
    }

    /// One measurement of each figure, on `pool`.
    fn once(&self, pool: &ThreadPool, generate: usize) -> anyhow::Result<Sample> {
        let stream_gb_s = self.stream(pool);
        let (prefill_s, decode_s) = pool.install(|| self.tokens(generate))?;
        let decode_tok_s = generate as f64 / decode_s;
        Ok(Sample {
            stream_gb_s,
            prefill_tok_s: self.prompt.len() as f64 / prefill_s,
            decode_tok_s,
            share: decode_tok_s * self.bytes_per_token() as f64 / 1e9 / stream_gb_s,
        })
    }

    /// Gigabytes per second that all threads together read.
    fn stream(&self, pool: &ThreadPool) -> f64 {
        let part = self.memory.len() / pool.current_num_threads();
        let start = Instant::now();
        pool.broadcast(|thread| {
            let first = thread.index() * part;
            black_box(stream_read(&self.memory[first..first + part]));
        });
        self.memory.len() as f64 / 1e9 / start.elapsed().as_secs_f64()
    }

    /// Seconds of the prompt, up to its first token, and of the tokens after it.
    fn tokens(&self, generate: usize) -> anyhow::Result<(f64, f64)> {
        let hidden = self.decoder.spec().hidden;
        let mut sampler = Sampler::greedy();
        let mut cache = self.decoder.new_cache();
        let start = Instant::now();
        let hidden_td = self.decoder.hidden(&self.prompt, &mut cache)?;
        let last_d = &hidden_td[hidden_td.len() - hidden..];
        let mut token = sampler.sample(&self.decoder.logits(last_d))?;
        let prefill_s = start.elapsed().as_secs_f64();
        let start = Instant::now();
        for _ in 0..generate {
            let hidden_d = self.decoder.hidden(&[token], &mut cache)?;
            token = sampler.sample(&self.decoder.logits(&hidden_d))?;
        }
        Ok((prefill_s, start.elapsed().as_secs_f64()))
    }
}

fn summary(threads: usize, bytes_per_token: usize, samples: &[Sample]) -> Run {
    let of = |figure: fn(&Sample) -> f64| sorted(samples.iter().map(figure));
    let (prefill, decode) = (of(|s| s.prefill_tok_s), of(|s| s.decode_tok_s));
    let share = of(|s| s.share);
    let range = |sorted: &[f64]| [sorted[0], sorted[sorted.len() - 1]];
    Run {
        threads,
        prefill_tok_s: median(&prefill),
        prefill_range: range(&prefill),
        decode_tok_s: median(&decode),
        decode_range: range(&decode),
        bytes_per_token,
        gb_s: median(&decode) * bytes_per_token as f64 / 1e9,
        share: median(&share),
        share_range: range(&share),
    }
}

fn sorted(figures: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures
}

/// Of a sorted list that is not empty.
fn median(sorted: &[f64]) -> f64 {
    let half = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        sorted[half]
    } else {
        f64::midpoint(sorted[half - 1], sorted[half])
    }
}

fn show(measured: &Measured, ui: Ui) {
    ui.result(format!(
        "{}: loaded in {:.0} ms",
        measured.cpu,
        measured.load_s * 1e3
    ));
    let spread =
        |[low, high]: [f64; 2]| format!("{}..{}", present::number(low), present::number(high));
    let rows: Vec<Vec<String>> = measured
        .runs
        .iter()
        .map(|run| {
            vec![
                run.threads.to_string(),
                present::number(run.prefill_tok_s),
                spread(run.prefill_range),
                present::number(run.decode_tok_s),
                spread(run.decode_range),
                present::bytes(run.bytes_per_token as u64),
                present::number(run.gb_s),
                present::number(measured.stream_gb_s[&run.threads]),
                format!("{:.1} %", run.share * 100.0),
            ]
        })
        .collect();
    let header = [
        "threads",
        "prompt tok/s",
        "range",
        "decode tok/s",
        "range",
        "bytes/token",
        "GB/s",
        "stream GB/s",
        "share",
    ];
    ui.result(present::table(&header, &rows, &[0, 1, 2, 3, 4, 5, 6, 7, 8]));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(
        clippy::float_cmp,
        reason = "the numbers compared are the same or wrong"
    )]
    fn medians_are_of_the_middle() {
        assert_eq!(median(&sorted([3.0, 1.0, 2.0].into_iter())), 2.0);
        assert_eq!(median(&sorted([4.0, 1.0, 2.0, 3.0].into_iter())), 2.5);
    }

    #[test]
    fn prompts_follow_from_the_seed_and_lie_in_the_vocabulary() {
        let tokens = prompt(200, 10, 1);
        assert_eq!(tokens, prompt(200, 10, 1));
        assert_ne!(tokens, prompt(200, 10, 2));
        assert!((0..10).all(|token| tokens.contains(&token)));
        assert!(tokens.iter().all(|&token| token < 10));
    }
}
