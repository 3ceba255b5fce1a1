//! Where in the model an artifact leaves its original: hidden states, layer by layer.

use neuroconv_runtime::Progress;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::protocol::Window;
use crate::report::finite;
use crate::scorer::Scorer;

/// How much of the original is left after one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerDrift {
    /// The layer, from 0.
    pub layer: usize,
    /// Mean cosine of the two residual streams over tokens.
    #[serde(serialize_with = "finite")]
    pub cosine: f64,
    /// Signal over noise of the residual stream, in decibels; `null` where nothing differs.
    #[serde(serialize_with = "finite")]
    pub snr_db: Option<f64>,
    /// The same of what this layer alone adds: the artifact's layer begins where the original's
    /// did, so the error is its own.
    #[serde(serialize_with = "finite")]
    pub own_snr_db: Option<f64>,
}

/// Sums of squares over states.
#[derive(Default)]
struct Energy {
    signal: f64,
    noise: f64,
}

impl Energy {
    fn add(&mut self, signal: f64, noise: f64) {
        self.signal += signal;
        self.noise += noise;
    }

    fn decibels(&self) -> Option<f64> {
        (self.noise > 0.0 && self.signal > 0.0).then(|| 10.0 * (self.signal / self.noise).log10())
    }
}

/// Takes `windows` through both models layer by layer. None where the models have not the same
/// number of layers and channels.
pub fn layer_drift(
    base: &dyn Scorer,
    artifact: &dyn Scorer,
    windows: &[Window],
    progress: &dyn Progress,
) -> Result<Option<Vec<LayerDrift>>, Error> {
    let layers = base.spec().layers.len();
    if layers != artifact.spec().layers.len() || base.hidden_size() != artifact.hidden_size() {
        return Ok(None);
    }
    let tokens: Vec<&[u32]> = windows.iter().map(|w| w.tokens.as_slice()).collect();
    progress.start("layer by layer", layers as u64, "layers");
    let (mut original, mut found) = (base.embed(&tokens)?, artifact.embed(&tokens)?);
    let mut out = Vec::with_capacity(layers);
    for layer in 0..layers {
        let before = original.clone();
        let own = artifact.layer(layer, original.clone())?;
        original = base.layer(layer, original)?;
        found = artifact.layer(layer, found)?;
        out.push(measure(
            layer,
            base.hidden_size(),
            [&before, &original, &own, &found],
        ));
        progress.advance(1);
    }
    progress.finish();
    Ok(Some(out))
}

fn measure(layer: usize, width: usize, states: [&[Vec<f32>]; 4]) -> LayerDrift {
    let (mut stream, mut own) = (Energy::default(), Energy::default());
    let (mut cosine, mut tokens) = (0.0, 0.0);
    let rows = states.map(|s| s.iter().flat_map(move |x| x.chunks_exact(width)));
    let [before, original, alone, found] = rows;
    for (((before, original), alone), found) in before.zip(original).zip(alone).zip(found) {
        let squares = |a: &[f32], b: &[f32]| -> f64 {
            a.iter()
                .zip(b)
                .map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2))
                .sum()
        };
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter()
                .zip(b)
                .map(|(&a, &b)| f64::from(a) * f64::from(b))
                .sum()
        };
        stream.add(dot(original, original), squares(found, original));
        own.add(squares(original, before), squares(alone, original));
        let norms = (dot(original, original) * dot(found, found)).sqrt();
        cosine += if norms > 0.0 {
            dot(original, found) / norms
        } else {
            1.0
        };
        tokens += 1.0;
    }
    LayerDrift {
        layer,
        cosine: if tokens > 0.0 { cosine / tokens } else { 1.0 },
        snr_db: stream.decibels(),
        own_snr_db: own.decibels(),
    }
}

/// The layer whose own error is the largest.
pub fn worst_layer(layers: &[LayerDrift]) -> Option<usize> {
    let noisy = layers.iter().filter_map(|l| Some((l.layer, l.own_snr_db?)));
    noisy
        .min_by(|a, b| a.1.total_cmp(&b.1))
        .map(|(layer, _)| layer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drift_is_measured_against_what_a_layer_does() {
        let state = |x: [f32; 2]| vec![x.to_vec()];
        let (before, original) = (state([1.0, 0.0]), state([1.0, 1.0]));
        let (own, found) = (state([1.0, 1.1]), state([1.0, -1.0]));
        let d = measure(3, 2, [&before, &original, &own, &found]);
        assert!((d.own_snr_db.unwrap() - 20.0).abs() < 1e-4);
        assert!((d.snr_db.unwrap() - 10.0 * 0.5f64.log10()).abs() < 1e-9);
        assert!(d.cosine.abs() < 1e-12);
        let same = measure(0, 2, [&before, &original, &original, &original]);
        assert_eq!((same.snr_db, same.own_snr_db), (None, None));
        assert_eq!(worst_layer(&[same, d]), Some(3));
    }
}
