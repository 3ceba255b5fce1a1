//! Writes the logits of a model, for programs that hold other engines to them:
//!
//! ```text
//! cargo run --release -p neuroconv-verify --example logits -- MODEL TOKENS.json OUT.bin
//! ```
//!
//! `TOKENS.json` is a list of token ids, one window. `OUT.bin` gets `[t, vocab]` numbers of single
//! precision, little-endian. Levels are taken as the numbers they mean, so no activation is rounded.

use std::error::Error;
use std::path::Path;

use neuroconv_runtime::{AsNumbers, Decoder, open_source};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, tokens, out] = args.as_slice() else {
        return Err("MODEL TOKENS.json OUT.bin".into());
    };
    let source = open_source(Path::new(model))?;
    let tokens: Vec<u32> = serde_json::from_slice(&fs_err::read(tokens)?)?;
    let decoder = Decoder::load(&AsNumbers(&source))?;
    let logits = decoder.logits(&decoder.hidden(&tokens, &mut decoder.new_cache())?);
    let bytes: Vec<u8> = logits.iter().flat_map(|l| l.to_le_bytes()).collect();
    Ok(fs_err::write(out, bytes)?)
}
