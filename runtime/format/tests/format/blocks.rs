//! Decoded blocks against the values that the `gguf` package computes for them.

use std::path::Path;

use neuroconv_format::gguf::GgmlType;
use serde_json::Value;

fn bytes(hex: &str) -> Vec<u8> {
    let digits = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(digits).collect()
}

#[test]
fn blocks_decode_to_the_values_of_an_independent_decoder_bit_for_bit() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/blocks/gguf.json");
    let golden: Value = serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap();
    let mut compared = 0;
    for id in 0..64 {
        let Some(kind) = GgmlType::from_id(id) else {
            continue;
        };
        // No independent decoder knows it yet; `ternary` holds it to values by hand.
        if kind == GgmlType::Q2_0 {
            continue;
        }
        let Some(golden) = golden.get(kind.name()) else {
            assert!(kind.decode(&[]).is_none(), "{kind} has no golden values");
            continue;
        };
        let text = |key: &str| bytes(golden[key].as_str().unwrap());
        let decoded = kind.decode(&text("blocks")).unwrap();
        let decoded: Vec<u8> = decoded.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert!(decoded == text("values"), "{kind}");
        compared += 1;
    }
    assert_eq!(compared, 10);
}
