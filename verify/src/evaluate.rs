//! The perplexity of one model.

use std::time::Instant;

use crate::parallel::each_window;
use neuroconv_runtime::Progress;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::compare::{batch_size, check_tokens, row_blocks};
use crate::protocol::{Protocol, Window};
use crate::report::finite;
use crate::score::log_sum;
use crate::scorer::Scorer;

/// What a model makes of a text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// `exp(nll)`.
    #[serde(serialize_with = "finite")]
    pub ppl: f64,
    /// Mean of `-ln p(token)` over the scored tokens, in nats.
    #[serde(serialize_with = "finite")]
    pub nll: f64,
    /// Scored tokens.
    pub tokens: u64,
    /// Windows.
    pub windows: u64,
    /// How the text was cut.
    pub protocol: Protocol,
    /// Tokens per window.
    pub ctx: usize,
    /// Seconds it took.
    #[serde(serialize_with = "finite")]
    pub wall_s: f64,
}

/// Scores all windows, which were cut by `protocol` at `ctx`. A model that gives a value that is
/// not finite has no perplexity: [`Error::NotFinite`].
pub fn evaluate(
    model: &dyn Scorer,
    windows: &[Window],
    protocol: Protocol,
    ctx: usize,
    progress: &dyn Progress,
) -> Result<Evaluation, Error> {
    let start = Instant::now();
    check_tokens(windows.iter(), model.vocab())?;
    let tokens: usize = windows.iter().map(|w| w.scored.len()).sum();
    if tokens == 0 {
        return Err(Error::TooLittleText {
            scored: 0,
            needed: 1,
        });
    }
    let mut sums: Vec<f64> = Vec::with_capacity(windows.len());
    for batch in windows.chunks(batch_size(windows.iter(), model.hidden_size())) {
        let tokens: Vec<&[u32]> = batch.iter().map(|w| w.tokens.as_slice()).collect();
        let states = model.hidden(&tokens, progress)?;
        let done = each_window(batch.len(), |i| window_nll(model, &batch[i], &states[i]));
        sums.extend(done?);
    }
    if let Some(window) = sums.iter().position(|nll| !nll.is_finite()) {
        return Err(Error::NotFinite { window });
    }
    let nll = sums.iter().sum::<f64>() / tokens as f64;
    Ok(Evaluation {
        ppl: nll.exp(),
        nll,
        tokens: tokens as u64,
        windows: windows.len() as u64,
        protocol,
        ctx,
        wall_s: start.elapsed().as_secs_f64(),
    })
}

/// The sum of `-ln p(token)` over the scored tokens of one window.
fn window_nll(model: &dyn Scorer, window: &Window, states: &[f32]) -> Result<f64, Error> {
    let (vocab, width) = (model.vocab(), model.hidden_size());
    let mut sum = 0.0;
    for rows in row_blocks(window, vocab) {
        let logits = model.logits(&states[rows.start * width..rows.end * width])?;
        for (row, logits) in rows.zip(logits.chunks_exact(vocab)) {
            let target = window.tokens[row + 1] as usize;
            sum += log_sum(logits) - f64::from(logits[target]);
        }
    }
    Ok(sum)
}
