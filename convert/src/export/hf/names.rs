//! The tensors of a checkpoint by the names that `transformers` gives them.

use neuroconv_recipes::stock::StockNames;
use neuroconv_recipes::{ArchSpec, MlaSpec, ModelSpec, Role, TensorId};

use crate::export::ExportError;
use crate::export::foreign::{Foreign, Origin, Rows};
use crate::export::latent::{Constant, score_scale};

/// The tensors of a model with the attention of its architecture.
pub(crate) fn own(spec: &ModelSpec, arch: &ArchSpec) -> Result<Vec<Foreign>, ExportError> {
    let named = |(id, shape): (TensorId, Vec<usize>)| {
        let name = arch.source_name(id).ok_or(ExportError::NoTensor(id))?;
        Ok(Foreign::plain(name, id, shape))
    };
    spec.tensors().into_iter().map(named).collect()
}

/// What the form of latent attention depends on beside its shape.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LatentForm {
    /// Whether the engine has biases of the latent and of the output.
    pub(crate) biases: bool,
    /// The constant by which queries get their bias, where they have one: the engine's queries have
    /// none, but their compressed form has, and a compression that keeps everything is one.
    pub(crate) queries: Option<Constant>,
}

/// The tensors of a model whose layers all are `mla`, the head written out even where it is tied.
pub(crate) fn latent(
    spec: &ModelSpec,
    mla: &MlaSpec,
    names: &StockNames,
    form: LatentForm,
) -> Vec<Foreign> {
    let MlaSpec {
        heads,
        head_dim,
        rank,
        rope_dim,
        ..
    } = *mla;
    let hidden = spec.hidden;
    let shapes: std::collections::BTreeMap<TensorId, Vec<usize>> =
        spec.tensors().into_iter().collect();
    let embed = TensorId::model(Role::Embed);
    let head = TensorId::model(if spec.tied { Role::Embed } else { Role::Head });
    let vocab = vec![spec.vocab, hidden];
    let mut out = vec![Foreign::plain(names.embed.clone(), embed, vocab.clone())];
    for layer in 0..spec.layers.len() {
        let name = |pattern: &str| pattern.replacen("{i}", &layer.to_string(), 1);
        let mut whole = |pattern: &str, role| {
            let id = TensorId::layer(layer, role);
            let shape = shapes.get(&id).cloned().unwrap_or_default();
            out.push(Foreign::plain(name(pattern), id, shape));
        };
        whole(&names.attn_norm, Role::AttnNorm);
        whole(&names.kv_a_norm, Role::KvANorm);
        whole(&names.o, Role::O);
        if form.biases {
            whole(&names.o_bias, Role::OBias);
        }
        whole(&names.mlp_norm, Role::MlpNorm);
        whole(&names.gate, Role::Gate);
        whole(&names.up, Role::Up);
        whole(&names.down, Role::Down);
        let scale = score_scale(mla);
        let mut turned = |pattern: &str, role, head, tail_scale, shape| {
            let id = TensorId::layer(layer, role);
            let rows = Rows {
                id,
                head,
                tail: rope_dim,
                tail_scale,
            };
            out.push(Foreign {
                name: name(pattern),
                shape,
                origin: Origin::Rows(rows),
            });
        };
        let query = heads * (head_dim + rope_dim);
        if form.queries.is_none() {
            turned(&names.q, Role::Q, head_dim, None, vec![query, hidden]);
        }
        let latent = rank + rope_dim;
        turned(
            &names.kv_a,
            Role::KvA,
            rank,
            Some(scale),
            vec![latent, hidden],
        );
        if form.biases {
            turned(
                &names.kv_a_bias,
                Role::KvABias,
                rank,
                Some(scale),
                vec![latent],
            );
        }
        if let Some(constant) = form.queries {
            let rows = Rows {
                id: TensorId::layer(layer, Role::Q),
                head: head_dim,
                tail: rope_dim,
                tail_scale: None,
            };
            out.extend(biased_queries(
                names,
                layer,
                rows,
                constant,
                [query, hidden],
            ));
        }
        out.push(Foreign {
            name: name(&names.kv_b),
            shape: vec![2 * heads * head_dim, rank],
            origin: Origin::KeysValues {
                layer,
                heads,
                scale,
            },
        });
    }
    let norm = TensorId::model(Role::FinalNorm);
    out.push(Foreign::plain(names.final_norm.clone(), norm, vec![hidden]));
    out.push(Foreign::plain(names.head.clone(), head, vocab));
    out
}

/// Queries `rows`, a matrix of this shape, with a bias: channels are copied, one constant is added, and
/// the norm behind them leaves the copies alone.
fn biased_queries(
    names: &StockNames,
    layer: usize,
    rows: Rows,
    constant: Constant,
    [query, hidden]: [usize; 2],
) -> [Foreign; 4] {
    let wide = hidden + 1;
    let with_last = |channels: f32, last: f32| {
        let mut numbers = vec![channels; wide];
        numbers[hidden] = last;
        Origin::Numbers(numbers)
    };
    let undo = constant.undo;
    [
        (
            &names.q_a,
            vec![wide, hidden],
            Origin::Copy { width: hidden },
        ),
        (&names.q_a_bias, vec![wide], with_last(0.0, constant.value)),
        (
            &names.q_a_norm,
            vec![wide],
            with_last(constant.gain, constant.own_gain),
        ),
        (
            &names.q_b,
            vec![query, wide],
            Origin::Queries { rows, undo },
        ),
    ]
    .map(|(pattern, shape, origin)| Foreign {
        name: pattern.replacen("{i}", &layer.to_string(), 1),
        shape,
        origin,
    })
}
