//! Chat templates against transformers' output, byte for byte (golden/make_text.py).
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, ops::Range, path::PathBuf};

use metal_candle::text::{ChatInput, ChatTemplate, LocalTime, TextError};
use serde_json::{Map, Value, json};

fn golden(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../golden/templates").join(path)
}

fn read_json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden(name)).unwrap()).unwrap()
}

fn conversations() -> BTreeMap<String, Value> {
    let list = read_json("conversations.json");
    let named = |value: &Value| (value["name"].as_str().unwrap().to_owned(), value.clone());
    list.as_array().unwrap().iter().map(named).collect()
}

fn input(conversation: &Value, add_generation_prompt: bool) -> ChatInput<'_> {
    let list = |name: &str| conversation.get(name).map(|value| value.as_array().unwrap().as_slice());
    ChatInput {
        tools: list("tools"),
        documents: list("documents"),
        add_generation_prompt,
        continue_final_message: conversation.get("continue_final_message").is_some(),
        extra: conversation.get("extra").map_or_else(Map::new, |extra| extra.as_object().unwrap().clone()),
        now: LocalTime::new(2026, 2, 3, 14, 5, 9),
        ..ChatInput::new(list("messages").unwrap())
    }
}

/// A model folder whose tokenizer config has this template and the special tokens of the golden files.
fn folder_with(template: Option<&Value>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut config = json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": "<pad>"});
    if let Some(template) = template {
        config["chat_template"] = template.clone();
    }
    std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    folder
}

/// Ranges of characters as ranges of bytes.
fn byte_ranges(text: &str, spans: &Value) -> Vec<Range<usize>> {
    let offsets: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
    let at = |value: &Value| offsets[usize::try_from(value.as_u64().unwrap()).unwrap()];
    spans.as_array().unwrap().iter().map(|span| at(&span[0])..at(&span[1])).collect()
}

fn check(name: &str) {
    let file = read_json(&format!("{name}.json"));
    let template = match &file["chat_template"] {
        // The same text as chatml, with other line ends.
        Value::Null => {
            Value::from(std::fs::read_to_string(golden("chatml.jinja")).unwrap().replace('\n', "\r\n"))
        }
        template => template.clone(),
    };
    let folder = folder_with(Some(&template));
    let chat_template = ChatTemplate::load(folder.path()).unwrap();
    let conversations = conversations();
    let mut wrong = Vec::new();
    let cases = file["cases"].as_array().unwrap();
    assert!(cases.len() >= conversations.len());
    for case in cases {
        let conversation = &conversations[case["conversation"].as_str().unwrap()];
        for prompt in case["add_generation_prompt"].as_array().unwrap() {
            let input = input(conversation, prompt.as_bool().unwrap());
            let got = chat_template.render(&input);
            let ok = match (&got, case.get("text"), case.get("raised")) {
                (Ok(got), Some(expected), _) => Some(got.as_str()) == expected.as_str(),
                (Err(TextError::TemplateRaised { message }), _, Some(expected)) => {
                    Some(message.as_str()) == expected.as_str()
                }
                (Err(error), _, None) => {
                    case.get("failed").is_some() && !matches!(error, TextError::TemplateRaised { .. })
                }
                _ => false,
            };
            if !ok {
                wrong.push(format!("{name}, {prompt}: expected {case:#}\n got {got:#?}\n"));
            }
            if let Some(spans) = case.get("spans") {
                let (text, ranges) = chat_template.render_with_spans(&input).unwrap();
                assert_eq!(ranges, byte_ranges(&text, spans), "{name}: {}", case["conversation"]);
                assert_eq!(Some(text.as_str()), case["text"].as_str());
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases differ:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

macro_rules! golden_templates {
    ($($name:ident)*) => { $(#[test] fn $name() { check(stringify!($name)); })* };
}

golden_templates!(
    alternating chatml crlf generation generation_plain header_tools loops methods named reasoning schema thinking turns
);

fn messages() -> Vec<Value> {
    vec![json!({"role": "user", "content": "Hi"})]
}

fn render(folder: &std::path::Path, tools: Option<&[Value]>) -> String {
    let messages = messages();
    ChatTemplate::load(folder).unwrap().render(&ChatInput { tools, ..ChatInput::new(&messages) }).unwrap()
}

#[test]
fn templates_are_found_where_transformers_finds_them() {
    let folder = folder_with(None);
    let path = folder.path();
    assert!(matches!(ChatTemplate::load(path), Err(TextError::NoChatTemplate { .. })));

    std::fs::write(path.join("chat_template.json"), r#"{"chat_template": "legacy"}"#).unwrap();
    assert_eq!(render(path, None), "legacy");

    std::fs::write(path.join("tokenizer_config.json"), r#"{"chat_template": "config {{ bos_token }}"}"#)
        .unwrap();
    assert_eq!(render(path, None), "config ");

    std::fs::write(path.join("chat_template.jinja"), "file\n").unwrap();
    assert_eq!(render(path, None), "file");
    assert_eq!(render(path, Some(&[])), "file");

    std::fs::create_dir(path.join("additional_chat_templates")).unwrap();
    std::fs::write(path.join("additional_chat_templates/tool_use.jinja"), "tools {{ tools | length }}")
        .unwrap();
    assert_eq!(render(path, None), "file");
    assert_eq!(render(path, Some(&[])), "tools 0");
    let template = ChatTemplate::load(path).unwrap();
    assert_eq!(template.names().collect::<Vec<_>>(), ["default", "tool_use"]);
    assert_eq!(template.source(true), Some("tools {{ tools | length }}"));

    std::fs::remove_file(path.join("chat_template.jinja")).unwrap();
    let template = ChatTemplate::load(path).unwrap();
    let messages = messages();
    let error = template.render(&ChatInput::new(&messages)).unwrap_err();
    assert!(error.to_string().contains("no \"default\" among them"), "{error}");
}

fn rendered(source: &str) -> Result<String, TextError> {
    let messages = messages();
    ChatTemplate::from_source(source, [("eos_token".to_owned(), "</s>".to_owned())])?
        .render(&ChatInput::new(&messages))
}

#[test]
fn broken_templates_name_the_line_and_the_reason() {
    let error = rendered("line one\n{% if %}").unwrap_err();
    assert!(matches!(&error, TextError::TemplateSyntax { line: 2, .. }), "{error}");
    let error = rendered("\n\n{{ messages[0].nothing.more }}").unwrap_err();
    assert!(matches!(&error, TextError::TemplateRender { line: 3, .. }), "{error}");
    let error = rendered("{{ messages | no_such_filter }}").unwrap_err();
    assert!(error.to_string().contains("no_such_filter"), "{error}");
    let error = rendered("{{ messages.append(1) }}").unwrap_err();
    assert!(error.to_string().contains("may not change values"), "{error}");
    let error = rendered("{% generation %}never closed").unwrap_err();
    assert!(matches!(&error, TextError::TemplateSyntax { .. }), "{error}");
    let error = rendered("{{ strftime_now('%!') }}").unwrap_err();
    assert!(error.to_string().contains("unknown format"), "{error}");
    let error = rendered("{{ raise_exception('I ' ~ 'refuse') }}").unwrap_err();
    assert_eq!(error.to_string(), "the chat template refuses this conversation: I refuse");
}

#[test]
fn templates_that_never_end_are_stopped() {
    let endless = "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}";
    assert!(matches!(rendered(endless), Err(TextError::TemplateRender { .. })));
    let long =
        "{% for a in range(9999) %}{% for b in range(9999) %}{% set c = a * b %}{% endfor %}{% endfor %}";
    let error = rendered(long).unwrap_err();
    assert!(error.to_string().contains("runs too long"), "{error}");
    let deep = "{% set ns = namespace(x=[]) %}{% for i in range(1000) %}{% set ns.x = [ns.x] %}{% endfor %}";
    assert!(rendered(&format!("{deep}{{{{ ns.x | tojson }}}}")).is_err());
    assert!(rendered(&format!("{deep}{{{{ ns.x }}}}")).unwrap().contains("..."));
}

#[test]
fn templates_that_build_without_measure_are_stopped() {
    let doubled = |step: &str| {
        format!(
            "{{% set ns = namespace(x=['abcdefgh' * 1000], y='abcdefgh') %}}{{% for i in range(60) %}}{{% set {step} %}}{{% endfor %}}"
        )
    };
    for source in [
        doubled("ns.y = ns.y + ns.y"),
        doubled("ns.y = ns.y ~ ns.y"),
        doubled("ns.y = [ns.y, ns.y] | join"),
        doubled("ns.y = ' '.join([ns.y, ns.y])"),
        doubled("ns.y = ns.y | replace('a', ns.y)"),
        doubled("ns.y = ns.y.replace('a', ns.y)"),
        doubled("ns.x = ns.x + ns.x"),
        doubled("ns.x = [ns.x, ns.x]") + "{{ ns.x }}",
        doubled("ns.x = [ns.x, ns.x]") + "{{ ns.x | tojson }}",
        "{% macro f(x, n) %}{{ f(x + x, n - 1) if n else '' }}{% endmacro %}{{ f('abcdefgh', 60) }}"
            .to_owned(),
        format!(
            "{{% for i in range(9999) %}}{{% for j in range(9999) %}}{}{{% endfor %}}{{% endfor %}}",
            "raw".repeat(9999)
        ),
    ] {
        let error = rendered(&source).unwrap_err();
        let words = error.to_string();
        assert!(words.contains("more than 128 MiB"), "{words}: {}", &source[..source.len().min(200)]);
    }
    // A count of its own for each rendering.
    let large = "{% set ns = namespace(y='ab') %}{% for i in range(23) %}{% set ns.y = ns.y ~ ns.y %}{% endfor %}{{ ns.y | length }}";
    for _ in 0..10 {
        assert_eq!(rendered(large).unwrap(), "16777216");
    }
}

#[test]
fn bad_conversations_are_refused_before_the_template_sees_them() {
    let template = ChatTemplate::from_source("{{ messages[0].content }}", []).unwrap();
    let fails = |input: &ChatInput<'_>, reason: &str| {
        let error = template.render(input).unwrap_err();
        assert!(
            matches!(error, TextError::ChatInput { .. }) && error.to_string().contains(reason),
            "{error}"
        );
    };
    let good = messages();
    fails(&ChatInput::new(&[]), "empty");
    fails(&ChatInput::new(&[json!("Hi")]), "message 0");
    fails(&ChatInput { tools: Some(&[json!(1)]), ..ChatInput::new(&good) }, "tool 0");
    fails(&ChatInput { documents: Some(&[json!(1)]), ..ChatInput::new(&good) }, "document 0");
    fails(&ChatInput { continue_final_message: true, ..ChatInput::new(&good) }, "exclude each other");
    let extra = Map::from_iter([("messages".to_owned(), json!([]))]);
    fails(&ChatInput { extra, ..ChatInput::new(&good) }, "has its own field");
}

#[test]
fn spans_that_cannot_be_told_are_an_error() {
    let messages = messages();
    let input = ChatInput::new(&messages);
    let spans = |source: &str| ChatTemplate::from_source(source, []).unwrap().render_with_spans(&input);
    let (text, ranges) =
        spans("é{% set x %}{% generation %}ab{% endgeneration %}{% endset %}{{ x }}{{ x }}").unwrap();
    assert_eq!((text.as_str(), ranges), ("éabab", vec![2..4, 4..6]));
    assert!(spans("{% set x %}{% generation %}ab{% endgeneration %}{% endset %}{{ x | length }}").is_err());
    assert!(spans("\u{fdd0}").is_err());
}

#[test]
fn the_clock_is_the_local_one_by_default() {
    let before = LocalTime::now();
    let text = rendered("{{ strftime_now('%Y-%m-%d') }}").unwrap();
    let after = LocalTime::now();
    let at = |now: LocalTime| {
        let messages = messages();
        let template = ChatTemplate::from_source("{{ strftime_now('%Y-%m-%d') }}", []).unwrap();
        template.render(&ChatInput { now: Some(now), ..ChatInput::new(&messages) }).unwrap()
    };
    assert!(text == at(before) || text == at(after));
}
