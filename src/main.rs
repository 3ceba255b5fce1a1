//! The `neuroconv` program: arguments in, results and an exit code out.
//!
//! Owns flags, printing and exit codes, and joins what must not know each other: conversion and
//! verification. Contains no arithmetic.

mod allocation;
mod args;
mod calibration;
mod cmd;
mod corpus;
mod demo_model;
mod exit;
mod export;
mod failure;
mod github;
mod hub;
mod importance;
mod interrupt;
mod latent;
mod machine;
mod memory;
mod pipeline;
mod present;
mod reports;
mod smoke;
mod ui;

use std::panic;
use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command};
use crate::exit::Exit;
use crate::ui::Ui;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() {
                Exit::Usage
            } else {
                Exit::Done
            }
            .into();
        }
    };
    let ui = Ui::new(cli.global.json, cli.global.quiet, cli.global.verbose);
    init_log(cli.global.verbose);
    let threads = cli.global.threads.map_or(Vec::new(), |counts| counts.0);
    if let Err(error) = init_threads(&threads) {
        Ui::error(&error, None);
        return Exit::Resources.into();
    }
    if let Err(error) = neuroconv_kernels::isa() {
        Ui::error(
            &error.into(),
            Some("unset NEUROCONV_ISA to use the best one"),
        );
        return Exit::Usage.into();
    }
    let outcome = panic::catch_unwind(panic::AssertUnwindSafe(|| {
        run(cli.command, &threads, cli.global.seed, ui)
    }));
    match outcome {
        Ok(Ok(exit)) => exit.into(),
        Ok(Err(error)) => {
            let failure = failure::classify(&error);
            Ui::error(&error, failure.hint.as_deref());
            failure.exit.into()
        }
        Err(_) => {
            let error = anyhow::anyhow!("internal bug: an invariant of neuroconv is broken");
            Ui::error(
                &error,
                Some("please report the lines above, with the command"),
            );
            Exit::Bug.into()
        }
    }
}

fn run(command: Command, threads: &[u16], seed: u64, ui: Ui) -> anyhow::Result<Exit> {
    if threads.len() > 1 && !matches!(command, Command::Bench(_)) {
        let message = format!(
            "{} thread counts, but only `bench` takes several",
            threads.len()
        );
        return Err(failure::Misuse::new(message, "give one number, as in `--threads 2`").into());
    }
    match command {
        Command::Inspect(args) => cmd::inspect::run(&args, ui),
        Command::Plan(args) => cmd::plan::run(&args, ui),
        Command::Mla(args) => cmd::convert::mla(&args, ui),
        Command::Int8(args) => cmd::convert::int8(&args, ui),
        Command::Int4(args) => cmd::convert::int4(&args, ui),
        Command::Ternary(args) => cmd::convert::ternary(&args, ui),
        Command::Run(args) => cmd::convert::recipe(args, ui),
        Command::Merge(args) => cmd::merge::run(&args, ui),
        Command::Imatrix(args) => cmd::imatrix::run(&args, ui),
        Command::ImatrixMerge(args) => cmd::imatrix::merge(&args, ui),
        Command::Verify(args) => cmd::verify::run(&args, ui),
        Command::Eval(args) => cmd::eval::run(&args, ui),
        Command::Generate(args) => cmd::generate::run(&args, seed, ui),
        Command::Bench(args) => cmd::bench::run(&args, threads, seed, ui),
        Command::Diff(args) => cmd::diff::run(&args, ui),
        Command::Demo(args) => cmd::demo::run(&args, ui),
        Command::Export(args) => cmd::export::run(&args, ui),
        Command::Gate(args) => cmd::gate::run(&args, ui),
        Command::Schema(args) => Ok(cmd::schema::run(&args)),
    }
}

/// `NEUROCONV_LOG` filters the log; `-v` and `-vv` are short for two of its settings.
fn init_log(verbose: u8) {
    use tracing_subscriber::EnvFilter;
    let default = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let filter =
        EnvFilter::try_from_env("NEUROCONV_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .without_time()
        .init();
}

/// Where several counts are given, the largest loads the model.
fn init_threads(threads: &[u16]) -> anyhow::Result<()> {
    if let Some(threads) = threads.iter().max() {
        rayon::ThreadPoolBuilder::new()
            .num_threads(usize::from(*threads))
            .build_global()?;
    }
    Ok(())
}
