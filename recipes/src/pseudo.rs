//! An architecture as a person reads it: the effective block in pseudo-code, and the table of
//! its tensors. Everything printed follows from the architecture file, so it is always true.

use std::fmt::Write;

use crate::arch::{ArchSpec, Flag, RopeLayers, WindowRule};
use crate::role::Role;
use crate::spec::{Mlp, Norm, Order, QkNorm, RopeLayout};

/// Column at which remarks begin.
const REMARKS: usize = 52;

/// The block of `arch` in about ten lines of pseudo-code, followed by one line per role with
/// its shape and its name in a checkpoint.
pub fn pseudo_code(arch: &ArchSpec) -> String {
    let mut out = format!("{} ({})\n\n", arch.name, arch.classes.join(", "));
    for (code, remark) in block(arch) {
        let line = format!("{code:REMARKS$}{remark}");
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out.push('\n');
    out.push_str(&table(arch));
    out
}

fn block(arch: &ArchSpec) -> Vec<(String, String)> {
    let rules = &arch.block;
    let norm = match rules.norm {
        Norm::Rms => "rms_norm",
    };
    let line = |code: &str, remark: String| (code.to_owned(), remark);
    let mut lines = vec![
        line("x = embed[tokens]", "# [t, hidden]".to_owned()),
        line("for each layer:", String::new()),
        (
            format!("    h = {norm}(x) * attn_norm"),
            formula(rules.norm),
        ),
        line(
            "    q, k, v = attn_q·h, attn_k·h, attn_v·h",
            bias(&rules.bias.qkv),
        ),
    ];
    match rules.qk_norm {
        QkNorm::None => {}
        QkNorm::PerHead => {
            for x in ["q", "k"] {
                let code = format!("    {x} = {norm}({x}) * attn_{x}_norm");
                lines.push((code, "# over each head".to_owned()));
            }
        }
    }
    lines.push(line(
        "    q, k = rotate(q), rotate(k)",
        rotation(rules.rope, rules.rope_layers),
    ));
    lines.push(line(
        "    a = softmax(q·kᵀ / √head_dim)·v",
        format!(
            "# causal, heads/kv_heads queries per key{}",
            window(rules.window)
        ),
    ));
    match rules.order {
        Order::Pre => {
            lines.push(line("    x += attn_o·a", bias(&rules.bias.o)));
            lines.push((format!("    h = {norm}(x) * mlp_norm"), String::new()));
        }
    }
    match rules.mlp {
        Mlp::GatedSilu => {
            let code = "    x += mlp_down·(silu(mlp_gate·h) ⊙ mlp_up·h)";
            lines.push(line(code, bias(&rules.bias.mlp)));
        }
    }
    let tied = &arch.config.tied;
    let remark = match tied.default {
        Some(default) => format!("# head is embed if {}, {default} when absent", tied.key),
        None => format!("# head is embed if {}", tied.key),
    };
    lines.push((format!("logits = head·({norm}(x) * final_norm)"), remark));
    lines
}

fn formula(norm: Norm) -> String {
    match norm {
        Norm::Rms => "# x / √(mean(x²) + norm_eps)".to_owned(),
    }
}

fn bias(flag: &Flag) -> String {
    match flag {
        Flag::Fixed(true) => "# + bias".to_owned(),
        Flag::Fixed(false) => String::new(),
        Flag::Key(key) => format!("# + bias if {key}"),
    }
}

fn rotation(layout: RopeLayout, layers: RopeLayers) -> String {
    let pairs = match layout {
        RopeLayout::Half => "# channel i with i + head_dim/2",
        RopeLayout::Interleaved => "# channel 2i with 2i + 1",
    };
    match layers {
        RopeLayers::All => pairs.to_owned(),
        RopeLayers::Listed => format!("{pairs}, where no_rope_layers has a 1"),
    }
}

fn window(rule: WindowRule) -> &'static str {
    match rule {
        WindowRule::None => "",
        WindowRule::AllLayers => ", the last sliding_window positions",
        WindowRule::FromLayer => ", windowed if use_sliding_window",
        WindowRule::UnrotatedLayers => ", unrotated layers windowed if use_sliding_window",
    }
}

fn table(arch: &ArchSpec) -> String {
    let rows: Vec<(&str, &str, &str)> = arch
        .roles()
        .map(|(role, name)| (role.name(), shape(role), name))
        .collect();
    let width =
        |column: fn(&(&str, &str, &str)) -> usize| rows.iter().map(column).max().unwrap_or(0);
    let (role_width, shape_width) = (width(|r| r.0.len()), width(|r| r.1.len()));
    let mut out = format!(
        "{:role_width$}  {:shape_width$}  name in the checkpoint\n",
        "role", "shape"
    );
    for (role, shape, name) in &rows {
        writeln!(out, "{role:role_width$}  {shape:shape_width$}  {name}")
            .expect("a string takes any text");
    }
    out
}

/// The shape of a role in terms of the dimensions of a configuration.
fn shape(role: Role) -> &'static str {
    match role {
        Role::Embed | Role::Head => "[vocab, hidden]",
        Role::FinalNorm | Role::AttnNorm | Role::MlpNorm | Role::OBias | Role::DownBias => {
            "[hidden]"
        }
        Role::Q => "[heads*head_dim, hidden]",
        Role::K | Role::V => "[kv_heads*head_dim, hidden]",
        Role::O => "[hidden, heads*head_dim]",
        Role::QBias => "[heads*head_dim]",
        Role::KBias | Role::VBias => "[kv_heads*head_dim]",
        Role::QNorm | Role::KNorm => "[head_dim]",
        Role::QRope => "[heads*rope_dim, head_dim]",
        Role::KvA => "[rank+rope_dim, hidden]",
        Role::KvABias => "[rank+rope_dim]",
        Role::KvANorm => "[rank]",
        Role::KB | Role::VB => "[heads*head_dim, rank]",
        Role::RopeFreq => "[rope_dim/2]",
        Role::Gate | Role::Up => "[ffn, hidden]",
        Role::Down => "[hidden, ffn]",
        Role::GateBias | Role::UpBias => "[ffn]",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::arch::architectures;
    use crate::samples::{config_of, resolved};
    use crate::spec::Mixer;

    #[test]
    fn every_architecture_reads_well() {
        for arch in architectures() {
            insta::assert_snapshot!(arch.name.clone(), pseudo_code(arch));
        }
    }

    /// The symbolic shapes agree with those that a model really has.
    #[test]
    fn shapes_are_true() {
        let mut config = config_of("Qwen3ForCausalLM");
        config["attention_bias"] = json!(true);
        config["head_dim"] = json!(6);
        for config in [config, {
            let mut config = config_of("LlamaForCausalLM");
            config["attention_bias"] = json!(true);
            config["mlp_bias"] = json!(true);
            config
        }] {
            let spec = resolved(&config).spec;
            let Mixer::Attention(a) = &spec.layers[0].mixer else {
                panic!("a checkpoint has plain attention");
            };
            for (id, dims) in spec.tensors() {
                let value = |term: &str| match term {
                    "vocab" => spec.vocab,
                    "hidden" => spec.hidden,
                    "ffn" => spec.ffn,
                    "heads" => a.heads,
                    "kv_heads" => a.kv_heads,
                    "head_dim" => a.head_dim,
                    other => panic!("{other}"),
                };
                let text = shape(id.role).trim_matches(['[', ']']);
                let stated: Vec<usize> = text
                    .split(", ")
                    .map(|dim| dim.split('*').map(value).product())
                    .collect();
                assert_eq!(stated, dims, "{id}");
            }
        }
    }
}
