//! Reads the rotary embedding of a configuration, in both spellings: `rope_theta` beside an
//! optional `rope_scaling`, and the newer `rope_parameters` that holds everything.

use serde_json::Value;

use super::reader::{Reader, print};
use crate::Error;
use crate::arch::ArchSpec;
use crate::spec::{RopeScaling, RopeSpec};
use crate::validate::{FACTOR, FREQ_FACTOR, ORIGINAL_POSITIONS, THETA};

/// The objects that may describe the rotation, newer spelling first.
const OBJECTS: [&str; 2] = ["rope_parameters", "rope_scaling"];
/// Keys that mean the same whatever the type.
const COMMON: [&str; 4] = ["rope_type", "type", "rope_theta", "partial_rotary_factor"];
const TYPES: &str = "`default`, `linear` or `llama3`";

pub(super) fn read(arch: &ArchSpec, config: &Reader<'_>) -> Result<RopeSpec, Error> {
    let mut read: Vec<(&str, RopeSpec)> = Vec::new();
    for name in OBJECTS {
        if let Some(object) = config.object(name)?.filter(|o| o.keys().next().is_some()) {
            let theta = theta(arch, config, Some(&object))?;
            let spec = RopeSpec {
                theta,
                layout: arch.block.rope,
                scaling: scaling(config, &object)?,
            };
            read.push((name, spec));
        }
    }
    match read.as_slice() {
        [] => Ok(RopeSpec {
            theta: theta(arch, config, None)?,
            layout: arch.block.rope,
            scaling: RopeScaling::None,
        }),
        [(key, one), (other_key, other), ..] if one != other => Err(Error::Conflict {
            key: (*key).to_owned(),
            value: describe(one),
            other_key: (*other_key).to_owned(),
            other_value: describe(other),
        }),
        [(_, one), ..] => Ok(*one),
    }
}

/// The base of the frequencies: inside the object, beside it, or what the architecture says.
fn theta(arch: &ArchSpec, config: &Reader<'_>, object: Option<&Reader<'_>>) -> Result<f64, Error> {
    let key = &arch.config.rope_theta;
    let beside = config.real(&key.key, &THETA)?;
    let inside = object.map_or(Ok(None), |o| o.real("rope_theta", &THETA))?;
    match (inside, beside, object) {
        (Some(inside), Some(beside), Some(object)) if inside.to_bits() != beside.to_bits() => {
            Err(Error::Conflict {
                key: object.path("rope_theta"),
                value: inside.to_string(),
                other_key: key.key.clone(),
                other_value: beside.to_string(),
            })
        }
        _ => inside
            .or(beside)
            .or(key.default)
            .ok_or_else(|| config.missing(&key.key)),
    }
}

fn scaling(config: &Reader<'_>, object: &Reader<'_>) -> Result<RopeScaling, Error> {
    let kind = match (object.text("rope_type")?, object.text("type")?) {
        (Some(new), Some(old)) if new != old => {
            return Err(Error::Conflict {
                key: object.path("rope_type"),
                value: crate::suggest::shown(new),
                other_key: object.path("type"),
                other_value: crate::suggest::shown(old),
            });
        }
        (new, old) => new.or(old).unwrap_or("default"),
    };
    let need = |key: &str, range| object.real(key, range)?.ok_or_else(|| object.missing(key));
    let (own, scaling): (&[&str], RopeScaling) = match kind {
        "default" => (&[], RopeScaling::None),
        "linear" => (
            &["factor"],
            RopeScaling::Linear {
                factor: need("factor", &FACTOR)?,
            },
        ),
        "llama3" => {
            let scaling = RopeScaling::Llama3 {
                factor: need("factor", &FACTOR)?,
                low_freq_factor: need("low_freq_factor", &FREQ_FACTOR)?,
                high_freq_factor: need("high_freq_factor", &FREQ_FACTOR)?,
                original_max_positions: original_positions(config, object)?,
            };
            check_ramp(object, scaling)?;
            let own = &[
                "factor",
                "low_freq_factor",
                "high_freq_factor",
                "original_max_position_embeddings",
            ];
            (own, scaling)
        }
        other => {
            let key = if object.get("rope_type").is_some() {
                "rope_type"
            } else {
                "type"
            };
            return Err(object.unsupported(key, &Value::from(other), TYPES));
        }
    };
    for key in object.keys() {
        match object.get(key) {
            Some(found) if !COMMON.contains(&key) && !own.contains(&key) => {
                return Err(object.unsupported(
                    key,
                    found,
                    &format!("leaving it out for type `{kind}`"),
                ));
            }
            _ => {}
        }
    }
    super::refuse_unless_neutral(object, "partial_rotary_factor", Some(1.0))?;
    Ok(scaling)
}

/// The context of the first training, which may also stand beside the object.
fn original_positions(config: &Reader<'_>, object: &Reader<'_>) -> Result<f64, Error> {
    let key = "original_max_position_embeddings";
    let inside = object
        .real(key, &ORIGINAL_POSITIONS)?
        .ok_or_else(|| object.missing(key))?;
    match config.real(key, &ORIGINAL_POSITIONS)? {
        Some(beside) if beside.to_bits() != inside.to_bits() => Err(Error::Conflict {
            key: object.path(key),
            value: inside.to_string(),
            other_key: key.to_owned(),
            other_value: beside.to_string(),
        }),
        _ => Ok(inside),
    }
}

/// A ramp must rise: with equal ends it divides by zero.
fn check_ramp(object: &Reader<'_>, scaling: RopeScaling) -> Result<(), Error> {
    match scaling {
        RopeScaling::Llama3 {
            low_freq_factor,
            high_freq_factor,
            ..
        } if high_freq_factor <= low_freq_factor => {
            let found = Value::from(high_freq_factor);
            Err(object.bad(
                "high_freq_factor",
                &format!("more than low_freq_factor, {low_freq_factor}"),
                &found,
            ))
        }
        _ => Ok(()),
    }
}

fn describe(rope: &RopeSpec) -> String {
    match serde_json::to_value(rope.scaling) {
        Ok(Value::Object(scaling)) => {
            let parts: Vec<String> = scaling
                .iter()
                .map(|(k, v)| format!("{k} {}", print(v)))
                .collect();
            format!("theta {}, {}", rope.theta, parts.join(", "))
        }
        _ => format!("theta {}", rope.theta),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{change, refused, spec, with, without};
    use super::*;
    use crate::samples::config as sample;

    #[test]
    fn both_spellings_of_rope_are_read() {
        let llama3 = json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32
        });
        let old = spec(&with(&json!({ "rope_theta": 5e5, "rope_scaling": llama3 }))).rope;
        let mut inside = llama3.clone();
        inside["rope_theta"] = json!(5e5);
        let new = spec(&change(
            without(sample(), "rope_theta"),
            &json!({ "rope_parameters": inside }),
        ))
        .rope;
        assert_eq!(old, new);
        assert!(matches!(
            old.scaling,
            RopeScaling::Llama3 {
                original_max_positions: 32.0,
                ..
            }
        ));
        let linear = json!({ "type": "linear", "factor": 2 });
        assert_eq!(
            spec(&with(&json!({ "rope_scaling": linear }))).rope.scaling,
            RopeScaling::Linear { factor: 2.0 }
        );
        for none in [
            json!(null),
            json!({}),
            json!({ "rope_type": "default", "rope_theta": 1e4 }),
        ] {
            let both = with(&json!({ "rope_scaling": none, "rope_parameters": none }));
            assert_eq!(spec(&both).rope, spec(&sample()).rope);
        }
    }

    #[test]
    fn doubtful_rope_is_refused() {
        let scaling = |value: Value| refused(&with(&json!({ "rope_scaling": value })));
        assert_eq!(
            scaling(json!({ "rope_type": "yarn", "factor": 4.0 })),
            "config.json: `rope_scaling.rope_type` is `yarn`, \
         supported is only `default`, `linear` or `llama3`"
        );
        assert!(scaling(json!({ "type": "dynamic" })).contains("`rope_scaling.type` is `dynamic`"));
        assert_eq!(
            scaling(json!({ "type": "linear" })),
            "config.json: `rope_scaling.factor` is missing"
        );
        assert!(scaling(json!({ "type": "linear", "factor": 0.5 })).contains("1..=1000000"));
        assert!(
            scaling(json!({ "rope_type": "linear", "type": "llama3" }))
                .contains("but `rope_scaling.type`")
        );
        assert!(scaling(json!({ "mrope_section": [1, 2] })).contains("rope_scaling.mrope_section"));
        assert!(scaling(json!({ "partial_rotary_factor": 0.5 })).contains("`0.5`"));
        assert!(scaling(json!({ "rope_theta": 5.0 })).contains("`rope_theta` is `10000`"));
        let llama3 = |low: f64, high: f64| {
            json!({
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": low, "high_freq_factor": high,
                "original_max_position_embeddings": 32
            })
        };
        assert!(scaling(llama3(4.0, 4.0)).contains("more than low_freq_factor"));
        let beside = with(&json!({
            "rope_scaling": llama3(1.0, 4.0), "original_max_position_embeddings": 64
        }));
        assert!(refused(&beside).contains("`original_max_position_embeddings` is `64`"));
        let both = with(&json!({
            "rope_scaling": { "type": "linear", "factor": 2.0 }, "rope_parameters": { "rope_type": "default" }
        }));
        assert_eq!(
            refused(&both),
            "config.json: `rope_parameters` is `theta 10000, kind none`, \
         but `rope_scaling` is `theta 10000, kind linear, factor 2.0`"
        );
    }
}
