//! How figures and tables look. Owns rounding and alignment, prints nothing.

use comfy_table::{CellAlignment, Table, presets};

/// A size in decimal units, as disks are sold: `6.80 MB`.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{n} B")
    } else {
        format!("{value:.2} {}", UNITS[unit])
    }
}

/// A table as a terminal shows it: no borders, a line under the header. The columns named in
/// `right` are aligned to the right.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>], right: &[usize]) -> String {
    build(presets::NOTHING, header, rows, right)
}

/// The same table in Markdown.
pub(crate) fn markdown_table(header: &[&str], rows: &[Vec<String>], right: &[usize]) -> String {
    build(presets::ASCII_MARKDOWN, header, rows, right)
}

fn build(preset: &str, header: &[&str], rows: &[Vec<String>], right: &[usize]) -> String {
    let mut table = Table::new();
    table.load_preset(preset);
    table.set_header(header.to_vec());
    for row in rows {
        table.add_row(row.clone());
    }
    for &column in right {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect::<Vec<_>>()
        .join("\n")
}

/// A figure with four significant digits.
pub(crate) fn number(x: f64) -> String {
    if x == 0.0 {
        return "0".to_owned();
    }
    let digits = (3 - x.abs().log10().floor() as i32).clamp(0, 8) as usize;
    format!("{x:.digits$}")
}

/// Seconds with as many digits as matter.
pub(crate) fn seconds(s: f64) -> String {
    if s < 10.0 {
        format!("{s:.1} s")
    } else if s < 600.0 {
        format!("{s:.0} s")
    } else {
        format!("{:.0} min", s / 60.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_decimal() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1000), "1.00 kB");
        assert_eq!(bytes(6_800_000), "6.80 MB");
    }

    #[test]
    fn figures_have_four_digits() {
        assert_eq!(number(0.000_123_456), "0.0001235");
        assert_eq!(number(1.5), "1.500");
        assert_eq!(number(12345.6), "12346");
        assert_eq!(number(0.0), "0");
    }

    #[test]
    fn tables_align() {
        let rows = vec![
            vec!["int8".into(), "8.1".into()],
            vec!["ternary".into(), "12.5".into()],
        ];
        let text = table(&["codec", "bits"], &rows, &[1]);
        assert_eq!(text.lines().count(), 3);
        assert!(
            text.lines()
                .all(|l| l.ends_with("bits") || l.ends_with('1') || l.ends_with('5'))
        );
    }
}
