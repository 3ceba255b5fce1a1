//! The merges of a vocabulary whose tokens have scores instead, as `SentencePiece` keeps them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// Two tokens that become one, and the score of that one.
struct Merge<'a> {
    left: &'a str,
    right: &'a str,
    score: f32,
}

/// Every pair of tokens whose text together is a token, best first.
///
/// Pairs are ordered by the score of what they become, then by the length of their halves in characters,
/// greater first; among equals stands first what has the smaller ids. This is the order in which the
/// `transformers` package turns such vocabularies into merges.
pub(super) fn merges(ids: &BTreeMap<&str, u32>, tokens: &[(&str, f32)]) -> Value {
    let mut all: Vec<Merge<'_>> = Vec::new();
    for &(token, score) in tokens {
        let start = all.len();
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if ids.contains_key(left) && ids.contains_key(right) {
                all.push(Merge { left, right, score });
            }
        }
        all[start..].sort_by_key(|merge| (ids.get(merge.left), ids.get(merge.right)));
    }
    let chars = |text: &str| text.chars().count();
    all.sort_by(|a, b| {
        let scores = b.score.total_cmp(&a.score);
        let lengths = |m: &Merge<'_>| (chars(m.left), chars(m.right));
        scores.then_with(|| lengths(b).cmp(&lengths(a)))
    });
    all.iter()
        .map(|merge| json!([merge.left, merge.right]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_stand_in_the_order_of_their_scores() {
        let tokens = [
            ("a", -9.0),
            ("b", -9.0),
            ("é", -9.0),
            ("ab", -1.0),
            ("éa", -2.0),
            ("aba", -1.0),
            ("abab", -0.5),
        ];
        let ids: BTreeMap<&str, u32> = tokens.iter().map(|t| t.0).zip(0..).collect();
        let pairs = merges(&ids, &tokens);
        assert_eq!(
            pairs,
            // Of equal scores, longer left halves come first.
            json!([
                ["aba", "b"],
                ["ab", "ab"],
                ["ab", "a"],
                ["a", "b"],
                ["é", "a"]
            ])
        );
    }
}
