//! Bar plots as inline SVG. Each bar carries its numbers as a title.

use std::fmt::Write;

use super::{count, escape, number};
use crate::metrics::KldHistogram;
use crate::report::TensorLine;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 140.0;
const FOOT: f64 = 18.0;

/// One bar per packed tensor in storage order, as high as the root of its relative squared
/// error, so that halving the step halves the bar.
pub(super) fn tensor_errors(out: &mut String, tensors: &[TensorLine]) -> std::fmt::Result {
    let bars: Vec<(f64, String)> = tensors
        .iter()
        .filter_map(|t| {
            let error = t.rel_mse?.max(0.0).sqrt();
            let title = format!("{} ({}): {} of its norm", t.name, t.codec, number(error));
            Some((error, title))
        })
        .collect();
    if bars.is_empty() {
        return writeln!(out, "<p class=\"faint\">no tensor is packed</p>");
    }
    let top = bars.iter().map(|b| b.0).fold(0.0, f64::max);
    plot(
        out,
        &bars,
        top,
        "Root of the relative squared error of each packed tensor",
    )?;
    writeln!(
        out,
        "<text x=\"0\" y=\"10\">{}</text><text x=\"0\" y=\"{}\">{} packed tensors, as stored</text></svg>",
        number(top),
        HEIGHT + FOOT - 4.0,
        bars.len(),
    )
}

/// Tokens by divergence, on a logarithmic scale.
pub(super) fn histogram(out: &mut String, h: &KldHistogram) -> std::fmt::Result {
    let edge = |i: usize| number(10f64.powf(h.log10_min + h.log10_step * i as f64));
    let bars: Vec<(f64, String)> = h
        .counts
        .iter()
        .enumerate()
        .map(|(i, &n)| {
            (
                n as f64,
                format!("{} to {}: {} tokens", edge(i), edge(i + 1), count(n)),
            )
        })
        .collect();
    let top = bars.iter().map(|b| b.0).fold(0.0, f64::max);
    plot(out, &bars, top, "Number of tokens by divergence in nats")?;
    for tick in (0..=bars.len()).step_by(8) {
        let x = WIDTH * tick as f64 / bars.len().max(1) as f64;
        write!(
            out,
            "<text x=\"{x:.1}\" y=\"{}\">{}</text>",
            HEIGHT + FOOT - 4.0,
            edge(tick)
        )?;
    }
    writeln!(out, "</svg>")
}

/// Opens an SVG and draws the bars; the caller adds its labels and closes it.
fn plot(out: &mut String, bars: &[(f64, String)], top: f64, name: &str) -> std::fmt::Result {
    let name = escape(name);
    writeln!(
        out,
        "<svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\" aria-label=\"{name}\"><title>{name}</title>",
        HEIGHT + FOOT
    )?;
    let pitch = WIDTH / bars.len().max(1) as f64;
    for (i, (value, title)) in bars.iter().enumerate() {
        let height = if top > 0.0 {
            (value / top * HEIGHT).clamp(0.0, HEIGHT)
        } else {
            0.0
        };
        writeln!(
            out,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\"><title>{}</title></rect>",
            i as f64 * pitch,
            HEIGHT - height,
            (pitch * 0.85).min(40.0),
            escape(title),
        )?;
    }
    writeln!(
        out,
        "<line x1=\"0\" y1=\"{HEIGHT}\" x2=\"{WIDTH}\" y2=\"{HEIGHT}\"/>"
    )
}
