//! Draws size against divergence: what reports measured, and rows of another tool for comparison.
//!
//! ```text
//! cargo run --release -p neuroconv-verify --example front -- OUT.svg OTHER.csv REPORT.json...
//! ```
//!
//! `OTHER.csv` has the columns type, bytes, mean KL in nats, and a line of headings. Prints the
//! reports as the rows of a Markdown table.

#![expect(clippy::print_stdout, reason = "an example that prints its result")]

use std::error::Error;
use std::fmt::Write as _;

use neuroconv_verify::Report;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const FOOT: f64 = 40.0;

struct Point {
    name: String,
    bytes: f64,
    kld: f64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [out, other, reports @ ..] = args.as_slice() else {
        return Err("OUT.svg OTHER.csv REPORT.json...".into());
    };
    let mut ours = Vec::new();
    for path in reports {
        let report = Report::parse(&fs_err::read(path)?)?;
        let kld = report.metrics.kld_mean.value;
        ours.push((report.artifact.size_bytes as f64, kld, report));
    }
    ours.sort_by(|a, b| a.0.total_cmp(&b.0));
    for (bytes, kld, report) in &ours {
        println!(
            "| {:.2} MB | {:.3} | {:.4} | {kld:.6} | {:.1} % |",
            bytes / 1e6,
            report.artifact.bits_per_weight,
            report.metrics.ppl_ratio.value,
            100.0 * report.metrics.top1.value,
        );
    }
    let ours: Vec<Point> = ours
        .into_iter()
        .map(|(bytes, kld, _)| Point {
            name: String::new(),
            bytes,
            kld,
        })
        .collect();
    fs_err::write(out, draw(&ours, &rows(&fs_err::read_to_string(other)?)?)?)?;
    Ok(())
}

fn rows(csv: &str) -> Result<Vec<Point>, Box<dyn Error>> {
    let row = |line: &str| -> Result<Point, Box<dyn Error>> {
        let cells: Vec<&str> = line.split(',').collect();
        let [name, bytes, kld] = cells.as_slice() else {
            return Err(format!("`{line}` has not three columns").into());
        };
        Ok(Point {
            name: (*name).to_owned(),
            bytes: bytes.parse()?,
            kld: kld.parse()?,
        })
    };
    csv.lines().skip(1).map(row).collect()
}

fn draw(ours: &[Point], others: &[Point]) -> Result<String, Box<dyn Error>> {
    let all = || ours.iter().chain(others);
    let most = all().map(|p| p.bytes).fold(0.0, f64::max);
    let least = all().map(|p| p.bytes).fold(f64::INFINITY, f64::min);
    let x = |p: &Point| {
        let (from, to) = (least * 0.9, most * 1.05);
        LEFT + (WIDTH - LEFT) * (p.bytes - from) / (to - from)
    };
    let decade = |kld: f64| kld.max(1e-6).log10();
    let top = all()
        .map(|p| decade(p.kld))
        .fold(f64::NEG_INFINITY, f64::max)
        .ceil();
    let bottom = all()
        .map(|p| decade(p.kld))
        .fold(f64::INFINITY, f64::min)
        .floor();
    let y_of = |log: f64| 10.0 + (HEIGHT - FOOT - 10.0) * (top - log) / (top - bottom).max(1.0);
    let y = |p: &Point| y_of(decade(p.kld));
    let mut svg = String::new();
    writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <title>Mean divergence from the original by bytes of the file</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>"
    )?;
    for power in bottom as i32..=top as i32 {
        let y = y_of(f64::from(power));
        writeln!(
            svg,
            "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{WIDTH}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#333\">1e{power}</text>",
            LEFT - 6.0,
            y + 4.0
        )?;
    }
    for mega in (least * 0.9 / 1e6).ceil() as u32..=(most * 1.05 / 1e6) as u32 {
        let place = Point {
            name: String::new(),
            bytes: f64::from(mega) * 1e6,
            kld: 1.0,
        };
        writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#333\">{mega}</text>",
            x(&place),
            HEIGHT - FOOT + 18.0
        )?;
    }
    writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"{:.1}\" fill=\"#333\">mean KL in nats, by MB of the whole file: \
         line, neuroconv --target-bpw; crosses, llama.cpp</text>",
        HEIGHT - 6.0
    )?;
    let line: Vec<String> = ours
        .iter()
        .map(|p| format!("{:.1},{:.1}", x(p), y(p)))
        .collect();
    writeln!(
        svg,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"#0a6\" stroke-width=\"2\"/>",
        line.join(" ")
    )?;
    for p in ours {
        writeln!(
            svg,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\" fill=\"#0a6\"/>",
            x(p),
            y(p)
        )?;
    }
    let marks: Vec<(f64, f64, &str)> = others.iter().map(|p| (x(p), y(p), &*p.name)).collect();
    crosses(&mut svg, &marks)?;
    writeln!(svg, "</svg>")?;
    Ok(svg)
}

/// A cross with its name for each mark; where names would meet, the next goes to the left, below or
/// above.
fn crosses(svg: &mut String, marks: &[(f64, f64, &str)]) -> std::fmt::Result {
    let mut labels: Vec<(f64, f64)> = Vec::new();
    for &(x, y, name) in marks {
        let sides = [
            (8.0, 4.0, "start"),
            (-8.0, 4.0, "end"),
            (8.0, 16.0, "start"),
            (8.0, -8.0, "start"),
        ];
        let begin = |(dx, dy, anchor): (f64, f64, &str)| {
            let left = if anchor == "end" { 85.0 } else { 0.0 };
            (x + dx - left, y + dy)
        };
        let meets = |at: (f64, f64)| {
            let mut others = labels.iter();
            others.any(|l| (l.0 - at.0).abs() < 85.0 && (l.1 - at.1).abs() < 9.0)
        };
        let free = sides.into_iter().find(|side| !meets(begin(*side)));
        let (dx, dy, anchor) = free.unwrap_or(sides[0]);
        labels.push(begin((dx, dy, anchor)));
        writeln!(
            svg,
            "<path d=\"M{:.1} {:.1}l8 8m0 -8l-8 8\" stroke=\"#b30\" stroke-width=\"2\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\" fill=\"#b30\">{name}</text>",
            x - 4.0,
            y - 4.0,
            x + dx,
            y + dy,
        )?;
    }
    Ok(())
}
