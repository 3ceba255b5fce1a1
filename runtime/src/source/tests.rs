use neuroconv_format::manifest::{
    PartRecord, RecipeRecord, RewriteRecord, SCHEMA_VERSION, SizeRecord, SourceRecord,
    TensorRecord, ToolRecord, VerdictRecord, VerdictStatus,
};
use neuroconv_format::{
    Codec, DType, Manifest, PartLayout, PlannedTensor, SafetensorsLayout, SharedBytes, Tensor,
    TensorCodec,
};

use super::*;
use crate::testing::{Model, dense, spec};
use crate::{Decoder, TextTokenizer};

/// The record of a tensor that lies at `offset`.
fn record(id: TensorId, tensor: &Tensor, offset: u64) -> TensorRecord {
    let (bytes, codec, group) = match tensor {
        Tensor::Packed(t) => (&t.bytes, t.layout.codec().into(), Some(t.layout.group())),
        Tensor::Dense(t) => (&t.bytes, TensorCodec::F32, None),
    };
    let (shift, activation_bits) = match tensor {
        Tensor::Packed(t) => (t.layout.shift(), Some(t.activations)),
        Tensor::Dense(_) => (false, None),
    };
    let elements: usize = tensor.shape().iter().product();
    TensorRecord {
        name: id.to_string(),
        role: id.role.to_string(),
        source: id.to_string(),
        codec,
        shape: tensor.shape(),
        group,
        shift,
        activation_bits,
        file: "model.safetensors".to_owned(),
        offset,
        size: bytes.len() as u64,
        blake3: blake3::hash(bytes).to_string(),
        bits_per_weight: tensor.size_bytes() as f64 * 8.0 / elements as f64,
        parts: Vec::new(),
        rel_mse: None,
        zeros: None,
        entropy_bits: None,
        output_error: None,
        reason: "test".to_owned(),
    }
}

/// What a tensor has beside its codes.
fn parts(tensor: &Tensor) -> Vec<(PartLayout, SharedBytes)> {
    match tensor {
        Tensor::Packed(t) => t.corrections.parts().unwrap(),
        Tensor::Dense(_) => Vec::new(),
    }
}

fn manifest(model: serde_json::Value, tensors: Vec<TensorRecord>, weights_bytes: u64) -> Manifest {
    let sha256 = "0".repeat(64);
    Manifest {
        schema_version: SCHEMA_VERSION,
        tool: ToolRecord {
            name: "test".to_owned(),
            version: "0".to_owned(),
        },
        source: SourceRecord {
            id: "test".to_owned(),
            commit: None,
            arch: "test".to_owned(),
            params: 1,
            dtype: "F32".to_owned(),
            files: Vec::new(),
        },
        recipe: RecipeRecord {
            name: "test".to_owned(),
            sha256,
        },
        model,
        rewrites: RewriteRecord::default(),
        tensors,
        dropped: Vec::new(),
        size: SizeRecord {
            weights_bytes,
            bits_per_weight: 8.0,
        },
        verdict: VerdictRecord {
            status: VerdictStatus::Unverified,
            report_sha256: None,
            waived: Vec::new(),
        },
    }
}

/// Writes the tensors of `model` as an artifact whose manifest describes `description`.
fn write_artifact(dir: &Path, model: &Model, description: &serde_json::Value) {
    let planned = model.tensors.iter().flat_map(|(id, tensor)| {
        let (dtype, shape) = match tensor {
            Tensor::Packed(t) => (DType::U8, vec![t.bytes.len()]),
            Tensor::Dense(t) => (t.dtype, t.shape.clone()),
        };
        let whole = PlannedTensor {
            name: id.to_string(),
            dtype,
            shape,
        };
        let parts = parts(tensor).into_iter();
        let parts = parts.map(|(part, _)| part.entry(&whole.name));
        [whole.clone()].into_iter().chain(parts).collect::<Vec<_>>()
    });
    let layout = SafetensorsLayout::new(planned.collect()).unwrap();
    let mut file = layout.header_bytes();
    file.resize(layout.file_size() as usize, 0);
    let mut records = Vec::new();
    for (id, tensor) in &model.tensors {
        let range = layout.range(&id.to_string()).unwrap();
        let bytes = match tensor {
            Tensor::Packed(t) => &t.bytes,
            Tensor::Dense(t) => &t.bytes,
        };
        file[range.start as usize..range.end as usize].copy_from_slice(bytes);
        let mut record = record(*id, tensor, range.start);
        for (part, bytes) in parts(tensor) {
            let range = layout.range(&part.name(&record.name)).unwrap();
            file[range.start as usize..range.end as usize].copy_from_slice(&bytes);
            let hash = blake3::hash(&bytes).to_string();
            record.parts.push(PartRecord::new(&part, range.start, hash));
        }
        records.push(record);
    }
    let manifest = manifest(description.clone(), records, layout.file_size());
    fs_err::create_dir_all(dir.join("neuroconv")).unwrap();
    fs_err::write(dir.join("model.safetensors"), file).unwrap();
    fs_err::write(
        dir.join("neuroconv/manifest.json"),
        manifest.to_json().unwrap(),
    )
    .unwrap();
}

fn describe(spec: &ModelSpec) -> serde_json::Value {
    serde_json::to_value(spec).unwrap()
}

#[test]
fn an_artifact_runs_like_the_tensors_that_were_written() {
    let dir = tempfile::tempdir().unwrap();
    for codec in Codec::ALL {
        for model in [
            Model::random(spec()).packed(codec),
            Model::random(spec()).corrected(codec),
            Model::random(spec()).corrected(codec).in_sixteen_bits(),
            Model::random(spec()).packed(codec).shifted(),
        ] {
            write_artifact(dir.path(), &model, &describe(&model.spec));
            let source = open_source(dir.path()).unwrap();
            assert!(matches!(source, Source::Artifact(_)));
            assert_eq!(
                (source.spec(), source.side().unwrap().root()),
                (&model.spec, dir.path())
            );
            let run = |source: &dyn WeightSource| {
                let decoder = Decoder::load(source).unwrap();
                decoder
                    .hidden(&[3, 1, 4, 1, 5], &mut decoder.new_cache())
                    .unwrap()
            };
            assert_eq!(run(&source), run(&model));
        }
    }
}

#[test]
fn a_description_that_does_not_fit_its_tensors_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = Model::random(spec()).packed(Codec::Int8);
    let refused = |description: serde_json::Value| {
        write_artifact(dir.path(), &model, &description);
        open_source(dir.path()).unwrap_err()
    };
    let wide = refused(describe(&ModelSpec { ffn: 73, ..spec() }));
    assert!(matches!(wide, Error::Shape { .. }) && wide.to_string().contains("blk.0.mlp_gate"));
    let tied = refused(describe(&ModelSpec {
        tied: true,
        ..spec()
    }));
    assert!(
        matches!(&tied, Error::ExtraTensor { tensor, .. } if tensor == "head"),
        "{tied}"
    );
    let mut more = spec();
    more.layers.push(more.layers[0].clone());
    assert!(refused(describe(&more)).to_string().contains("blk.2."));
    assert!(matches!(
        refused(serde_json::json!({})),
        Error::ModelSpec { .. }
    ));
    let zero = refused(describe(&ModelSpec {
        hidden: 0,
        ..spec()
    }));
    assert!(matches!(zero, Error::Recipes(_)), "{zero}");
    let mut unknown = describe(&spec());
    unknown["activation"] = "gelu".into();
    assert!(matches!(refused(unknown), Error::ModelSpec { .. }));
}

#[test]
fn a_foreign_tensor_in_an_artifact_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = Model::random(spec());
    let id = TensorId::layer(7, Role::QBias);
    model
        .tensors
        .insert(id, dense(DType::F32, vec![4], &[0.0; 4]));
    write_artifact(dir.path(), &model, &describe(&model.spec));
    let error = open_source(dir.path()).unwrap_err();
    assert!(matches!(&error, Error::ExtraTensor { tensor, .. } if *tensor == id.to_string()));
}

#[test]
fn paths_without_a_model_get_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("tiny-llama");
    fs_err::create_dir(&model).unwrap();
    let typo = open_source(&dir.path().join("tiny-lama")).unwrap_err();
    assert!(matches!(typo, Error::NotFound { .. }));
    assert!(typo.hint().unwrap().contains("tiny-llama"));
    let far = open_source(&dir.path().join("something")).unwrap_err();
    assert_eq!(far.hint(), None);

    let empty = open_source(&model).unwrap_err();
    assert!(matches!(empty, Error::NoModel { inside: None, .. }));
    fs_err::write(model.join("config.json"), "{}").unwrap();
    let outer = open_source(dir.path()).unwrap_err();
    assert!(outer.hint().unwrap().contains("tiny-llama"));
    let config = open_source(&model).unwrap_err();
    assert!(matches!(config, Error::Format(_)), "{config}");

    for (name, word) in [("a.bin", "GGUF"), ("a.safetensors", "config.json")] {
        let file = dir.path().join(name);
        fs_err::write(&file, "x").unwrap();
        let error = open_source(&file).unwrap_err();
        assert!(matches!(error, Error::NotAFolder { .. }));
        assert!(error.hint().unwrap().contains(word));
    }
}

/// Random weights of any size stand in for real ones where only speed matters.
#[test]
fn synthetic_checkpoints_open_with_their_tokenizer_and_run() {
    use neuroconv_fixtures::synthetic::{self, Shape};
    let shape = Shape {
        hidden: 64,
        ffn: 96,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        vocab: 1500,
        ..Shape::named("llama-3.2-1b").unwrap()
    };
    let dir = tempfile::tempdir().unwrap();
    synthetic::write(&shape, 3, dir.path()).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let tokenizer = TextTokenizer::open(dir.path()).unwrap();
    let text = "some words, a number 17 and \u{e9}t\u{e9}";
    let tokens = tokenizer.encode_prompt(text).unwrap();
    assert!(tokens.len() < text.len() && tokens[0] == 1);
    assert_eq!(tokenizer.decode(&tokens).unwrap(), text);
    let decoder = Decoder::load(&checkpoint).unwrap();
    let hidden = decoder.hidden(&tokens, &mut decoder.new_cache()).unwrap();
    let logits = decoder.logits(&hidden);
    assert_eq!(logits.len(), tokens.len() * 1500);
    assert!(logits.iter().all(|l| l.is_finite()));
}
