//! What a report says of how a size was spent, as tables.

use super::number;
use crate::report::{AllocationRecord, FrontPoint};

/// Columns of [`front`].
pub const FRONT_COLUMNS: [&str; 5] = ["", "bits", "MB", "expected KL", "packed as"];

/// The best choices, the smallest first, with the one that was taken among them.
pub fn front(allocation: &AllocationRecord) -> Vec<[String; 5]> {
    let chosen = &allocation.chosen;
    let others = allocation.front.iter().filter(|p| p.bytes != chosen.bytes);
    let mut points: Vec<&FrontPoint> = others.chain([chosen]).collect();
    points.sort_by_key(|point| point.bytes);
    let row = |point: &FrontPoint| {
        let packings = point.packings.iter();
        let packings = packings.map(|(way, share)| format!("{way} {:.0} %", 100.0 * share));
        [
            if std::ptr::eq(point, chosen) {
                "taken"
            } else {
                ""
            }
            .to_owned(),
            format!("{:.3}", point.bits_per_weight),
            format!("{:.2}", point.bytes as f64 / 1e6),
            number(point.expected_kld),
            packings.collect::<Vec<_>>().join(", "),
        ]
    };
    points.into_iter().map(row).collect()
}
