//! The model that comes with the program, and the texts that belong to it.

use std::path::Path;

use crate::calibration::BuiltInText;

/// Text of the model's language that it was not trained on.
pub(crate) const TEXT: &str = include_str!("../fixtures/texts/eval.txt");
/// What reports call that text.
pub(crate) const TEXT_NAME: &str = "fable, held out";
/// More of it, to learn from.
pub(crate) const CALIBRATION: BuiltInText = BuiltInText {
    name: "fable, for calibration",
    text: include_str!("../fixtures/texts/calib.txt"),
};
/// Tokens per window that the model was trained with.
pub(crate) const CTX: usize = 256;
/// Name of the model.
pub(crate) const NAME: &str = "fable-2m";

const FILES: [(&str, &[u8]); 4] = [
    (
        "config.json",
        include_bytes!("../fixtures/models/fable-2m/config.json"),
    ),
    (
        "model.safetensors",
        include_bytes!("../fixtures/models/fable-2m/model.safetensors"),
    ),
    (
        "tokenizer.json",
        include_bytes!("../fixtures/models/fable-2m/tokenizer.json"),
    ),
    (
        "tokenizer_config.json",
        include_bytes!("../fixtures/models/fable-2m/tokenizer_config.json"),
    ),
];

/// Writes the model as a checkpoint folder.
pub(crate) fn write(dir: &Path) -> std::io::Result<()> {
    fs_err::create_dir_all(dir)?;
    for (name, bytes) in FILES {
        fs_err::write(dir.join(name), bytes)?;
    }
    Ok(())
}
