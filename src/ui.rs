//! The only place that prints: results on stdout, everything else on stderr.

use std::fmt::{Display, Write as _};
use std::io::{self, IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use neuroconv_runtime::Progress;
use serde::Serialize;

use crate::present;

/// How often a stage reports itself where there is no terminal.
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);

/// Where words go, and how many.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ui {
    /// One JSON object on stdout instead of text.
    pub(crate) json: bool,
    quiet: bool,
    verbose: u8,
}

impl Ui {
    pub(crate) fn new(json: bool, quiet: bool, verbose: u8) -> Self {
        Ui {
            json,
            quiet,
            verbose,
        }
    }

    /// Whether more was asked for.
    pub(crate) fn is_verbose(self) -> bool {
        self.verbose > 0
    }

    /// A line of the result, unless the result is JSON.
    pub(crate) fn result(self, line: impl Display) {
        if !self.json {
            Self::raw(&format!("{line}\n"));
        }
    }

    /// A piece of the result without a line end, at once, unless the result is JSON.
    pub(crate) fn piece(self, text: &str) {
        if !self.json {
            Self::raw(text);
        }
    }

    /// A result that is JSON whatever was asked for.
    pub(crate) fn raw_result(text: &str) {
        Self::raw(text);
    }

    /// A line for the machinery that runs this program, whatever was asked for.
    pub(crate) fn workflow_command(line: &str) {
        Self::stderr(&format!("{line}\n"));
    }

    /// The JSON result, if JSON was asked for.
    pub(crate) fn object(self, value: &impl Serialize) -> anyhow::Result<()> {
        if self.json {
            let text = serde_json::to_string_pretty(value)?;
            Self::raw(&format!("{text}\n"));
        }
        Ok(())
    }

    /// What is going on, for people who watch.
    pub(crate) fn note(self, line: impl Display) {
        if !self.quiet {
            Self::stderr(&format!("{line}\n"));
        }
    }

    /// What only the curious want to know.
    pub(crate) fn detail(self, line: impl Display) {
        if self.verbose > 0 {
            Self::stderr(&format!("{line}\n"));
        }
    }

    /// Something that deserves attention but stops nothing.
    pub(crate) fn warn(self, line: impl Display) {
        if !self.quiet {
            Self::stderr(&format!("warning: {line}\n"));
        }
    }

    /// An error with everything known about it, and what to do.
    pub(crate) fn error(error: &anyhow::Error, hint: Option<&str>) {
        let mut text = format!("error: {}\n", clean(&format!("{error:#}")));
        if let Some(hint) = hint {
            for line in hint.lines() {
                text.push_str("hint: ");
                text.push_str(line);
                text.push('\n');
            }
        }
        Self::stderr(&text);
    }

    /// A progress display that suits where stderr goes.
    pub(crate) fn progress(self) -> Box<dyn Progress> {
        if self.quiet {
            Box::new(neuroconv_runtime::Quiet)
        } else if io::stderr().is_terminal() {
            Box::new(Bar {
                bar: Mutex::new(ProgressBar::hidden()),
            })
        } else {
            Box::new(Lines {
                stage: Mutex::new(None),
            })
        }
    }

    /// Writes to stdout; a reader that has gone away is no error.
    fn raw(text: &str) {
        let mut out = io::stdout().lock();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }

    fn stderr(text: &str) {
        let _ = io::stderr().lock().write_all(text.as_bytes());
    }
}

/// Untrusted text without control characters, so that no file can move the cursor.
fn clean(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() && c != '\n' {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

/// One bar per stage on a terminal.
struct Bar {
    bar: Mutex<ProgressBar>,
}

impl Bar {
    fn with(&self, act: impl FnOnce(&mut ProgressBar)) {
        if let Ok(mut bar) = self.bar.lock() {
            act(&mut bar);
        }
    }
}

impl Progress for Bar {
    fn start(&self, stage: &str, total: u64, unit: &str) {
        let template = if unit == "bytes" {
            "{msg:24} {bar:28} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} eta {eta}"
                .to_owned()
        } else {
            format!(
                "{{msg:24}} {{bar:28}} {{human_pos}}/{{human_len}} {unit} {{per_sec}} eta {{eta}}"
            )
        };
        self.with(|bar| {
            *bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template(&template) {
                bar.set_style(style);
            }
            bar.set_message(stage.to_owned());
            bar.enable_steady_tick(Duration::from_millis(200));
        });
    }

    fn advance(&self, steps: u64) {
        self.with(|bar| bar.inc(steps));
    }

    fn finish(&self) {
        self.with(|bar| bar.finish_and_clear());
    }
}

/// One line when a stage ends, and one every ten seconds while it lasts.
struct Lines {
    stage: Mutex<Option<Stage>>,
}

struct Stage {
    name: String,
    unit: String,
    total: u64,
    done: u64,
    start: Instant,
    told: Instant,
}

impl Stage {
    /// How much is done, of how much; bytes in the unit that suits.
    fn share(&self) -> String {
        match self.unit.as_str() {
            "bytes" => format!(
                "{} of {}",
                present::bytes(self.done),
                present::bytes(self.total)
            ),
            unit => format!("{}/{} {unit}", self.done, self.total),
        }
    }

    fn line(&self) -> String {
        let seconds = self.start.elapsed().as_secs_f64();
        let rate = self.done as f64 / seconds.max(1e-9);
        let mut line = format!("{}: {}, {seconds:.1} s", self.name, self.share());
        if self.done > 0 && self.done < self.total {
            let eta = (self.total - self.done) as f64 / rate;
            // Where each takes long, a rate would round to nothing.
            let _ = if rate < 1.0 {
                write!(line, ", {:.1} s each, eta {eta:.0} s", 1.0 / rate)
            } else {
                let rate = match self.unit.as_str() {
                    "bytes" => present::bytes(rate as u64),
                    unit => format!("{rate:.0} {unit}"),
                };
                write!(line, ", {rate}/s, eta {eta:.0} s")
            };
        }
        line
    }
}

impl Progress for Lines {
    fn start(&self, stage: &str, total: u64, unit: &str) {
        let now = Instant::now();
        if let Ok(mut slot) = self.stage.lock() {
            *slot = Some(Stage {
                name: stage.to_owned(),
                unit: unit.to_owned(),
                total,
                done: 0,
                start: now,
                told: now,
            });
        }
    }

    fn advance(&self, steps: u64) {
        if let Ok(mut slot) = self.stage.lock()
            && let Some(stage) = slot.as_mut()
        {
            stage.done += steps;
            if stage.told.elapsed() >= PLAIN_INTERVAL {
                stage.told = Instant::now();
                Ui::stderr(&format!("{}\n", stage.line()));
            }
        }
    }

    fn finish(&self) {
        if let Ok(mut slot) = self.stage.lock()
            && let Some(stage) = slot.take()
        {
            Ui::stderr(&format!("{}\n", stage.line()));
        }
    }
}
