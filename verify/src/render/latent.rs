//! What a report says of converted attention, as tables.

use super::number;
use crate::report::{MlaRecord, Report};

/// Columns of [`latent_layers`].
pub const LATENT_COLUMNS: [&str; 6] = [
    "layer",
    "rank",
    "energy kept",
    "output error",
    "KL alone",
    "share of loss",
];

/// The steps from the original to the artifact and their perplexities.
pub fn latent_steps(report: &Report) -> Vec<[String; 2]> {
    let (Some(mla), m) = (&report.mla, &report.metrics) else {
        return Vec::new();
    };
    let mut steps = vec![("original", m.ppl_base.value)];
    steps.extend(
        mla.ppl_partial_rope
            .map(|ppl| ("rotated key, full rank", ppl)),
    );
    steps.extend(mla.ppl_converted.map(|ppl| ("converted, not packed", ppl)));
    steps.push(("artifact", m.ppl.value));
    let rows = steps.into_iter();
    rows.map(|(step, ppl)| [step.to_owned(), format!("{ppl:.4}")])
        .collect()
}

/// One row per converted layer, see [`LATENT_COLUMNS`].
pub fn latent_layers(mla: &MlaRecord) -> Vec<[String; 6]> {
    let at = |list: &[f64], i: usize| list.get(i).map_or_else(String::new, |x| number(*x));
    let row = |(i, layer): (usize, &usize)| {
        let error = mla.output_error.get(i).copied().flatten();
        let share = mla.loss_share.get(i);
        [
            layer.to_string(),
            mla.rank.get(i).map_or_else(String::new, usize::to_string),
            at(&mla.energy, i),
            error.map_or_else(String::new, number),
            at(&mla.kld, i),
            share.map_or_else(String::new, |s| format!("{:.1} %", s * 100.0)),
        ]
    };
    mla.layers.iter().enumerate().map(row).collect()
}
