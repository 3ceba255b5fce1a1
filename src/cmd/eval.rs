//! `neuroconv eval`: the perplexity of any model on a text.

use neuroconv_runtime::WeightSource;
use neuroconv_verify::{Evaluation, ReferenceScorer, RuntimeScorer, Scorer};
use serde::Serialize;

use crate::args::EvalArgs;
use crate::corpus;
use crate::exit::Exit;
use crate::hub::{self, Need};
use crate::present;
use crate::ui::Ui;

#[derive(Serialize)]
struct Row<'a> {
    text: &'a str,
    sha256: &'a str,
    #[serde(flatten)]
    evaluation: Evaluation,
}

pub(crate) fn run(args: &EvalArgs, ui: Ui) -> anyhow::Result<Exit> {
    let model = hub::resolve(&args.model, &args.hub, Need::Weights, ui)?;
    let source = super::open(&model)?;
    let tokenizer = source.tokenizer()?;
    let measurement = corpus::measurement(&args.measure, source.spec(), tokenizer)?;
    let scorer: Box<dyn Scorer + '_> = if args.reference {
        Box::new(ReferenceScorer::new(&source)?)
    } else {
        Box::new(RuntimeScorer::new(&source)?.with_kv(args.kv.into()))
    };
    let progress = ui.progress();
    let (protocol, ctx) = (measurement.protocol, measurement.ctx);
    let mut rows = Vec::new();
    for text in &measurement.texts {
        let windows = neuroconv_verify::windows(text, protocol, ctx, Some(measurement.max_tokens))?;
        let evaluation = neuroconv_verify::evaluate(
            scorer.as_ref(),
            &windows,
            protocol,
            ctx,
            progress.as_ref(),
        )?;
        rows.push(Row {
            text: &text.name,
            sha256: &text.sha256,
            evaluation,
        });
    }
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let e = &row.evaluation;
            vec![
                row.text.to_owned(),
                format!("{:.4}", e.ppl),
                format!("{:.5}", e.nll),
                e.tokens.to_string(),
                e.windows.to_string(),
                format!("{protocol} {ctx}"),
                present::seconds(e.wall_s),
            ]
        })
        .collect();
    let header = [
        "text",
        "perplexity",
        "nats/token",
        "scored",
        "windows",
        "protocol",
        "time",
    ];
    ui.result(present::table(&header, &cells, &[1, 2, 3, 4, 6]));
    match rows.as_slice() {
        [one] => ui.object(one)?,
        all => ui.object(&all)?,
    }
    Ok(Exit::Done)
}
