//! [`Recipe`] to canonical text: every default spelt out, one spelling for everything, so that
//! equal recipes have equal text and `parse(to_toml(r)) == r`.

use std::fmt::Write;

use super::{Apart, FoldNorms, MlaRecipe, Packed, PackedKind, Rank, Recipe, Rule, Scheme};

impl Recipe {
    /// The resolved recipe as TOML. This text is stored with an artifact and hashed.
    pub fn to_toml(&self) -> String {
        let mut out = String::new();
        let mut line = |text: String| {
            out.push_str(&text);
            out.push('\n');
        };
        line("schema = 1".to_owned());
        line(format!("name = {}", quoted(&self.name)));
        line(format!("summary = {}", quoted(&self.summary)));
        if let Some(mla) = &self.mla {
            line("\n[mla]".to_owned());
            mla_lines(mla).into_iter().for_each(&mut line);
        }
        if !self.rewrites.is_empty() {
            line("\n[rewrite]".to_owned());
            let norms = match &self.rewrites.fold_norms {
                FoldNorms::These(norms) => {
                    let norms: Vec<String> = norms.iter().map(|id| format!("\"{id}\"")).collect();
                    format!("[{}]", norms.join(", "))
                }
                FoldNorms::WhereItGains(_) => "\"auto\"".to_owned(),
            };
            line(format!("fold_norms = {norms}"));
            line(format!("rotate = {}", self.rewrites.rotate));
        }
        if let Some(calibration) = &self.calibration {
            line("\n[calibration]".to_owned());
            line(format!("text = {}", quoted(&calibration.text)));
            line(format!("sha256 = {}", quoted(&calibration.sha256)));
            line(format!("tokens = {}", calibration.tokens));
            line(format!("ctx = {}", calibration.ctx));
        }
        if let Some(importance) = &self.importance {
            line("\n[importance]".to_owned());
            line(format!("file = {}", quoted(&importance.file)));
            line(format!("sha256 = {}", quoted(&importance.sha256)));
        }
        for rule in &self.rules {
            line(String::new());
            line("[[rule]]".to_owned());
            rule_lines(rule).into_iter().for_each(&mut line);
        }
        line("\n[otherwise]".to_owned());
        line(format!("scheme = {}", scheme(&self.otherwise.scheme)));
        if let Some(reason) = &self.otherwise.reason {
            line(format!("reason = {}", quoted(reason)));
        }
        line("\n[limits]".to_owned());
        for (key, limit) in self.limits.named() {
            if let Some(limit) = limit {
                line(format!("{key} = {limit:?}"));
            }
        }
        out
    }
}

fn mla_lines(mla: &MlaRecipe) -> Vec<String> {
    let mut lines = vec![format!("mode = \"{}\"", mla.mode.name())];
    lines.extend(mla.rank.map(|rank| match rank {
        Rank::Fixed(rank) => format!("rank = {rank}"),
        Rank::Auto(_) => "rank = \"auto\"".to_owned(),
    }));
    lines.extend(mla.rope_dim.map(|rope| format!("rope_dim = {rope}")));
    lines.push(format!("retain_variance = {:?}", mla.retain_variance));
    lines.extend(mla.kv_budget.map(|share| format!("kv_budget = {share:?}")));
    lines.push(format!("keep_layers = {:?}", mla.keep_layers));
    lines.extend(
        mla.max_layers_kld
            .map(|kld| format!("max_layers_kld = {kld:?}")),
    );
    lines.push(format!("stock_rope = {}", mla.stock_rope));
    lines.push(format!("allow_growth = {}", mla.allow_growth));
    lines
}

fn rule_lines(rule: &Rule) -> Vec<String> {
    let roles: Vec<String> = rule.roles.iter().map(|s| format!("\"{s}\"")).collect();
    let mut lines = vec![format!("roles = [{}]", roles.join(", "))];
    lines.extend(
        rule.layers
            .as_ref()
            .map(|layers| format!("layers = {{ {layers} }}")),
    );
    lines.push(format!("scheme = {}", scheme(&rule.scheme)));
    lines.extend(
        rule.reason
            .as_ref()
            .map(|reason| format!("reason = {}", quoted(reason))),
    );
    lines
}

fn scheme(scheme: &Scheme) -> String {
    let mut out = format!("{{ type = \"{}\"", scheme.name());
    let wrote = match scheme {
        Scheme::Keep { dtype: None } => Ok(()),
        Scheme::Keep { dtype: Some(dtype) } => write!(out, ", dtype = \"{}\"", dtype.name()),
        Scheme::Packed(packed) => write_packed(&mut out, packed),
    };
    wrote.expect("a string takes any text");
    out.push_str(" }");
    out
}

fn write_packed(out: &mut String, packed: &Packed) -> std::fmt::Result {
    let Packed {
        kind,
        group_size,
        method,
        threshold,
        planes,
        shift,
        correct_rank,
        apart,
        activations,
    } = packed;
    write!(
        out,
        ", group_size = {group_size}, method = \"{}\"",
        method.name()
    )?;
    if *kind == PackedKind::Ternary {
        write!(out, ", threshold = \"{threshold}\"")?;
    }
    if *planes > 1 {
        write!(out, ", planes = {planes}")?;
    }
    if *shift {
        write!(out, ", shift = true")?;
    }
    if *correct_rank > 0 {
        write!(out, ", correct_rank = {correct_rank}")?;
    }
    match apart {
        Apart::None => {}
        Apart::Salient(share) => write!(out, ", salient = {share:?}")?,
        Apart::Outliers(threshold) => write!(out, ", outliers = {threshold:?}")?,
    }
    write!(out, ", activations = {activations}")
}

/// A TOML basic string. Recipes hold no control characters, so quotes and backslashes are all
/// there is to escape.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::recipe::{
        Auto, Calibration, ImportanceFile, KeepDtype, LayerSelect, Limits, Method, MlaMode,
        Otherwise, Rewrites, Selector, Threshold, builtin, builtin_names,
    };
    use crate::role::{Role, TensorId};

    fn any_scheme() -> impl Strategy<Value = Scheme> {
        let group = || prop::sample::select(vec![32_usize, 64, 128, 256]);
        let dtype = prop::option::of(prop::sample::select(vec![
            KeepDtype::F32,
            KeepDtype::F16,
            KeepDtype::Bf16,
        ]));
        let threshold = prop_oneof![
            prop::sample::select(vec![Threshold::Mse, Threshold::Twn, Threshold::EntropyMax]),
            (1e-9_f64..1.0).prop_map(Threshold::Sparsity),
            (0.0_f64..1e12).prop_map(Threshold::Rd),
        ];
        let kind = prop::sample::select(vec![PackedKind::Int4, PackedKind::Int8]);
        let apart = prop_oneof![Just(Apart::None), (1e-9_f64..1.0).prop_map(Apart::Salient),];
        let method = prop::sample::select(vec![Method::Gptq, Method::Rtn]);
        let ternary = (threshold, 1_u8..3);
        let any = (
            group(),
            prop::option::of(ternary),
            kind,
            apart,
            method,
            0_usize..3,
        );
        prop_oneof![
            dtype.prop_map(|dtype| Scheme::Keep { dtype }),
            any.prop_map(|(group_size, ternary, kind, apart, method, correct_rank)| {
                let (threshold, planes) = ternary.unwrap_or_default();
                let kind = ternary.map_or(kind, |_| PackedKind::Ternary);
                let plain = kind == PackedKind::Int8 && method == Method::Rtn && correct_rank == 0;
                let apart = match (apart, group_size) {
                    (Apart::None, 64) if plain => Apart::Outliers(6.5),
                    (Apart::None, 128) if plain => Apart::Outliers(f64::INFINITY),
                    _ => apart,
                };
                Scheme::Packed(Packed {
                    kind,
                    group_size,
                    method,
                    threshold,
                    planes: planes.max(1),
                    shift: kind != PackedKind::Int8 && correct_rank == 1,
                    correct_rank,
                    apart,
                    activations: if planes > 1 { 8 } else { 16 },
                })
            }),
        ]
    }

    /// Any line of text, quotes, backslashes and other scripts included.
    fn any_prose() -> impl Strategy<Value = String> {
        "\\PC{0,40}".prop_map(|s| s.chars().filter(|c| !c.is_control()).collect())
    }

    fn any_rule() -> impl Strategy<Value = Rule> {
        let roles = prop::sample::subsequence(Selector::all().collect::<Vec<_>>(), 1..6);
        let layers = prop::option::of(prop_oneof![
            (0.0_f64..=1.0, 0.0_f64..=1.0)
                .prop_map(|(first, last)| LayerSelect::Ends { first, last }),
            prop::collection::vec(0_usize..2000, 1..5).prop_map(LayerSelect::Indices),
        ]);
        (roles, layers, any_scheme(), prop::option::of(any_prose())).prop_map(
            |(roles, layers, scheme, reason)| Rule {
                roles,
                layers,
                scheme,
                reason,
            },
        )
    }

    fn any_limits() -> impl Strategy<Value = Limits> {
        let limit = || prop::option::of(1e-9_f64..1e9);
        (
            limit(),
            limit(),
            prop::option::of(0.0_f64..=1.0),
            0.0_f64..9.0,
        )
            .prop_map(|(ratio, kld, top1, tail)| {
                // One is always there: a recipe without limits is given some.
                Limits {
                    max_ppl_ratio: ratio,
                    max_kld: kld,
                    min_top1: top1,
                    max_p99_kld: Some(tail),
                }
            })
    }

    fn any_mla() -> impl Strategy<Value = MlaRecipe> {
        let rank = prop_oneof![(1_usize..9999).prop_map(Rank::Fixed), Just(Rank::AUTO)];
        (
            prop::sample::select(vec![MlaMode::Mla, MlaMode::Latent]),
            prop::option::of(rank),
            0.01_f64..=1.0,
            prop::collection::vec(0_usize..99, 0..3),
            prop::option::of(0.0_f64..9.0),
            any::<bool>(),
        )
            .prop_map(|(mode, rank, share, keep_layers, max_layers_kld, flag)| {
                let mla = mode == MlaMode::Mla;
                MlaRecipe {
                    mode,
                    rank,
                    rope_dim: (mla && flag).then_some(32),
                    retain_variance: share,
                    kv_budget: (!matches!(rank, Some(Rank::Fixed(_)))).then_some(share),
                    keep_layers,
                    max_layers_kld,
                    stock_rope: mla && flag,
                    allow_growth: flag,
                    full_rank: false,
                }
            })
    }

    fn any_calibration() -> impl Strategy<Value = Calibration> {
        (any_prose(), "[0-9a-f]{64}", 0_usize..99, 0_usize..99).prop_map(
            |(text, sha256, tokens, ctx)| Calibration {
                text,
                sha256,
                tokens,
                ctx,
            },
        )
    }

    fn any_importance() -> impl Strategy<Value = ImportanceFile> {
        (any_prose(), "[0-9a-f]{64}").prop_map(|(file, sha256)| ImportanceFile { file, sha256 })
    }

    fn any_rewrites() -> impl Strategy<Value = Rewrites> {
        let norm = (0_usize..9, any::<bool>()).prop_map(|(layer, first)| {
            let role = if first { Role::AttnNorm } else { Role::MlpNorm };
            TensorId::layer(layer, role)
        });
        let norms = prop::collection::vec(norm, 0..4).prop_map(FoldNorms::These);
        let auto = Just(FoldNorms::WhereItGains(Auto::Auto));
        (prop_oneof![norms, auto], any::<bool>())
            .prop_map(|(fold_norms, rotate)| Rewrites { fold_norms, rotate })
    }

    fn any_recipe() -> impl Strategy<Value = Recipe> {
        let rules = prop::collection::vec(any_rule(), 0..5);
        let otherwise = (any_scheme(), prop::option::of(any_prose()))
            .prop_map(|(scheme, reason)| Otherwise { scheme, reason });
        (
            "[A-Za-z0-9._-]{1,64}",
            any_prose(),
            rules,
            otherwise,
            any_limits(),
            prop::option::of(any_mla()),
            (
                prop::option::of(any_calibration()),
                prop::option::of(any_importance()),
            ),
            any_rewrites(),
        )
            .prop_map(
                |(
                    name,
                    summary,
                    rules,
                    otherwise,
                    limits,
                    mla,
                    (calibration, importance),
                    rewrites,
                )| {
                    Recipe {
                        name,
                        summary,
                        mla,
                        rewrites,
                        calibration,
                        importance,
                        rules,
                        otherwise,
                        limits,
                    }
                },
            )
    }

    proptest! {
        #[test]
        fn printing_and_parsing_are_inverse(recipe in any_recipe()) {
            let text = recipe.to_toml();
            let parsed = Recipe::parse(&text, "printed").map_err(|e| TestCaseError::fail(e.to_string()))?;
            prop_assert_eq!(&parsed, &recipe);
            prop_assert_eq!(parsed.to_toml(), text);
        }

        /// Damage anywhere in a recipe ends in a recipe or an error, and a recipe prints itself.
        #[test]
        fn damaged_text_never_panics(at in 0_usize..2000, insert in "\\PC{0,6}", cut in 0_usize..20) {
            let whole = builtin("ternary-mixed").unwrap().to_toml();
            let chars: Vec<char> = whole.chars().collect();
            let at = at.min(chars.len());
            let mut text: String = chars[..at].iter().collect();
            text.push_str(&insert);
            text.extend(chars[(at + cut).min(chars.len())..].iter());
            if let Ok(recipe) = Recipe::parse(&text, "damaged") {
                prop_assert_eq!(Recipe::parse(&recipe.to_toml(), "printed"), Ok(recipe));
            }
        }
    }

    #[test]
    fn built_ins_survive_being_printed() {
        for name in builtin_names() {
            let recipe = builtin(name).unwrap();
            assert_eq!(Recipe::parse(&recipe.to_toml(), "printed").unwrap(), recipe);
        }
    }

    #[test]
    fn the_canonical_text_spells_everything_out() {
        let text =
            "name = 'q'\nrule = [{ roles = ['mlp'], layers = { last = 1 }, scheme = 'ternary' }]";
        let recipe = Recipe::parse(text, "r.toml").unwrap();
        assert_eq!(
            recipe.to_toml(),
            "schema = 1\nname = \"q\"\nsummary = \"\"\n\n[[rule]]\nroles = [\"mlp\"]\n\
             layers = { first = 0.0, last = 1.0 }\n\
             scheme = { type = \"ternary\", group_size = 128, method = \"gptq\", threshold = \"mse\", \
             activations = 8 }\n\n\
             [otherwise]\nscheme = { type = \"keep\" }\n\n[limits]\nmax_ppl_ratio = 1.05\n\
             max_kld = 0.06\nmin_top1 = 0.88\nmax_p99_kld = 1.0\n"
        );
    }
}
