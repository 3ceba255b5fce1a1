//! A tiny synthetic checkpoint, and whole conversions of it.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use neuroconv_convert::{Emission, Error, StagedArtifact, Staging, execute, plan};
use neuroconv_format::manifest::VerdictStatus;
use neuroconv_format::{DType, PlannedTensor, SafetensorsLayout};
use neuroconv_recipes::Recipe;
use neuroconv_runtime::{Checkpoint, Progress, Quiet};

/// Rows of the vocabulary tables.
const VOCAB: usize = 48;
/// Width of the residual stream.
const HIDDEN: usize = 64;
/// Width of the feed-forward blocks: no multiple of 64, so groups have to shrink.
const FFN: usize = 96;
/// Width of keys and values.
const KV: usize = 32;

/// Writes a Llama of `layers` layers, hidden 64, in bf16, with some files beside it; `change`
/// may alter the values of each tensor by name.
pub(crate) fn write_checkpoint(dir: &Path, layers: usize, change: impl Fn(&str, &mut Vec<f32>)) {
    fs_err::create_dir_all(dir).unwrap();
    let config = format!(
        "{{\n  \"architectures\": [\"LlamaForCausalLM\"],\n  \"model_type\": \"llama\",\n  \
         \"hidden_size\": {HIDDEN},\n  \"intermediate_size\": {FFN},\n  \
         \"num_hidden_layers\": {layers},\n  \"num_attention_heads\": 4,\n  \
         \"num_key_value_heads\": 2,\n  \"vocab_size\": {VOCAB},\n  \"rms_norm_eps\": 1e-05,\n  \
         \"rope_theta\": 10000.0,\n  \"max_position_embeddings\": 128,\n  \
         \"hidden_act\": \"silu\",\n  \"attention_bias\": false,\n  \"mlp_bias\": false,\n  \
         \"bos_token_id\": 1,\n  \"eos_token_id\": 2,\n  \"tie_word_embeddings\": false,\n  \
         \"torch_dtype\": \"bfloat16\"\n}}\n"
    );
    fs_err::write(dir.join("config.json"), config).unwrap();
    fs_err::write(dir.join("tokenizer.json"), "{\"not\": \"looked at\"}").unwrap();
    fs_err::write(dir.join("LICENSE"), "as you like\n").unwrap();
    fs_err::write(dir.join("README.md"), "---\nlicense: mit\n---\n").unwrap();
    let tensors = tensors(layers);
    let planned = tensors
        .iter()
        .map(|(name, shape)| PlannedTensor {
            name: name.clone(),
            dtype: DType::BF16,
            shape: shape.clone(),
        })
        .collect();
    let layout = SafetensorsLayout::new(planned).unwrap();
    let file = fs_err::File::create(dir.join("model.safetensors")).unwrap();
    file.file().write_all_at(&layout.header_bytes(), 0).unwrap();
    for (name, shape) in tensors {
        let mut values = values(&name, shape.iter().product());
        change(&name, &mut values);
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|&x| half::bf16::from_f32(x).to_le_bytes())
            .collect();
        file.file()
            .write_all_at(&bytes, layout.range(&name).unwrap().start)
            .unwrap();
    }
}

fn tensors(layers: usize) -> Vec<(String, Vec<usize>)> {
    let mut out = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
        ("lm_head.weight".to_owned(), vec![VOCAB, HIDDEN]),
    ];
    for layer in 0..layers {
        for (name, shape) in [
            ("input_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", vec![KV, HIDDEN]),
            ("self_attn.v_proj", vec![KV, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("mlp.gate_proj", vec![FFN, HIDDEN]),
            ("mlp.up_proj", vec![FFN, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, FFN]),
        ] {
            out.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    out
}

/// Roughly normal values, different for each name.
fn values(name: &str, count: usize) -> Vec<f32> {
    let seed = name
        .bytes()
        .fold(0u64, |s, b| s.wrapping_mul(131).wrapping_add(u64::from(b)));
    let uniform = |i: u64| {
        let mut z = seed.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..count as u64)
        .map(|i| (0..4).map(|j| uniform(4 * i + j)).sum::<f32>() * 0.1)
        .collect()
}

/// Plans and executes; stops before the gate.
pub(crate) fn stage(
    source: &Path,
    recipe: &Recipe,
    staging: Staging,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<StagedArtifact, Error> {
    let source = Checkpoint::open(source)?;
    execute(
        &plan(&source, recipe)?,
        &source,
        &[],
        staging,
        progress,
        cancel,
    )
}

/// What a gate that is content would hand over.
pub(crate) fn passed() -> Emission {
    Emission {
        verdict: VerdictStatus::Pass,
        waived: Vec::new(),
        report_json: b"{}\n".to_vec(),
        report_md: Some(b"# report\n".to_vec()),
        report_html: None,
        junit_xml: None,
        card: "# card\n".to_owned(),
    }
}

/// Files with their bytes.
pub(crate) type Tree = BTreeMap<PathBuf, Vec<u8>>;

/// Every file below `dir`.
pub(crate) fn tree(dir: &Path) -> Tree {
    let mut out = BTreeMap::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in fs_err::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else {
                out.insert(
                    path.strip_prefix(dir).unwrap().to_owned(),
                    fs_err::read(&path).unwrap(),
                );
            }
        }
    }
    out
}

/// The names in a folder, hidden ones included, sorted.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs_err::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A built-in recipe that rounds every group by itself.
pub(crate) fn plain(name: &str) -> Result<Recipe, Error> {
    let mut recipe = neuroconv_recipes::builtin(name)?;
    recipe.without_learning()?;
    Ok(recipe)
}

/// Converts by a built-in recipe without calibration, from plan to emission.
pub(crate) fn convert(source: &Path, recipe: &str, output: &Path) -> Result<PathBuf, Error> {
    let staging = Staging::open(output, false)?;
    let recipe = plain(recipe)?;
    stage(source, &recipe, staging, &Quiet, &AtomicBool::new(false))?.emit(&passed(), &Quiet)
}
