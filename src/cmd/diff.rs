//! `neuroconv diff`: two models, tensor by tensor.

use neuroconv_recipes::TensorId;
use neuroconv_runtime::{Source, WeightSource};
use serde::Serialize;

use crate::args::DiffArgs;
use crate::exit::Exit;
use crate::hub::{self, Need};
use crate::present;
use crate::ui::Ui;

#[derive(Serialize)]
struct Difference {
    equal: bool,
    spec: Vec<SpecLine>,
    only_in_a: Vec<TensorId>,
    only_in_b: Vec<TensorId>,
    tokenizer_equal: bool,
    bytes_a: u64,
    bytes_b: u64,
    tensors: Vec<TensorLine>,
}

#[derive(Serialize)]
struct SpecLine {
    key: String,
    a: serde_json::Value,
    b: serde_json::Value,
}

#[derive(Serialize)]
struct TensorLine {
    name: TensorId,
    codec_a: &'static str,
    codec_b: &'static str,
    bytes_a: usize,
    bytes_b: usize,
    rel_mse: f64,
    max_abs: f64,
}

pub(crate) fn run(args: &DiffArgs, ui: Ui) -> anyhow::Result<Exit> {
    let resolve = |path| hub::resolve(path, &args.hub, Need::Weights, ui);
    let a = super::open(&resolve(&args.a)?)?;
    let b = super::open(&resolve(&args.b)?)?;
    let difference = compare(&a, &b, ui)?;
    show(&difference, ui);
    ui.object(&difference)?;
    Ok(Exit::Done)
}

fn compare(a: &Source, b: &Source, ui: Ui) -> anyhow::Result<Difference> {
    let (in_a, in_b) = (a.spec().tensors(), b.spec().tensors());
    let only = |x: &[(TensorId, Vec<usize>)], y: &[(TensorId, Vec<usize>)]| {
        x.iter()
            .filter(|t| !y.contains(t))
            .map(|t| t.0)
            .collect::<Vec<_>>()
    };
    let common: Vec<_> = in_a.iter().filter(|t| in_b.contains(t)).collect();
    let progress = ui.progress();
    progress.start("comparing", common.len() as u64, "tensors");
    let mut tensors = Vec::new();
    for (id, _) in common {
        let (ta, tb) = (a.tensor(*id)?, b.tensor(*id)?);
        let (wa, wb) = (
            neuroconv_quant::dequantize(&ta),
            neuroconv_quant::dequantize(&tb),
        );
        let max_abs = wa
            .iter()
            .zip(&wb)
            .map(|(x, y)| f64::from((x - y).abs()))
            .fold(0.0, f64::max);
        tensors.push(TensorLine {
            name: *id,
            codec_a: ta.codec_name(),
            codec_b: tb.codec_name(),
            bytes_a: ta.size_bytes(),
            bytes_b: tb.size_bytes(),
            rel_mse: neuroconv_quant::relative_mse(&wa, &wb),
            max_abs,
        });
        progress.advance(1);
    }
    progress.finish();
    let (only_in_a, only_in_b) = (only(&in_a, &in_b), only(&in_b, &in_a));
    let spec = spec_lines(a, b)?;
    let tokenizer_equal = a.side()?.tokenizer()? == b.side()?.tokenizer()?;
    let equal = spec.is_empty()
        && only_in_a.is_empty()
        && only_in_b.is_empty()
        && tokenizer_equal
        && tensors.iter().all(|t| t.max_abs == 0.0);
    let sum = |f: fn(&TensorLine) -> usize| tensors.iter().map(|t| f(t) as u64).sum();
    Ok(Difference {
        equal,
        spec,
        only_in_a,
        only_in_b,
        tokenizer_equal,
        bytes_a: sum(|t| t.bytes_a),
        bytes_b: sum(|t| t.bytes_b),
        tensors,
    })
}

/// The top-level keys of the model descriptions that differ.
fn spec_lines(a: &Source, b: &Source) -> anyhow::Result<Vec<SpecLine>> {
    let (a, b) = (
        serde_json::to_value(a.spec())?,
        serde_json::to_value(b.spec())?,
    );
    let keys = a.as_object().into_iter().flat_map(|o| o.keys());
    Ok(keys
        .filter(|key| a.get(*key) != b.get(*key))
        .map(|key| SpecLine {
            key: key.clone(),
            a: a[key].clone(),
            b: b[key].clone(),
        })
        .collect())
}

fn show(d: &Difference, ui: Ui) {
    if d.equal {
        ui.result("the models are equal: same description, tokenizer and dequantized weights");
    }
    for line in &d.spec {
        ui.result(format!("{}: {} | {}", line.key, line.a, line.b));
    }
    if !d.tokenizer_equal {
        ui.result("tokenizer.json differs");
    }
    for (which, only) in [("first", &d.only_in_a), ("second", &d.only_in_b)] {
        for id in only {
            ui.result(format!(
                "only in the {which}, or of another shape there: {id}"
            ));
        }
    }
    let rows: Vec<Vec<String>> = d
        .tensors
        .iter()
        .map(|t| {
            vec![
                t.name.to_string(),
                t.codec_a.to_owned(),
                t.codec_b.to_owned(),
                present::bytes(t.bytes_a as u64),
                present::bytes(t.bytes_b as u64),
                format!("{:.3e}", t.rel_mse),
                format!("{:.3e}", t.max_abs),
            ]
        })
        .collect();
    let header = [
        "tensor",
        "first",
        "second",
        "bytes",
        "bytes",
        "rel. mse",
        "max |diff|",
    ];
    ui.result(present::table(&header, &rows, &[3, 4, 5, 6]));
    ui.result(format!(
        "{} | {}",
        present::bytes(d.bytes_a),
        present::bytes(d.bytes_b)
    ));
}
