//! Reads what differs from layer to layer: rotation and sliding windows.

use serde_json::Value;

use super::reader::{Reader, print};
use crate::Error;
use crate::arch::{RopeLayers, WindowRule};
use crate::validate::{LAYERS, POSITIONS};

/// Whether each of `layers` layers rotates queries and keys.
pub(super) fn rotated(
    rule: RopeLayers,
    config: &Reader<'_>,
    layers: usize,
) -> Result<Vec<bool>, Error> {
    if rule == RopeLayers::All {
        return Ok(vec![true; layers]);
    }
    let Some(list) = config.list("no_rope_layers")? else {
        let interval = config.count("no_rope_layer_interval", &LAYERS)?;
        let interval = interval.ok_or_else(|| config.missing("no_rope_layer_interval"))?;
        return Ok((1..=layers).map(|nth| nth % interval != 0).collect());
    };
    if list.len() < layers {
        return Err(config.bad(
            "no_rope_layers",
            &format!("an entry for each of {layers} layers"),
            &Value::from(list),
        ));
    }
    list[..layers]
        .iter()
        .map(|entry| match entry.as_u64() {
            Some(0) => Ok(false),
            Some(1) => Ok(true),
            _ => Err(config.bad("no_rope_layers", "entries 0 or 1", entry)),
        })
        .collect()
}

/// The window of each layer. A window no shorter than `max_positions` is none.
pub(super) fn windows(
    rule: WindowRule,
    config: &Reader<'_>,
    rotated: &[bool],
    max_positions: usize,
) -> Result<Vec<Option<usize>>, Error> {
    let layers = rotated.len();
    let listed = layer_types(config, layers)?;
    let in_use = config.flag("use_sliding_window")?;
    let window = config.count("sliding_window", &POSITIONS)?;
    let windowed: Vec<bool> = match rule {
        WindowRule::None => match window.filter(|&w| w < max_positions) {
            Some(w) if in_use != Some(false) => {
                return Err(config.unsupported("sliding_window", &Value::from(w), "null"));
            }
            _ => vec![false; layers],
        },
        WindowRule::AllLayers if config.has("sliding_window") => vec![window.is_some(); layers],
        WindowRule::AllLayers => return Err(config.missing("sliding_window")),
        _ if window.is_none() || in_use != Some(true) => vec![false; layers],
        WindowRule::FromLayer => match listed.clone() {
            None => from_layer(config, layers)?,
            Some(listed) => listed,
        },
        WindowRule::UnrotatedLayers => listed
            .clone()
            .unwrap_or_else(|| rotated.iter().map(|r| !r).collect()),
    };
    if let Some(layer) = listed.and_then(|listed| (0..layers).find(|&i| listed[i] != windowed[i])) {
        return Err(disagreement(config, layer, windowed[layer]));
    }
    let window = window.filter(|&w| w < max_positions);
    Ok(windowed
        .into_iter()
        .map(|on| if on { window } else { None })
        .collect())
}

/// Windows from layer `max_window_layers` on.
fn from_layer(config: &Reader<'_>, layers: usize) -> Result<Vec<bool>, Error> {
    let from = config.count("max_window_layers", &(0..=*LAYERS.end()))?;
    let from = from.ok_or_else(|| config.missing("max_window_layers"))?;
    Ok((0..layers).map(|layer| layer >= from).collect())
}

/// `layer_types` as "has a window", where the configuration lists them.
fn layer_types(config: &Reader<'_>, layers: usize) -> Result<Option<Vec<bool>>, Error> {
    let Some(list) = config.list("layer_types")? else {
        return Ok(None);
    };
    if list.len() != layers {
        return Err(config.bad(
            "layer_types",
            &format!("{layers} entries, one per layer"),
            &Value::from(list),
        ));
    }
    let read = |entry: &Value| match entry.as_str() {
        Some("full_attention" | "attention") => Ok(false),
        Some("sliding_attention") => Ok(true),
        _ => Err(config.unsupported(
            "layer_types",
            entry,
            "`full_attention` and `sliding_attention`",
        )),
    };
    list.iter().map(read).collect::<Result<_, _>>().map(Some)
}

fn disagreement(config: &Reader<'_>, layer: usize, windowed: bool) -> Error {
    let name = |on| {
        if on {
            "sliding_attention"
        } else {
            "full_attention"
        }
    };
    let null = Value::Null;
    let key = if config.get("use_sliding_window").is_some() {
        "use_sliding_window"
    } else {
        "sliding_window"
    };
    Error::Conflict {
        key: format!("layer_types[{layer}]"),
        value: name(!windowed).to_owned(),
        other_key: key.to_owned(),
        other_value: print(config.get(key).unwrap_or(&null)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{change, refused, spec, with};
    use super::*;
    use crate::samples::config_of;
    use crate::spec::{AttentionSpec, LayerSpec, Mixer};

    fn attention(layer: &LayerSpec) -> &AttentionSpec {
        match &layer.mixer {
            Mixer::Attention(a) => a,
            other => panic!("{other:?}"),
        }
    }

    fn windows(config: &Value) -> Vec<Option<usize>> {
        spec(config)
            .layers
            .iter()
            .map(|layer| attention(layer).window)
            .collect()
    }

    fn rotated(config: &Value) -> Vec<bool> {
        spec(config)
            .layers
            .iter()
            .map(|layer| attention(layer).rope)
            .collect()
    }

    #[test]
    fn one_window_for_all_layers() {
        let mistral = config_of("MistralForCausalLM");
        assert_eq!(windows(&mistral), [None, None]);
        assert_eq!(
            windows(&change(mistral.clone(), &json!({ "sliding_window": 8 }))),
            [Some(8); 2]
        );
        assert_eq!(
            windows(&change(mistral.clone(), &json!({ "sliding_window": 64 }))),
            [None, None]
        );
        let contradiction = json!({ "layer_types": ["sliding_attention", "full_attention"] });
        assert!(refused(&change(mistral, &contradiction)).contains("layer_types[0]"));
        assert!(
            refused(&with(&json!({ "sliding_window": 8 }))).contains("`sliding_window` is `8`")
        );
        assert_eq!(
            windows(&with(
                &json!({ "sliding_window": 8, "use_sliding_window": false })
            )),
            [None; 2]
        );
    }

    #[test]
    fn windows_from_a_layer_on() {
        for class in ["Qwen2ForCausalLM", "Qwen3ForCausalLM"] {
            let base = config_of(class);
            let set = |changes: Value| change(base.clone(), &changes);
            let off =
                json!({ "use_sliding_window": false, "sliding_window": 8, "max_window_layers": 0 });
            assert_eq!(windows(&set(off)), [None, None]);
            let on =
                json!({ "use_sliding_window": true, "sliding_window": 8, "max_window_layers": 1 });
            assert_eq!(windows(&set(on)), [None, Some(8)]);
            let listed = json!({
                "use_sliding_window": true, "sliding_window": 8,
                "layer_types": ["sliding_attention", "full_attention"]
            });
            assert_eq!(windows(&set(listed)), [Some(8), None]);
            let bare = json!({ "use_sliding_window": true, "sliding_window": 8 });
            assert!(refused(&set(bare)).contains("`max_window_layers` is missing"));
            let unused = json!({ "layer_types": ["full_attention", "sliding_attention"] });
            assert!(refused(&set(unused)).contains("layer_types[1]"));
            let other = json!({ "layer_types": ["full_attention", "linear_attention"] });
            assert!(refused(&set(other)).contains("`layer_types` is `linear_attention`"));
            let short = json!({ "layer_types": ["full_attention"] });
            assert!(refused(&set(short)).contains("2 entries"));
        }
    }

    #[test]
    fn unrotated_layers() {
        let base = change(
            config_of("SmolLM3ForCausalLM"),
            &json!({ "num_hidden_layers": 4 }),
        );
        let set = |changes: Value| change(base.clone(), &changes);
        assert_eq!(rotated(&base), [true, false, true, false]);
        let listed = json!({ "no_rope_layers": [1, 1, 0, 1, 0] });
        assert_eq!(rotated(&set(listed)), [true, true, false, true]);
        assert!(refused(&set(json!({ "no_rope_layers": [1, 1] }))).contains("4 layers"));
        assert!(
            refused(&set(json!({ "no_rope_layers": [1, 1, 2, 1] }))).contains("entries 0 or 1")
        );
        assert!(refused(&set(json!({ "no_rope_layer_interval": 0 }))).contains("1..=1024"));
        let sliding = json!({ "use_sliding_window": true, "sliding_window": 8 });
        assert_eq!(windows(&set(sliding)), [None, Some(8), None, Some(8)]);
    }
}
