//! Hostile safetensors files and why each is refused.

use neuroconv_format::{Disguise, ElementType, HeaderError, limits};

use crate::build::{container, entry, header};

/// A file and why it is refused.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) bytes: Vec<u8>,
    pub(crate) expected: HeaderError,
}

fn case(name: &'static str, bytes: impl Into<Vec<u8>>, expected: HeaderError) -> Case {
    Case {
        name,
        bytes: bytes.into(),
        expected,
    }
}

fn one(name: &'static str, fields: &str, data: usize, expected: HeaderError) -> Case {
    case(
        name,
        container(&format!(r#"{{"t":{{{fields}}}}}"#), data),
        expected,
    )
}

fn t() -> String {
    "t".to_owned()
}

fn json(tensor: Option<&str>, column: usize, reason: &str) -> HeaderError {
    let (tensor, reason) = (tensor.map(str::to_owned), reason.to_owned());
    HeaderError::Json {
        tensor,
        line: 1,
        column,
        reason,
    }
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = length_cases();
    cases.extend(json_cases());
    cases.extend(number_cases());
    cases.extend(name_cases());
    cases.extend(field_cases());
    cases.extend(size_cases());
    cases.extend(offset_cases());
    cases
}

fn length_cases() -> Vec<Case> {
    use Disguise::{Gguf, Html, Json, LfsPointer, Pickle, Zeros, Zip};
    let lfs = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1\n";
    let disguised = HeaderError::Disguised;
    let mut bomb = u64::MAX.to_le_bytes().to_vec();
    bomb.extend(b"{}");
    let declared = limits::HEADER_BYTES + 1;
    let mut above = declared.to_le_bytes().to_vec();
    above.extend(b"{}");
    let mut cut = 1000_u64.to_le_bytes().to_vec();
    cut.extend(b"{}");
    let mut empty = vec![0; 8];
    empty.extend(b"data");
    vec![
        case("pointer", lfs, disguised(LfsPointer)),
        case("page", "<!DOCTYPE html><html><body>404", disguised(Html)),
        case(
            "message",
            "{\"error\":\"Repository not found\"}",
            disguised(Json),
        ),
        case(
            "pickle",
            b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9".to_vec(),
            disguised(Pickle),
        ),
        case(
            "zip",
            b"PK\x03\x04\x00\x00\x08\x08\x00\x00".to_vec(),
            disguised(Zip),
        ),
        case(
            "gguf",
            b"GGUF\x03\x00\x00\x00\x00\x00\x00\x00".to_vec(),
            disguised(Gguf),
        ),
        case("never written", vec![0; 4096], disguised(Zeros)),
        case("empty", "", HeaderError::TooShort { found: 0 }),
        case("7 bytes", "\u{1}234567", HeaderError::TooShort { found: 7 }),
        case(
            "length bomb",
            bomb,
            HeaderError::HeaderLength { declared: u64::MAX },
        ),
        case(
            "above the cap",
            above,
            HeaderError::HeaderLength { declared },
        ),
        case(
            "cut header",
            cut,
            HeaderError::HeaderCut {
                declared: 1000,
                available: 2,
            },
        ),
        case("empty header", empty, HeaderError::NoBrace),
        case("array", container("[]", 0), HeaderError::NoBrace),
        case("leading space", container(" {}", 0), HeaderError::NoBrace),
    ]
}

fn json_cases() -> Vec<Case> {
    let mut invalid = container(r#"{"é":{}}"#, 0);
    invalid[10] = 0xff;
    let deep = format!(r#"{{"t":{{"shape":{}"#, "[".repeat(100_000));
    let list = "invalid type: sequence, expected u64";
    let entry = "invalid type: integer `7`, \
        expected an object of `dtype`, `shape` and `data_offsets`";
    let value = "invalid type: integer `1`, expected a string";
    let object = "invalid type: sequence, expected an object of strings";
    let text =
        |name, header: &str, at, reason| case(name, container(header, 0), json(None, at, reason));
    vec![
        text("open", "{", 1, "EOF while parsing an object"),
        text("text after", "{}x", 3, "trailing characters"),
        text("two objects", "{}{}", 3, "trailing characters"),
        text("metadata", r#"{"__metadata__":{"a":1}}"#, 22, value),
        text("metadata list", r#"{"__metadata__":[]}"#, 16, object),
        case(
            "not text",
            invalid,
            json(None, 3, "invalid unicode code point"),
        ),
        case("deep", container(&deep, 0), json(Some("t"), 15, list)),
        case(
            "no object",
            container(r#"{"t":7}"#, 0),
            json(Some("t"), 6, entry),
        ),
    ]
}

fn number_cases() -> Vec<Case> {
    let size = |name, shape: &str, offsets: &str, column, reason| {
        let fields = format!(r#""dtype":"U8","shape":{shape},"data_offsets":{offsets}"#);
        one(name, &fields, 4, json(Some("t"), column, reason))
    };
    let float = "invalid type: floating point `4.0`, expected u64";
    let string = r#"invalid type: string \"4\", expected u64"#;
    let sizes = r#"invalid type: string \"4\", expected an array of sizes"#;
    let two = "invalid length 0, expected an array of length 2";
    vec![
        size(
            "negative",
            "[-4]",
            "[0,4]",
            30,
            "invalid value: integer `-4`, expected u64",
        ),
        size(
            "minus eight",
            "[4]",
            "[-8,-4]",
            49,
            "invalid value: integer `-8`, expected u64",
        ),
        size("float", "[4.0]", "[0,4]", 31, float),
        size("exponent", "[4]", "[0,4e0]", 52, float),
        size("text size", "[\"4\"]", "[0,4]", 31, string),
        size("text shape", "\"4\"", "[0,4]", 30, sizes),
        size("no offsets", "[4]", "[]", 48, two),
        size("three offsets", "[4]", "[0,4,4]", 52, "trailing characters"),
    ]
}

fn name_cases() -> Vec<Case> {
    let empty = |name: &str| container(&header(&[entry(name, "U8", &[0], [0, 0])]), 0);
    let long = "n".repeat(limits::NAME_BYTES + 1);
    let shown = format!("{}…", "n".repeat(limits::SHOWN_CHARS));
    let both = [
        entry("t", "U8", &[1], [0, 1]),
        entry("t", "U8", &[1], [1, 2]),
    ];
    let escaped = both.join(",").replacen("\"t\"", "\"\\u0074\"", 1);
    let twice = HeaderError::DuplicateTensor { tensor: t() };
    let key = |key: &str| HeaderError::DuplicateMetadata {
        key: key.to_owned(),
    };
    let many = |count: usize, each: fn(usize) -> String| (0..count).map(each).collect::<Vec<_>>();
    let tensors = many(limits::TENSORS_PER_FILE + 1, |i| {
        entry(&i.to_string(), "U8", &[0], [0, 0])
    });
    let keys = many(limits::METADATA_KEYS + 1, |i| format!(r#""{i}":"""#));
    let metadata = |text: &str| container(&format!(r#"{{"__metadata__":{{{text}}}}}"#), 0);
    vec![
        case(
            "no name",
            empty(""),
            HeaderError::NameLength {
                tensor: String::new(),
                bytes: 0,
            },
        ),
        case(
            "long name",
            empty(&long),
            HeaderError::NameLength {
                tensor: shown,
                bytes: 513,
            },
        ),
        case(
            "bell",
            empty("a\u{7}"),
            HeaderError::NameControl {
                tensor: "a\\u{7}".into(),
            },
        ),
        case(
            "nul",
            empty("\0"),
            HeaderError::NameControl {
                tensor: "\\0".into(),
            },
        ),
        case(
            "c1",
            empty("\u{9b}31m"),
            HeaderError::NameControl {
                tensor: "\\u{9b}31m".into(),
            },
        ),
        case("twice", container(&header(&both), 2), twice.clone()),
        case(
            "twice, escaped",
            container(&format!("{{{escaped}}}"), 2),
            twice,
        ),
        case(
            "metadata twice",
            metadata(r#""a":"1","\u0061":"2""#),
            key("a"),
        ),
        case(
            "two metadata",
            container(r#"{"__metadata__":{},"__metadata__":{}}"#, 0),
            key("__metadata__"),
        ),
        case(
            "too many tensors",
            container(&header(&tensors), 0),
            HeaderError::TensorCount,
        ),
        case(
            "too many keys",
            metadata(&keys.join(",")),
            HeaderError::MetadataCount,
        ),
    ]
}

fn field_cases() -> Vec<Case> {
    let twice = |field| HeaderError::DuplicateField { tensor: t(), field };
    let missing = |field| HeaderError::MissingField { tensor: t(), field };
    let unknown = |field: &str| HeaderError::UnknownField {
        tensor: t(),
        field: field.to_owned(),
    };
    let (dtype, shape, offsets) = (
        r#""dtype":"U8""#,
        r#""shape":[4]"#,
        r#""data_offsets":[0,4]"#,
    );
    let good = format!("{dtype},{shape},{offsets}");
    let no_type = HeaderError::UnknownDtype {
        tensor: t(),
        dtype: "Q4_K".into(),
    };
    vec![
        one(
            "extra",
            &format!(r#"{good},"stride":[1]"#),
            4,
            unknown("stride"),
        ),
        one("escape codes", "\"\\u001b[2J\":1", 4, unknown("\\u{1b}[2J")),
        one(
            "two dtypes",
            &format!(r#"{good},"dtype":"I8""#),
            4,
            twice("dtype"),
        ),
        one("two shapes", &format!("{good},{shape}"), 4, twice("shape")),
        one(
            "two offsets",
            &format!(r#"{good},"data\u005foffsets":[0,4]"#),
            4,
            twice("data_offsets"),
        ),
        one(
            "no dtype",
            &format!("{shape},{offsets}"),
            4,
            missing("dtype"),
        ),
        one(
            "no shape",
            &format!("{dtype},{offsets}"),
            4,
            missing("shape"),
        ),
        one(
            "no place",
            &format!("{dtype},{shape}"),
            4,
            missing("data_offsets"),
        ),
        one(
            "unknown type",
            &format!(r#""dtype":"Q4_K",{shape},{offsets}"#),
            4,
            no_type,
        ),
    ]
}

fn size_cases() -> Vec<Case> {
    let sized = |name, dtype: &str, shape: &[u64], offsets, data, expected| {
        case(
            name,
            container(&header(&[entry("t", dtype, shape, offsets)]), data),
            expected,
        )
    };
    let big = 1 << 33;
    let overflow = |shape: &[u64]| HeaderError::Overflow {
        tensor: t(),
        shape: shape.to_vec(),
    };
    let size = |found| HeaderError::Size { tensor: t(), found };
    let count = |expected, found| HeaderError::ByteCount {
        tensor: t(),
        expected,
        found,
    };
    let partial = |dtype, shape: &[u64]| HeaderError::PartialByte {
        tensor: t(),
        dtype,
        shape: shape.to_vec(),
    };
    vec![
        sized(
            "rank",
            "U8",
            &[1; 9],
            [0, 1],
            1,
            HeaderError::Rank { tensor: t() },
        ),
        sized(
            "rank bomb",
            "U8",
            &[1; 100_000],
            [0, 1],
            1,
            HeaderError::Rank { tensor: t() },
        ),
        sized("2^48", "U8", &[1 << 48, 0], [0, 0], 0, size(1 << 48)),
        sized("2^64-1", "U8", &[u64::MAX], [0, 0], 0, size(u64::MAX)),
        sized("far end", "U8", &[1], [0, u64::MAX], 0, size(u64::MAX)),
        sized(
            "zero first",
            "F32",
            &[0, big, big],
            [0, 0],
            0,
            overflow(&[0, big, big]),
        ),
        sized(
            "zero last",
            "F32",
            &[big, big, 0],
            [0, 0],
            0,
            overflow(&[big, big, 0]),
        ),
        sized(
            "wraps to 4",
            "F32",
            &[1 << 31, 1 << 33],
            [0, 4],
            4,
            overflow(&[1 << 31, 1 << 33]),
        ),
        sized(
            "half a byte",
            "F4",
            &[3],
            [0, 1],
            1,
            partial(ElementType::F4, &[3]),
        ),
        sized(
            "six bits",
            "F6_E2M3",
            &[1],
            [0, 1],
            1,
            partial(ElementType::F6_E2M3, &[1]),
        ),
        sized("too few bytes", "F32", &[2], [0, 4], 4, count(8, 4)),
        sized("too many bytes", "U8", &[2], [0, 4], 4, count(2, 4)),
        sized("scalar", "F16", &[], [0, 4], 4, count(2, 4)),
        sized("no elements", "F16", &[3, 0], [0, 4], 4, count(0, 4)),
        sized(
            "claims a terabyte",
            "U8",
            &[1 << 40],
            [0, 1 << 40],
            4,
            HeaderError::DataCut {
                tensor: t(),
                end: 1 << 40,
                available: 4,
            },
        ),
    ]
}

fn offset_cases() -> Vec<Case> {
    let two = |name, first, second, data, expected| {
        let bytes = |[begin, end]: [u64; 2]| [end.saturating_sub(begin)];
        let entries = [
            entry("a", "U8", &bytes(first), first),
            entry("t", "U8", &bytes(second), second),
        ];
        case(name, container(&header(&entries), data), expected)
    };
    let hole = |expected, found| HeaderError::Hole {
        tensor: t(),
        expected,
        found,
    };
    let overlap = |expected, found| HeaderError::Overlap {
        tensor: t(),
        expected,
        found,
    };
    let a = || "a".to_owned();
    vec![
        two(
            "backwards",
            [0, 4],
            [4, 3],
            4,
            HeaderError::Backwards {
                tensor: t(),
                begin: 4,
                end: 3,
            },
        ),
        two("hole", [0, 4], [5, 8], 8, hole(4, 5)),
        two(
            "hole at the start",
            [2, 4],
            [4, 8],
            8,
            HeaderError::Hole {
                tensor: a(),
                expected: 0,
                found: 2,
            },
        ),
        two("overlap", [0, 4], [3, 8], 8, overlap(4, 3)),
        two("same place", [0, 4], [0, 4], 4, overlap(4, 0)),
        two("empty inside", [0, 4], [2, 2], 4, overlap(4, 2)),
        two(
            "cut data",
            [0, 4],
            [4, 8],
            7,
            HeaderError::DataCut {
                tensor: t(),
                end: 8,
                available: 7,
            },
        ),
        two(
            "polyglot",
            [0, 4],
            [4, 8],
            9,
            HeaderError::Trailing {
                expected: 8,
                found: 9,
            },
        ),
        case(
            "data of nothing",
            container("{}", 3),
            HeaderError::Trailing {
                expected: 0,
                found: 3,
            },
        ),
    ]
}
