//! Plots as inline SVG: bars, a scatter, nothing that needs a script. Each mark carries its
//! numbers as a title, and each plot stands beside a table of the same numbers.

use std::fmt::Write;

use super::{count, escape, number};
use crate::metrics::{BucketRow, KldHistogram};
use crate::report::{MlaRecord, Report};

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 160.0;
/// Room for labels above and below.
const HEAD: f64 = 34.0;
const FOOT: f64 = 30.0;
/// Room for the scale at the left.
const LEFT: f64 = 100.0;

/// One bar.
pub(super) struct Bar {
    pub(super) value: f64,
    pub(super) title: String,
    /// Beneath the bar, where there is room.
    pub(super) label: Option<String>,
    /// Second kind of bar, drawn in another colour.
    pub(super) second: bool,
}

/// What stands around the marks.
pub(super) struct Frame<'a> {
    /// For scripts and tests.
    pub(super) id: &'a str,
    /// What is shown.
    pub(super) name: &'a str,
    /// Written at the top of the scale.
    pub(super) unit: &'a str,
}

/// Bars from left to right on a scale from zero.
pub(super) fn bars(out: &mut String, frame: &Frame<'_>, bars: &[Bar]) -> std::fmt::Result {
    let top = bars.iter().map(|b| b.value).fold(0.0, f64::max);
    open(out, frame)?;
    scale(out, frame, top)?;
    let pitch = (WIDTH - LEFT) / bars.len().max(1) as f64;
    let every = (bars.len() as f64 * 90.0 / (WIDTH - LEFT)).ceil().max(1.0) as usize;
    for (i, bar) in bars.iter().enumerate() {
        let share = if top > 0.0 { bar.value / top } else { 0.0 };
        // A bar that is not zero is to be seen.
        let height = (share * HEIGHT).clamp(if bar.value > 0.0 { 1.0 } else { 0.0 }, HEIGHT);
        let width = (pitch * 0.8).min(48.0);
        // A bar of the second kind stands beside the one that it belongs to.
        let back = if bar.second { pitch - width } else { 0.0 };
        let x = LEFT + i as f64 * pitch - back;
        let class = if bar.second { " class=\"second\"" } else { "" };
        writeln!(
            out,
            "<rect{class} x=\"{x:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{height:.1}\">\
             <title>{}</title></rect>",
            HEAD + HEIGHT - height,
            escape(&bar.title),
        )?;
        if let Some(label) = bar.label.as_ref().filter(|_| i % every == 0) {
            text(out, x + width / 2.0, HEAD + HEIGHT + 18.0, "middle", label)?;
        }
    }
    close(out)
}

fn open(out: &mut String, frame: &Frame<'_>) -> std::fmt::Result {
    let name = escape(frame.name);
    writeln!(
        out,
        "<svg id=\"{}\" viewBox=\"0 0 {WIDTH} {}\" role=\"img\" aria-label=\"{name}\">\
         <title>{name}</title>",
        frame.id,
        HEAD + HEIGHT + FOOT
    )
}

/// The axes, and the scale's ends.
fn scale(out: &mut String, frame: &Frame<'_>, top: f64) -> std::fmt::Result {
    let bottom = HEAD + HEIGHT;
    for y in [HEAD, HEAD + HEIGHT / 2.0, bottom] {
        writeln!(
            out,
            "<line x1=\"{LEFT}\" y1=\"{y}\" x2=\"{WIDTH}\" y2=\"{y}\"/>"
        )?;
    }
    text(out, LEFT - 6.0, HEAD + 4.0, "end", &number(top))?;
    text(
        out,
        LEFT - 6.0,
        HEAD + HEIGHT / 2.0 + 4.0,
        "end",
        &number(top / 2.0),
    )?;
    text(out, LEFT - 6.0, bottom + 4.0, "end", "0")?;
    text(out, LEFT, 18.0, "start", frame.unit)
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, words: &str) -> std::fmt::Result {
    writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>",
        escape(words)
    )
}

fn close(out: &mut String) -> std::fmt::Result {
    writeln!(out, "</svg>")
}

/// What each layer adds to the error, and what has come together: noise over signal.
pub(super) fn layer_errors(out: &mut String, report: &Report) -> std::fmt::Result {
    let relative = |snr: Option<f64>| snr.map_or(0.0, |db| 10f64.powf(-db / 20.0));
    let pairs = report.layers.iter().flat_map(|l| {
        let (own, all) = (relative(l.own_snr_db), relative(l.snr_db));
        let bar = |value: f64, what: &str, label: Option<String>, second| Bar {
            value,
            title: format!("layer {}, {what}: {} of the signal", l.layer, number(value)),
            label,
            second,
        };
        [
            bar(own, "its own error", Some(l.layer.to_string()), false),
            bar(all, "error of the stream after it", None, true),
        ]
    });
    let frame = Frame {
        id: "plot-layers",
        name: "Error of each layer's own work, and of the residual stream after it",
        unit: "noise over signal",
    };
    bars(out, &frame, &pairs.collect::<Vec<_>>())
}

/// One bar per packed tensor in storage order, as high as the root of its relative squared
/// error, so that halving the step halves the bar.
pub(super) fn tensor_errors(out: &mut String, report: &Report) -> std::fmt::Result {
    let packed = report.tensors.iter().filter_map(|t| {
        let value = t.rel_mse?.max(0.0).sqrt();
        Some(Bar {
            value,
            title: format!("{} ({}): {} of its norm", t.name, t.codec, number(value)),
            label: None,
            second: false,
        })
    });
    let frame = Frame {
        id: "plot-tensors",
        name: "Root of the relative squared error of each packed tensor",
        unit: "error over norm, tensors as stored",
    };
    bars(out, &frame, &packed.collect::<Vec<_>>())
}

/// Tokens by divergence, on a logarithmic scale.
pub(super) fn histogram(out: &mut String, h: &KldHistogram) -> std::fmt::Result {
    let edge = |i: usize| number(10f64.powf(h.log10_min + h.log10_step * i as f64));
    let bins = h.counts.iter().enumerate().map(|(i, &n)| Bar {
        value: n as f64,
        title: format!("{} to {}: {} tokens", edge(i), edge(i + 1), count(n)),
        label: Some(edge(i)),
        second: false,
    });
    let frame = Frame {
        id: "plot-kld",
        name: "Number of tokens by divergence in nats",
        unit: "tokens, by divergence in nats",
    };
    bars(out, &frame, &bins.collect::<Vec<_>>())
}

/// Mean divergence by bucket.
pub(super) fn buckets(out: &mut String, frame: &Frame<'_>, rows: &[BucketRow]) -> std::fmt::Result {
    let all = rows.iter().map(|b| Bar {
        value: b.kld_mean.unwrap_or(0.0),
        title: format!(
            "{} to {}: {} over {} tokens",
            number(b.from),
            number(b.to),
            b.kld_mean.map_or_else(|| "nothing".into(), number),
            count(b.tokens)
        ),
        label: Some(format!("≤ {}", b.to)),
        second: false,
    });
    bars(out, frame, &all.collect::<Vec<_>>())
}

/// Something of a certain size and quality.
struct Dot {
    name: String,
    bits: f64,
    ratio: f64,
    interval: Option<(f64, f64)>,
    class: &'static str,
    /// Whether its name stands above it, so that neighbours do not run into each other.
    above: bool,
}

/// Size against quality: the original, the artifact with its interval, the yardstick.
pub(super) fn size_and_quality(out: &mut String, report: &Report) -> std::fmt::Result {
    let dots = dots(report);
    let most_bits = dots.iter().map(|d| d.bits).fold(0.0, f64::max) * 1.3;
    let ends = |d: &Dot| [d.ratio, d.interval.map_or(d.ratio, |i| i.1)];
    let top = dots.iter().flat_map(ends).fold(1.0, f64::max);
    let bottom = dots.iter().map(|d| d.ratio).fold(1.0, f64::min);
    let span = (top - bottom).max(0.001) * 1.2;
    let x = |bits: f64| LEFT + (WIDTH - LEFT) * bits / most_bits.max(1.0);
    let y = |ratio: f64| HEAD + HEIGHT * (1.0 - (ratio - bottom + span * 0.05) / span);
    let frame = Frame {
        id: "plot-size",
        name: "Perplexity over that of the original, by stored bits per weight",
        unit: "perplexity ratio, by bits per weight",
    };
    open(out, &frame)?;
    for ratio in [bottom, top] {
        let y = y(ratio);
        writeln!(
            out,
            "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{WIDTH}\" y2=\"{y:.1}\"/>"
        )?;
        text(out, LEFT - 6.0, y + 4.0, "end", &format!("{ratio:.3}"))?;
    }
    text(out, LEFT, 18.0, "start", frame.unit)?;
    for dot in &dots {
        let (x, y_dot) = (x(dot.bits), y(dot.ratio));
        if let Some((lo, hi)) = dot.interval {
            writeln!(
                out,
                "<line class=\"reach\" x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{:.1}\"/>",
                y(lo),
                y(hi)
            )?;
        }
        let title = format!(
            "{}: {} bits, ratio {}",
            dot.name,
            number(dot.bits),
            number(dot.ratio)
        );
        writeln!(
            out,
            "<circle class=\"{}\" cx=\"{x:.1}\" cy=\"{y_dot:.1}\" r=\"6\"><title>{}</title></circle>",
            dot.class,
            escape(&title)
        )?;
        let label = format!("{}, {}", dot.name, number(dot.bits));
        let y_label = if dot.above {
            y_dot - 14.0
        } else {
            HEAD + HEIGHT + 20.0
        };
        text(
            out,
            x + 10.0,
            y_label,
            if dot.above { "start" } else { "middle" },
            &label,
        )?;
    }
    close(out)
}

fn dots(report: &Report) -> Vec<Dot> {
    let m = &report.metrics;
    let source = super::source_bytes(report) as f64 * 8.0 / report.source.params.max(1) as f64;
    let mut dots = vec![
        Dot {
            name: "original".into(),
            bits: source,
            ratio: 1.0,
            interval: None,
            class: "second",
            above: false,
        },
        Dot {
            name: "artifact".into(),
            bits: report.artifact.bits_per_weight,
            ratio: m.ppl_ratio.value,
            interval: m.ppl_ratio.lo.zip(m.ppl_ratio.hi),
            class: "mark",
            above: true,
        },
    ];
    dots.extend(report.yardstick.iter().map(|y| Dot {
        name: y.name.clone(),
        bits: y.bits_per_weight,
        ratio: y.ppl.value / m.ppl_base.value,
        interval: None,
        class: "second",
        above: false,
    }));
    dots
}

/// What each converted layer loses when it alone is converted.
pub(super) fn latent_loss(out: &mut String, mla: &MlaRecord) -> std::fmt::Result {
    let layers = mla.layers.iter().zip(&mla.kld).map(|(layer, &value)| Bar {
        value,
        title: format!("layer {layer} alone: {} nats", number(value)),
        label: Some(layer.to_string()),
        second: false,
    });
    let frame = Frame {
        id: "plot-latent-loss",
        name: "Mean divergence when one layer alone is converted",
        unit: "nats, by layer",
    };
    bars(out, &frame, &layers.collect::<Vec<_>>())
}

/// Share of the variance that a latent keeps by its rank, one small plot per layer: a curve over
/// all ranks, and a mark at what was kept.
pub(super) fn spectra(out: &mut String, mla: &MlaRecord) -> std::fmt::Result {
    const PER_ROW: usize = 6;
    const CELL: f64 = WIDTH / PER_ROW as f64;
    const TALL: f64 = 100.0;
    let count = mla.spectrum.len();
    let rows = count.div_ceil(PER_ROW).max(1);
    let name = "Share of the variance of keys and values that a latent keeps, by its rank";
    writeln!(
        out,
        "<svg id=\"plot-spectra\" viewBox=\"0 0 {WIDTH} {}\" role=\"img\" aria-label=\"{name}\">\
         <title>{name}</title>",
        rows as f64 * TALL
    )?;
    for (i, curve) in mla.spectrum.iter().enumerate() {
        let (left, top) = ((i % PER_ROW) as f64 * CELL, (i / PER_ROW) as f64 * TALL);
        let (width, height) = (CELL - 14.0, TALL - 30.0);
        let step = width / curve.len().max(1) as f64;
        let y = |share: f64| top + 6.0 + height * (1.0 - share.clamp(0.0, 1.0));
        let mut points = format!("{left:.1},{:.1}", y(0.0));
        for (at, &share) in curve.iter().enumerate() {
            let _ = write!(
                points,
                " {:.1},{:.1}",
                left + step * (at + 1) as f64,
                y(share)
            );
        }
        let layer = mla.layers.get(i).copied().unwrap_or(i);
        let kept = mla.energy.get(i).copied().unwrap_or(1.0);
        let rank = mla.rank.get(i).copied().unwrap_or(0);
        let title = format!("layer {layer}: rank {rank} keeps {}", number(kept));
        let place = curve
            .iter()
            .position(|&share| share >= kept)
            .unwrap_or(curve.len());
        let x = left + step * (place + 1).min(curve.len()) as f64;
        writeln!(
            out,
            "<line x1=\"{left:.1}\" y1=\"{0:.1}\" x2=\"{1:.1}\" y2=\"{0:.1}\"/>\
             <polyline points=\"{points}\"><title>{2}</title></polyline>\
             <line class=\"reach\" x1=\"{x:.1}\" y1=\"{3:.1}\" x2=\"{x:.1}\" y2=\"{0:.1}\"/>",
            y(0.0),
            left + width,
            escape(&title),
            y(1.0),
        )?;
        text(
            out,
            left,
            top + TALL - 8.0,
            "start",
            &format!("{layer}: {rank}"),
        )?;
    }
    close(out)
}
