//! How much memory hostile headers cost. Alone in its process, since only the peak of a whole
//! process can be measured.

#![cfg(test)]

use std::io::{BufWriter, Write as _};
use std::path::Path;

use neuroconv_format::SafetensorsFile;

/// Bytes of the header of every bomb.
const HEADER: usize = 32 << 20;

/// Peak resident memory of this process in bytes.
fn peak() -> usize {
    let status = fs_err::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    line.trim()
        .strip_suffix(" kB")
        .unwrap()
        .parse::<usize>()
        .unwrap()
        * 1024
}

/// Writes a file whose header is `start`, as many pieces as fit, and `end`.
fn write(path: &Path, start: &str, piece: impl Fn(usize) -> String, end: &str) {
    let mut file = BufWriter::new(fs_err::File::create(path).unwrap());
    file.write_all(&(HEADER as u64).to_le_bytes()).unwrap();
    file.write_all(start.as_bytes()).unwrap();
    let mut left = HEADER - start.len() - end.len();
    for text in (0..).map(piece) {
        if text.len() > left {
            break;
        }
        left -= text.len();
        file.write_all(text.as_bytes()).unwrap();
    }
    file.write_all(end.as_bytes()).unwrap();
    for _ in 0..left {
        file.write_all(b" ").unwrap();
    }
}

#[test]
fn a_header_costs_at_most_twice_its_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let fields = r#"{"dtype":"U8","shape":[0],"data_offsets":[0,0]}"#;
    let before = peak();
    let check =
        |name: &str, start: &str, piece: &dyn Fn(usize) -> String, end: &str, good: bool| {
            write(&path, start, piece, end);
            assert_eq!(SafetensorsFile::open(&path).is_ok(), good, "{name}");
            let cost = peak() - before;
            assert!(
                cost <= 2 * HEADER + (32 << 20),
                "{name}: {cost} bytes for {HEADER} of header"
            );
        };
    let first = format!(r#"{{"first":{fields}"#);
    let tensor = |i: usize| format!(r#","{i:080}":{fields}"#);
    check("as many tensors as are allowed", &first, &tensor, "}", true);
    check(
        "as many as fit",
        &first,
        &|i| format!(r#","{i}":{fields}"#),
        "}",
        false,
    );
    check("a long name", "{\"", &|_| "n".repeat(1000), "\":0}", false);
    check(
        "a long escaped name",
        "{\"",
        &|_| "\\u006e".repeat(1000),
        "\":0}",
        false,
    );
    let metadata = r#"{"__metadata__":{"note":""#;
    check(
        "a long note",
        metadata,
        &|_| "\\u006e".repeat(1000),
        "\"}}",
        true,
    );
    let metadata = r#"{"__metadata__":{"":"""#;
    check(
        "many notes",
        metadata,
        &|i| format!(",\"{i}\":\"\""),
        "}}",
        false,
    );
    check(
        "deep",
        "{\"t\":{\"shape\":",
        &|_| "[".repeat(1000),
        "}}",
        false,
    );
    let shape = r#"{"t":{"dtype":"U8","shape":[1"#;
    check(
        "a long shape",
        shape,
        &|_| ",1".repeat(1000),
        "],\"data_offsets\":[0,1]}}",
        false,
    );
}
