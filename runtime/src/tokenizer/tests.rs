use serde_json::json;

use super::*;

/// A byte-level tokenizer in the style of GPT-2 over all bytes with a few merges.
fn byte_level() -> Value {
    // The printable stand-ins of the 256 bytes, in byte order.
    let printable = |b: u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 256;
    let letters = (0..256_u32).map(|b| {
        let stand_in = if printable(b) { b } else { next };
        next += u32::from(!printable(b));
        char::from_u32(stand_in).unwrap().to_string()
    });
    let mut vocab: serde_json::Map<String, Value> = letters
        .enumerate()
        .map(|(id, token)| (token, json!(id)))
        .collect();
    for token in ["he", "ll", "hell", "hello", "Ġw"] {
        let id = vocab.len();
        vocab.insert(token.to_owned(), json!(id));
    }
    let step = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    json!({
        "version": "1.0",
        "added_tokens": [
            { "id": 261, "content": "<|begin|>", "single_word": false, "lstrip": false,
              "rstrip": false, "normalized": false, "special": true },
            { "id": 262, "content": "<|end|>", "single_word": false, "lstrip": false,
              "rstrip": false, "normalized": false, "special": true },
        ],
        "normalizer": { "type": "NFC" },
        "pre_tokenizer": step,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": "<|begin|>", "type_id": 0 } },
                       { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } },
                     { "Sequence": { "id": "B", "type_id": 1 } }],
            "special_tokens": {
                "<|begin|>": { "id": "<|begin|>", "ids": [261], "tokens": ["<|begin|>"] },
            },
        },
        "decoder": step,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false,
            "vocab": vocab,
            "merges": ["h e", ["l", "l"], "he ll", "hell o", "Ġ w"],
        },
    })
}

/// The same file with one place changed.
fn with(path: &str, value: Value) -> Value {
    let mut file = byte_level();
    *file.pointer_mut(path).unwrap_or_else(|| panic!("{path}")) = value;
    file
}

fn open(file: &Value, config: Option<Value>) -> Result<TextTokenizer, Error> {
    let dir = tempfile::tempdir().unwrap();
    // Merges may mix both spellings here, not in real files.
    fs_err::write(dir.path().join("tokenizer.json"), unmixed(file).to_string()).unwrap();
    if let Some(config) = config {
        fs_err::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    }
    TextTokenizer::open(dir.path())
}

/// Spells all merges as pairs.
fn unmixed(file: &Value) -> Value {
    let mut file = file.clone();
    if let Some(Value::Array(merges)) = file.pointer_mut("/model/merges") {
        for merge in merges {
            if let Some((a, b)) = merge.as_str().and_then(|text| text.split_once(' ')) {
                *merge = json!([a, b]);
            }
        }
    }
    file
}

#[test]
fn text_survives_the_round_trip_with_and_without_special_tokens() {
    let tokenizer = open(&byte_level(), None).unwrap();
    let text = "hello world, grüße an 世界 🌍\n";
    let plain = tokenizer.encode_plain(text).unwrap();
    assert_eq!(plain[..2], [259, 260]);
    assert_eq!(tokenizer.decode(&plain).unwrap(), text);
    let prompt = tokenizer.encode_prompt(text).unwrap();
    assert_eq!((prompt[0], &prompt[1..]), (261, &plain[..]));
    assert_eq!(tokenizer.decode(&prompt).unwrap(), text);
    assert_eq!(tokenizer.vocab_size(), 263);
    assert_eq!(tokenizer.token_id("<|end|>"), Some(262));
    assert!(tokenizer.encode_plain("").unwrap().is_empty());
}

#[test]
fn padding_and_truncation_are_ignored() {
    let mut file = byte_level();
    file["padding"] = json!({
        "strategy": { "Fixed": 50 }, "direction": "Right", "pad_to_multiple_of": 0,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "!",
    });
    file["truncation"] = json!({
        "direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 9,
    });
    let tokenizer = open(&file, None).unwrap();
    assert_eq!(tokenizer.encode_plain("hello hello").unwrap().len(), 3);
}

#[test]
fn a_missing_begin_token_is_added_only_where_the_configuration_says_so() {
    let mut file = byte_level();
    file["post_processor"] = Value::Null;
    for (config, bos) in [
        (
            json!({ "add_bos_token": true, "bos_token": "<|begin|>" }),
            Some(261),
        ),
        (
            json!({ "add_bos_token": true, "bos_token": { "content": "<|end|>" } }),
            Some(262),
        ),
        (
            json!({ "add_bos_token": false, "bos_token": "<|begin|>" }),
            None,
        ),
        (json!({ "bos_token": "<|begin|>" }), None),
    ] {
        let tokenizer = open(&file, Some(config)).unwrap();
        let expected: Vec<u32> = bos.into_iter().chain([259]).collect();
        assert_eq!(tokenizer.encode_prompt("hello").unwrap(), expected);
        assert_eq!(tokenizer.encode_plain("hello").unwrap(), [259]);
    }
    let config = json!({ "add_bos_token": true, "bos_token": "<|begin|>" });
    let once = open(&byte_level(), Some(config)).unwrap();
    assert_eq!(once.encode_prompt("hello").unwrap(), [261, 259]);
}

#[test]
fn streamed_text_is_whole_characters_and_adds_up() {
    let tokenizer = open(&byte_level(), None).unwrap();
    let text = "hello 世界 🌍é";
    let ids = tokenizer.encode_plain(text).unwrap();
    let mut stream = tokenizer.stream();
    let mut pieces = Vec::new();
    for &id in &ids {
        pieces.push(stream.push(id).unwrap());
    }
    pieces.push(stream.finish().unwrap());
    assert_eq!(pieces.concat(), text);
    assert!(
        pieces
            .iter()
            .all(|piece| !piece.contains(char::REPLACEMENT_CHARACTER))
    );
    assert!(pieces.iter().any(|piece| piece == "🌍"));
}

/// A tokenizer in the style of Llama 2: spaces as `▁`, one put in front, taken off in decoding.
fn spaces_as_letters() -> Value {
    let tokens = ["<unk>", "▁", "a", "b", "▁a", "▁b"];
    let vocab: serde_json::Map<String, Value> = tokens
        .iter()
        .enumerate()
        .map(|(id, token)| ((*token).to_owned(), json!(id)))
        .collect();
    json!({
        "version": "1.0",
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "Prepend", "prepend": "▁" },
            { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
        ] },
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
            { "type": "ByteFallback" },
            { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
        ] },
        "model": { "type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
                   "vocab": vocab, "merges": [["▁", "a"], ["▁", "b"]] },
    })
}

#[test]
fn a_stream_that_continues_a_text_keeps_the_first_space() {
    let tokenizer = open(&spaces_as_letters(), None).unwrap();
    let ids = tokenizer.encode_plain("a b ab").unwrap();
    assert_eq!(ids, [4, 5, 4, 3]);
    let text = |mut stream: TextStream<'_>, ids: &[u32]| -> String {
        ids.iter().map(|&id| stream.push(id).unwrap()).collect()
    };
    assert_eq!(text(tokenizer.stream(), &ids), "a b ab");
    assert_eq!(text(tokenizer.stream_after(&ids[..1]), &ids[1..]), " b ab");
    assert_eq!(text(tokenizer.stream(), &ids[1..]), "b ab");
}

#[test]
fn broken_bytes_are_given_out_as_replacement_characters_at_last() {
    let tokenizer = open(&byte_level(), None).unwrap();
    let lead = 0xf0;
    let mut stream = tokenizer.stream();
    assert_eq!(stream.push(lead).unwrap(), "");
    assert_eq!(stream.finish().unwrap(), "\u{fffd}");
    let mut stream = tokenizer.stream();
    let held: String = (0..40).map(|_| stream.push(lead).unwrap()).collect();
    assert!(held.chars().count() > 20);
    // A character that follows broken bytes is not lost.
    let mut stream = tokenizer.stream();
    assert_eq!(stream.push(lead).unwrap(), "");
    assert_eq!(stream.push(259).unwrap(), "\u{fffd}hello");
}

/// Each file must be refused with an error that names the place.
fn assert_refused<const N: usize>(cases: [(Value, &str); N]) {
    for (file, place) in cases {
        let error = open(&file, None).unwrap_err();
        assert!(matches!(error, Error::Tokenizer { .. }), "{place}: {error}");
        let text = error.to_string();
        assert!(
            text.contains("tokenizer.json") && text.contains(place),
            "{place}: {text}"
        );
    }
}

#[test]
fn vocabularies_that_contradict_themselves_are_refused_with_the_place() {
    assert_refused([
        (json!([]), "the file"),
        (with("/model", Value::Null), "the model"),
        (with("/model/merges/0", json!("h zz")), "merge 0"),
        (with("/model/merges/0", json!("hello hello")), "merge 0"),
        (with("/model/merges/0", json!("h")), "merge 0"),
        (with("/model/merges/1", json!(["l"])), "merge 1"),
        (with("/model/merges", json!(7)), "the model"),
        (with("/model/vocab", json!({})), "merge 0"),
        (
            with("/model/vocab/he", json!(4_294_967_295_u32)),
            "token `he`",
        ),
        (with("/model/vocab/he", json!(0)), "shares its id"),
        (with("/model/vocab/he", json!(-1)), "token `he`"),
        (with("/model/vocab/he", json!(1.5)), "token `he`"),
        (with("/model/unk_token", json!("<unk>")), "`unk_token`"),
        (
            with("/added_tokens/0/id", json!(4_294_967_295_u32)),
            "added token 0",
        ),
        (
            with("/added_tokens/0/id", json!(3)),
            "added token `<|begin|>`",
        ),
        (
            with("/added_tokens/1/id", json!(261)),
            "added token `<|end|>`",
        ),
        (
            with("/added_tokens/1/id", json!(270)),
            "added token `<|end|>`",
        ),
        (with("/added_tokens/0/content", json!("")), "added token 0"),
        (
            with("/added_tokens/1/content", json!("<|begin|>")),
            "added token `<|begin|>`",
        ),
        (with("/added_tokens", json!("x")), "`added_tokens`"),
    ]);
}

#[test]
fn steps_without_bounds_or_sense_are_refused_with_the_place() {
    let deep = (0..9).fold(
        json!({ "type": "NFC" }),
        |inner, _| json!({ "type": "Sequence", "normalizers": [inner] }),
    );
    let replace = |pattern: Value, content: &str| json!({ "type": "Replace", "pattern": pattern, "content": content });
    let long = "x".repeat(65);
    let nested_regex = format!("{}a{}", "(".repeat(500), ")".repeat(500));
    assert_refused([
        (with("/normalizer", deep), "deeply nested"),
        (with("/normalizer", json!("NFC")), "normalizer"),
        (
            with("/normalizer", json!({ "type": "Sequence" })),
            "normalizers",
        ),
        (
            with("/normalizer", json!({ "type": "Prepend", "prepend": long })),
            "normalizer",
        ),
        (
            with("/normalizer", replace(json!({ "String": "" }), "a")),
            "normalizer",
        ),
        (
            with("/normalizer", replace(json!({ "String": "a" }), &long)),
            "normalizer",
        ),
        (
            with(
                "/normalizer",
                replace(json!({ "Regex": nested_regex }), "a"),
            ),
            "nested",
        ),
        (
            with("/normalizer", replace(json!({ "Glob": "a" }), "a")),
            "normalizer",
        ),
        (
            with(
                "/normalizer",
                json!({ "type": "Sequence", "normalizers": [
                replace(json!({ "String": "a" }), "aaaaaaaaaa"),
                replace(json!({ "String": "a" }), "aaaaaaaaaa"),
            ] }),
            ),
            "64 times",
        ),
        (
            with(
                "/pre_tokenizer",
                json!({ "type": "Metaspace", "replacement": "" }),
            ),
            "replacement",
        ),
        (
            with(
                "/decoder",
                json!({ "type": "Strip", "content": " ", "start": 0, "stop": 3 }),
            ),
            "decoder",
        ),
        (
            with("/post_processor/single/1/Sequence/id", json!("B")),
            "post_processor",
        ),
        (
            with("/post_processor/single/1", json!({})),
            "post_processor",
        ),
        (with("/post_processor/single", json!([])), "exactly once"),
        (
            with("/post_processor/special_tokens", json!({})),
            "does not define",
        ),
        (
            with(
                "/post_processor/special_tokens/<|begin|>/ids",
                json!([9000]),
            ),
            "does not define",
        ),
        (
            with(
                "/post_processor/special_tokens/<|begin|>/ids",
                json!([1, 2]),
            ),
            "does not define",
        ),
    ]);
}

#[test]
fn parts_that_decoder_models_do_not_use_are_named() {
    let cases = [
        (with("/model/type", json!("WordPiece")), "WordPiece"),
        (with("/model/dropout", json!(0.5)), "dropout"),
        (
            with("/model/end_of_word_suffix", json!("</w>")),
            "end_of_word_suffix",
        ),
        (
            with("/normalizer", json!({ "type": "Precompiled" })),
            "Precompiled",
        ),
        (
            with(
                "/pre_tokenizer",
                json!({ "type": "FixedLength", "length": 0 }),
            ),
            "FixedLength",
        ),
        (
            with("/post_processor", json!({ "type": "BertProcessing" })),
            "BertProcessing",
        ),
        (with("/decoder", json!({ "type": "CTC" })), "CTC"),
    ];
    for (file, found) in cases {
        let error = open(&file, None).unwrap_err();
        assert!(
            matches!(error, Error::TokenizerPart { .. }),
            "{found}: {error}"
        );
        assert!(error.to_string().contains(found) && error.hint().is_some());
    }
}

#[test]
fn what_only_the_library_can_refuse_is_an_error_too() {
    for file in [
        with(
            "/normalizer",
            json!({ "type": "Replace", "pattern": { "Regex": "(" }, "content": "" }),
        ),
        with(
            "/pre_tokenizer",
            json!({ "type": "Split", "pattern": { "Regex": "a{9999999}{9999999}" },
                                       "behavior": "Isolated", "invert": false }),
        ),
        with("/decoder/add_prefix_space", json!("maybe")),
        with("/added_tokens/0/special", json!(3)),
    ] {
        let error = open(&file, None).unwrap_err();
        assert!(matches!(error, Error::TokenizerFailed { .. }), "{error}");
    }
}

#[test]
fn files_that_are_no_tokenizer_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let missing = TextTokenizer::open(dir.path()).unwrap_err();
    assert!(matches!(missing, Error::MissingFile { .. }) && missing.hint().is_some());
    let path = dir.path().join("tokenizer.json");
    for text in [
        "",
        "{",
        "\u{0}",
        &"[".repeat(100_000),
        "version https://git-lfs",
    ] {
        fs_err::write(&path, text).unwrap();
        assert!(
            matches!(TextTokenizer::open(dir.path()), Err(Error::Json { .. })),
            "{text:.9}"
        );
    }
    let sparse = fs_err::File::create(&path).unwrap();
    sparse.set_len(crate::side::TOKENIZER_LIMIT + 1).unwrap();
    assert!(matches!(
        TextTokenizer::open(dir.path()),
        Err(Error::FileSize { .. })
    ));
}

#[test]
fn any_text_and_any_ids_are_harmless() {
    let tokenizer = open(&byte_level(), None).unwrap();
    for text in [
        "\0",
        "\u{fffd}",
        "<|begin|><|end|>",
        &"a".repeat(100_000),
        "\u{202e}\u{301}",
    ] {
        tokenizer.encode_prompt(text).unwrap();
    }
    assert_eq!(tokenizer.decode(&[u32::MAX, 259, 99_999]).unwrap(), "hello");
}
