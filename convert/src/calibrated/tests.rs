//! Rounding with calibration text as whole jobs: never worse than without, the same bytes however
//! they were interrupted, and every byte planned.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use neuroconv_fixtures::{golden_dirs, tiny_model, tiny_text};
use neuroconv_format::{Tensor, Validate};
use neuroconv_quant::relative_mse;
use neuroconv_recipes::{Apart, Recipe, Role, TensorId, Threshold, builtin};
use neuroconv_runtime::{
    Checkpoint, OneLayer, PackedModel, Progress, Quiet, TextTokenizer, WeightSource, embed,
};

use super::{LayerRounding, RoundedLayers, round_layers};
use crate::layer_file::report_path;
use crate::{Error, StagedArtifact, Staging, execute, plan};

fn golden(name: &str) -> Checkpoint {
    let dirs = golden_dirs();
    let dir = dirs.iter().find(|dir| dir.ends_with(name)).unwrap();
    Checkpoint::open(dir).unwrap()
}

/// Windows of the language that the trained model knows.
fn text(count: usize, ctx: usize) -> Vec<Vec<u32>> {
    let tokenizer = TextTokenizer::open(&tiny_model()).unwrap();
    let text = fs_err::read_to_string(tiny_text()).unwrap();
    let tokens = tokenizer.encode_plain(&text[..8 * count * ctx]).unwrap();
    let windows = tokens.chunks_exact(ctx).take(count);
    windows.map(<[u32]>::to_vec).collect()
}

fn some_tokens(vocab: usize) -> Vec<Vec<u32>> {
    let token = |w: usize, t: usize| ((w * 131 + t * t * 7 + t * 13) % vocab) as u32;
    (0..12)
        .map(|w| (0..24).map(|t| token(w, t)).collect())
        .collect()
}

/// Reports on every layer of a conversion of the trained model.
fn reports(recipe: &Recipe) -> Vec<LayerRounding> {
    let source = Checkpoint::open(&tiny_model()).unwrap();
    let plan = plan(&source, recipe).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (windows, go_on) = (text(16, 128), AtomicBool::new(false));
    let found = round_layers(&source, &plan, &windows, dir.path(), &Quiet, &go_on);
    let _: RoundedLayers = found.unwrap();
    let report = |layer| {
        let json = fs_err::read(report_path(dir.path(), layer)).unwrap();
        serde_json::from_slice(&json).unwrap()
    };
    (0..source.spec().layers.len()).map(report).collect()
}

/// The mean logarithm of what feedback gains over rounding every group by itself.
fn gain(recipe: &Recipe) -> f64 {
    let mut gains = Vec::new();
    for matrix in reports(recipe)
        .into_iter()
        .flat_map(|report| report.matrices)
    {
        let (ours, nearest) = (
            matrix.output_error.unwrap(),
            matrix.nearest_output_error.unwrap(),
        );
        assert!(
            ours <= nearest * 1.0001,
            "{}: {ours} {nearest}",
            matrix.name
        );
        gains.push((nearest / ours).ln());
    }
    gains.iter().sum::<f64>() / gains.len() as f64
}

#[test]
fn every_trained_matrix_is_better_than_rounded_by_itself() {
    for (name, least) in [("ternary", 3.0_f64), ("int4", 2.0)] {
        let found = gain(&builtin(name).unwrap());
        assert!(found > least.ln(), "{name}: {}", found.exp());
    }
    let mut nine = builtin("ternary").unwrap();
    nine.set_ternary("planes", |packed| packed.planes = 2)
        .unwrap();
    assert!(gain(&nine) > 2.0_f64.ln());
    let mut shifted = builtin("int4").unwrap();
    shifted
        .set_body("a shift", |packed| packed.shift = true)
        .unwrap();
    assert!(gain(&shifted) > 2.0_f64.ln());
}

#[test]
fn zeros_are_as_many_as_asked_for() {
    let mut recipe = builtin("ternary").unwrap();
    recipe.set_threshold(Threshold::Sparsity(0.5)).unwrap();
    for matrix in reports(&recipe)
        .into_iter()
        .flat_map(|report| report.matrices)
    {
        let zeros = matrix.stats.zeros;
        assert!((zeros - 0.5).abs() < 0.02, "{}: {zeros}", matrix.name);
    }
}

fn stage(
    source: &Checkpoint,
    recipe: &Recipe,
    output: &Path,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<StagedArtifact, Error> {
    let plan = plan(source, recipe)?;
    let staging = Staging::open(output, false)?;
    let windows = some_tokens(source.spec().vocab);
    execute(&plan, source, &windows, staging, progress, cancel)
}

fn staged(source: &Checkpoint, recipe: &Recipe, output: &Path) -> StagedArtifact {
    stage(source, recipe, output, &Quiet, &AtomicBool::new(false)).unwrap()
}

/// Four bits with everything that can be stored beside them.
fn corrected() -> Recipe {
    let mut recipe = builtin("int4").unwrap();
    recipe
        .set_body("a correction", |packed| packed.correct_rank = 3)
        .unwrap();
    recipe
        .set_body("columns", |packed| packed.apart = Apart::Salient(0.05))
        .unwrap();
    recipe
}

#[test]
fn corrections_are_planned_stored_and_help() {
    let source = golden("llama");
    let dir = tempfile::tempdir().unwrap();
    let id = TensorId::layer(1, Role::Up);
    let up = |recipe: &Recipe, name: &str| {
        let plan = plan(&source, recipe).unwrap();
        let staged = staged(&source, recipe, &dir.path().join(name));
        let size = fs_err::metadata(staged.path().join("model.safetensors"))
            .unwrap()
            .len();
        assert_eq!(size, plan.weights_bytes);
        let artifact = PackedModel::open(&staged.path(), Validate::Full).unwrap();
        let record = artifact.artifact().manifest().tensors.iter();
        let record = record
            .clone()
            .find(|record| record.name == id.to_string())
            .unwrap()
            .clone();
        let planned = plan.tensors.iter().find(|tensor| tensor.id == id).unwrap();
        assert_eq!(record.stored_bytes(), planned.bytes);
        assert!((record.bits_per_weight - planned.bits_per_weight).abs() < 1e-12);
        let Tensor::Packed(packed) = artifact.tensor(id).unwrap() else {
            panic!("a packed matrix");
        };
        let original = neuroconv_quant::dequantize(&source.tensor(id).unwrap());
        let stored = neuroconv_quant::dequantize(&Tensor::Packed(packed.clone()));
        let rel_mse = relative_mse(&original, &stored);
        assert!((record.rel_mse.unwrap() / rel_mse - 1.0).abs() < 1e-9);
        (packed, record.output_error.unwrap())
    };
    let (plain, plain_error) = up(&builtin("int4").unwrap(), "plain");
    assert!(plain.corrections.is_empty());
    let (packed, error) = up(&corrected(), "corrected");
    let low_rank = packed.corrections.low_rank.unwrap();
    assert_eq!(low_rank.a.shape[0], 3);
    let columns = packed.corrections.columns.unwrap();
    assert_eq!(
        columns.indexes.len(),
        (packed.layout.cols() as f64 * 0.05).ceil() as usize
    );
    assert!(error < 0.8 * plain_error, "{error} {plain_error}");
}

#[test]
fn no_correction_changes_no_byte_and_a_full_one_leaves_nothing() {
    let source = golden("llama");
    let dir = tempfile::tempdir().unwrap();
    let weights = |recipe: &Recipe, name: &str| {
        let staged = staged(&source, recipe, &dir.path().join(name));
        fs_err::read(staged.path().join("model.safetensors")).unwrap()
    };
    let mut none = builtin("ternary").unwrap();
    none.set_body("a correction", |packed| packed.correct_rank = 0)
        .unwrap();
    assert!(weights(&builtin("ternary").unwrap(), "a") == weights(&none, "b"));
    let mut full = builtin("ternary").unwrap();
    full.set_body("a correction", |packed| packed.correct_rank = 1000)
        .unwrap();
    let staged = staged(&source, &full, &dir.path().join("c"));
    let records = &staged.manifest().tensors;
    let errors: Vec<f64> = records
        .iter()
        .filter_map(|record| record.output_error)
        .collect();
    assert_eq!(errors.len(), 14);
    assert!(errors.iter().all(|error| *error < 1e-5), "{errors:?}");
}

/// What the source gives to matrices is summed once for those that share it, whatever is rounded
/// and however often it was interrupted.
#[test]
fn importance_is_that_of_the_source() {
    let source = golden("qwen2");
    let dir = tempfile::tempdir().unwrap();
    let (output, stop) = (dir.path().join("out"), StopEarly::default());
    let recipe = builtin("ternary").unwrap();
    let stopped = stage(&source, &recipe, &output, &stop, &stop.cancel);
    assert!(matches!(stopped, Err(Error::Interrupted { .. })));
    let found = staged(&source, &recipe, &output).importance().unwrap();
    let windows = some_tokens(source.spec().vocab);
    let tokens: usize = windows.iter().map(Vec::len).sum();
    let mut streams = embed(&source, &windows).unwrap();
    for index in 0..source.spec().layers.len() {
        let layer = OneLayer::load(&source, index).unwrap();
        for role in [
            Role::Q,
            Role::K,
            Role::V,
            Role::O,
            Role::Gate,
            Role::Up,
            Role::Down,
        ] {
            let name = TensorId::layer(index, role).gguf_name().unwrap();
            let entry = &found[&name];
            assert_eq!(entry.counts, [tokens as f32]);
            let inputs = streams
                .iter()
                .flat_map(|x_td| layer.input(role, x_td).unwrap());
            let inputs: Vec<f32> = inputs.collect();
            let columns = inputs.len() / tokens;
            assert_eq!(entry.columns(), columns);
            for (c, sum) in entry.sums.iter().enumerate() {
                let own = inputs.iter().skip(c).step_by(columns);
                let expected: f64 = own.map(|&x| f64::from(x).powi(2)).sum();
                assert!(
                    (f64::from(*sum) / expected - 1.0).abs() < 1e-5,
                    "{name} {c}"
                );
            }
        }
        for x_td in &mut streams {
            layer.run(x_td);
        }
    }
    assert_eq!(found.len(), 7 * source.spec().layers.len());
}

/// Asks for a stop as soon as some matrices are rounded.
#[derive(Default)]
struct StopEarly {
    rounding: AtomicBool,
    cancel: AtomicBool,
}

impl Progress for StopEarly {
    fn start(&self, stage: &str, _: u64, _: &str) {
        self.rounding
            .store(stage == "round layers", Ordering::Relaxed);
    }

    fn advance(&self, count: u64) {
        // All matrices of the first layer, one by one.
        if self.rounding.load(Ordering::Relaxed) && count > 0 {
            self.cancel.store(true, Ordering::Relaxed);
        }
    }

    fn finish(&self) {}
}

#[test]
fn bytes_do_not_depend_on_threads_or_interruptions() {
    let source = golden("qwen2");
    let (recipe, dir) = (corrected(), tempfile::tempdir().unwrap());
    let weights = |staged: StagedArtifact| {
        let bytes = fs_err::read(staged.path().join("model.safetensors")).unwrap();
        staged.reject().unwrap();
        bytes
    };
    let output = dir.path().join("out");
    let whole = weights(staged(&source, &recipe, &output));
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        let found = pool.install(|| weights(staged(&source, &recipe, &output)));
        assert!(found == whole, "{threads} threads");
    }
    let stop = StopEarly::default();
    let stopped = stage(&source, &recipe, &output, &stop, &stop.cancel);
    assert!(matches!(stopped, Err(Error::Interrupted { .. })));
    assert!(weights(staged(&source, &recipe, &output)) == whole);
}

#[test]
fn a_bad_weight_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let from = golden_dirs()
        .into_iter()
        .find(|dir| dir.ends_with("llama"))
        .unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs_err::copy(from.join(name), dir.path().join(name)).unwrap();
    }
    let path = dir.path().join("model.safetensors");
    let mut bytes = fs_err::read(&path).unwrap();
    let end = bytes.len();
    // Exponents of ones alone, whatever the element type: the last weight is not finite.
    bytes[end - 4..].fill(0xff);
    fs_err::write(&path, bytes).unwrap();
    let source = Checkpoint::open(dir.path()).unwrap();
    let stop = StopEarly::default();
    let output = dir.path().join("out");
    let int4 = builtin("int4").unwrap();
    let refused = stage(&source, &int4, &output, &stop, &stop.cancel);
    // Wherever it stands, before the first layer is rounded.
    assert!(matches!(refused, Err(Error::NonFinite { .. })));
    assert!(!stop.rounding.into_inner());
}

#[test]
fn columns_that_no_text_uses_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let from = golden_dirs();
    let from = from.iter().find(|dir| dir.ends_with("llama")).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs_err::copy(from.join(name), dir.path().join(name)).unwrap();
    }
    let recipe = builtin("int4").unwrap();
    let source = Checkpoint::open(dir.path()).unwrap();
    let told = |source: &Checkpoint, name: &str| {
        let staged = staged(source, &recipe, &dir.path().join(name));
        staged
            .notes()
            .iter()
            .any(|note| note.contains("never uses"))
    };
    assert!(!told(&source, "a"));
    // A row of zeros before the gate's product makes a column of zeros after it.
    let slots = &source.resolved().slots;
    let slot = slots
        .iter()
        .find(|slot| slot.id == TensorId::layer(1, Role::Up));
    let info = source.files().info(&slot.unwrap().source).unwrap();
    let row = info.size_bytes() as usize / info.shape[0];
    let (start, path) = (
        info.range.start as usize,
        dir.path().join("model.safetensors"),
    );
    let mut bytes = fs_err::read(&path).unwrap();
    bytes[start..start + row].fill(0);
    fs_err::remove_file(&path).unwrap();
    fs_err::write(&path, bytes).unwrap();
    assert!(told(&Checkpoint::open(dir.path()).unwrap(), "b"));
}

#[test]
fn without_text_nothing_is_rounded_with_feedback() {
    let source = golden("llama");
    let dir = tempfile::tempdir().unwrap();
    let mut recipe = builtin("int4").unwrap();
    let execute = |recipe: &Recipe| {
        let plan = plan(&source, recipe).unwrap();
        let staging = Staging::open(&dir.path().join("out"), false).unwrap();
        execute(
            &plan,
            &source,
            &[],
            staging,
            &Quiet,
            &AtomicBool::new(false),
        )
    };
    assert!(matches!(execute(&recipe), Err(Error::NoCalibration { .. })));
    recipe.without_learning().unwrap();
    execute(&recipe).unwrap().reject().unwrap();
    assert!(corrected().without_learning().is_err());
}
