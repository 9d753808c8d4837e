//! `eval` against the loss that transformers computes.

use serde_json::{Value, json};

use crate::support::{expected, file, run, run_with_input, tiny_chat};

fn lines(values: impl IntoIterator<Item = Value>) -> String {
    values.into_iter().map(|value| format!("{value}\n")).collect()
}

fn near(left: &Value, right: &Value) {
    let (left, right) = (left.as_f64().unwrap(), right.as_f64().unwrap());
    assert!((left - right).abs() <= 1e-5 * right.abs().max(1.0), "{left} {right}");
}

#[test]
fn loss_perplexity_and_tokens_are_those_of_the_reference() {
    let eval = &expected()["eval"];
    let texts = eval["texts"].as_array().unwrap();
    let all = lines(texts.iter().map(|entry| json!({ "text": entry["text"] })));
    let (_folder, path) = file("valid.jsonl", &all);
    let model = tiny_chat();
    let report = run(&["eval", "-m", &model, "--data", &path, "--json"]).json();
    near(&report["loss"], &eval["loss"]);
    near(&report["perplexity"], &json!(eval["loss"].as_f64().unwrap().exp()));
    assert_eq!((&report["tokens"], &report["examples"]), (&eval["tokens"], &json!(texts.len())));
    let table = run(&["eval", "-m", &model, "--data", &path]).ok().out;
    assert!(table.contains("perplexity") && table.contains("81"), "{table}");
    for entry in texts {
        let line = lines([json!({ "text": entry["text"] })]);
        let report = run_with_input(&["eval", "-m", &model, "--data", "-", "--json"], &line).json();
        near(&report["loss"], &entry["loss"]);
        assert_eq!(report["tokens"], entry["tokens"]);
    }
}

#[test]
fn conversations_are_measured_as_the_reference_measures_them() {
    let eval = &expected()["eval_chats"];
    let chats = eval["chats"].as_array().unwrap();
    let line = |chat: &Value| json!({ "messages": chat["messages"] });
    let model = tiny_chat();
    let report = |values: Vec<Value>| {
        run_with_input(&["eval", "-m", &model, "--data", "-", "--json"], &lines(values)).json()
    };
    let all = report(chats.iter().map(line).collect());
    near(&all["loss"], &eval["loss"]);
    near(&all["perplexity"], &json!(eval["loss"].as_f64().unwrap().exp()));
    assert_eq!((&all["tokens"], &all["examples"]), (&eval["tokens"], &json!(chats.len())));
    for chat in chats {
        let alone = report(vec![line(chat)]);
        near(&alone["loss"], &chat["loss"]);
        assert_eq!(alone["tokens"], chat["tokens"]);
    }
    assert!(eval["loss"].as_f64().unwrap() > 0.1, "a loss near zero would hide what is counted");
}

#[test]
fn completions_count_only_the_answer() {
    let model = tiny_chat();
    let tokens = |line: Value| {
        let report = run_with_input(&["eval", "-m", &model, "--data", "-", "--json"], &lines([line])).json();
        report["tokens"].as_u64().unwrap()
    };
    let whole = tokens(json!({ "text": "Once there was a small boat" }));
    let answer = tokens(json!({ "prompt": "Once there was", "completion": " a small boat" }));
    assert!(answer > 0 && answer < whole, "{answer} {whole}");
}

#[test]
fn long_lines_are_cut_and_counted() {
    let model = tiny_chat();
    let line = lines([json!({ "text": "The quick brown fox jumps over the lazy dog." })]);
    let args = ["eval", "-m", &model, "--data", "-", "--json", "--max-tokens", "5"];
    let outcome = run_with_input(&args, &line);
    assert!(outcome.err.contains("1 of 1 lines were too long"), "{}", outcome.err);
    let report = outcome.json();
    assert_eq!((&report["tokens"], &report["truncated"]), (&json!(4), &json!(1)));
}

#[test]
fn bad_data_is_named_by_line() {
    let model = tiny_chat();
    let args = ["eval", "-m", &model, "--data", "-"];
    let good = lines([json!({ "text": "Hello" })]);
    run_with_input(&args, &format!("{good}nonsense\n")).fails(1, &["cannot evaluate -", "line 2"]);
    run_with_input(&args, &format!("{good}{{\"txt\": \"Hello\"}}\n")).fails(1, &["line 2", "`text`"]);
    run_with_input(&args, "").fails(1, &["error:"]);
    run(&["eval", "-m", &model, "--data", "/nonexistent.jsonl"])
        .fails(1, &["cannot open /nonexistent.jsonl"]);
}
