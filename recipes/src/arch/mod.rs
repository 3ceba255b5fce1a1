//! Architectures as data: what a file in `arch/` may say, and the files themselves.
//!
//! Owns the map between names in a checkpoint and [`TensorId`]s.
//! Interprets nothing: `config` reads a configuration by it, `resolve` a list of tensors.

mod vocabulary;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use serde::Deserialize;

use crate::gguf::GgufRules;
use crate::role::{Role, TensorId};
use crate::spec::QkNorm;
use crate::suggest::{near, shown};
use crate::{Error, RoleKind};
pub(crate) use vocabulary::{
    BiasRules, BlockRules, ConfigKeys, CountElse, CountRule, Flag, Key, RopeLayers, WindowRule,
};

/// Every architecture file. A new one is added here and nowhere else in Rust.
const FILES: [&str; 5] = [
    include_str!("../../arch/llama.toml"),
    include_str!("../../arch/mistral.toml"),
    include_str!("../../arch/qwen2.toml"),
    include_str!("../../arch/qwen3.toml"),
    include_str!("../../arch/smollm.toml"),
];

/// The place of the layer index in a tensor's name.
const INDEX: &str = "{i}";

/// One architecture: how its configuration is read, what its block computes, and how its
/// tensors are called.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "ArchFile")]
pub struct ArchSpec {
    /// Short name, also the name of the file.
    pub name: String,
    /// Values of `architectures` in config.json that mean this one.
    pub classes: Vec<String>,
    /// Value of `model_type` in config.json.
    pub model_type: String,
    pub(crate) config: ConfigKeys,
    pub(crate) block: BlockRules,
    tensors: BTreeMap<Role, String>,
    ignored: Ignored,
    gguf: Option<GgufRules>,
    tested: Vec<String>,
}

/// The text of a file as it stands.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ArchFile {
    name: String,
    classes: Vec<String>,
    model_type: String,
    config: ConfigKeys,
    block: BlockRules,
    tensors: BTreeMap<String, String>,
    ignore: Ignored,
    gguf: Option<GgufRules>,
    #[serde(default)]
    tested: Vec<String>,
}

/// Names that are dropped on purpose.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ignored {
    names: Vec<String>,
    reason: String,
}

impl TryFrom<ArchFile> for ArchSpec {
    type Error = String;

    fn try_from(file: ArchFile) -> Result<Self, Self::Error> {
        let ArchFile {
            name,
            classes,
            model_type,
            config,
            block,
            tensors,
            ignore: ignored,
            gguf,
            tested,
        } = file;
        let tensors: BTreeMap<Role, String> = tensors
            .into_iter()
            .map(|(role, name)| Ok((role.parse::<Role>().map_err(|e| e.to_string())?, name)))
            .collect::<Result<_, String>>()?;
        let arch = ArchSpec {
            name,
            classes,
            model_type,
            config,
            block,
            tensors,
            ignored,
            gguf,
            tested,
        };
        let mapped: BTreeSet<Role> = arch.tensors.keys().copied().collect();
        let possible: BTreeSet<Role> = Role::ALL
            .into_iter()
            .filter(|r| arch.may_have(*r))
            .collect();
        if let Some(role) = mapped.symmetric_difference(&possible).next() {
            return Err(format!(
                "role `{role}` is needed but has no name, or named but never needed"
            ));
        }
        for (role, name) in &arch.tensors {
            if name.matches(INDEX).count() != usize::from(role.is_per_layer()) {
                return Err(format!(
                    "the name of `{role}` must have {INDEX} exactly if it is per layer"
                ));
            }
        }
        if arch.tensors.values().collect::<BTreeSet<_>>().len() != arch.tensors.len() {
            return Err("two roles have the same name".to_owned());
        }
        Ok(arch)
    }
}

impl ArchSpec {
    /// Whether some configuration of this architecture has tensors of `role`.
    fn may_have(&self, role: Role) -> bool {
        let BiasRules { qkv, o, mlp } = &self.block.bias;
        match role {
            Role::QBias | Role::KBias | Role::VBias => qkv.possible(),
            Role::OBias => o.possible(),
            Role::GateBias | Role::UpBias | Role::DownBias => mlp.possible(),
            Role::QNorm | Role::KNorm => self.block.qk_norm != QkNorm::None,
            // Made by conversions, in no checkpoint.
            _ if role.is_latent() || role == Role::KvANorm => false,
            _ => !matches!(role.kind(), RoleKind::Bias | RoleKind::Frequency),
        }
    }

    /// The roles this architecture can have, in storage order, with their names in a
    /// checkpoint; `{i}` stands for the layer.
    pub fn roles(&self) -> impl Iterator<Item = (Role, &str)> {
        Role::ALL
            .into_iter()
            .filter_map(|role| Some((role, self.tensors.get(&role)?.as_str())))
    }

    /// What a checkpoint calls `id`, if the architecture has such a tensor.
    pub fn source_name(&self, id: TensorId) -> Option<String> {
        let pattern = self.tensors.get(&id.role)?;
        match (id.layer, id.role.is_per_layer()) {
            (Some(layer), true) => Some(pattern.replacen(INDEX, &layer.to_string(), 1)),
            (None, false) => Some(pattern.clone()),
            _ => None,
        }
    }

    /// Which tensor a checkpoint calls `name`: the inverse of [`ArchSpec::source_name`].
    pub fn tensor_id(&self, name: &str) -> Option<TensorId> {
        self.tensors.iter().find_map(|(&role, pattern)| {
            let place = follows(pattern, name)?;
            Some(TensorId {
                layer: place.layer,
                role,
            })
        })
    }

    /// How GGUF files write such models, if they do.
    pub fn gguf(&self) -> Option<&GgufRules> {
        self.gguf.as_ref()
    }

    /// Whether the rows of `role` stand in another order in GGUF files than in a checkpoint.
    pub fn reorders_in_gguf(&self, role: Role) -> bool {
        let rules = self.gguf.as_ref();
        rules.is_some_and(|rules| rules.reorders(role, self.block.rope))
    }

    /// Whether exports of such models were loaded by `engine` and compared.
    pub fn tested_with(&self, engine: &str) -> bool {
        self.tested.iter().any(|name| name == engine)
    }

    /// Why a tensor of this name is dropped, if it is.
    pub fn ignores(&self, name: &str) -> Option<&str> {
        let mut names = self.ignored.names.iter();
        names
            .any(|pattern| follows(pattern, name).is_some())
            .then_some(&self.ignored.reason)
    }
}

/// The layer that a name which follows a pattern belongs to.
struct Place {
    layer: Option<usize>,
}

/// Whether `name` follows `pattern`, and for which layer.
fn follows(pattern: &str, name: &str) -> Option<Place> {
    let Some((before, after)) = pattern.split_once(INDEX) else {
        return (pattern == name).then_some(Place { layer: None });
    };
    let digits = name.strip_prefix(before)?.strip_suffix(after)?;
    let layer: usize = digits.parse().ok()?;
    (layer.to_string() == digits).then_some(Place { layer: Some(layer) })
}

/// Every supported architecture.
pub fn architectures() -> &'static [ArchSpec] {
    static PARSED: LazyLock<Vec<ArchSpec>> = LazyLock::new(|| {
        FILES
            .iter()
            .map(|text| {
                toml::from_str(text).expect("a test parses every embedded architecture file")
            })
            .collect()
    });
    &PARSED
}

/// The architecture called `name`.
pub fn architecture(name: &str) -> Result<&'static ArchSpec, Error> {
    find(name, |arch| vec![arch.name.as_str()])
}

/// The architecture that `name` means, by what `names` lists for each.
pub(crate) fn find(
    name: &str,
    names: impl Fn(&ArchSpec) -> Vec<&str>,
) -> Result<&'static ArchSpec, Error> {
    if let Some(arch) = architectures()
        .iter()
        .find(|arch| names(arch).contains(&name))
    {
        return Ok(arch);
    }
    let supported: Vec<String> = architectures()
        .iter()
        .flat_map(&names)
        .map(ToOwned::to_owned)
        .collect();
    Err(unknown(name, supported))
}

/// No name of `supported` is `name`.
pub(crate) fn unknown(name: &str, supported: Vec<String>) -> Error {
    Error::UnknownArchitecture {
        found: shown(name),
        near: near(name, supported.iter().map(String::as_str)),
        supported,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn every_file_is_embedded_once_under_its_own_name() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("arch");
        let mut on_disk: Vec<String> = dir
            .read_dir()
            .unwrap()
            .map(|entry| {
                entry
                    .unwrap()
                    .path()
                    .file_stem()
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned()
            })
            .collect();
        on_disk.sort();
        let mut embedded: Vec<String> = FILES
            .iter()
            .map(|text| {
                toml::from_str::<ArchSpec>(text)
                    .unwrap_or_else(|e| panic!("{e}"))
                    .name
            })
            .collect();
        embedded.sort();
        assert_eq!(embedded, on_disk);
        let mut classes: Vec<&String> = architectures().iter().flat_map(|a| &a.classes).collect();
        let all = classes.len();
        classes.sort();
        classes.dedup();
        assert_eq!(classes.len(), all);
    }

    #[test]
    fn names_and_roles_map_both_ways() {
        for arch in architectures() {
            let mut seen = BTreeSet::new();
            for (role, _) in arch.roles() {
                let layers = if role.is_per_layer() {
                    vec![Some(0), Some(7), Some(123)]
                } else {
                    vec![None]
                };
                for layer in layers {
                    let id = TensorId { layer, role };
                    let name = arch.source_name(id).unwrap();
                    assert_eq!(arch.tensor_id(&name), Some(id), "{}: {name}", arch.name);
                    assert!(arch.ignores(&name).is_none());
                    assert!(seen.insert(name));
                }
            }
            for block in [
                Role::Embed,
                Role::Q,
                Role::K,
                Role::V,
                Role::O,
                Role::Gate,
                Role::Up,
                Role::Down,
            ] {
                assert!(
                    arch.roles().any(|(role, _)| role == block),
                    "{}: {block}",
                    arch.name
                );
            }
        }
    }

    #[test]
    fn a_layer_index_is_canonical() {
        let arch = &architectures()[0];
        let name = arch.source_name(TensorId::layer(1, Role::Q)).unwrap();
        for wrong in ["01", "+1", "-1", "", "1.1", "99999999999999999999"] {
            assert_eq!(
                arch.tensor_id(&name.replace(".1.", &format!(".{wrong}."))),
                None,
                "{wrong}"
            );
        }
        assert_eq!(
            arch.source_name(TensorId {
                layer: None,
                role: Role::Q
            }),
            None
        );
        assert!(
            arch.ignores("model.layers.3.self_attn.rotary_emb.inv_freq")
                .is_some()
        );
        assert!(
            arch.ignores("model.layers.x.self_attn.rotary_emb.inv_freq")
                .is_none()
        );
    }

    #[test]
    fn a_file_outside_the_vocabulary_is_refused() {
        let good = FILES[0];
        toml::from_str::<ArchSpec>(good).unwrap();
        for (from, to, complaint) in [
            ("order       = \"pre\"", "order = \"sideways\"", "sideways"),
            ("name       =", "nickname =", "nickname"),
            ("else = \"heads\"", "else = \"tails\"", "kv_heads"),
            ("attn_norm     =", "attn_nrom =", "attn_nrom"),
            ("final_norm    = \"model.norm.weight\"\n", "", "final_norm"),
            (
                "qk_norm     = \"none\"",
                "qk_norm = \"per-head\"",
                "attn_q_norm",
            ),
            ("model.norm.weight", "model.{i}.norm.weight", "final_norm"),
            ("model.norm.weight", "lm_head.weight", "same name"),
        ] {
            let bad = good.replacen(from, to, 1);
            assert_ne!(bad, good, "{from}");
            let error = toml::from_str::<ArchSpec>(&bad).unwrap_err().to_string();
            assert!(error.contains(complaint), "{complaint}: {error}");
        }
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let error = architecture("qwen4").unwrap_err();
        assert_eq!(error.to_string(), "architecture `qwen4` is not supported");
        let hint = error.hint().unwrap();
        assert!(hint.starts_with("did you mean `qwen2`?"), "{hint}");
        assert!(
            architectures()
                .iter()
                .all(|a| hint.contains(&format!("`{}`", a.name)))
        );
        assert_eq!(architecture("mistral").unwrap().model_type, "mistral");
    }
}
