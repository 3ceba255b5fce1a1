//! `neuroconv gate`: `verify` for a build, with a memory of what exports reached before.

use std::path::Path;

use anyhow::Context;
use neuroconv_verify::baseline::{Baseline, Entry};
use neuroconv_verify::gate::exit_code;
use neuroconv_verify::{Judgement, Verdict};

use super::verify::{self, Opened};
use crate::args::GateArgs;
use crate::exit::Exit;
use crate::pipeline::{self, Examination};
use crate::ui::Ui;

pub(crate) fn run(args: &GateArgs, ui: Ui) -> anyhow::Result<Exit> {
    let mut how = args.verify.clone();
    // A baseline is compared on the same tokens or not at all.
    how.judge.all_tokens |= args.baseline.is_some();
    let baseline = args
        .baseline
        .as_deref()
        .map(|path| read(path, args))
        .transpose()?;
    let opened = Opened::open(&how, ui)?;
    let Examination {
        mut report,
        mut advice,
        ..
    } = opened.examine(&how, ui)?;
    if let (Some(path), Some(mut baseline)) = (&args.baseline, baseline) {
        let now = Entry::of(&report);
        if !args.update_baseline {
            let mut checks = report.checks;
            let then = baseline.entry(&opened.key())?;
            checks.extend(then.checks(&now, args.max_drift)?);
            let judgement = Judgement::of(checks, how.limits.allow_quality_loss);
            report.exit_code = exit_code(judgement.verdict, &judgement.checks);
            report.verdict = judgement.verdict;
            report.checks = judgement.checks;
            if advice.is_empty() && report.verdict == Verdict::Fail {
                advice.push(
                    "the export became worse than the baseline: find out why, or accept it with \
                     `--update-baseline`"
                        .to_owned(),
                );
            }
        } else if matches!(report.verdict, Verdict::Pass | Verdict::Waived) {
            baseline.entries.insert(opened.key(), now);
            fs_err::write(path, baseline.to_json()?)?;
            ui.note(format!("{}: {} updated", path.display(), opened.key()));
        }
    }
    verify::tell(&how, &report, &advice, ui)?;
    Ok(pipeline::exit(&report))
}

/// The baseline; an empty one where it is to be written and there is none.
fn read(path: &Path, args: &GateArgs) -> anyhow::Result<Baseline> {
    if args.update_baseline && !path.exists() {
        return Ok(Baseline::default());
    }
    Baseline::parse(&fs_err::read(path)?).with_context(|| format!("`{}`", path.display()))
}
