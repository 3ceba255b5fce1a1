use serde_json::Value;

use super::*;
use crate::testing;

#[test]
fn reports_round_trip() {
    let report = testing::report();
    let text = report.to_json().unwrap();
    assert!(text.ends_with("}\n"));
    assert_eq!(Report::parse(text.as_bytes()).unwrap(), report);
}

/// What in `value` breaks `schema`, as far as the schema's own words go.
fn breaches(schema: &Value, value: &Value, root: &Value, at: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut refuse = |why: String| out.push(format!("{at}: {why}"));
    if let Some(name) = schema["$ref"].as_str() {
        let target = &root["$defs"][name.trim_start_matches("#/$defs/")];
        assert!(target.is_object(), "{name} is defined");
        return breaches(target, value, root, at);
    }
    if let Some(any) = schema["anyOf"].as_array() {
        let fits = |s: &Value| breaches(s, value, root, at).is_empty();
        return if any.iter().any(fits) {
            out
        } else {
            vec![format!("{at}: none fits")]
        };
    }
    if schema["const"] != Value::Null && schema["const"] != *value {
        refuse(format!("not {}", schema["const"]));
    }
    if schema["enum"]
        .as_array()
        .is_some_and(|e| !e.contains(value))
    {
        refuse(format!("{value} is none of {}", schema["enum"]));
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_u64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let is = |t: &Value| *t == kind || (*t == "number" && kind == "integer");
    match &schema["type"] {
        Value::Null => {}
        Value::Array(types) if types.iter().any(is) => {}
        one if is(one) => {}
        other => refuse(format!("{kind} instead of {other}")),
    }
    for name in schema["required"].as_array().into_iter().flatten() {
        if value.get(name.as_str().unwrap()).is_none() {
            refuse(format!("no {name}"));
        }
    }
    for (key, inner) in value.as_object().into_iter().flatten() {
        match schema["properties"].get(key) {
            Some(schema) => out.extend(breaches(schema, inner, root, &format!("{at}.{key}"))),
            None => out.push(format!("{at}: {key} is not described")),
        }
    }
    for (i, inner) in value.as_array().into_iter().flatten().enumerate() {
        out.extend(breaches(
            &schema["items"],
            inner,
            root,
            &format!("{at}[{i}]"),
        ));
    }
    out
}

/// Everything that is written is described, and a wrong report breaks the schema.
#[test]
fn reports_fit_the_schema_and_no_field_is_missing_in_it() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let full = testing::full_report();
    let report: Value = serde_json::from_str(&full.to_json().unwrap()).unwrap();
    assert_eq!(breaches(&schema, &report, &schema, ""), [""; 0]);
    for (pointer, wrong) in [
        ("/verdict", Value::from("good")),
        ("/schema_version", Value::from(2)),
        ("/metrics/kld_p99", Value::Null),
        ("/metrics/detail/kld/p05", Value::from("0.1")),
        ("/checks/0/class", Value::from("taste")),
        ("/texts/0/ppl", Value::from(1.0)),
    ] {
        let mut bad = report.clone();
        *bad.pointer_mut(pointer).unwrap() = wrong;
        assert!(
            !breaches(&schema, &bad, &schema, "").is_empty(),
            "{pointer}"
        );
    }
    let mut short = report.clone();
    short.as_object_mut().unwrap().remove("parity");
    assert_eq!(breaches(&schema, &short, &schema, "").len(), 1);
}

#[test]
fn what_does_not_apply_is_null_or_absent() {
    let value: Value = serde_json::from_str(&testing::report().to_json().unwrap()).unwrap();
    assert_eq!(value.get("mla"), None);
    assert_eq!(value["source"]["commit"], Value::Null);
    assert_eq!(value["tensors"][3]["rel_mse"], Value::Null);
    assert_eq!(value["verdict"], "fail");
}

/// Every number of the JSON in turn becomes NaN, and none is written as `null`.
#[test]
fn numbers_that_are_not_finite_are_refused() {
    type Set = fn(&mut Report);
    let sets: [Set; 12] = [
        |r| r.metrics.ppl.value = f64::NAN,
        |r| r.metrics.ppl.lo = Some(f64::NEG_INFINITY),
        |r| r.metrics.kld_p99 = f64::INFINITY,
        |r| r.metrics.rms_dp = f64::NAN,
        |r| r.parity.rel_l2 = f64::NAN,
        |r| r.parity.limits.kld_mean = f64::INFINITY,
        |r| r.checks[0].observed = f64::NAN,
        |r| r.checks[0].limit = f64::NAN,
        |r| r.tensors[0].rel_mse = Some(f64::NAN),
        |r| r.artifact.bits_per_weight = f64::NAN,
        |r| r.stages[0].wall_s = f64::NAN,
        |r| {
            let energy = vec![0.5, f64::NAN];
            r.mla = Some(MlaRecord {
                mode: "mla".to_owned(),
                calibrated: true,
                layers: vec![0],
                rank: vec![8],
                rope_dim: 4,
                energy,
                spectrum: vec![vec![1.0]],
                output_error: vec![None],
                kld: vec![0.0],
                loss_share: vec![1.0],
                ppl_partial_rope: None,
                ppl_converted: None,
            });
        },
    ];
    for (i, set) in sets.iter().enumerate() {
        let mut report = testing::report();
        set(&mut report);
        assert!(
            matches!(report.to_json(), Err(Error::Report(_))),
            "case {i}"
        );
    }
}

#[test]
fn other_versions_and_other_files_are_refused() {
    let mut report = testing::report();
    report.schema_version = 2;
    let text = report.to_json().unwrap();
    for bad in [
        text.as_bytes(),
        b"{}",
        b"[]",
        b"",
        b"{\"schema_version\":1}",
    ] {
        assert!(matches!(Report::parse(bad), Err(Error::NotAReport { .. })));
    }
}

#[test]
fn fields_of_later_programs_are_ignored() {
    let text = testing::report()
        .to_json()
        .unwrap()
        .replacen('{', "{\"later\": [1],", 1);
    assert_eq!(Report::parse(text.as_bytes()).unwrap(), testing::report());
}

#[test]
fn the_cost_is_of_verification_over_the_two_passes() {
    let mut report = testing::report();
    assert_eq!(report.cost(), None);
    let stage = |(name, wall_s): (&str, f64)| StageRecord {
        name: name.to_owned(),
        wall_s,
    };
    let stages = [
        ("convert", 9.0),
        ("verify: parity", 1.0),
        ("verify: original", 2.5),
        ("verify: artifact", 1.0),
        ("verify: scores", 0.5),
        ("verify: layers", 1.0),
    ];
    report.stages = stages.map(stage).to_vec();
    assert_eq!(report.cost(), Some(1.5));
}
