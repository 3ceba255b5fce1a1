use super::*;
use crate::{SideFiles, TextTokenizer};

fn text(text: &str) -> Meta {
    Meta::Text(text.to_owned())
}

fn metadata(keys: Vec<(&str, Meta)>) -> Metadata {
    let mut metadata = Metadata::default();
    for (key, value) in keys {
        metadata.push(key, value);
    }
    metadata
}

fn open(metadata: &Metadata) -> Result<TextTokenizer, Error> {
    let files = side_files(metadata, Path::new("x.gguf"))?;
    let bytes = |(name, value): (&str, Value)| (name.to_owned(), value.to_string().into_bytes());
    TextTokenizer::of(&SideFiles::Made {
        origin: "x.gguf".into(),
        files: files.into_iter().map(bytes).collect(),
    })
}

/// The metadata that a byte-level `tokenizer.json` becomes.
fn of_json(tokenizer: &Value, begin: u32) -> Metadata {
    let vocab = tokenizer["model"]["vocab"].as_object().unwrap();
    let mut tokens = vec![String::new(); vocab.len()];
    for (token, id) in vocab {
        tokens[id.as_u64().unwrap() as usize].clone_from(token);
    }
    let mut kinds = vec![1; tokens.len()];
    for added in tokenizer["added_tokens"].as_array().unwrap() {
        kinds[added["id"].as_u64().unwrap() as usize] = 3;
    }
    let merges = tokenizer["model"]["merges"].as_array().unwrap().iter();
    let merges = merges.map(|pair| {
        let half = |at: usize| pair[at].as_str().unwrap();
        format!("{} {}", half(0), half(1))
    });
    metadata(vec![
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.pre", text(pre_name(tokenizer).unwrap())),
        ("tokenizer.ggml.tokens", Meta::Array(Array::Text(tokens))),
        ("tokenizer.ggml.token_type", Meta::Array(Array::I32(kinds))),
        (
            "tokenizer.ggml.merges",
            Meta::Array(Array::Text(merges.collect())),
        ),
        ("tokenizer.ggml.bos_token_id", Meta::U32(begin)),
        ("tokenizer.ggml.add_bos_token", Meta::Bool(true)),
        ("tokenizer.chat_template", text("{{ messages[0].content }}")),
    ])
}

#[test]
fn bytes_and_merges_give_the_ids_of_the_tokenizer_they_came_from() {
    let dir = neuroconv_fixtures::tiny_model();
    let original = TextTokenizer::open(&dir).unwrap();
    let file = fs_err::read(dir.join("tokenizer.json")).unwrap();
    let metadata = of_json(&serde_json::from_slice(&file).unwrap(), 0);
    let read = open(&metadata).unwrap();
    assert_eq!(read.vocab_size(), original.vocab_size());
    let texts = neuroconv_fixtures::root().join("texts/english.txt");
    for text in [
        fs_err::read_to_string(texts).unwrap().as_str(),
        "été <|im_start|>user 12345\n\n\t x<|endoftext|>\u{1f600}",
        "",
    ] {
        let ids = read.encode_prompt(text).unwrap();
        assert_eq!(ids, original.encode_prompt(text).unwrap());
        assert_eq!(read.decode(&ids).unwrap(), original.decode(&ids).unwrap());
    }
    let side = SideFiles::Made {
        origin: "x.gguf".into(),
        files: side_files(&metadata, Path::new("x.gguf"))
            .unwrap()
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.to_string().into_bytes()))
            .collect(),
    };
    assert_eq!(
        crate::chat_prompt(&side, &[("user", "Hi")], true).unwrap(),
        "Hi"
    );
}

/// A vocabulary with scores: bytes, letters, and a few words.
fn scored(scores: impl Fn(usize) -> f32) -> Vec<(&'static str, Meta)> {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    tokens.extend((0..=255_u8).map(|byte| format!("<0x{byte:02X}>")));
    let words = ["\u{2581}t", "he", "\u{2581}the", "er", "\u{2581}ther"];
    tokens.extend(words.map(str::to_owned));
    let letters = ["\u{2581}", "t", "h", "e", "r"];
    tokens.extend(letters.map(str::to_owned));
    let kinds = (0..tokens.len() as i32).map(|id| match id {
        0 => 2,
        1 | 2 => 3,
        3..259 => 6,
        _ => 1,
    });
    let all = (0..tokens.len()).map(scores).collect();
    vec![
        ("tokenizer.ggml.model", text("llama")),
        (
            "tokenizer.ggml.token_type",
            Meta::Array(Array::I32(kinds.collect())),
        ),
        ("tokenizer.ggml.scores", Meta::Array(Array::F32(all))),
        ("tokenizer.ggml.tokens", Meta::Array(Array::Text(tokens))),
        ("tokenizer.ggml.bos_token_id", Meta::U32(1)),
        ("tokenizer.ggml.eos_token_id", Meta::U32(2)),
    ]
}

#[test]
fn scores_decide_what_merges_first() {
    let falling = |id: usize| -(id as f32);
    let read = open(&metadata(scored(falling))).unwrap();
    // The token that begins a text, the longest word, a letter, a byte twice.
    let ids = read.encode_prompt("ther t\u{e9}").unwrap();
    assert_eq!(ids, [1, 263, 259, 3 + 0xc3, 3 + 0xa9]);
    assert_eq!(read.decode(&ids).unwrap(), "ther t\u{e9}");
    assert_eq!(read.encode_plain("he").unwrap(), [264, 260]);

    // `er` before `he`: the word is no longer reached.
    let other = |id: usize| if id == 262 { 1.0 } else { falling(id) };
    let read = open(&metadata(scored(other))).unwrap();
    assert_eq!(read.encode_plain("ther").unwrap(), [259, 266, 262]);

    // One score for all: the order of ids.
    let read = open(&metadata(scored(|_| -1000.0))).unwrap();
    assert_eq!(read.encode_plain("ther").unwrap(), [263]);

    let mut bare = scored(falling);
    bare.push(("tokenizer.ggml.add_space_prefix", Meta::Bool(false)));
    bare.push(("tokenizer.ggml.add_bos_token", Meta::Bool(false)));
    bare.push(("tokenizer.ggml.add_eos_token", Meta::Bool(true)));
    let read = open(&metadata(bare)).unwrap();
    assert_eq!(read.encode_prompt("he").unwrap(), [260, 2]);
    assert_eq!(read.decode(&[260, 259]).unwrap(), "he t");
}

#[test]
fn what_is_odd_is_named() {
    let replaced = |key: &'static str, value: Meta| {
        let mut keys = scored(|id| -(id as f32));
        keys.retain(|(known, _)| *known != key);
        keys.push((key, value));
        open(&metadata(keys)).unwrap_err().to_string()
    };
    let texts = |texts: &[&str]| {
        Meta::Array(Array::Text(
            texts.iter().map(|text| (*text).to_owned()).collect(),
        ))
    };
    for (key, value) in [
        ("tokenizer.ggml.model", text("bert")),
        ("tokenizer.ggml.model", Meta::U32(1)),
        ("tokenizer.ggml.tokens", Meta::U32(1)),
        (
            "tokenizer.ggml.token_type",
            Meta::Array(Array::I32(vec![1])),
        ),
        (
            "tokenizer.ggml.token_type",
            Meta::Array(Array::I32(vec![9; 269])),
        ),
        ("tokenizer.ggml.scores", Meta::Array(Array::F32(vec![0.0]))),
        (
            "tokenizer.ggml.scores",
            Meta::Array(Array::F32(vec![f32::NAN; 269])),
        ),
        ("tokenizer.ggml.bos_token_id", Meta::U32(269)),
        ("tokenizer.ggml.bos_token_id", Meta::I32(-1)),
        ("tokenizer.ggml.add_bos_token", text("yes")),
    ] {
        let message = replaced(key, value);
        assert!(message.contains(key), "{message}");
    }
    let twice: Vec<&str> = std::iter::repeat_n("a", 269).collect();
    let message = replaced("tokenizer.ggml.tokens", texts(&twice));
    assert!(message.contains("`a` occurs twice"), "{message}");

    let bytes = |pre: &str, merges: &[&str]| {
        open(&metadata(vec![
            ("tokenizer.ggml.model", text("gpt2")),
            ("tokenizer.ggml.pre", text(pre)),
            ("tokenizer.ggml.tokens", texts(&["a", "b", "ab"])),
            ("tokenizer.ggml.merges", texts(merges)),
        ]))
    };
    let read = bytes("gpt-2", &["a b"]).unwrap();
    assert_eq!(read.encode_prompt("aba").unwrap(), [2, 0]);
    let unknown = bytes("other", &["a b"]).unwrap_err().to_string();
    assert!(unknown.contains("`other` is not read"), "{unknown}");
    for merge in ["ab", "", "a", "a c", "é"] {
        assert!(bytes("gpt-2", &[merge]).is_err(), "{merge}");
    }
    assert!(
        side_files(&Metadata::default(), Path::new("x"))
            .unwrap()
            .is_empty()
    );
}
