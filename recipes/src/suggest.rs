//! Words shown to people: the near one to a word that failed, and foreign text made safe to print.

/// Characters of foreign text that a message repeats.
const SHOWN: usize = 80;

/// The candidate nearest to `word`, if it is near enough to be what was meant: at most a third
/// of the letters differ.
pub fn near<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    if word.len() > 512 {
        return None;
    }
    let word = word.to_lowercase();
    let limit = (word.len() / 3).max(1);
    candidates
        .into_iter()
        .filter(|c| c.len().abs_diff(word.len()) <= limit)
        .map(|c| (strsim::osa_distance(&word, &c.to_lowercase()), c))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, c)| c.to_owned())
}

/// `text` as a message may show it: control characters escaped, long text cut.
pub(crate) fn shown(text: &str) -> String {
    let mut out: String = text
        .chars()
        .take(SHOWN)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().nth(SHOWN).is_some() {
        out.push('…');
    }
    out
}

/// `items` in backticks, joined by commas.
pub(crate) fn listed<S: AsRef<str>>(items: &[S]) -> String {
    let quoted: Vec<String> = items.iter().map(|i| format!("`{}`", i.as_ref())).collect();
    quoted.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_found_and_far_ones_are_not() {
        let words = ["ternary", "int4", "int8"];
        assert_eq!(near("ternay", words).as_deref(), Some("ternary"));
        assert_eq!(near("INT8", words).as_deref(), Some("int8"));
        assert_eq!(near("mamba", words), None);
        assert_eq!(near("", words), None);
        assert_eq!(near(&"x".repeat(10_000), words), None);
    }

    #[test]
    fn foreign_text_is_cut_and_escaped() {
        assert_eq!(shown("a\u{1b}[31mb\n"), "a\\u{1b}[31mb\\n");
        assert_eq!(shown(&"y".repeat(200)).chars().count(), SHOWN + 1);
        assert_eq!(listed(&["a", "b"]), "`a`, `b`");
    }
}
