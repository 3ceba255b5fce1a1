//! GGUF files written from golden checkpoints: the same logits, and damage that must be noticed.

#![expect(clippy::unwrap_used, reason = "a test without its fixtures fails")]

use std::path::{Path, PathBuf};

use neuroconv_format::gguf::{Array, GgmlType, GgufLayout, Metadata, PlannedGguf, Value};
use neuroconv_format::{SafetensorsFile, Tensor};
use neuroconv_recipes::gguf::{gathered, keys};
use neuroconv_recipes::{Mixer, RopeScaling, RopeSpec, TensorId, architecture};
use neuroconv_runtime::{Checkpoint, Decoder, Source, WeightSource, open_source};

/// Largest difference of a logit from the reference, both in single precision.
const TOLERANCE: f32 = 1e-4;

/// A tensor to be written.
struct Stored {
    name: String,
    shape: Vec<usize>,
    values: Vec<f32>,
}

/// A model as a GGUF file holds it.
struct Written {
    metadata: Metadata,
    tensors: Vec<Stored>,
}

fn golden(name: &str) -> PathBuf {
    neuroconv_fixtures::root().join("golden").join(name)
}

/// Key and value: the shape of the model.
fn numbers(checkpoint: &Checkpoint) -> Vec<(&'static str, Value)> {
    let spec = checkpoint.spec();
    let Mixer::Attention(a) = &spec.layers[0].mixer else {
        panic!("a golden checkpoint has attention");
    };
    let count = |n: usize| Value::U32(n as u32);
    vec![
        (keys::POSITIONS, count(spec.max_positions)),
        (keys::HIDDEN, count(spec.hidden)),
        (keys::LAYERS, count(spec.layers.len())),
        (keys::FFN, count(spec.ffn)),
        (keys::HEADS, count(a.heads)),
        (keys::KV_HEADS, count(a.kv_heads)),
        (keys::KEY_LENGTH, count(a.head_dim)),
        (keys::VALUE_LENGTH, count(a.head_dim)),
        (keys::ROPE_DIM, count(a.head_dim)),
        (keys::NORM_EPS, Value::F32(spec.norm_eps as f32)),
        (keys::ROPE_THETA, Value::F32(spec.rope.theta as f32)),
    ]
}

/// What a GGUF file of the checkpoint holds; `ordered` says whether rows are put in its order.
fn written(checkpoint: &Checkpoint, ordered: bool) -> Written {
    let spec = checkpoint.spec();
    let arch = architecture(&spec.arch).unwrap();
    let rules = arch.gguf().unwrap();
    let Mixer::Attention(a) = &spec.layers[0].mixer else {
        panic!("a golden checkpoint has attention");
    };
    let mut metadata = Metadata::default();
    metadata.push(keys::ARCHITECTURE, Value::Text(rules.arch.clone()));
    let mut push = |key: &str, value| metadata.push(format!("{}{key}", rules.arch), value);
    for (key, value) in numbers(checkpoint) {
        push(key, value);
    }
    let mut tensors: Vec<Stored> = Vec::new();
    match spec.rope.scaling {
        RopeScaling::None => {}
        RopeScaling::Linear { factor } => {
            push(keys::ROPE_SCALING, Value::Text("linear".to_owned()));
            push(keys::ROPE_FACTOR, Value::F32(factor as f32));
        }
        RopeScaling::Llama3 {
            original_max_positions,
            ..
        } => {
            push(
                keys::ROPE_ORIGINAL,
                Value::U32(original_max_positions as u32),
            );
            let plain = RopeSpec {
                scaling: RopeScaling::None,
                ..spec.rope
            };
            let pairs = plain.inv_freq(a.head_dim).into_iter();
            let factors = pairs.zip(spec.rope.inv_freq(a.head_dim));
            tensors.push(Stored {
                name: keys::ROPE_FACTORS.to_owned(),
                shape: vec![a.head_dim / 2],
                values: factors
                    .map(|(plain, scaled)| (plain / scaled) as f32)
                    .collect(),
            });
        }
    }
    for (id, shape) in spec.tensors() {
        let Tensor::Dense(dense) = checkpoint.tensor(id).unwrap() else {
            panic!("a checkpoint is dense");
        };
        let mut values = dense.to_f32();
        if ordered && arch.reorders_in_gguf(id.role) {
            let rows = shape[0];
            values = gathered(&values, rows, |row| {
                rules.row_of_checkpoint(row, a.head_dim)
            });
        }
        tensors.push(Stored {
            name: id.gguf_name().unwrap(),
            shape,
            values,
        });
    }
    Written { metadata, tensors }
}

impl Written {
    fn bytes(&self) -> Vec<u8> {
        let planned: Vec<PlannedGguf> = self
            .tensors
            .iter()
            .map(|tensor| PlannedGguf {
                name: tensor.name.clone(),
                kind: GgmlType::F32,
                shape: tensor.shape.clone(),
            })
            .collect();
        let layout = GgufLayout::new(&self.metadata, &planned).unwrap();
        let mut bytes = layout.header_bytes().to_vec();
        bytes.resize(layout.file_size() as usize, 0);
        for tensor in &self.tensors {
            let range = layout.range(&tensor.name).unwrap();
            let values = tensor.values.iter().flat_map(|v| v.to_le_bytes());
            let values: Vec<u8> = values.collect();
            bytes[range.start as usize..range.end as usize].copy_from_slice(&values);
        }
        bytes
    }

    fn open(&self, dir: &Path) -> Result<Checkpoint, String> {
        let path = dir.join("model.gguf");
        fs_err::write(&path, self.bytes()).unwrap();
        match open_source(&path) {
            Ok(Source::Checkpoint(checkpoint)) => Ok(checkpoint),
            Ok(Source::Artifact(_)) => panic!("no artifact"),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The same with another value of a key, which is added where it is missing.
    fn with(&self, key: &str, value: &Value) -> Written {
        let mut metadata = Metadata::default();
        for (known, old) in self.metadata.iter().filter(|(known, _)| *known != key) {
            metadata.push(known, old.clone());
        }
        metadata.push(key, value.clone());
        let tensors = self.tensors.iter().map(|tensor| Stored {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            values: tensor.values.clone(),
        });
        Written {
            metadata,
            tensors: tensors.collect(),
        }
    }
}

/// The largest difference of the model's logits from the golden ones.
fn difference(dir: &Path, model: &dyn WeightSource) -> f32 {
    let file = SafetensorsFile::open(dir.join("golden.safetensors")).unwrap();
    let bytes = |name: &str| {
        let mut infos = file.tensors().iter();
        file.read(infos.find(|info| info.name == name).unwrap())
            .unwrap()
    };
    let tokens = bytes("tokens");
    let tokens = tokens.as_chunks().0.iter();
    let tokens: Vec<u32> = tokens.map(|b| i64::from_le_bytes(*b) as u32).collect();
    let logits = bytes("logits");
    let logits = logits.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b));
    let decoder = Decoder::load(model).unwrap();
    let hidden_td = decoder.hidden(&tokens, &mut decoder.new_cache()).unwrap();
    let found = decoder.logits(&hidden_td);
    let differences = found.iter().zip(logits).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |worst: f32, d| if d <= worst { worst } else { d })
}

#[test]
fn files_written_from_golden_checkpoints_give_the_golden_logits() {
    let mut compared = Vec::new();
    for dir in neuroconv_fixtures::golden_dirs() {
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let spec = checkpoint.spec().clone();
        let rules = architecture(&spec.arch).unwrap().gguf();
        let windowed = spec.layers.iter().any(|layer| match &layer.mixer {
            Mixer::Attention(a) => a.window.is_some(),
            _ => true,
        });
        if rules.is_none() || windowed {
            continue;
        }
        let scratch = tempfile::tempdir().unwrap();
        let read = written(&checkpoint, true).open(scratch.path()).unwrap();
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        // What the file does not say: which of several architectures of one form, and special tokens.
        let mut expected = spec.clone();
        expected.arch.clone_from(&read.spec().arch);
        expected.special = read.spec().special.clone();
        assert_eq!(read.spec(), &expected, "{name}");
        let worst = difference(&dir, &read);
        assert!(worst <= TOLERANCE, "{name}: logits differ by {worst}");
        compared.push(spec.arch);
    }
    compared.sort();
    compared.dedup();
    assert_eq!(compared, ["llama", "mistral", "qwen2", "qwen3"]);
}

#[test]
fn rows_in_the_order_of_the_checkpoint_would_be_noticed() {
    let dir = golden("llama");
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let read = written(&checkpoint, false).open(scratch.path()).unwrap();
    assert!(difference(&dir, &read) > 100.0 * TOLERANCE);
}

#[test]
fn a_folder_with_one_file_is_that_file() {
    let checkpoint = Checkpoint::open(&golden("llama")).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let file = written(&checkpoint, true);
    file.open(scratch.path()).unwrap();
    assert!(open_source(scratch.path()).is_ok());
    fs_err::write(scratch.path().join("other.gguf"), file.bytes()).unwrap();
    let error = open_source(scratch.path()).unwrap_err();
    assert!(error.hint().unwrap().contains("GGUF files by name"));
}

#[test]
fn what_does_not_fit_is_named() {
    let checkpoint = Checkpoint::open(&golden("llama")).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let file = written(&checkpoint, true);
    let refused = |written: &Written| written.open(scratch.path()).unwrap_err();
    for (key, value, word) in [
        (
            "general.architecture",
            Value::Text("nope".to_owned()),
            "nope",
        ),
        (
            "general.architecture",
            Value::U32(1),
            "general.architecture",
        ),
        (
            "llama.attention.layer_norm_rms_epsilon",
            Value::F32(f32::NAN),
            "NaN",
        ),
        ("llama.block_count", Value::U32(u32::MAX), "block_count"),
        ("llama.block_count", Value::I32(-1), "block_count"),
        ("llama.block_count", Value::U32(5), "missing"),
        (
            "llama.embedding_length",
            Value::U64(u64::MAX),
            "embedding_length",
        ),
        (
            "llama.attention.head_count",
            Value::U32(1000),
            "wrong shape",
        ),
        (
            "llama.attention.head_count_kv",
            Value::Array(Array::U32(vec![1; 5000])),
            "head_count_kv",
        ),
        (
            "llama.rope.freq_base",
            Value::Array(Array::F32(vec![1.0])),
            "freq_base",
        ),
        ("llama.expert_count", Value::U32(4), "expert_count"),
        (
            "llama.rope.scaling.type",
            Value::Text("yarn".to_owned()),
            "yarn",
        ),
        ("split.count", Value::U16(3), "split model"),
    ] {
        let message = refused(&file.with(key, &value));
        assert!(message.contains(word), "{key}: {message}");
    }
    let mut fewer = file.with("general.name", &Value::Text("x".to_owned()));
    // Without the head it would be a model whose head is the embedding.
    let norm = fewer.tensors.remove(1);
    assert!(refused(&fewer).contains("missing"));
    let mut more = file.with("general.name", &Value::Text("x".to_owned()));
    more.tensors.push(Stored {
        name: "blk.0.ffn_gate_inp.weight".to_owned(),
        ..norm
    });
    assert!(refused(&more).contains("ffn_gate_inp"));
    let mut twice = file.with("general.name", &Value::Text("x".to_owned()));
    let id: TensorId = "blk.0.attn_q".parse().unwrap();
    let (name, place) = (
        architecture("llama").unwrap().source_name(id).unwrap(),
        twice
            .tensors
            .iter()
            .position(|t| Some(&t.name) == id.gguf_name().as_ref()),
    );
    let again = &twice.tensors[place.unwrap()];
    let again = Stored {
        name: name.clone(),
        shape: again.shape.clone(),
        values: again.values.clone(),
    };
    twice.tensors.push(again);
    assert!(refused(&twice).contains(&name));
}

#[test]
fn flipped_bytes_of_the_header_never_panic() {
    let checkpoint = Checkpoint::open(&golden("qwen3")).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let file = written(&checkpoint, true);
    let good = file.bytes();
    let path = scratch.path().join("model.gguf");
    // The header is the part that says what the data are.
    let header = good.len()
        - file
            .tensors
            .iter()
            .map(|t| t.values.len() * 4)
            .sum::<usize>();
    let mut opened = 0;
    for at in 0..header {
        let mut bytes = good.clone();
        bytes[at] ^= [1, 0x80, 0xff][at % 3];
        fs_err::write(&path, bytes).unwrap();
        if let Ok(checkpoint) = Checkpoint::open(&path) {
            opened += 1;
            // Whatever opens can be read, or says why not.
            for slot in &checkpoint.resolved().slots {
                let _ = checkpoint.files().read(&slot.source);
            }
        }
    }
    assert!(opened < header);
    for length in (0..good.len()).step_by(997) {
        fs_err::write(&path, &good[..length]).unwrap();
        assert!(Checkpoint::open(&path).is_err());
    }
}
