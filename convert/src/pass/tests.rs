//! Conversions of attention as whole jobs: exact where theory says so, the same bytes however they
//! were interrupted, and nothing of the source dropped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use neuroconv_fixtures::{golden_dirs, tiny_model};
use neuroconv_format::writer::{PlannedTensor, SafetensorsLayout};
use neuroconv_format::{DType, DenseTensor, SharedBytes, Tensor, Validate};
use neuroconv_recipes::{Mixer, MlaMode, MlaRecipe, ModelSpec, Rank, Recipe, Role, TensorId};
use neuroconv_runtime::{Checkpoint, Decoder, PackedModel, Progress, Quiet, WeightSource};

use super::{ConvertedModel, tensors};
use crate::mla::{Options, convert_model};
use crate::{Error, StagedArtifact, Staging, execute, plan};

/// A checkpoint whose tensors a test may change.
struct Source {
    dir: tempfile::TempDir,
    config: serde_json::Value,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Source {
    fn golden(name: &str) -> Self {
        let from = golden_dirs()
            .into_iter()
            .find(|d| d.ends_with(name))
            .unwrap();
        let config = fs_err::read(from.join("config.json")).unwrap();
        let checkpoint = Checkpoint::open(&from).unwrap();
        let names = checkpoint.files().tensors().map(|info| info.name.clone());
        let tensors = names
            .map(|name| {
                let tensor = checkpoint.files().read(&name).unwrap();
                (name, (tensor.shape.clone(), tensor.to_f32()))
            })
            .collect();
        Source {
            dir: tempfile::tempdir().unwrap(),
            config: serde_json::from_slice(&config).unwrap(),
            tensors,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes it down in single precision.
    fn checkpoint(&self) -> Checkpoint {
        let dir = self.path("model");
        fs_err::create_dir_all(&dir).unwrap();
        fs_err::write(dir.join("config.json"), self.config.to_string()).unwrap();
        let planned = self.tensors.iter().map(|(name, (shape, _))| PlannedTensor {
            name: name.clone(),
            dtype: DType::F32,
            shape: shape.clone(),
        });
        let layout = SafetensorsLayout::new(planned.collect()).unwrap();
        let mut file = layout.header_bytes();
        file.resize(layout.file_size() as usize, 0);
        for (name, (_, values)) in &self.tensors {
            let range = layout.range(name).unwrap();
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            file[range.start as usize..range.end as usize].copy_from_slice(&bytes);
        }
        fs_err::write(dir.join("model.safetensors"), file).unwrap();
        Checkpoint::open(&dir).unwrap()
    }

    fn weights(&mut self, layer: usize, name: &str) -> &mut Vec<f32> {
        let name = format!("model.layers.{layer}.self_attn.{name}.weight");
        &mut self.tensors.get_mut(&name).unwrap().1
    }
}

fn recipe(mode: MlaMode, rank: usize, rope_dim: Option<usize>) -> Recipe {
    let mut recipe = neuroconv_recipes::builtin("mla").unwrap();
    recipe.mla = Some(MlaRecipe {
        mode,
        rank: Some(Rank::Fixed(rank)),
        rope_dim,
        allow_growth: true,
        ..MlaRecipe::default()
    });
    recipe
}

fn windows(vocab: usize, count: usize, len: usize) -> Vec<Vec<u32>> {
    let mut state = 5_u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % vocab as u64) as u32
    };
    (0..count)
        .map(|_| (0..len).map(|_| next()).collect())
        .collect()
}

fn stage(
    source: &Checkpoint,
    recipe: &Recipe,
    output: &Path,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<StagedArtifact, Error> {
    let text = windows(source.spec().vocab, 24, 32);
    let plan = plan(source, recipe)?;
    let staging = Staging::open(output, false)?;
    execute(&plan, source, &text, staging, progress, cancel)
}

fn staged(source: &Checkpoint, recipe: &Recipe, output: &Path) -> StagedArtifact {
    stage(source, recipe, output, &Quiet, &AtomicBool::new(false)).unwrap()
}

fn logits(model: &dyn WeightSource) -> Vec<f32> {
    let decoder = Decoder::load(model).unwrap();
    let tokens = windows(model.spec().vocab, 1, 60).remove(0);
    let hidden = decoder.hidden(&tokens, &mut decoder.new_cache()).unwrap();
    decoder.logits(&hidden)
}

/// The largest difference relative to the largest logit.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = b.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
    let off = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    off.fold(0.0, |m, d| if d > m || d.is_nan() { d } else { m }) / largest
}

/// How far the emitted bytes are from the source.
fn through_the_pipeline(source: &Source, recipe: &Recipe) -> f32 {
    let checkpoint = source.checkpoint();
    let staged = staged(&checkpoint, recipe, &source.path("out"));
    let artifact = PackedModel::open(&staged.path(), Validate::Full).unwrap();
    let found = difference(&logits(&artifact), &logits(&checkpoint));
    staged.reject().unwrap();
    found
}

/// Keys whose heads are complex multiples of one another, pair by pair, need one rotated channel
/// per channel of one head, and no latent but for the values.
#[test]
fn planted_keys_of_rank_one_pass_the_pipeline_exactly() {
    let mut source = Source::golden("llama");
    let (heads, dim, hidden) = (2, 16, 64);
    for layer in 0..2 {
        let k = source.weights(layer, "k_proj");
        for pair in 0..dim / 2 {
            let turn = 0.7 + pair as f32;
            let (re, im) = (1.3 * turn.cos(), 1.3 * turn.sin());
            for c in 0..hidden {
                let at =
                    |head: usize, part: usize| (head * dim + part * dim / 2 + pair) * hidden + c;
                let (a, b) = (k[at(0, 0)], k[at(0, 1)]);
                (k[at(1, 0)], k[at(1, 1)]) = (re * a - im * b, re * b + im * a);
            }
        }
    }
    let values = heads * dim;
    let found = through_the_pipeline(&source, &recipe(MlaMode::Mla, values, Some(dim)));
    assert!(found < 2e-3, "{found}");
    // The same with keys that are not planted loses something.
    let plain = Source::golden("llama");
    let found = through_the_pipeline(&plain, &recipe(MlaMode::Mla, values, Some(dim)));
    assert!(found > 1e-2, "{found}");
}

#[test]
fn one_key_head_is_exact() {
    let mut source = Source::golden("llama");
    source.config["num_key_value_heads"] = 1.into();
    for layer in 0..2 {
        for name in ["k_proj", "v_proj"] {
            let tensor = format!("model.layers.{layer}.self_attn.{name}.weight");
            let (shape, values) = source.tensors.get_mut(&tensor).unwrap();
            shape[0] = 16;
            values.truncate(16 * 64);
        }
    }
    let found = through_the_pipeline(&source, &recipe(MlaMode::Mla, 16, Some(16)));
    assert!(found < 2e-3, "{found}");
}

/// Biases of qwen2, norms of qwen3, biases everywhere: with every rotation kept and full rank
/// nothing is lost, so nothing was dropped.
#[test]
fn every_family_is_exact_where_nothing_is_given_up() {
    for name in [
        "llama",
        "llama-bias",
        "llama-llama3-rope",
        "mistral",
        "qwen2",
        "qwen3",
        "smollm2",
    ] {
        let mut source = Source::golden(name);
        // A window bounds the cache already, and such layers are refused.
        source.config["sliding_window"] = serde_json::Value::Null;
        let spec = source.checkpoint().spec().clone();
        let n = spec.layers[0].mixer.cached_numbers() / 2;
        let found = through_the_pipeline(&source, &recipe(MlaMode::Mla, n, Some(n)));
        assert!(found < 3e-3, "{name} mla: {found}");
        let found = through_the_pipeline(&source, &recipe(MlaMode::Latent, 2 * n, None));
        assert!(found < 3e-3, "{name} latent: {found}");
        // And at a quarter something is.
        let found = through_the_pipeline(&source, &recipe(MlaMode::Latent, n / 4, None));
        assert!(found > 1e-2, "{name} small: {found}");
    }
}

/// A model as if every token stood at position 0.
struct Still {
    spec: ModelSpec,
    tensors: BTreeMap<TensorId, Tensor>,
}

impl WeightSource for Still {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn tensor(&self, id: TensorId) -> Result<Tensor, neuroconv_runtime::Error> {
        let tensor = self.tensors.get(&id).cloned();
        tensor.ok_or(neuroconv_runtime::Error::NoTensor(id))
    }
}

fn dense(shape: Vec<usize>, values: &[f32]) -> Tensor {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Tensor::Dense(DenseTensor {
        dtype: DType::F32,
        shape,
        bytes: SharedBytes::from(bytes),
    })
}

#[test]
fn at_position_zero_full_rank_is_exact_on_a_trained_model() {
    let source = Checkpoint::open(&tiny_model()).unwrap();
    let mut still = Still {
        spec: source.spec().clone(),
        tensors: BTreeMap::new(),
    };
    for layer in &mut still.spec.layers {
        match &mut layer.mixer {
            Mixer::Attention(a) => a.rope = false,
            other => panic!("{other:?}"),
        }
    }
    for (id, _) in source.spec().tensors() {
        still.tensors.insert(id, source.tensor(id).unwrap());
    }
    let expected = logits(&still);
    let text = windows(source.spec().vocab, 9, 48);
    for rope in [16, 32] {
        let n = source.spec().layers[0].mixer.cached_numbers() / 2;
        let full = recipe(MlaMode::Mla, 2 * n - rope, Some(rope)).mla.unwrap();
        let (spec, _) = full.converted(source.spec()).unwrap();
        let mut converted = Still {
            spec,
            tensors: still.tensors.clone(),
        };
        // Nothing fitted, no constants but one: what is exact is exact by construction.
        let options = Options {
            best_constant: false,
            balances: vec![1.0],
            refit_input: false,
            refit_output: false,
            score_fits: Vec::new(),
            ..Options::new(2 * n - rope, rope)
        };
        let none = BTreeMap::new();
        let result = convert_model(&source, &text, &options, &none, |layer, found, _| {
            for tensor in tensors::of(&found).unwrap() {
                let id = TensorId::layer(layer, tensor.role);
                let mut values = tensor.values;
                if tensor.role == Role::RopeFreq {
                    values.fill(0.0);
                }
                converted.tensors.insert(id, dense(tensor.shape, &values));
            }
            Ok(())
        });
        result.unwrap();
        let found = difference(&logits(&converted), &expected);
        assert!(found < 1e-3, "rope {rope}: {found}");
    }
}

#[test]
fn what_is_emitted_is_what_was_converted() {
    let source = Source::golden("llama");
    let checkpoint = source.checkpoint();
    let recipe = recipe(MlaMode::Mla, 24, Some(16));
    let staged = staged(&checkpoint, &recipe, &source.path("out"));
    let artifact = PackedModel::open(&staged.path(), Validate::Full).unwrap();
    let layers = staged.converted().unwrap();
    let spec = artifact.spec().clone();
    let converted = ConvertedModel::new(&checkpoint, &spec, layers);
    assert_eq!(logits(&artifact), logits(&converted));
    assert!(layers.reports().all(|r| (r.rank, r.rope_dim) == (24, 16)));
}

/// Asks for a stop as soon as one layer of attention is converted.
#[derive(Default)]
struct StopAfterOne {
    converting: AtomicBool,
    cancel: AtomicBool,
}

impl Progress for StopAfterOne {
    fn start(&self, stage: &str, _: u64, _: &str) {
        let converting = stage == "convert attention";
        self.converting.store(converting, Ordering::Relaxed);
    }

    fn advance(&self, _: u64) {
        if self.converting.load(Ordering::Relaxed) {
            self.cancel.store(true, Ordering::Relaxed);
        }
    }

    fn finish(&self) {}
}

#[test]
fn bytes_do_not_depend_on_threads_or_interruptions() {
    let source = Source::golden("qwen2");
    let checkpoint = source.checkpoint();
    let recipe = recipe(MlaMode::Mla, 20, Some(8));
    let weights = |staged: StagedArtifact| {
        let bytes = fs_err::read(staged.path().join("model.safetensors")).unwrap();
        staged.reject().unwrap();
        bytes
    };
    let whole = weights(staged(&checkpoint, &recipe, &source.path("out")));
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        let found = pool.install(|| weights(staged(&checkpoint, &recipe, &source.path("out"))));
        assert!(found == whole, "{threads} threads");
    }
    let (stop, output) = (StopAfterOne::default(), source.path("out"));
    let stopped = stage(&checkpoint, &recipe, &output, &stop, &stop.cancel);
    assert!(matches!(stopped, Err(Error::Interrupted { done: 1, .. })));
    let go_on = AtomicBool::new(false);
    let resumed = stage(&checkpoint, &recipe, &output, &Quiet, &go_on).unwrap();
    assert!(weights(resumed) == whole);
}

#[test]
fn without_text_only_the_weights_are_looked_at_and_the_report_says_so() {
    let source = Source::golden("llama");
    let checkpoint = source.checkpoint();
    let recipe = recipe(MlaMode::Mla, 40, Some(16));
    let plan = plan(&checkpoint, &recipe).unwrap();
    let staging = Staging::open(&source.path("out"), false).unwrap();
    let cancel = AtomicBool::new(false);
    let staged = execute(&plan, &checkpoint, &[], staging, &Quiet, &cancel).unwrap();
    let reports: Vec<_> = staged.converted().unwrap().reports().cloned().collect();
    assert_eq!(reports.len(), 2);
    assert!(reports.iter().all(|r| r.output_error.is_none()));
    PackedModel::open(&staged.path(), Validate::Full).unwrap();
}
