//! Chooses the next token from logits: the arg max, or a seeded draw.
//!
//! Owns the order of the filters and the random stream, so that a seed gives the same tokens on
//! every machine and in every later version.

use std::cmp::Ordering;

use crate::Error;

/// PCG-XSH-RR 64/32 (O'Neill 2014, "PCG: A Family of Simple Fast Space-Efficient Statistically
/// Good Algorithms for Random Number Generation"): a 64-bit linear congruential generator whose
/// output is the high half, xor-shifted and rotated by the top five bits of the old state.
#[derive(Clone, Debug)]
pub struct Pcg32 {
    state: u64,
    increment: u64,
}

impl Pcg32 {
    const MULTIPLIER: u64 = 6_364_136_223_846_793_005;

    /// The generator of `seed` on stream `stream`, initialised as in the reference code.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut rng = Pcg32 {
            state: 0,
            increment: (stream << 1) | 1,
        };
        rng.next_u32();
        rng.state = rng.state.wrapping_add(seed);
        rng.next_u32();
        rng
    }

    /// The next 32 bits.
    pub fn next_u32(&mut self) -> u32 {
        let old = self.state;
        self.state = old
            .wrapping_mul(Self::MULTIPLIER)
            .wrapping_add(self.increment);
        let shifted = (((old >> 18) ^ old) >> 27) as u32;
        shifted.rotate_right((old >> 59) as u32)
    }

    /// The next number in `[0, 1)`, of 53 bits from two draws, the first one high.
    pub fn next_f64(&mut self) -> f64 {
        let high = u64::from(self.next_u32());
        let low = u64::from(self.next_u32());
        ((high << 32 | low) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// How to choose. The default is greedy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplerConfig {
    /// Divides the logits; 0 takes the arg max.
    pub temperature: f64,
    /// Keeps this many most likely tokens; `None` keeps all.
    pub top_k: Option<usize>,
    /// Keeps the most likely tokens until their probabilities reach this sum, after `top_k`.
    pub top_p: f64,
    /// Of the random stream.
    pub seed: u64,
}

impl Default for SamplerConfig {
    fn default() -> Self {
        SamplerConfig {
            temperature: 0.0,
            top_k: None,
            top_p: 1.0,
            seed: 0,
        }
    }
}

/// Chooses tokens one after the other.
#[derive(Clone, Debug)]
pub struct Sampler {
    config: SamplerConfig,
    rng: Pcg32,
}

impl Sampler {
    /// A sampler; errors where a parameter is outside its range.
    pub fn new(config: SamplerConfig) -> Result<Self, Error> {
        let bad = |name, found: String, expected| {
            Err(Error::Sampling {
                name,
                found,
                expected,
            })
        };
        if !(config.temperature.is_finite() && config.temperature >= 0.0) {
            return bad(
                "temperature",
                config.temperature.to_string(),
                "a number of at least 0",
            );
        }
        if !(config.top_p > 0.0 && config.top_p <= 1.0) {
            return bad(
                "top_p",
                config.top_p.to_string(),
                "a number above 0 and at most 1",
            );
        }
        if config.top_k == Some(0) {
            return bad("top_k", "0".to_owned(), "at least 1");
        }
        Ok(Sampler {
            config,
            rng: Pcg32::new(config.seed, 0),
        })
    }

    /// Always the most likely token.
    pub fn greedy() -> Self {
        let config = SamplerConfig::default();
        Sampler {
            config,
            rng: Pcg32::new(config.seed, 0),
        }
    }

    /// The next token by `logits` `[vocab]`. Among equals the lowest id comes first. Minus
    /// infinity forbids a token; NaN and infinity are errors.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32, Error> {
        if let Some(token) = logits
            .iter()
            .position(|l| l.is_nan() || *l == f32::INFINITY)
        {
            return Err(Error::BadLogit {
                token,
                value: logits[token],
            });
        }
        let best = arg_max(logits).ok_or(Error::NoChoice)?;
        if self.config.temperature == 0.0 {
            return Ok(best as u32);
        }
        let mut candidates: Vec<usize> = (0..logits.len())
            .filter(|&i| logits[i] > f32::NEG_INFINITY)
            .collect();
        let likelier = |a: &usize, b: &usize| {
            logits[*b]
                .partial_cmp(&logits[*a])
                .unwrap_or(Ordering::Equal)
                .then(a.cmp(b))
        };
        if let Some(k) = self.config.top_k.filter(|&k| k < candidates.len()) {
            candidates.select_nth_unstable_by(k - 1, likelier);
            candidates.truncate(k);
        }
        candidates.sort_unstable_by(likelier);
        let top = f64::from(logits[best]);
        let weights: Vec<f64> = candidates
            .iter()
            .map(|&i| ((f64::from(logits[i]) - top) / self.config.temperature).exp())
            .collect();
        let kept = nucleus(&weights, self.config.top_p);
        let drawn = draw(&weights[..kept], self.rng.next_f64());
        Ok(candidates[drawn] as u32)
    }
}

/// Index of the largest value, the first of equals; `None` without any above minus infinity.
fn arg_max(values: &[f32]) -> Option<usize> {
    let mut best: Option<usize> = None;
    for (i, &value) in values.iter().enumerate() {
        if value > best.map_or(f32::NEG_INFINITY, |b| values[b]) {
            best = Some(i);
        }
    }
    best
}

/// How many of the falling `weights` reach the share `top_p` of their sum; at least one.
fn nucleus(weights: &[f64], top_p: f64) -> usize {
    if top_p >= 1.0 {
        return weights.len();
    }
    let goal = top_p * weights.iter().sum::<f64>();
    let mut sum = 0.0;
    let reached = weights.iter().position(|w| {
        sum += w;
        sum >= goal
    });
    reached.map_or(weights.len(), |i| i + 1)
}

/// Index drawn with probability proportional to `weights` by `uniform` in `[0, 1)`.
fn draw(weights: &[f64], uniform: f64) -> usize {
    let goal = uniform * weights.iter().sum::<f64>();
    let mut sum = 0.0;
    let reached = weights.iter().position(|w| {
        sum += w;
        sum > goal
    });
    reached.unwrap_or(weights.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(temperature: f64, top_k: Option<usize>, top_p: f64) -> SamplerConfig {
        SamplerConfig {
            temperature,
            top_k,
            top_p,
            seed: 7,
        }
    }

    #[test]
    fn pcg_gives_the_published_numbers() {
        let mut rng = Pcg32::new(42, 54);
        let found: Vec<u32> = (0..6).map(|_| rng.next_u32()).collect();
        let published = [
            0xa15c_02b7,
            0x7b47_f409,
            0xba1d_3330,
            0x83d2_f293,
            0xbfa4_784b,
            0xcbed_606e,
        ];
        assert_eq!(found, published);
        let mut rng = Pcg32::new(42, 54);
        let unit = rng.next_f64();
        assert_eq!(
            (unit * (1_u64 << 53) as f64) as u64,
            0xa15c_02b7_7b47_f409 >> 11
        );
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        let mut sampler = Sampler::greedy();
        assert_eq!(sampler.sample(&[0.0, 3.0, 3.0, -1.0]).unwrap(), 1);
        assert_eq!(sampler.sample(&[f32::NEG_INFINITY, -9.0]).unwrap(), 1);
    }

    #[test]
    fn logits_without_an_answer_are_errors() {
        for temperature in [0.0, 1.0] {
            let mut sampler = Sampler::new(config(temperature, None, 1.0)).unwrap();
            let nan = sampler.sample(&[0.0, f32::NAN]);
            assert!(matches!(nan, Err(Error::BadLogit { token: 1, .. })));
            let infinite = sampler.sample(&[f32::INFINITY]);
            assert!(matches!(infinite, Err(Error::BadLogit { token: 0, .. })));
            assert!(matches!(sampler.sample(&[]), Err(Error::NoChoice)));
            assert!(matches!(
                sampler.sample(&[f32::NEG_INFINITY; 3]),
                Err(Error::NoChoice)
            ));
        }
    }

    #[test]
    fn parameters_outside_their_range_are_refused() {
        for bad in [
            config(-1.0, None, 1.0),
            config(f64::NAN, None, 1.0),
            config(f64::INFINITY, None, 1.0),
            config(1.0, Some(0), 1.0),
            config(1.0, None, 0.0),
            config(1.0, None, 1.1),
            config(1.0, None, f64::NAN),
        ] {
            assert!(
                matches!(Sampler::new(bad), Err(Error::Sampling { .. })),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn a_seed_fixes_the_tokens_and_another_changes_them() {
        let logits: Vec<f32> = (0..50).map(|i| (i as f32 * 0.7).sin()).collect();
        let run = |seed| -> Vec<u32> {
            let config = SamplerConfig {
                temperature: 1.0,
                top_k: None,
                top_p: 1.0,
                seed,
            };
            let mut sampler = Sampler::new(config).unwrap();
            (0..32).map(|_| sampler.sample(&logits).unwrap()).collect()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn draws_follow_the_softmax() {
        let probabilities = [0.5_f64, 0.3, 0.15, 0.05];
        let temperature = 0.5;
        let logits: Vec<f32> = probabilities
            .iter()
            .map(|p| (p.ln() * temperature) as f32)
            .collect();
        let mut sampler = Sampler::new(config(temperature, None, 1.0)).unwrap();
        let draws = 20_000;
        let mut counts = [0_usize; 4];
        for _ in 0..draws {
            counts[sampler.sample(&logits).unwrap() as usize] += 1;
        }
        for (count, p) in counts.into_iter().zip(probabilities) {
            let sigma = (p * (1.0 - p) / f64::from(draws)).sqrt();
            let share = count as f64 / f64::from(draws);
            assert!((share - p).abs() < 4.0 * sigma, "{share} against {p}");
        }
    }

    #[test]
    fn filters_keep_exactly_the_likeliest() {
        let logits: Vec<f32> = [0.1_f32, 0.4, 0.3, 0.2].iter().map(|p| p.ln()).collect();
        let seen = |top_k, top_p| -> Vec<u32> {
            let mut sampler = Sampler::new(config(1.0, top_k, top_p)).unwrap();
            let mut seen: Vec<u32> = (0..500).map(|_| sampler.sample(&logits).unwrap()).collect();
            seen.sort_unstable();
            seen.dedup();
            seen
        };
        assert_eq!(seen(Some(1), 1.0), [1]);
        assert_eq!(seen(Some(2), 1.0), [1, 2]);
        assert_eq!(seen(Some(9), 1.0), [0, 1, 2, 3]);
        assert_eq!(seen(None, 0.65), [1, 2]);
        assert_eq!(seen(None, 0.05), [1]);
        // 0.4 / 0.9 stays below a half, 0.7 / 0.9 reaches it.
        assert_eq!(seen(Some(3), 0.5), [1, 2]);
    }
}
