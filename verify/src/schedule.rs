//! Which windows a verification runs, in which order, and after how many it looks at its checks.

use crate::Error;
use crate::compare::Placed;
use crate::protocol::{EvalText, MIN_SCORED_TOKENS, Window, windows};
use crate::run::VerifyOptions;

/// Windows before the first look: with fewer, intervals mean little.
const FIRST_LOOK: usize = 16;
/// Of so many windows of the text one is looked at more closely.
const BESIDE: usize = 16;
/// Looks before the end: after an eighth, a quarter and a half of the windows.
const LOOKS: [usize; 3] = [8, 4, 2];

/// After how many of `n` windows the checks are looked at, the last time after all.
pub(crate) fn looks(n: usize, early: bool) -> Vec<usize> {
    let before = LOOKS.iter().map(|part| n / part);
    let before = before.filter(|&k| early && k >= FIRST_LOOK);
    before.chain(std::iter::once(n)).collect()
}

/// How many windows to take through what costs more than the two passes over the text, where
/// `windows` are taken through those: at most one of sixteen, so that all of it together costs less
/// than the passes.
pub(crate) fn few_of(windows: usize, most: usize) -> usize {
    (windows / BESIDE).min(most).max(1)
}

/// The windows in an order in which every beginning is spread over all texts: steps of about the
/// golden section of their number.
pub(crate) fn scattered(cut: &[Placed]) -> Vec<Placed> {
    let n = cut.len();
    let mut step = (n * 618 / 1000).max(1);
    let divides = |a: usize, b: usize| {
        let (mut a, mut b) = (a, b);
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    while divides(step, n.max(1)) != 1 {
        step += 1;
    }
    (0..n).map(|i| cut[i * step % n].clone()).collect()
}

/// Refuses texts that are too short for a verdict, as [`crate::verify`] would in the end.
pub fn check_texts(texts: &[EvalText], options: &VerifyOptions) -> Result<(), Error> {
    cut_all(texts, options).map(drop)
}

/// The windows of all texts, one text after the other.
pub(crate) fn cut_all(texts: &[EvalText], options: &VerifyOptions) -> Result<Vec<Placed>, Error> {
    let mut all: Vec<Placed> = Vec::new();
    for (text, source) in texts.iter().enumerate() {
        let cut = windows(source, options.protocol, options.ctx, options.max_tokens)?;
        let first = all.len();
        all.extend(cut.into_iter().enumerate().map(|(i, window)| Placed {
            index: first + i,
            text,
            window,
        }));
    }
    match all.iter().map(|p| p.window.scored.len()).sum() {
        enough if enough >= MIN_SCORED_TOKENS => Ok(all),
        scored => Err(Error::TooLittleText {
            scored,
            needed: MIN_SCORED_TOKENS,
        }),
    }
}

/// `count` windows at even distances, or all where there are no more.
pub(crate) fn spread(cut: &[Placed], count: usize) -> Vec<Window> {
    let count = count.min(cut.len());
    (0..count)
        .map(|i| cut[i * cut.len() / count].window.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use neuroconv_recipes::Limits;
    use neuroconv_runtime::KvCodec;

    use super::*;
    use crate::protocol::Protocol;

    fn options() -> VerifyOptions {
        VerifyOptions {
            protocol: Protocol::Windows,
            ctx: 129,
            max_tokens: None,
            stop_early: true,
            limits: Limits::default(),
            yardstick: None,
            allow_quality_loss: false,
            parity_windows: 2,
            kv: KvCodec::F32,
            feedback: std::collections::BTreeSet::new(),
            rewrites: neuroconv_recipes::Rewrites::default(),
            logit_cache: None,
            thorough: true,
        }
    }

    #[test]
    fn texts_are_cut_one_by_one_and_counted_together() {
        let text = |name: &str, n: u32| EvalText::new(name, name, (0..n).collect(), None);
        let cut = cut_all(&[text("a", 300), text("b", 400)], &options()).unwrap();
        let places: Vec<_> = cut.iter().map(|p| (p.index, p.text)).collect();
        assert_eq!(places, [(0, 0), (1, 0), (2, 1), (3, 1), (4, 1)]);
        let few = cut_all(&[text("a", 300), text("b", 200)], &options());
        assert!(matches!(
            few,
            Err(Error::TooLittleText {
                scored: 384,
                needed: 512
            })
        ));
        assert!(matches!(
            cut_all(&[], &options()),
            Err(Error::TooLittleText { scored: 0, .. })
        ));
    }

    fn placed(n: usize) -> Vec<Placed> {
        let window = |i: usize| Window {
            tokens: vec![i as u32],
            scored: 1..1,
        };
        (0..n)
            .map(|index| Placed {
                index,
                text: 0,
                window: window(index),
            })
            .collect()
    }

    #[test]
    fn parity_windows_are_spread() {
        let first = |n| {
            spread(&placed(10), n)
                .iter()
                .map(|w| w.tokens[0])
                .collect::<Vec<_>>()
        };
        assert_eq!(first(3), [0, 3, 6]);
        assert_eq!(first(99).len(), 10);
    }

    #[test]
    fn every_beginning_of_the_order_covers_the_texts() {
        for n in [1, 2, 16, 80, 97, 160, 161] {
            let order = scattered(&placed(n));
            let mut seen: Vec<usize> = order.iter().map(|p| p.index).collect();
            let (early, quarter) = (seen[..n / 4].to_vec(), n / 4);
            for part in 0..4 {
                let range = part * n / 4..(part + 1) * n / 4;
                let count = early.iter().filter(|i| range.contains(i)).count();
                assert!(quarter < 8 || count > 0, "{n}: none of {quarter}");
            }
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..n), "{n}");
        }
    }

    #[test]
    fn few_windows_are_looked_at_closely() {
        let few = [1, 16, 47, 48, 1000].map(|n| few_of(n, 4));
        assert_eq!(few, [1, 1, 2, 3, 4]);
        assert_eq!(few_of(1000, 0), 1);
    }

    #[test]
    fn looks_need_windows_and_permission() {
        assert_eq!(looks(160, true), [20, 40, 80, 160]);
        assert_eq!(looks(80, true), [20, 40, 80]);
        assert_eq!(looks(20, true), [20]);
        assert_eq!(looks(160, false), [160]);
    }
}
