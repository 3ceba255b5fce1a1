//! Checkpoint folders: single, sharded, and broken in every way.

use neuroconv_format::{CheckpointError, CheckpointFiles, DType, Error, limits};

use crate::build::{Dir, container, entry, header};

/// A shard of one-byte-per-element F16 tensors of these names, four bytes each.
fn shard(names: &[&str]) -> Vec<u8> {
    let place = |i: usize| [4 * i as u64, 4 * i as u64 + 4];
    let entries: Vec<String> = names
        .iter()
        .enumerate()
        .map(|(i, name)| entry(name, "F16", &[2], place(i)))
        .collect();
    container(&header(&entries), 4 * names.len())
}

/// A folder with one weight file.
pub(crate) fn write_single(dir: &Dir, at: &str) {
    dir.write(&format!("{at}/config.json"), r#"{"model_type":"llama"}"#);
    dir.write(&format!("{at}/model.safetensors"), shard(&["b", "a"]));
    dir.write(&format!("{at}/tokenizer.json"), "{}");
}

/// A folder with the shards 1 of `b`, `c` and 2 of `a`.
fn write_sharded(dir: &Dir, at: &str) {
    dir.write(&format!("{at}/config.json"), "{}");
    dir.write(&format!("{at}/model-1.safetensors"), shard(&["b", "c"]));
    dir.write(&format!("{at}/model-2.safetensors"), shard(&["a"]));
    let map = r#"{"a":"model-2.safetensors","c":"model-1.safetensors","b":"model-1.safetensors"}"#;
    write_index(dir, at, map);
}

fn write_index(dir: &Dir, at: &str, map: &str) {
    let index = format!(r#"{{"metadata":{{"total_size":12}},"weight_map":{map}}}"#);
    dir.write(&format!("{at}/model.safetensors.index.json"), index);
}

fn names(files: &CheckpointFiles) -> Vec<&str> {
    files.tensors().map(|info| info.name.as_str()).collect()
}

#[test]
fn a_single_file_is_read() {
    let dir = Dir::new();
    write_single(&dir, "m");
    let files = CheckpointFiles::open(dir.path("m")).unwrap();
    assert_eq!(files.path(), dir.path("m"));
    assert_eq!(names(&files), ["a", "b"]);
    assert_eq!(files.config()["model_type"], "llama");
    assert_eq!(files.generation_config(), None);
    let tensor = files.read("a").unwrap();
    assert_eq!(
        (tensor.dtype, tensor.shape, tensor.bytes.len()),
        (DType::F16, vec![2], 4)
    );
    assert_eq!(files.info("a").unwrap().name, "a");
    assert_eq!(files.info("c"), None);
    let error = files.read("c\n").unwrap_err();
    assert!(
        matches!(&error, Error::NoTensor { tensor, .. } if tensor == "c\\n"),
        "{error:?}"
    );
}

#[test]
fn shards_are_read_through_the_index() {
    let dir = Dir::new();
    write_sharded(&dir, "m");
    dir.write("m/generation_config.json", r#"{"top_k":1}"#);
    let files = CheckpointFiles::open(dir.path("m")).unwrap();
    assert_eq!(names(&files), ["a", "b", "c"]);
    let weights = [
        dir.path("m/model-1.safetensors"),
        dir.path("m/model-2.safetensors"),
    ];
    assert_eq!(files.weight_files(), weights);
    for name in ["a", "b", "c"] {
        assert_eq!(files.read(name).unwrap().shape, [2]);
    }
    assert_eq!(files.generation_config().unwrap()["top_k"], 1);
}

#[test]
fn a_single_file_wins_over_an_index() {
    let dir = Dir::new();
    write_sharded(&dir, "m");
    dir.write("m/model.safetensors", shard(&["x"]));
    assert_eq!(names(&CheckpointFiles::open(dir.path("m")).unwrap()), ["x"]);
}

#[test]
fn side_files_travel_and_code_does_not() {
    let dir = Dir::new();
    write_single(&dir, "m");
    for name in [
        "LICENSE.txt",
        "NOTICE",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
    ] {
        dir.write(&format!("m/{name}"), "");
    }
    dir.write("m/additional_chat_templates/tool_use.jinja", "");
    dir.write("m/additional_chat_templates/notes.txt", "");
    for name in [
        "README.md",
        "modeling_x.py",
        "tokenizer.py",
        "tokenizer/part",
        "optimizer.pt",
    ] {
        dir.write(&format!("m/{name}"), "");
    }
    let files = CheckpointFiles::open(dir.path("m"))
        .unwrap()
        .side_files()
        .unwrap();
    let relative: Vec<String> = files
        .iter()
        .map(|path| {
            path.strip_prefix(dir.path("m"))
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    let expected = [
        "LICENSE.txt",
        "NOTICE",
        "chat_template.jinja",
        "merges.txt",
        "tokenizer.json",
        "vocab.json",
        "additional_chat_templates/tool_use.jinja",
    ];
    assert_eq!(relative, expected);
}

#[test]
fn broken_configurations_name_file_and_place() {
    for (text, expected) in [
        (
            "{\n\"a\": 1,\n\"a\": 2}",
            "line 3, column 3: key `a` occurs twice",
        ),
        ("{", "line 1, column 1: EOF while parsing an object"),
        ("NaN", "line 1, column 1: expected value"),
    ] {
        let dir = Dir::new();
        write_single(&dir, "m");
        let path = dir.write("m/config.json", text);
        let error = CheckpointFiles::open(dir.path("m")).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("`{}`, {expected}", path.display())
        );
    }
    let dir = Dir::new();
    write_sharded(&dir, "m");
    dir.write("m/model.safetensors.index.json", "{\"weight_map\":[]}");
    let error = CheckpointFiles::open(dir.path("m")).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("expected an object of shard names by tensor name")
    );
}

/// A change to a sharded folder `m` and why it is refused then.
pub(crate) struct Case {
    name: &'static str,
    change: fn(&Dir),
    pub(crate) expected: CheckpointError,
}

fn case(name: &'static str, change: fn(&Dir), expected: CheckpointError) -> Case {
    Case {
        name,
        change,
        expected,
    }
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = folder_cases();
    cases.extend(shard_cases());
    cases.extend(index_cases());
    cases
}

fn folder_cases() -> Vec<Case> {
    let pickle = "pytorch_model-00001-of-00002.bin";
    let other = CheckpointError::OtherWeights {
        file: pickle.into(),
    };
    vec![
        case(
            "no config",
            |dir| remove(dir, "config.json"),
            CheckpointError::NoConfig,
        ),
        case(
            "no weights",
            |dir| remove(dir, INDEX),
            CheckpointError::NoWeights,
        ),
        case(
            "pickle only",
            |dir| replace(dir, INDEX, "pytorch_model-00001-of-00002.bin"),
            other,
        ),
    ]
}

fn shard_cases() -> Vec<Case> {
    let (one, two) = (
        || "model-1.safetensors".into(),
        || "model-2.safetensors".into(),
    );
    let no_shard = CheckpointError::NoShard {
        shard: two(),
        tensor: "a".into(),
    };
    let missing = CheckpointError::NotInShard {
        shard: one(),
        tensor: "b".into(),
    };
    let extra = |tensor: &str| CheckpointError::NotInIndex {
        shard: two(),
        tensor: tensor.into(),
    };
    vec![
        case(
            "shard missing",
            |dir| remove(dir, "model-2.safetensors"),
            no_shard,
        ),
        case("tensor missing", |dir| write_shard(dir, 1, &["c"]), missing),
        case(
            "tensor not listed",
            |dir| write_shard(dir, 2, &["a", "extra"]),
            extra("extra"),
        ),
        case(
            "tensor in two shards",
            |dir| write_shard(dir, 2, &["a", "b"]),
            extra("b"),
        ),
    ]
}

fn index_cases() -> Vec<Case> {
    let twice = CheckpointError::DuplicateKey { key: "a".into() };
    let name = |shard: &str| {
        let (tensor, shard) = ("a".into(), shard.into());
        CheckpointError::ShardName { tensor, shard }
    };
    vec![
        case(
            "no map",
            |dir| drop(dir.write("m/model.safetensors.index.json", "{}")),
            CheckpointError::NoWeightMap,
        ),
        case(
            "duplicate key",
            |dir| write_index(dir, "m", r#"{"a":"x.safetensors","a":""}"#),
            twice,
        ),
        case(
            "too many shards",
            |dir| many(dir, limits::SHARDS, 1),
            CheckpointError::ShardCount,
        ),
        case(
            "too many tensors",
            |dir| many(dir, limits::TENSORS, 0),
            CheckpointError::TensorCount,
        ),
        case(
            "parent",
            |dir| place(dir, "../x.safetensors"),
            name("../x.safetensors"),
        ),
        case(
            "absolute",
            |dir| place(dir, "/etc/passwd"),
            name("/etc/passwd"),
        ),
        case(
            "below",
            |dir| place(dir, "x/y.safetensors"),
            name("x/y.safetensors"),
        ),
        case(
            "hidden",
            |dir| place(dir, ".x.safetensors"),
            name(".x.safetensors"),
        ),
        case("pickle", |dir| place(dir, "model.bin"), name("model.bin")),
    ]
}

fn replace(dir: &Dir, from: &str, to: &str) {
    fs_err::rename(dir.path("m").join(from), dir.path("m").join(to)).unwrap();
}

fn write_shard(dir: &Dir, number: usize, names: &[&str]) {
    dir.write(&format!("m/model-{number}.safetensors"), shard(names));
}

const INDEX: &str = "model.safetensors.index.json";

fn remove(dir: &Dir, name: &str) {
    fs_err::remove_file(dir.path("m").join(name)).unwrap();
}

fn place(dir: &Dir, shard: &str) {
    write_index(dir, "m", &format!(r#"{{"a":"{shard}"}}"#));
}

/// An index of more than `count` tensors, each in a shard of its own or all in one.
fn many(dir: &Dir, count: usize, shards: usize) {
    let entries: Vec<String> = (0..=count)
        .map(|i| format!(r#""{i}":"s{}.safetensors""#, i * shards))
        .collect();
    write_index(dir, "m", &format!("{{{}}}", entries.join(",")));
}

#[test]
fn every_broken_folder_is_refused_for_its_own_reason() {
    for Case {
        name,
        change,
        expected,
    } in cases()
    {
        let dir = Dir::new();
        write_sharded(&dir, "m");
        change(&dir);
        let error = CheckpointFiles::open(dir.path("m")).unwrap_err();
        let Error::Checkpoint { path, source } = &error else {
            panic!("{name}: {error:?}")
        };
        assert_eq!((&**source, path), (&expected, &dir.path("m")), "{name}");
        assert!(
            error.hint().is_some_and(|hint| !hint.ends_with('.')),
            "{name}"
        );
    }
}

#[test]
fn a_damaged_shard_is_named() {
    let dir = Dir::new();
    write_sharded(&dir, "m");
    let path = dir.write(
        "m/model-2.safetensors",
        "version https://git-lfs.github.com/spec/v1\n",
    );
    let error = CheckpointFiles::open(dir.path("m")).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("`{}` is not a valid safetensors file", path.display())
    );
    let source = std::error::Error::source(&error).unwrap();
    assert_eq!(source.to_string(), "the file is a Git LFS pointer");
    assert!(error.hint().unwrap().contains("git lfs pull"));
}
