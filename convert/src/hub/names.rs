//! What a server may call things that become parts of a path.
//!
//! Owns the rules; whoever joins a path has asked here before. The rules are those of the cache that is
//! shared with other programs, or stricter.

use std::path::Path;

use neuroconv_format::limits::SHOWN_CHARS;

/// Bytes of a path inside a repository.
const PATH_BYTES: usize = 1024;
/// Bytes of one part of it, as file systems have it.
const PART_BYTES: usize = 255;
/// Characters of an organization, and of a name.
const NAME_CHARS: usize = 96;

/// Whether `text` is the SHA-1 of a commit.
pub(crate) fn is_commit(text: &str) -> bool {
    is_hex(text, 40)
}

/// Whether `text` is `digits` lower-case hexadecimal digits.
pub(crate) fn is_hex(text: &str, digits: usize) -> bool {
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    text.len() == digits && text.bytes().all(hex)
}

/// Checks the path of a file inside a repository.
pub(crate) fn check_path(path: &str) -> Result<(), &'static str> {
    if path.len() > PATH_BYTES {
        return Err("it is too long");
    }
    if path.chars().any(char::is_control) || path.contains('\\') {
        return Err("it has a character that no file of a model needs");
    }
    for part in path.split('/') {
        match part {
            "" => return Err("it is absolute, or has an empty part"),
            "." | ".." => return Err("it leads elsewhere"),
            part if part.len() > PART_BYTES => return Err("a part of it is too long"),
            _ => {}
        }
    }
    Ok(())
}

/// Checks a revision: a branch, a tag, a commit, or `refs/pr/N`.
pub(crate) fn check_revision(revision: &str) -> Result<(), &'static str> {
    let strange = |c: char| !c.is_ascii_graphic() || "~^:?*[%#@".contains(c);
    if revision.contains(strange) {
        return Err("a revision has no such character");
    }
    check_path(revision).map_err(|_| "this is no revision")
}

/// Checks an organization, or the name of a repository.
pub(crate) fn check_name(name: &str) -> Result<(), &'static str> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let edge = |c: char| c == '-' || c == '.';
    if name.is_empty() || !name.bytes().all(known) {
        return Err("a name of a hub has letters, digits, `-`, `_` and `.` only");
    }
    if name.len() > NAME_CHARS {
        return Err("a name of a hub has at most 96 characters");
    }
    if name.starts_with(edge) || name.ends_with(edge) || name.contains("--") || name.contains("..")
    {
        return Err("a name of a hub has no `-` or `.` at its ends, and never two of them");
    }
    if Path::new(name)
        .extension()
        .is_some_and(|ending| ending == "git")
    {
        return Err("a name of a hub does not end in `.git`");
    }
    Ok(())
}

/// Text of a server, made fit for a message.
pub(crate) fn shown(text: &str) -> String {
    let escaped: String = text.chars().flat_map(char::escape_debug).collect();
    match escaped.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &escaped[..end]),
        None => escaped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        for good in [
            "config.json",
            "additional_chat_templates/tool use.jinja",
            "a/b/c.d",
            "ä",
            "...",
            ".gitattributes",
        ] {
            assert_eq!(check_path(good), Ok(()), "{good}");
        }
        let long = "a".repeat(256);
        for bad in [
            "",
            "/",
            "/etc/passwd",
            "..",
            "../a",
            "a/../../b",
            "a/./b",
            "a//b",
            "a/",
            "a\0",
            "a\n",
            "a\u{1b}[2J",
            "a\\..\\b",
            &long,
        ] {
            assert!(check_path(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn hashes_are_lower_case_hexadecimal() {
        assert!(is_commit(&"0a".repeat(20)));
        for bad in [
            "main",
            "",
            "../../../x",
            &"0A".repeat(20),
            &"0a".repeat(32),
            &"0g".repeat(20),
        ] {
            assert!(!is_commit(bad), "{bad}");
        }
    }

    #[test]
    fn revisions_are_paths_of_plain_words() {
        for good in ["main", "refs/pr/1", "v1.0", "feature/x", &"0a".repeat(20)] {
            assert_eq!(check_revision(good), Ok(()), "{good}");
        }
        for bad in [
            "", "../x", "a b", "a\n", "/main", "main/", "a?b", "a#b", "a%2fb", "ä",
        ] {
            assert!(check_revision(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names_are_those_that_hubs_give() {
        for good in ["org", "Name-1.1B", "a_b", "a.b", &"a".repeat(96)] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "-a",
            "a-",
            ".a",
            "a..b",
            "a--b",
            "a.git",
            "a b",
            "ä",
            &"a".repeat(97),
        ] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn shown_text_moves_no_cursor() {
        assert_eq!(shown("a\u{1b}[2J"), "a\\u{1b}[2J");
        assert_eq!(shown(&"x".repeat(500)).chars().count(), SHOWN_CHARS + 1);
    }
}
