//! Multi-head latent attention as other engines load it. Owns the table in `stock/latent.toml`.

use std::sync::LazyLock;

use serde::Deserialize;

use crate::{Error, arch};

/// What other engines call the parts of latent attention, and under which classes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StockLatent {
    /// What `transformers` adds to the mean square in the norm of the latent.
    pub norm_eps: f64,
    /// Engines that loaded exports of it and were compared.
    pub tested: Vec<String>,
    /// Names in checkpoints; `{i}` stands for the layer.
    pub tensors: StockNames,
    /// What GGUF files say.
    pub gguf: StockGguf,
    /// Classes that compute it without experts.
    pub class: Vec<StockClass>,
}

/// Names of the tensors of a checkpoint.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "as the roles, with keys and values of all heads in `kv_b`"
)]
pub struct StockNames {
    pub embed: String,
    pub attn_norm: String,
    pub q: String,
    pub q_a: String,
    pub q_a_bias: String,
    pub q_a_norm: String,
    pub q_b: String,
    pub kv_a: String,
    pub kv_a_bias: String,
    pub kv_a_norm: String,
    pub kv_b: String,
    pub o: String,
    pub o_bias: String,
    pub mlp_norm: String,
    pub gate: String,
    pub up: String,
    pub down: String,
    pub final_norm: String,
    pub head: String,
}

/// Names in GGUF files, where they differ from those of the roles.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "as the roles; `arch` is the value of general.architecture"
)]
pub struct StockGguf {
    pub arch: String,
    pub q: String,
    pub kv_a: String,
    pub kv_a_norm: String,
    pub k_b: String,
    pub v_b: String,
}

/// A class of `transformers`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StockClass {
    /// Its `model_type`.
    pub name: String,
    /// The class.
    pub class: String,
    /// The key that says how many layers have no experts, where there is one.
    pub dense: Option<String>,
    /// Keys that every configuration of it has.
    pub config: serde_json::Map<String, serde_json::Value>,
}

static STOCK: LazyLock<StockLatent> = LazyLock::new(|| {
    toml::from_str(include_str!("../stock/latent.toml")).expect("tested: the built-in table parses")
});

/// The table.
pub fn stock_latent() -> &'static StockLatent {
    &STOCK
}

impl StockLatent {
    /// The class called `name`.
    pub fn class(&self, name: &str) -> Result<&StockClass, Error> {
        self.class
            .iter()
            .find(|class| class.name == name)
            .ok_or_else(|| arch::unknown(name, self.class.iter().map(|c| c.name.clone()).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_table_parses_and_names_every_layer() {
        let stock = stock_latent();
        let (t, g) = (&stock.tensors, &stock.gguf);
        for name in [
            &t.q, &t.kv_a, &t.kv_b, &t.o_bias, &t.down, &g.q, &g.k_b, &g.v_b,
        ] {
            assert_eq!(name.matches("{i}").count(), 1, "{name}");
        }
        assert_eq!(stock.class("youtu").unwrap().class, "YoutuForCausalLM");
        let error = stock.class("deepseekv3").unwrap_err();
        assert!(error.hint().unwrap().contains("deepseek_v3"), "{error}");
    }
}
