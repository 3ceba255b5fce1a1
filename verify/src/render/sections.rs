//! The sections of the page between the checks and the origin: statistics, plots, samples.

use std::fmt::{Result, Write};

use super::plots::{self, Frame};
use super::{
    FRONT_COLUMNS, LATENT_COLUMNS, count, escape, front, latent_layers, latent_steps, number,
    with_interval,
};
use crate::metrics::{Detail, Percentiles, Row};
use crate::report::{Report, SampleRecord};

/// A table, each row of which begins with what it is about. Cells are escaped here.
pub(super) fn table(out: &mut String, head: &[&str], rows: &[Vec<String>]) -> Result {
    write!(out, "<div class=\"wide\"><table>\n<tr>")?;
    for cell in head {
        write!(out, "<th>{}</th>", escape(cell))?;
    }
    writeln!(out, "</tr>")?;
    for row in rows {
        write!(out, "<tr>")?;
        for cell in row {
            write!(out, "<td>{}</td>", escape(cell))?;
        }
        writeln!(out, "</tr>")?;
    }
    writeln!(out, "</table></div>")
}

/// The same numbers as a plot, for those who cannot see it.
fn twin(out: &mut String, name: &str, head: &[&str], rows: &[Vec<String>]) -> Result {
    writeln!(out, "<details><summary>{}</summary>", escape(name))?;
    table(out, head, rows)?;
    writeln!(out, "</details>")
}

pub(super) fn size(out: &mut String, report: &Report) -> Result {
    writeln!(out, "<h2>Size and quality</h2>")?;
    plots::size_and_quality(out, report)
}

pub(super) fn texts(out: &mut String, report: &Report) -> Result {
    let rows: Vec<Vec<String>> = report
        .texts
        .iter()
        .chain(&report.long)
        .map(text_row)
        .collect();
    if rows.is_empty() {
        return Ok(());
    }
    writeln!(out, "<h2>Text by text</h2>")?;
    let head = [
        "text",
        "window",
        "tokens",
        "original",
        "artifact",
        "ratio",
        "mean KL",
        "same best",
    ];
    table(out, &head, &rows)
}

fn text_row(row: &Row) -> Vec<String> {
    vec![
        row.name.clone(),
        row.ctx.to_string(),
        count(row.tokens),
        number(row.ppl_base.value),
        number(row.ppl.value),
        with_interval(row.ppl_ratio),
        with_interval(row.kld_mean),
        format!("{:.2} %", 100.0 * row.top1.value),
    ]
}

pub(super) fn layers(out: &mut String, report: &Report) -> Result {
    if report.layers.is_empty() {
        return Ok(());
    }
    writeln!(out, "<h2>Error per layer</h2>")?;
    if let Some(worst) = report.worst_layer {
        writeln!(out, "<p>Layer {worst} errs most on its own.</p>")?;
    }
    writeln!(
        out,
        "<p class=\"faint\"><span class=\"one\">■</span> what the layer itself does \
         <span class=\"other\">■</span> the stream after it</p>"
    )?;
    plots::layer_errors(out, report)?;
    let decibels = |x: Option<f64>| x.map_or_else(|| "exact".into(), |x| format!("{x:.1} dB"));
    let rows: Vec<Vec<String>> = report
        .layers
        .iter()
        .map(|l| {
            vec![
                l.layer.to_string(),
                format!("{:.6}", l.cosine),
                decibels(l.snr_db),
                decibels(l.own_snr_db),
            ]
        })
        .collect();
    let head = [
        "layer",
        "cosine",
        "signal to noise after it",
        "of its own work",
    ];
    twin(out, &format!("{} layers", rows.len()), &head, &rows)
}

pub(super) fn tensors(out: &mut String, report: &Report) -> Result {
    writeln!(out, "<h2>Error per tensor</h2>")?;
    if report.tensors.iter().any(|t| t.rel_mse.is_some()) {
        plots::tensor_errors(out, report)?;
    } else {
        writeln!(out, "<p class=\"faint\">no tensor is packed</p>")?;
    }
    let maybe = |x: Option<f64>| x.map(number).unwrap_or_default();
    let rows: Vec<Vec<String>> = report
        .tensors
        .iter()
        .map(|t| {
            vec![
                t.name.clone(),
                t.codec.clone(),
                number(t.bits_per_weight),
                maybe(t.rel_mse),
                maybe(t.zeros),
                maybe(t.entropy_bits),
                maybe(t.output_error),
            ]
        })
        .collect();
    let head = [
        "tensor",
        "codec",
        "bits per weight",
        "relative squared error",
        "zeros",
        "entropy, bits",
        "squared error of outputs",
    ];
    twin(out, &format!("{} tensors", rows.len()), &head, &rows)
}

pub(super) fn divergence(out: &mut String, report: &Report) -> Result {
    if let Some(h) = &report.metrics.kld_histogram {
        writeln!(out, "<h2>Divergence per token</h2>")?;
        plots::histogram(out, h)?;
    }
    let Some(detail) = &report.metrics.detail else {
        return Ok(());
    };
    percentiles(out, detail)?;
    writeln!(out, "<h2>Divergence by confidence and position</h2>")?;
    let frame = Frame {
        id: "plot-confidence",
        name: "Mean divergence by the original's confidence in its likeliest token",
        unit: "nats, by the original's confidence",
    };
    plots::buckets(out, &frame, &detail.by_confidence)?;
    let frame = Frame {
        id: "plot-position",
        name: "Mean divergence by position in the window",
        unit: "nats, by share of the window before the token",
    };
    plots::buckets(out, &frame, &detail.by_position)
}

fn percentiles(out: &mut String, d: &Detail) -> Result {
    let row = |name: &str, of: fn(&Percentiles) -> f64| {
        let cells = [&d.kld, &d.kld_reverse, &d.dp].map(|p| number(of(p)));
        std::iter::once(name.to_owned()).chain(cells).collect()
    };
    let rows: Vec<Vec<String>> = vec![
        row("largest", |p| p.max),
        row("99.9 %", |p| p.p999),
        row("99 %", |p| p.p99),
        row("95 %", |p| p.p95),
        row("90 %", |p| p.p90),
        row("75 %", |p| p.p75),
        row("median", |p| p.p50),
        row("25 %", |p| p.p25),
        row("10 %", |p| p.p10),
        row("5 %", |p| p.p05),
        row("1 %", |p| p.p01),
        row("0.1 %", |p| p.p001),
        row("least", |p| p.min),
    ];
    let head = ["of tokens", "KL", "KL the other way", "change of p(token)"];
    twin(out, "percentiles", &head, &rows)
}

pub(super) fn latents(out: &mut String, report: &Report) -> Result {
    let Some(mla) = &report.mla else {
        return Ok(());
    };
    writeln!(out, "<h2>Latent attention</h2>")?;
    writeln!(
        out,
        "<p>{} rotated channels beside the latent.</p>",
        mla.rope_dim
    )?;
    let steps: Vec<Vec<String>> = latent_steps(report).into_iter().map(Vec::from).collect();
    table(out, &["step", "perplexity"], &steps)?;
    if !mla.spectrum.is_empty() {
        writeln!(out, "<h3>What a rank keeps, layer by layer</h3>")?;
        plots::spectra(out, mla)?;
    }
    if !mla.kld.is_empty() {
        plots::latent_loss(out, mla)?;
    }
    let rows: Vec<Vec<String>> = latent_layers(mla).into_iter().map(Vec::from).collect();
    twin(out, "converted layers", &LATENT_COLUMNS, &rows)
}

pub(super) fn allocation(out: &mut String, report: &Report) -> Result {
    let Some(allocation) = &report.allocation else {
        return Ok(());
    };
    writeln!(
        out,
        "<h2>The best at each size</h2>\n<p class=\"faint\">What is expected from the loss of each \
         matrix alone, measured on {} tokens of calibration text.</p>",
        count(allocation.tokens)
    )?;
    let rows: Vec<Vec<String>> = front(allocation).into_iter().map(Vec::from).collect();
    table(out, &FRONT_COLUMNS, &rows)?;
    let matrices = allocation.matrices.iter().map(|matrix| {
        vec![
            matrix.name.clone(),
            number(matrix.kld_alone),
            matrix.packing.clone(),
        ]
    });
    let head = ["matrix", "KL alone in four bits", "packed as"];
    twin(out, "every matrix", &head, &matrices.collect::<Vec<_>>())
}

pub(super) fn samples(out: &mut String, report: &Report) -> Result {
    if report.samples.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "<h2>What both write</h2>\n<p class=\"faint\">The likeliest token each time, after the same \
         prompts. From the first difference on, marked.</p>"
    )?;
    for sample in &report.samples {
        writeln!(out, "<h3>“{}”</h3>", escape(&sample.prompt))?;
        let [original, artifact] = marked(sample);
        writeln!(
            out,
            "<div class=\"two\"><div><b>original</b><p>{original}</p></div>\
             <div><b>artifact</b><p>{artifact}</p></div></div>"
        )?;
        match sample.divergence {
            Some(place) => writeln!(
                out,
                "<p class=\"faint\">same for {place} of {} tokens</p>",
                sample.tokens
            )?,
            None => writeln!(out, "<p class=\"faint\">the same to the end</p>")?,
        }
    }
    Ok(())
}

/// Both texts with the part after the first differing character marked.
fn marked(sample: &SampleRecord) -> [String; 2] {
    let pairs = sample.original.chars().zip(sample.artifact.chars());
    let same: usize = pairs
        .take_while(|(a, b)| a == b)
        .map(|(a, _)| a.len_utf8())
        .sum();
    [&sample.original, &sample.artifact].map(|text| {
        let (head, tail) = text.split_at(same.min(text.len()));
        if tail.is_empty() {
            escape(head)
        } else {
            format!("{}<mark>{}</mark>", escape(head), escape(tail))
        }
    })
}
