use serde_json::json;

use super::*;

const CHAT: [(&str, &str); 3] = [
    ("system", "Be brief."),
    ("user", "Hi <b>"),
    ("assistant", "Yo"),
];

/// A model folder with this template in `tokenizer_config.json`.
fn folder(template: &serde_json::Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let config = json!({
        "bos_token": "<s>",
        "eos_token": { "content": "</s>", "special": true },
        "chat_template": template,
    });
    fs_err::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    dir
}

fn side(folder: &tempfile::TempDir) -> SideFiles {
    SideFiles::Folder(folder.path().to_owned())
}

fn prompt(template: &str, messages: &[(&str, &str)], open: bool) -> Result<String, Error> {
    let folder = folder(&json!(template));
    chat_prompt(&side(&folder), messages, open)
}

#[test]
fn a_chat_in_markup_comes_out_as_written() {
    let template = "\
{% for message in messages %}
    {% if loop.first and message['role'] != 'system' %}
<|im_start|>system
You help.<|im_end|>
    {% endif %}
<|im_start|>{{ message['role'] + '\\n' + message['content'].strip() }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}";
    assert_eq!(
        prompt(template, &CHAT[..2], true).unwrap(),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi <b><|im_end|>\n\
         <|im_start|>assistant\n"
    );
    assert_eq!(
        prompt(template, &[("user", " Hi ")], false).unwrap(),
        "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    );
}

#[test]
fn special_tokens_checks_and_python_methods_work() {
    let template = "{{ bos_token }}{% for m in messages %}\
        {% if (m.role == 'user') != (loop.index0 % 2 == 0) %}\
        {{ raise_exception('roles must take turns') }}{% endif %}\
        {% if m.content.startswith('stop') %}{% break %}{% endif %}\
        {{ m.role.upper() }}:{{ m.content.split(' ')[-1] }}{{ eos_token }}{% endfor %}\
        {% if tools is not none %}TOOLS{% endif %}";
    let turns = [
        ("user", "a b"),
        ("assistant", "c d"),
        ("user", "stop"),
        ("assistant", "e"),
    ];
    assert_eq!(
        prompt(template, &turns, false).unwrap(),
        "<s>USER:b</s>ASSISTANT:d</s>"
    );
    let error = prompt(template, &CHAT, false).unwrap_err();
    assert!(matches!(error, Error::ChatTemplate { .. }));
    let text = error.to_string();
    assert!(text.contains("roles must take turns") && text.contains("tokenizer_config.json"));
}

#[test]
fn json_is_spelled_as_python_spells_it() {
    let template =
        "{{ messages[1] | tojson }}|{{ messages[1] | tojson(indent=2) }}|{{ [1, none] | tojson }}";
    let text = prompt(template, &CHAT, false).unwrap();
    let mut parts = text.split('|');
    let line = parts.next().unwrap();
    assert!(
        line.contains("\"content\": \"Hi <b>\"") && line.contains("\", \""),
        "{line}"
    );
    assert!(parts.next().unwrap().starts_with("{\n  \""));
    assert_eq!(parts.next(), Some("[1, null]"));
}

#[test]
fn training_marks_are_seen_through() {
    let template = "{% for m in messages %}{%- generation -%}  {{ m.content }}  \
                    {%- endgeneration %};{% endfor %}";
    assert_eq!(
        prompt(template, &CHAT, false).unwrap(),
        "Be brief.;Hi <b>;Yo;"
    );
    assert_eq!(
        plain_blocks("{% if x %}a{%endgeneration-%}{% b"),
        "{% if x %}a{%endif-%}{% b"
    );
}

#[test]
fn the_template_is_found_in_its_places_in_order() {
    let named = json!([{ "name": "tool_use", "template": "no" },
                       { "name": "default", "template": "named" }]);
    let dir = folder(&named);
    assert_eq!(chat_prompt(&side(&dir), &CHAT, true).unwrap(), "named");
    fs_err::write(dir.path().join("chat_template.jinja"), "file").unwrap();
    assert_eq!(chat_prompt(&side(&dir), &CHAT, true).unwrap(), "file");
    let base = folder(&serde_json::Value::Null);
    let error = chat_prompt(&side(&base), &CHAT, true).unwrap_err();
    assert!(matches!(error, Error::NoChatTemplate { .. }) && error.hint().is_some());
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(
        chat_prompt(&side(&empty), &CHAT, true),
        Err(Error::NoChatTemplate { .. })
    ));
}

#[test]
fn dates_are_filled_in() {
    let date = prompt("{{ strftime_now('%Y-%m-%d') }}", &CHAT, true).unwrap();
    assert!(date.len() == 10 && date.starts_with("20"), "{date}");
    let error = prompt("{{ strftime_now('%Q') }}", &CHAT, true).unwrap_err();
    assert!(error.to_string().contains("strftime_now"));
}

#[test]
fn hostile_templates_end_in_errors() {
    let nested_loops =
        "{% for a in range(90000) %}{% for b in range(90000) %}{{ a }}{% endfor %}{% endfor %}";
    let endless = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
    let long = "{% for a in range(900) %}{{ 'x' * 1000000 }}{% endfor %}";
    let overflow = "{{ ([1] * 9223372036854775807 * 9) | length }}";
    let includes = "{% include '/etc/passwd' %}";
    let unknown = "{{ messages.__class__ }}{{ nothing.here.at_all }}";
    let deep = format!("{{{{ {}1", "(".repeat(20_000));
    for template in [
        nested_loops,
        endless,
        long,
        overflow,
        includes,
        unknown,
        "{% if %}",
        &deep,
    ] {
        let error = prompt(template, &CHAT, true).unwrap_err();
        assert!(
            matches!(error, Error::ChatTemplate { .. }),
            "{template:.40}"
        );
    }
    let oversized = prompt(&" ".repeat(TEMPLATE_LIMIT as usize + 1), &CHAT, true);
    assert!(matches!(oversized, Err(Error::FileSize { .. })));
}
