//! Every golden checkpoint against its reference logits, and damage that must be noticed.

#![expect(clippy::unwrap_used, reason = "a test without its fixtures fails")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use neuroconv_format::{DenseTensor, SafetensorsFile, Tensor};
use neuroconv_recipes::{
    FoldNorms, Mixer, ModelSpec, Rewrites, Role, RoleKind, RopeLayout, TensorId,
};
use neuroconv_runtime::{Checkpoint, Decoder, Error, Rewritten, WeightSource};

/// Largest difference of a logit from the reference, both in single precision.
const TOLERANCE: f32 = 1e-4;

/// A golden checkpoint: the model in memory, the tokens and the logits they must give.
struct Golden {
    name: String,
    model: Model,
    tokens: Vec<u32>,
    logits: Vec<f32>,
}

#[derive(Clone)]
struct Model {
    spec: ModelSpec,
    tensors: BTreeMap<TensorId, Tensor>,
}

impl WeightSource for Model {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn tensor(&self, id: TensorId) -> Result<Tensor, Error> {
        self.tensors.get(&id).cloned().ok_or(Error::NoTensor(id))
    }
}

fn name_of(dir: &Path) -> String {
    dir.file_name().unwrap().to_string_lossy().into_owned()
}

fn load(dir: &Path) -> Golden {
    let name = name_of(dir);
    let checkpoint = Checkpoint::open(dir).unwrap_or_else(|error| panic!("{name}: {error}"));
    let spec = checkpoint.spec().clone();
    let read = |(id, _)| (id, checkpoint.tensor(id).unwrap());
    let tensors = spec.tensors().into_iter().map(read).collect();
    let file = SafetensorsFile::open(dir.join("golden.safetensors")).unwrap();
    let bytes = |name: &str| {
        let info = file
            .tensors()
            .iter()
            .find(|info| info.name == name)
            .unwrap();
        file.read(info).unwrap()
    };
    let (tokens, logits) = (bytes("tokens"), bytes("logits"));
    let tokens = tokens
        .as_chunks()
        .0
        .iter()
        .map(|b| i64::from_le_bytes(*b) as u32)
        .collect();
    let logits = logits
        .as_chunks()
        .0
        .iter()
        .map(|b| f32::from_le_bytes(*b))
        .collect();
    Golden {
        name,
        model: Model { spec, tensors },
        tokens,
        logits,
    }
}

fn goldens() -> Vec<Golden> {
    let goldens: Vec<Golden> = neuroconv_fixtures::golden_dirs()
        .iter()
        .map(|dir| load(dir))
        .collect();
    assert!(
        goldens.len() >= 10,
        "only {} golden checkpoints",
        goldens.len()
    );
    goldens
}

/// What the check says of `model` against the reference of `golden`.
fn check(golden: &Golden, model: &dyn WeightSource) -> Result<(), String> {
    let decoder = Decoder::load(model).map_err(|error| format!("{}: {error}", golden.name))?;
    let hidden_td = decoder
        .hidden(&golden.tokens, &mut decoder.new_cache())
        .map_err(|error| format!("{}: {error}", golden.name))?;
    let logits = decoder.logits(&hidden_td);
    assert_eq!(logits.len(), golden.logits.len());
    let differences = logits
        .iter()
        .zip(&golden.logits)
        .map(|(a, b)| (a - b).abs());
    let worst = differences.fold(0.0, |worst: f32, d| if d <= worst { worst } else { d });
    if worst <= TOLERANCE {
        Ok(())
    } else {
        Err(format!("{}: logits differ by {worst}", golden.name))
    }
}

#[test]
fn every_golden_checkpoint_gives_its_reference_logits() {
    let wrong: Vec<String> = goldens()
        .iter()
        .filter_map(|golden| check(golden, &golden.model).err())
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// What folds each norm by itself, all of them, and what rotates.
fn every_rewrite(spec: &ModelSpec) -> Vec<Rewrites> {
    let fold = |norms: Vec<TensorId>, rotate| Rewrites {
        fold_norms: FoldNorms::These(norms),
        rotate,
    };
    let norms: Vec<TensorId> = Rewrites::foldable(spec).collect();
    let last = vec![TensorId::model(Role::FinalNorm)];
    let one = norms.iter().map(|norm| fold(vec![*norm], false));
    let more = [
        fold(norms.clone(), false),
        fold(last, false),
        fold(Vec::new(), true),
        fold(norms.clone(), true),
    ];
    one.chain(more).collect()
}

#[test]
fn folded_and_rotated_models_give_the_reference_logits() {
    for golden in goldens() {
        let model = &golden.model;
        let is_plain = |mixer: &Mixer| matches!(mixer, Mixer::Attention(_));
        if !model.spec.layers.iter().all(|l| is_plain(&l.mixer)) {
            continue;
        }
        for rewrites in every_rewrite(&model.spec) {
            let rewritten = Rewritten::new(model, &rewrites);
            check(&golden, &rewritten).unwrap_or_else(|e| panic!("{rewrites:?}: {e}"));
            for (id, shape) in rewritten.spec().tensors() {
                let tensor = rewritten.tensor(id).unwrap();
                assert_eq!(tensor.shape(), shape, "{id}");
                if id.role.kind() == RoleKind::Norm && rewrites.folds(id) {
                    let Tensor::Dense(ones) = tensor else {
                        panic!("{id} is packed")
                    };
                    assert!(
                        ones.to_f32()
                            .iter()
                            .all(|&g| g.to_bits() == 1.0_f32.to_bits())
                    );
                }
            }
        }
    }
}

#[test]
fn a_rotation_of_half_the_model_is_noticed() {
    for role in [Role::Embed, Role::Q, Role::O, Role::Up, Role::Down] {
        must_be_noticed("a tensor that was not rotated", |model| {
            if !model
                .spec
                .layers
                .iter()
                .all(|l| matches!(l.mixer, Mixer::Attention(_)))
            {
                return false;
            }
            let rewrites = Rewrites {
                rotate: true,
                ..Rewrites::default()
            };
            let rewritten = Rewritten::new(&*model, &rewrites);
            let spec = rewritten.spec().clone();
            let all = spec.tensors().into_iter();
            let mut tensors: BTreeMap<TensorId, Tensor> = all
                .map(|(id, _)| (id, rewritten.tensor(id).unwrap()))
                .collect();
            for (id, tensor) in &mut tensors {
                if id.role == role {
                    *tensor = model.tensor(*id).unwrap();
                }
            }
            *model = Model { spec, tensors };
            true
        });
    }
}

/// Applies `damage` to every golden model that it applies to; each must fail by name.
fn must_be_noticed(what: &str, damage: impl Fn(&mut Model) -> bool) {
    let mut damaged = 0;
    for golden in goldens() {
        let mut model = golden.model.clone();
        if !damage(&mut model) {
            continue;
        }
        damaged += 1;
        let said = check(&golden, &model).expect_err(&format!("{what} in {}", golden.name));
        assert!(
            said.starts_with(&format!("{}: logits differ by", golden.name)),
            "{what}: {said}"
        );
    }
    assert!(damaged > 0, "{what} applies to no golden model");
}

#[test]
fn the_wrong_layout_of_rotated_pairs_is_noticed() {
    must_be_noticed("rope layout", |model| {
        model.spec.rope.layout = match model.spec.rope.layout {
            RopeLayout::Half => RopeLayout::Interleaved,
            RopeLayout::Interleaved => RopeLayout::Half,
        };
        true
    });
}

#[test]
fn queries_and_keys_in_each_others_place_are_noticed() {
    must_be_noticed("q and k swapped", |model| {
        let (q, k) = (TensorId::layer(0, Role::Q), TensorId::layer(0, Role::K));
        let same_shape = model.tensors[&q].shape() == model.tensors[&k].shape();
        if same_shape {
            let tensor = model.tensors[&q].clone();
            let tensor = model.tensors.insert(k, tensor).unwrap();
            model.tensors.insert(q, tensor);
        }
        same_shape
    });
}

/// With grouped heads the shapes differ, and the message names the tensor.
#[test]
fn a_key_matrix_in_the_place_of_queries_is_named() {
    let mut seen = 0;
    for golden in goldens() {
        let mut model = golden.model.clone();
        let (q, k) = (TensorId::layer(0, Role::Q), TensorId::layer(0, Role::K));
        if model.tensors[&q].shape() == model.tensors[&k].shape() {
            continue;
        }
        seen += 1;
        model.tensors.insert(q, model.tensors[&k].clone());
        let said = check(&golden, &model).unwrap_err();
        let start = format!("{}: tensor `blk.0.attn_q` has shape", golden.name);
        assert!(said.starts_with(&start), "{said}");
    }
    assert!(seen > 0);
}

/// One element of each kind of norm gain in turn, a hundredth off.
#[test]
fn a_norm_gain_that_is_off_is_noticed() {
    let norms = Role::ALL
        .into_iter()
        // The norm of latents is in no golden model: the tests of `mla` hold it to its formula.
        .filter(|role| role.kind() == RoleKind::Norm && *role != Role::KvANorm);
    for role in norms {
        must_be_noticed(role.name(), |model| {
            let id = if role.is_per_layer() {
                TensorId::layer(0, role)
            } else {
                TensorId::model(role)
            };
            let Some(Tensor::Dense(gain)) = model.tensors.get(&id) else {
                return false;
            };
            let mut values = gain.to_f32();
            values[3] *= 1.01;
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let gain = DenseTensor {
                dtype: neuroconv_format::DType::F32,
                shape: gain.shape.clone(),
                bytes: bytes.into(),
            };
            model.tensors.insert(id, Tensor::Dense(gain));
            true
        });
    }
}

#[test]
fn layers_in_another_order_are_noticed() {
    must_be_noticed("layers swapped", |model| {
        let ids: Vec<TensorId> = model.tensors.keys().copied().collect();
        let swap = |id: TensorId| TensorId {
            layer: id.layer.map(|l| l ^ 1),
            ..id
        };
        let same = model.spec.layers.first() == model.spec.layers.get(1);
        let before = model.tensors.clone();
        for id in ids
            .into_iter()
            .filter(|id| same && id.layer.is_some_and(|layer| layer < 2))
        {
            model.tensors.insert(id, before[&swap(id)].clone());
        }
        same
    });
}

#[test]
fn rotation_where_there_is_none_is_noticed() {
    must_be_noticed("rotation", |model| {
        let mut changed = false;
        for layer in &mut model.spec.layers {
            match &mut layer.mixer {
                Mixer::Attention(attention) => {
                    changed |= !attention.rope;
                    attention.rope = true;
                }
                Mixer::Mla(_) | Mixer::Latent(_) => panic!("a checkpoint has plain attention"),
            }
        }
        changed
    });
}

/// Copies the files of `dir` and leaves out what `keep` refuses.
fn copy(dir: &Path, keep: impl Fn(&str) -> bool) -> (tempfile::TempDir, PathBuf) {
    let holder = tempfile::tempdir().unwrap();
    let to = holder.path().join(name_of(dir));
    fs_err::create_dir(&to).unwrap();
    for entry in fs_err::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if keep(&name) {
            fs_err::copy(entry.path(), to.join(name)).unwrap();
        }
    }
    (holder, to)
}

/// An error and what caused it.
fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

#[test]
fn a_missing_shard_is_named_with_its_folder() {
    let sharded: Vec<PathBuf> = neuroconv_fixtures::golden_dirs()
        .into_iter()
        .filter(|dir| dir.join("model.safetensors.index.json").exists())
        .collect();
    assert!(!sharded.is_empty());
    for dir in sharded {
        for entry in fs_err::read_dir(&dir).unwrap() {
            let shard = entry.unwrap().file_name().into_string().unwrap();
            if !shard.starts_with("model-") {
                continue;
            }
            let (_holder, broken) = copy(&dir, |name| name != shard);
            let error = Checkpoint::open(&broken).unwrap_err();
            let said = chain(&error);
            assert!(
                said.contains(&shard) && said.contains(&name_of(&dir)),
                "{said}"
            );
        }
    }
}

#[test]
fn heads_are_tied_by_their_bytes() {
    let tied = |name: &str| {
        let checkpoint =
            Checkpoint::open(&neuroconv_fixtures::root().join("golden").join(name)).unwrap();
        let head = checkpoint.tensor(TensorId::model(Role::Head));
        assert_eq!(head.is_err(), checkpoint.spec().tied);
        let dropped = &checkpoint.resolved().dropped;
        (
            checkpoint.spec().tied,
            dropped.iter().any(|d| d.source == "lm_head.weight"),
        )
    };
    assert_eq!(tied("llama"), (false, false));
    assert_eq!(tied("llama-tied"), (true, false));
    assert_eq!(tied("llama-tied-stored"), (true, true));
}
