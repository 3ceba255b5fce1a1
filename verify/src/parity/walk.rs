//! A batch of windows on its way through both implementations, step by step and end to end.

use neuroconv_runtime::Progress;

use super::step::StepSums;
use crate::Error;
use crate::compare::row_blocks;
use crate::protocol::Window;
use crate::reference::Activations;
use crate::scorer::{ReferenceScorer, Scorer};
use crate::tally::{Tally, WindowScores};

/// A batch of windows on its way through both implementations.
pub(super) struct Walk<'a> {
    reference: &'a ReferenceScorer<'a>,
    runtime: &'a dyn Scorer,
    windows: &'a [Window],
    progress: &'a dyn Progress,
    pub(super) steps: Vec<StepSums>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        reference: &'a ReferenceScorer<'a>,
        runtime: &'a dyn Scorer,
        windows: &'a [Window],
        progress: &'a dyn Progress,
    ) -> Self {
        Walk {
            reference,
            runtime,
            windows,
            progress,
            steps: Vec::new(),
        }
    }

    pub(super) fn run(&mut self, tally: &mut Tally) -> Result<(), Error> {
        let (reference, runtime) = (&self.reference.0, self.runtime);
        let tokens: Vec<&[u32]> = self.windows.iter().map(|w| w.tokens.as_slice()).collect();
        let layers = reference.spec().layers.len();
        self.progress.start("parity", layers as u64, "layers");
        let mut full = reference.embed(&tokens)?;
        let mut found = runtime.embed(&tokens)?;
        self.step("embedding".to_owned(), None, &full, &found);
        for index in 0..layers {
            let meant = reference.layer(index, &found, Activations::Rounded)?;
            full = reference.layer(index, &full, Activations::Full)?;
            let before = found.clone();
            found = runtime.layer(index, found)?;
            self.step(format!("layer {index}"), Some(&before), &meant, &found);
            self.progress.advance(1);
        }
        let meant = reference.finish(&found)?;
        full = reference.finish(&full)?;
        found = runtime.finish(found)?;
        self.step("final norm".to_owned(), None, &meant, &found);
        self.head(&full, &found, tally)?;
        self.progress.finish();
        Ok(())
    }

    fn step(
        &mut self,
        name: String,
        before: Option<&[Vec<f32>]>,
        meant: &[Vec<f32>],
        found: &[Vec<f32>],
    ) {
        let mut sums = StepSums::new(name, self.runtime.hidden_size());
        for (i, (meant, found)) in meant.iter().zip(found).enumerate() {
            let before = before.map_or(&[][..], |b| &b[i]);
            sums.add(before, meant, found);
        }
        sums.quartiles(meant, found);
        self.steps.push(sums);
    }

    /// The head as a step of its own, and the logits of both from beginning to end.
    fn head(
        &mut self,
        full: &[Vec<f32>],
        found: &[Vec<f32>],
        tally: &mut Tally,
    ) -> Result<(), Error> {
        let (vocab, width) = (self.runtime.vocab(), self.runtime.hidden_size());
        let mut sums = StepSums::new("head".to_owned(), vocab);
        for (i, window) in self.windows.iter().enumerate() {
            let mut scores = WindowScores::default();
            for rows in row_blocks(window, vocab) {
                let span = rows.start * width..rows.end * width;
                let reference = &self.reference.0;
                let meant = reference.logits(&found[i][span.clone()], Activations::Rounded)?;
                let full = reference.logits(&full[i][span.clone()], Activations::Full)?;
                let found = self.runtime.logits(&found[i][span])?;
                sums.add(&[], &meant, &found);
                let pairs = full.chunks_exact(vocab).zip(found.chunks_exact(vocab));
                for (row, (full, found)) in rows.zip(pairs) {
                    scores.add(full, found, None, window.tokens[row + 1], 0.0);
                }
            }
            tally.add(tally.lines.len(), 0, &scores);
        }
        self.steps.push(sums);
        Ok(())
    }
}
