//! `prompt`: byte for byte what transformers' template gives.

use std::fs;

use serde_json::json;

use crate::support::{copy_of_tiny_chat, expected, file, path_text, run, run_with_input, tiny_chat};

#[test]
fn text_and_ids_are_those_of_the_reference() {
    let expected = expected();
    let chat = &expected["chat"];
    let messages = chat["messages"].to_string();
    let model = tiny_chat();
    let (_folder, path) = file("messages.json", &messages);
    let outcome = run(&["prompt", "-m", &model, "--messages", &path]).ok();
    assert_eq!(outcome.out, chat["prompt"].as_str().unwrap());
    assert_eq!(outcome.err, "");
    let ids = run_with_input(&["prompt", "-m", &model, "--messages", "-", "--ids"], &messages);
    assert_eq!(ids.json(), chat["prompt_ids"]);
    let object = json!({ "messages": chat["messages"] }).to_string();
    let closed =
        run_with_input(&["prompt", "-m", &model, "--messages", "-", "--no-generation-prompt"], &object).ok();
    assert_eq!(closed.out, "<|im_start|>user\nHello<|im_end|>\n");
}

#[test]
fn no_weights_are_needed_and_tools_reach_the_template() {
    let copy = copy_of_tiny_chat();
    for name in ["model.safetensors", "config.json"] {
        fs::remove_file(copy.path().join(name)).unwrap();
    }
    fs::write(copy.path().join("chat_template.jinja"), "{{ messages | length }} {{ tools | tojson }}")
        .unwrap();
    let model = path_text(copy.path());
    let (_folder, tools) = file("tools.json", r#"[{"name": "f"}]"#);
    let args = ["prompt", "-m", &model, "--messages", "-"];
    let list = r#"[{"role": "user", "content": "Hi"}]"#;
    let expected = r#"1 [{"name": "f"}]"#;
    assert_eq!(run_with_input(&[&args[..], &["--tools", &tools]].concat(), list).ok().out, expected);
    let object = format!(r#"{{"messages": {list}, "tools": [{{"name": "f"}}]}}"#);
    assert_eq!(run_with_input(&args, &object).ok().out, expected);
    run_with_input(&[&args[..], &["--tools", &tools]].concat(), &object).fails(1, &["--tools"]);
}

#[test]
fn bad_conversations_are_refused() {
    let model = tiny_chat();
    let args = ["prompt", "-m", &model, "--messages", "-"];
    run_with_input(&args, "Hello").fails(1, &["messages in -", "JSON"]);
    run_with_input(&args, "[]").fails(1, &["empty"]);
    run_with_input(&args, "[1]").fails(1, &["message 0"]);
    run(&["prompt", "-m", &model, "--messages", "/nonexistent.json"]).fails(1, &["/nonexistent.json"]);
    run(&[&args[..], &["--tools", "-"]].concat()).fails(1, &["stdin"]);
}
