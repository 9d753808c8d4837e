//! Which tokens count, read off the text that they stand for.

use std::sync::Arc;

use metal_candle::{
    data::{CompletionForm, Encoder, EncoderOptions, Record, Supervise},
    text::{ChatTemplate, LocalTime},
};
use serde_json::{Value, json};

use super::support::{counted, encoder_with, golden, parts, tiny_chat, tokenizer};

const EVERY: [Supervise; 4] =
    [Supervise::Assistant, Supervise::LastTurn, Supervise::Completion, Supervise::All];

fn record(line: &Value) -> Record {
    Record::parse(&line.to_string()).unwrap()
}

fn golden_template(name: &str) -> ChatTemplate {
    let source = std::fs::read_to_string(golden(&format!("templates/{name}.jinja"))).unwrap();
    ChatTemplate::from_source(source, [("eos_token".to_owned(), "<|im_end|>".to_owned())]).unwrap()
}

/// What counts of a line under a golden template.
fn counted_with(template: &str, supervise: Supervise, line: &Value) -> Vec<String> {
    let encoder =
        encoder_with(golden_template(template), EncoderOptions { supervise, ..EncoderOptions::default() });
    counted(&encoder.encode(&record(line)).unwrap(), &tokenizer("models/tiny-chat"))
}

fn conversation() -> Value {
    json!({ "messages": [
        { "role": "system", "content": "Be brief." },
        { "role": "user", "content": "Hello" },
        { "role": "assistant", "content": "Hello! naïve ☕" },
        { "role": "user", "content": "Goodbye" },
        { "role": "assistant", "content": "See you soon." },
        { "role": "assistant", "content": "Really." },
    ] })
}

#[test]
fn every_token_of_a_conversation_counts_as_its_turn_says() {
    let tokenizer = tokenizer("models/tiny-chat");
    let parts_with = |supervise| {
        let example = tiny_chat(supervise).encode(&record(&conversation())).unwrap();
        assert!(!example.counted[0]);
        parts(&example, &tokenizer)
    };
    let given = |text: &str| (false, text.to_owned());
    let said = |text: &str| (true, text.to_owned());
    let system =
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n";
    let middle = "<|im_start|>user\nGoodbye<|im_end|>\n<|im_start|>assistant\n";
    let (first, second, third) =
        ("Hello! naïve ☕<|im_end|>\n", "See you soon.<|im_end|>\n", "Really.<|im_end|>\n");
    let header = "<|im_start|>assistant\n";
    assert_eq!(
        parts_with(Supervise::Assistant),
        [given(system), said(first), given(middle), said(second), given(header), said(third)]
    );
    let before = format!("{system}{first}{middle}");
    assert_eq!(parts_with(Supervise::LastTurn), [given(&format!("{before}{second}{header}")), said(third)]);
    assert_eq!(parts_with(Supervise::Completion), [given(&before), said(second), given(header), said(third)]);
    let rest = format!("{before}{second}{header}{third}").replacen("<|im_start|>", "", 1);
    assert_eq!(parts_with(Supervise::All), [given("<|im_start|>"), said(&rest)]);
}

#[test]
fn a_conversation_may_begin_with_the_assistant_or_lack_it() {
    let tokenizer = tokenizer("models/tiny-chat");
    let encode =
        |line: Value| counted(&tiny_chat(Supervise::Assistant).encode(&record(&line)).unwrap(), &tokenizer);
    let greeting = json!({ "messages": [
        { "role": "assistant", "content": "Hello!" },
        { "role": "user", "content": "Hello" },
        { "role": "assistant", "content": "Soon." },
    ] });
    assert_eq!(encode(greeting), ["Hello!<|im_end|>\n", "Soon.<|im_end|>\n"]);
    assert!(encode(json!({ "messages": [{ "role": "user", "content": "Hello" }] })).is_empty());
}

#[test]
fn prompts_of_messages_are_given() {
    let tokenizer = tokenizer("models/tiny-chat");
    let line = json!({
        "prompt": [
            { "role": "user", "content": "Hello" },
            { "role": "assistant", "content": "What?" },
            { "role": "user", "content": "Goodbye" },
        ],
        "completion": [
            { "role": "assistant", "content": "See you." },
            { "role": "user", "content": "Soon" },
            { "role": "assistant", "content": "Yes." },
        ],
    });
    let said = |supervise| counted(&tiny_chat(supervise).encode(&record(&line)).unwrap(), &tokenizer);
    let both = ["See you.<|im_end|>\n", "Yes.<|im_end|>\n"];
    assert_eq!(said(Supervise::Assistant), both);
    assert_eq!(said(Supervise::Completion), both);
    assert_eq!(said(Supervise::LastTurn), both[1..]);
}

/// The tools of a line stand in the prompt, the calls are what the assistant says, their results are not.
#[test]
fn calls_count_and_tools_and_their_results_do_not() {
    let call = |place: &str| json!([{ "type": "function", "function": { "name": "weather", "arguments": { "place": place } } }]);
    let line = json!({
        "messages": [
            { "role": "user", "content": "Weather in Bern?" },
            { "role": "assistant", "content": null, "tool_calls": call("Bern") },
            { "role": "tool", "name": "weather", "content": "20 degrees" },
            { "role": "assistant", "content": "It is warm." },
        ],
        "tools": [{ "type": "function", "function": { "name": "weather", "parameters": {} } }],
    });
    let tokenizer = tokenizer("models/tiny-chat");
    let encoder = encoder_with(golden_template("thinking"), EncoderOptions::default());
    let found = parts(&encoder.encode(&record(&line)).unwrap(), &tokenizer);
    let texts: Vec<&str> = found.iter().map(|(_, text)| text.as_str()).collect();
    assert_eq!(found.iter().map(|(counts, _)| *counts).collect::<Vec<_>>(), [false, true, false, true]);
    assert!(texts[0].contains("# Tools") && texts[0].ends_with("<|im_start|>assistant\n"), "{}", texts[0]);
    // This template writes an empty thought before the last message only.
    assert_eq!(
        texts[1],
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"place\": \"Bern\"}}\n</tool_call><|im_end|>\n"
    );
    assert!(texts[2].contains("20 degrees"));
    assert_eq!(texts[3], "<think>\n\n</think>\n\nIt is warm.<|im_end|>\n");
    let generation = counted_with("generation", Supervise::Assistant, &line);
    assert_eq!(generation.len(), 2, "{generation:?}");
    assert!(generation[0].contains("\"place\": \"Bern\"") && generation[1] == "It is warm.<|im_end|>");
}

/// Such templates print the reasoning of the last turn only.
#[test]
fn turns_are_found_where_the_template_leaves_out_earlier_reasoning() {
    let line = json!({ "messages": [
        { "role": "user", "content": "Count to five." },
        { "role": "assistant", "content": "<think>\nshort\n</think>\n\n1, 2, 3, 4, 5." },
        { "role": "user", "content": "Count to two." },
        { "role": "assistant", "content": "1, 2." },
    ] });
    let last = "<think>\n\n</think>\n\n1, 2.<|im_end|>\n";
    assert_eq!(counted_with("thinking", Supervise::Assistant, &line), ["1, 2, 3, 4, 5.<|im_end|>\n", last]);
    assert_eq!(counted_with("thinking", Supervise::LastTurn, &line), [last]);
}

#[test]
fn generation_blocks_decide_where_a_template_has_them() {
    let said = |supervise| counted_with("generation", supervise, &conversation());
    assert_eq!(
        said(Supervise::Assistant),
        ["Hello! naïve ☕<|im_end|>", "See you soon.<|im_end|>", "Really.<|im_end|>"]
    );
    assert_eq!(said(Supervise::Completion), ["See you soon.<|im_end|>", "Really.<|im_end|>"]);
    assert_eq!(said(Supervise::LastTurn), ["Really.<|im_end|>"]);
}

#[test]
fn texts_and_completions_end_with_the_end_token_once() {
    let tokenizer = tokenizer("models/tiny-chat");
    for supervise in EVERY {
        let counted =
            |line: Value| counted(&tiny_chat(supervise).encode(&record(&line)).unwrap(), &tokenizer);
        assert_eq!(counted(json!({ "text": "<|im_start|>Hello" })), ["Hello<|im_end|>"]);
        assert_eq!(counted(json!({ "text": "<|im_start|>Hello<|im_end|>" })), ["Hello<|im_end|>"]);
        assert!(counted(json!({ "text": "" })).is_empty());
        let line = json!({ "prompt": "<|im_start|>Once", "completion": " small" });
        let expected = if supervise == Supervise::All { "Once small<|im_end|>" } else { " small<|im_end|>" };
        assert_eq!(counted(line), [expected]);
        let silent = json!({ "prompt": "<|im_start|>", "completion": "" });
        assert_eq!(counted(silent), ["<|im_end|>"]);
    }
}

#[test]
fn end_tokens_can_be_left_away() {
    let template = ChatTemplate::load(&golden("models/tiny-chat")).unwrap();
    let options = EncoderOptions { append_end: false, ..EncoderOptions::default() };
    let example =
        encoder_with(template, options).encode(&Record::Text("<|im_start|>Hello".to_owned())).unwrap();
    assert_eq!(counted(&example, &tokenizer("models/tiny-chat")), ["Hello"]);
}

/// Tokens that the tokenizer itself adds: `<s>` in front of the text, `[CLS]` and `[SEP]` around it.
#[test]
fn an_end_that_the_tokenizer_adds_is_not_doubled_and_counts() {
    let encode = |folder: &str, end: &str, record: &Record| {
        let tokenizer = tokenizer(folder);
        let end = tokenizer.id_of(end).unwrap();
        let encoder = Encoder::new(Arc::clone(&tokenizer), None, Some(end), EncoderOptions::default());
        let example = encoder.encode(record).unwrap();
        let ends: Vec<bool> = example
            .tokens
            .iter()
            .zip(&example.counted)
            .filter(|(id, _)| **id == end)
            .map(|(_, counts)| *counts)
            .collect();
        assert_eq!(ends, [true], "{example:?}");
        assert_eq!(example.tokens.last(), Some(&end));
        (tokenizer.token_of(example.tokens[0]).unwrap(), example)
    };
    let text = Record::Text("the model".to_owned());
    let (first, example) = encode("tokenizers/metaspace", "</s>", &text);
    assert_eq!((first.as_str(), example.targets()), ("<s>", example.tokens.len() - 1));
    let (first, example) = encode("tokenizers/wordpiece", "[SEP]", &text);
    assert_eq!((first.as_str(), example.targets()), ("[CLS]", example.tokens.len() - 1));
    let completion = Record::Completion { prompt: "the model ".to_owned(), completion: "reads".to_owned() };
    let (_, example) = encode("tokenizers/wordpiece", "[SEP]", &completion);
    assert!(!example.counted[1] && example.targets() < example.tokens.len() - 1, "{example:?}");
}

#[test]
fn completions_may_be_turns_of_a_chat() {
    let template = ChatTemplate::load(&golden("models/tiny-chat")).unwrap();
    let options = EncoderOptions { completion: CompletionForm::Chat, ..EncoderOptions::default() };
    let line = json!({ "prompt": "Hello", "completion": "Goodbye" });
    let example = encoder_with(template, options).encode(&record(&line)).unwrap();
    let given = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(
        parts(&example, &tokenizer("models/tiny-chat")),
        [(false, given.to_owned()), (true, "Goodbye<|im_end|>\n".to_owned())]
    );
}

#[test]
fn the_date_that_a_template_prints_is_that_of_the_run() {
    let template = || {
        ChatTemplate::from_source(
            "{{ strftime_now('%Y-%m-%d') }}{% for m in messages %}{{ m.content }}{% endfor %}",
            [],
        )
        .unwrap()
    };
    let tokens = |day| {
        let options = EncoderOptions { supervise: Supervise::All, ..EncoderOptions::default() };
        let encoder =
            encoder_with(template(), options).at_time(LocalTime::new(2026, 2, day, 1, 2, 3).unwrap());
        encoder
            .encode(&record(&json!({ "messages": [{ "role": "user", "content": "Hello" }] })))
            .unwrap()
            .tokens
    };
    let text = tokenizer("models/tiny-chat").decode(&tokens(3), false).unwrap();
    assert_eq!(text, "2026-02-03Hello");
    assert_ne!(tokens(3), tokens(4));
}

#[test]
fn what_cannot_be_told_is_an_error() {
    let chat = record(&conversation());
    let no_template = Encoder::new(tokenizer("models/tiny-chat"), None, None, EncoderOptions::default());
    let error = no_template.encode(&chat).unwrap_err().to_string();
    assert!(error.contains("no chat template"), "{error}");
    // Numbers the messages from the end.
    let source = "{% for m in messages %}{{ loop.revindex }}{{ m.content }}{% endfor %}";
    let template = ChatTemplate::from_source(source, []).unwrap();
    let error = encoder_with(template, EncoderOptions::default()).encode(&chat).unwrap_err().to_string();
    assert!(error.contains("`generation` blocks"), "{error}");
}
