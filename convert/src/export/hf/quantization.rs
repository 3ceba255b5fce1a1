//! `quantization_config`: what `config.json` says about packed weights.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::packing::{Packing, Scheme, Storage};
use crate::export::foreign::Foreign;

/// What `config.json` says about weights stored so; nothing where all are plain numbers.
pub(crate) fn config(packing: Packing, tensors: &[Foreign], storages: &[Storage]) -> Option<Value> {
    let module = |tensor: &Foreign| {
        let name = tensor.name.strip_suffix(".weight")?;
        (tensor.shape.len() == 2).then(|| name.to_owned())
    };
    let pairs = || tensors.iter().zip(storages);
    match packing {
        Packing::Dense => None,
        Packing::CompressedTensors => {
            let plain = pairs().filter(|(_, s)| matches!(s, Storage::Dense(_)));
            let ignore: Vec<String> = plain
                .filter_map(|(tensor, _)| module(tensor))
                .filter(|name| !name.ends_with("embed_tokens"))
                .collect();
            let mut groups: BTreeMap<Scheme, Vec<String>> = BTreeMap::new();
            for (tensor, storage) in pairs() {
                if let Storage::Compressed(scheme, _) = storage {
                    groups.entry(*scheme).or_default().extend(module(tensor));
                }
            }
            let alone = groups.len() == 1;
            let groups: Map<String, Value> = groups
                .into_iter()
                .enumerate()
                .map(|(at, (scheme, modules))| {
                    let targets = if alone {
                        vec!["Linear".to_owned()]
                    } else {
                        modules
                    };
                    (format!("group_{at}"), group(scheme, &targets))
                })
                .collect();
            // Some loaders look for the head whether the model has one of its own or not.
            let mut ignore = ignore;
            if !ignore.iter().any(|name| name == "lm_head") {
                ignore.push("lm_head".to_owned());
            }
            Some(json!({
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "quantization_status": "compressed",
                "global_compression_ratio": null,
                "kv_cache_scheme": null,
                "ignore": ignore,
                "config_groups": groups,
            }))
        }
        Packing::Gptq => {
            let scheme = storages.iter().find_map(|s| match s {
                Storage::Gptq(scheme) => Some(*scheme),
                _ => None,
            })?;
            Some(json!({
                "quant_method": "gptq",
                "bits": scheme.bits,
                "group_size": scheme.group,
                "desc_act": false,
                "sym": true,
                "lm_head": false,
                "checkpoint_format": "gptq",
                "true_sequential": true,
                "meta": { "quantizer": [format!("neuroconv:{}", env!("CARGO_PKG_VERSION"))] },
            }))
        }
        Packing::BitNet => Some(json!({
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": "offline",
            "use_rms_norm": false,
            "modules_to_not_convert": ["lm_head"],
        })),
    }
}

fn group(scheme: Scheme, targets: &[String]) -> Value {
    json!({
        "targets": targets,
        "weights": {
            "num_bits": scheme.bits,
            "type": "int",
            "symmetric": true,
            "strategy": "group",
            "group_size": scheme.group,
            "dynamic": false,
            "actorder": null,
            "block_structure": null,
            "observer": "minmax",
            "observer_kwargs": {},
        },
        "input_activations": null,
        "output_activations": null,
        "format": "pack-quantized",
    })
}
