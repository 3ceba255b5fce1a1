//! The model card: `README.md` of an artifact.
//!
//! Owns its wording and the escaping of everything foreign in it. Measures and judges nothing:
//! the caller fills in the numbers. From the source's card only licence and language are
//! carried over.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Read as _;
use std::path::Path;

/// Bytes of the source's card that are looked at.
const CARD_LIMIT: u64 = 64 << 10;
/// Keys of the source's front matter that are carried over, in the order they are written.
const CARRIED: [&str; 4] = ["license", "license_name", "license_link", "language"];

/// What the card of an artifact says about its use.
pub const USE_OF_ARTIFACT: &str = "The full report stands in `neuroconv/report.json`, the origin of \
    every tensor in `neuroconv/manifest.json`. The weights are packed; loaders of plain weights \
    refuse the folder.\n\n```\nneuroconv generate . -p \"Once upon a time\"\n\
    neuroconv export . --to hf -o FOLDER   # or --to gguf -o FILE: for other engines\n\
    sha256sum -c neuroconv/SHA256SUMS\n```\n";

/// What a model card says.
#[derive(Clone, Debug, Default)]
pub struct Card {
    /// Name of the artifact.
    pub title: String,
    /// Name of the source as people know it.
    pub source: String,
    /// Commit of the source, where known.
    pub commit: Option<String>,
    /// Hub id of the source; none for a local folder.
    pub base_model: Option<String>,
    /// Whether weights were rounded: `quantized`, else `finetune`.
    pub quantized: bool,
    /// What was measured: text, quantity as the hub calls it, name, value.
    pub metrics: Vec<[String; 4]>,
    /// What is carried over from the source's card.
    pub carried: FrontMatter,
    /// Tags beside `neuroconv`, such as the codec.
    pub tags: Vec<String>,
    /// The verdict in a word: `pass` or `waived`.
    pub verdict: String,
    /// One sentence on how the verdict came about.
    pub summary: String,
    /// What was compared: quantity, original, this artifact.
    pub comparison: Vec<[String; 3]>,
    /// The checks: id, limit, observed, outcome.
    pub checks: Vec<[String; 4]>,
    /// Which engines can run it: engine, verdict, why, whether that was tried.
    pub engines: Vec<[String; 4]>,
    /// The library that loads it.
    pub library: String,
    /// What the section about use says, in Markdown.
    pub usage: String,
    /// The command that made the artifact.
    pub command: String,
    /// The resolved recipe.
    pub recipe_toml: String,
    /// Version of this program.
    pub tool_version: String,
    /// What the artifact was not tested for.
    pub limits: Vec<String>,
}

/// The carried keys of a model card's front matter with their values, a list for `language`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FrontMatter(BTreeMap<&'static str, Vec<String>>);

impl FrontMatter {
    /// The front matter of `README.md` in a source folder; empty where there is none or where
    /// it is written in a form that is not understood. Never an error: a licence is carried
    /// over or not stated, it is never guessed.
    pub fn read(source: &Path) -> Self {
        let mut bytes = Vec::new();
        let readable = fs_err::File::open(source.join("README.md"))
            .and_then(|file| file.take(CARD_LIMIT).read_to_end(&mut bytes));
        match readable {
            Ok(_) => FrontMatter::parse(&String::from_utf8_lossy(&bytes)),
            Err(_) => FrontMatter::default(),
        }
    }

    /// Reads scalars, `[a, b]` and block lists of plain words; skips everything else.
    fn parse(card: &str) -> Self {
        let mut found = BTreeMap::new();
        let mut lines = card.lines().map(str::trim_end).peekable();
        if lines.next() != Some("---") {
            return FrontMatter::default();
        }
        while let Some(line) = lines.next() {
            if line == "---" {
                return FrontMatter(found);
            }
            let Some((key, value)) = line.split_once(':') else {
                continue;
            };
            let mut values = inline_values(value.trim());
            while let Some(item) = lines.peek().and_then(|l| l.trim_start().strip_prefix("- ")) {
                values.push(item);
                lines.next();
            }
            let Some(&key) = CARRIED.iter().find(|&&k| k == key) else {
                continue;
            };
            let values: Vec<String> = values.into_iter().filter_map(word).collect();
            if !values.is_empty() {
                found.insert(key, values);
            }
        }
        // Without an end it is no front matter.
        FrontMatter::default()
    }

    /// The licence, where stated.
    pub fn license(&self) -> Option<&str> {
        self.0.get("license")?.first().map(String::as_str)
    }
}

fn inline_values(value: &str) -> Vec<&str> {
    match value.strip_prefix('[').and_then(|v| v.strip_suffix(']')) {
        Some(list) => list.split(',').collect(),
        None if value.is_empty() => Vec::new(),
        None => vec![value],
    }
}

/// A value without its quotes, if it is a short line of printable characters.
fn word(value: &str) -> Option<String> {
    let value = value.trim();
    let bare = ['"', '\'']
        .iter()
        .find_map(|&q| value.strip_prefix(q)?.strip_suffix(q))
        .unwrap_or(value);
    let plain = !bare.is_empty()
        && bare.len() <= 200
        && !bare.starts_with(['|', '>', '{', '&', '*', '!'])
        && bare
            .chars()
            .all(|c| !c.is_control() && !matches!(c, '"' | '\\'));
    plain.then(|| bare.to_owned())
}

impl Card {
    /// The card as Markdown with YAML front matter.
    pub fn render(&self) -> String {
        let mut out = self.front_matter();
        let _ = write!(
            out,
            "\n# {}\n\n{} converted by neuroconv {}, together with the proof below that it still \
             works.\n\n> **Verdict: {}.** {}\n",
            text(&self.title),
            text(&self.source),
            text(&self.tool_version),
            text(&self.verdict),
            text(&self.summary),
        );
        table(
            &mut out,
            "Before and after",
            &["", "original", "this model"],
            &self.comparison,
        );
        table(
            &mut out,
            "Checks",
            &["check", "limit", "observed", "outcome"],
            &self.checks,
        );
        table(
            &mut out,
            "Engines",
            &["engine", "", "why", "tried"],
            &self.engines,
        );
        let _ = write!(out, "\n## Use\n\n{}", self.usage);
        let _ = write!(out, "\n## How it was made\n\n{}", fenced("", &self.command));
        if let Some(commit) = &self.commit {
            let _ = write!(out, "\nSource commit: {}\n", text(commit));
        }
        if !self.recipe_toml.is_empty() {
            let _ = write!(out, "\n{}", fenced("toml", &self.recipe_toml));
        }
        if !self.limits.is_empty() {
            out += "\n## Limits\n\n";
            for limit in &self.limits {
                let _ = writeln!(out, "- {}", text(limit));
            }
        }
        out += match self.carried.license() {
            Some(_) => "\n## Licence\n\nThe licence of the source applies.\n",
            None => "\n## Licence\n\nThe source states none in its card; ask its authors.\n",
        };
        out
    }

    fn front_matter(&self) -> String {
        let mut out = String::from("---\n");
        for key in CARRIED {
            match self.carried.0.get(key).map(Vec::as_slice) {
                Some([one]) if key != "language" => {
                    let _ = writeln!(out, "{key}: {}", yaml(one));
                }
                Some(many) => list(&mut out, key, many),
                None => {}
            }
        }
        let _ = writeln!(
            out,
            "library_name: {}\npipeline_tag: text-generation",
            yaml(&self.library)
        );
        if let Some(base) = &self.base_model {
            let _ = writeln!(
                out,
                "base_model: {}\nbase_model_relation: {}",
                yaml(base),
                if self.quantized {
                    "quantized"
                } else {
                    "finetune"
                }
            );
        }
        let tags: Vec<String> = std::iter::once("neuroconv".to_owned())
            .chain(self.tags.iter().cloned())
            .collect();
        list(&mut out, "tags", &tags);
        self.model_index(&mut out);
        out + "---\n"
    }

    /// Where the hub reads figures from.
    fn model_index(&self, out: &mut String) {
        if self.metrics.is_empty() {
            return;
        }
        let _ = write!(
            out,
            "model-index:\n- name: {}\n  results:\n",
            yaml(&self.title)
        );
        for [text, kind, name, value] in &self.metrics {
            let _ = write!(
                out,
                "  - task:\n      type: text-generation\n    dataset:\n      type: text\n      \
                 name: {}\n    metrics:\n    - type: {}\n      name: {}\n      value: {value}\n",
                yaml(text),
                yaml(kind),
                yaml(name),
            );
        }
    }
}

fn list(out: &mut String, key: &str, values: &[String]) {
    let _ = writeln!(out, "{key}:");
    for value in values {
        let _ = writeln!(out, "- {}", yaml(value));
    }
}

/// A double-quoted YAML scalar; words that need no quotes stay bare.
fn yaml(value: &str) -> String {
    let words_of_yaml = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    let bare = value.starts_with(|c: char| c.is_ascii_alphabetic())
        && value
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/'))
        && !words_of_yaml.contains(&value.to_ascii_lowercase().as_str());
    if bare {
        return value.to_owned();
    }
    // Every JSON string is a YAML double-quoted scalar.
    serde_json::Value::from(value).to_string()
}

fn table<const N: usize>(out: &mut String, title: &str, head: &[&str; N], rows: &[[String; N]]) {
    if rows.is_empty() {
        return;
    }
    let _ = write!(
        out,
        "\n## {title}\n\n| {} |\n|{}\n",
        head.join(" | "),
        "---|".repeat(N)
    );
    for row in rows {
        let _ = writeln!(
            out,
            "| {} |",
            row.each_ref().map(|cell| text(cell)).join(" | ")
        );
    }
}

/// One line of text in which nothing is Markdown or HTML.
fn text(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for c in value.chars() {
        match c {
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '#' | '~' => out.extend(['\\', c]),
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '&' => out += "&amp;",
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// A code block whose fence is longer than any run of backticks inside.
fn fenced(language: &str, code: &str) -> String {
    let longest = code.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    format!("{fence}{language}\n{}\n{fence}\n", code.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "---\nlicense: apache-2.0\nlanguage:\n- en\n- \"de\"\ntags: [a, b]\n\
        datasets:\n  - some\nlicense_link: 'https://example.org/l'\nmodel-index:\n- name: x\n---\ntext";

    #[test]
    fn licence_and_language_are_carried_and_nothing_else() {
        let carried = FrontMatter::parse(SOURCE);
        assert_eq!(carried.license(), Some("apache-2.0"));
        let card = Card {
            carried,
            library: "neuroconv".to_owned(),
            ..Card::default()
        }
        .front_matter();
        assert_eq!(
            card,
            "---\nlicense: apache-2.0\nlicense_link: \"https://example.org/l\"\nlanguage:\n- en\n\
             - de\nlibrary_name: neuroconv\npipeline_tag: text-generation\ntags:\n- neuroconv\n---\n"
        );
    }

    #[test]
    fn what_is_not_understood_is_left_out() {
        for card in [
            "",
            "license: mit",
            "---\nlicense: mit\n",
            "---\nlicense: {a: b}\n---\n",
            "---\nlicense: |\n  mit\n---\n",
            "---\n license: mit\n---\n",
            "---\nlicense:\n---\n",
            "---\nlicense: \"a\\nb\"\n---\n",
        ] {
            assert_eq!(FrontMatter::parse(card), FrontMatter::default(), "{card:?}");
        }
        assert_eq!(
            FrontMatter::parse("---\r\nlicense: [mit]\r\n---\r\n").license(),
            Some("mit")
        );
    }

    #[test]
    fn foreign_text_cannot_break_out() {
        let evil = "a|b\n# <script>`x` [l](u)";
        let card = Card {
            title: evil.to_owned(),
            base_model: Some("a\"\nlicense: mit".to_owned()),
            quantized: true,
            metrics: vec![["a: b\nlicense: mit", "perplexity", "x", "1.5"].map(str::to_owned)],
            comparison: vec![[evil, evil, evil].map(str::to_owned)],
            command: "echo ````\n---".to_owned(),
            ..Card::default()
        };
        let card = card.render();
        assert!(card.contains("base_model: \"a\\\"\\nlicense: mit\"\n"));
        assert!(
            card.contains("      name: \"a: b\\nlicense: mit\"\n"),
            "{card}"
        );
        assert!(card.contains("      value: 1.5\n"));
        // In the front matter it is a quoted word; what is rendered is the rest.
        let body = card.splitn(3, "---\n").nth(2).unwrap();
        assert!(!body.contains("<script>"));
        assert!(card.contains("\n`````\necho ````\n---\n`````\n"));
        let row = card.lines().find(|l| l.starts_with("| a")).unwrap();
        assert_eq!(row.replace("\\|", "").matches('|').count(), 4);
    }

    #[test]
    fn bare_words_stay_bare_and_others_are_quoted() {
        for (value, expected) in [
            ("apache-2.0", "apache-2.0"),
            ("no", "\"no\""),
            ("1.0", "\"1.0\""),
            ("a: b", "\"a: b\""),
            ("org/name", "org/name"),
        ] {
            assert_eq!(yaml(value), expected);
        }
    }
}
