//! Messages to the prompt that a model was trained to see, by its own chat template.
//!
//! Owns where the template is found and the environment it runs in, which follows what
//! transformers offers to templates. A template is a program by a stranger: it runs with bounded
//! steps, depth and output, and reaches nothing but the messages. A string that it doubles again
//! and again is bounded by memory only.

mod clock;
mod json;

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::{Environment, ErrorKind, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use crate::guard::quietly;
use crate::tokenizer::{CONFIG_LIMIT, token_text};
use crate::{Error, SideFiles};

/// Bytes of the longest template.
const TEMPLATE_LIMIT: u64 = 1 << 20;
/// Steps a template may take.
const FUEL: u64 = 2_000_000;
/// Calls and blocks inside each other.
const RECURSION: usize = 64;
/// Bytes of the longest prompt.
const PROMPT_LIMIT: usize = 64 << 20;

/// The prompt for `messages`, pairs of role and content, by the chat template of the model whose
/// small files are `side`: `chat_template.jinja`, else the one in `tokenizer_config.json`. It holds its special
/// tokens as text, so encode it without adding any. With `add_generation_prompt` it ends where
/// the assistant's answer begins.
pub fn chat_prompt(
    side: &SideFiles,
    messages: &[(&str, &str)],
    add_generation_prompt: bool,
) -> Result<String, Error> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs());
    let config = side.read_json("tokenizer_config.json", CONFIG_LIMIT)?;
    let config = config.unwrap_or_default();
    let template = find_template(side, &config)?;
    let context = context(&config, messages, add_generation_prompt);
    let failed = |detail| Error::ChatTemplate {
        path: template.path.clone(),
        detail,
    };
    quietly(|| render(&template.text, &context, now))
        .map_err(failed)?
        .map_err(|error| failed(describe(&error)))
}

struct Template {
    path: PathBuf,
    text: String,
}

fn find_template(side: &SideFiles, config: &serde_json::Value) -> Result<Template, Error> {
    let config_path = side.path("tokenizer_config.json");
    let path = side.path("chat_template.jinja");
    if let Some(bytes) = side.read("chat_template.jinja", TEMPLATE_LIMIT)? {
        return match String::from_utf8(bytes) {
            Ok(text) => Ok(Template { path, text }),
            Err(error) => Err(Error::ChatTemplate {
                path,
                detail: error.to_string(),
            }),
        };
    }
    let entry = match config.get("chat_template") {
        Some(serde_json::Value::Array(named)) => {
            let default = named.iter().find(|entry| entry["name"] == "default");
            default
                .or(named.first())
                .and_then(|entry| entry.get("template"))
        }
        other => other,
    };
    match entry.and_then(serde_json::Value::as_str) {
        Some(text) if text.len() as u64 <= TEMPLATE_LIMIT => Ok(Template {
            path: config_path,
            text: text.to_owned(),
        }),
        Some(text) => Err(Error::FileSize {
            path: config_path,
            found: text.len() as u64,
            limit: TEMPLATE_LIMIT,
        }),
        None => Err(Error::NoChatTemplate {
            path: side.root().to_owned(),
        }),
    }
}

/// What a template sees: the messages, the special tokens by name, and the names that
/// transformers defines as none where the caller gives nothing.
fn context(
    config: &serde_json::Value,
    messages: &[(&str, &str)],
    add_generation_prompt: bool,
) -> serde_json::Value {
    let messages: Vec<_> = messages
        .iter()
        .map(|(role, content)| serde_json::json!({ "role": role, "content": content }))
        .collect();
    let mut context = serde_json::json!({
        "messages": messages,
        "add_generation_prompt": add_generation_prompt,
        "tools": null,
        "documents": null,
    });
    for (name, value) in config.as_object().into_iter().flatten() {
        if name.ends_with("_token")
            && let Some(text) = token_text(value)
        {
            context[name] = text.into();
        }
    }
    context
}

fn render(
    template: &str,
    context: &serde_json::Value,
    now: u64,
) -> Result<String, minijinja::Error> {
    let mut env = Environment::new();
    env.set_trim_blocks(true);
    env.set_lstrip_blocks(true);
    env.set_fuel(Some(FUEL));
    env.set_recursion_limit(RECURSION);
    env.set_unknown_method_callback(unknown_method_callback);
    env.add_filter("tojson", json::tojson);
    env.add_function("raise_exception", raise_exception);
    env.add_function("strftime_now", move |format: &str| {
        clock::strftime(format, now)
    });
    let template = plain_blocks(template);
    let mut prompt = Capped(Vec::new());
    env.template_from_named_str("chat_template", &template)?
        .render_captured_to(context, &mut prompt)?;
    String::from_utf8(prompt.0)
        .map_err(|error| minijinja::Error::new(ErrorKind::WriteFailure, error.to_string()))
}

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// The template with `{% generation %}` blocks, which only mark what to train on, turned into
/// blocks that are always taken.
fn plain_blocks(template: &str) -> String {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else {
            break;
        };
        let tag = &rest[start..start + length];
        let tag = match tag
            .trim_start_matches(['{', '%', '-', '+'])
            .trim_end_matches('-')
            .trim()
        {
            "generation" => tag.replace("generation", "if true"),
            "endgeneration" => tag.replace("endgeneration", "endif"),
            _ => tag.to_owned(),
        };
        out.push_str(&rest[..start]);
        out.push_str(&tag);
        rest = &rest[start + length..];
    }
    out + rest
}

/// The error with its line, and what caused it.
fn describe(error: &minijinja::Error) -> String {
    let mut text = match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    if let Some(line) = error.line() {
        text = format!("line {line}: {text}");
    }
    text
}

/// Takes no more than [`PROMPT_LIMIT`] bytes.
struct Capped(Vec<u8>);

impl Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > PROMPT_LIMIT {
            return Err(io::Error::other("the prompt is too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
