//! `chat` through pipes.

use std::fs;

use serde_json::{Value, json};

use crate::support::{copy_of_tiny_chat, path_text, run_with_input, tiny_chat};

#[test]
fn a_conversation_goes_on_and_is_saved() {
    let folder = tempfile::tempdir().unwrap();
    let path = path_text(&folder.path().join("talk.jsonl"));
    let input = format!("Hello\n\nGoodbye\n/save {path}\n/quit\nnever read\n");
    let outcome = run_with_input(&["chat", "-m", &tiny_chat(), "--temp", "0"], &input).ok();
    assert_eq!(outcome.out, "Hello! How can I help you today?\nSee you soon.\n");
    assert!(outcome.err.contains("saved to"), "{}", outcome.err);
    let saved = fs::read_to_string(&path).unwrap();
    assert_eq!((saved.matches('\n').count(), saved.ends_with('\n')), (1, true));
    let message = |role: &str, content: &str| json!({ "role": role, "content": content });
    let expected = json!({ "messages": [
        message("user", "Hello"), message("assistant", "Hello! How can I help you today?"),
        message("user", "Goodbye"), message("assistant", "See you soon."),
    ] });
    assert_eq!(serde_json::from_str::<Value>(&saved).unwrap(), expected);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing but the file is left");
}

#[test]
fn reset_forgets_and_system_instructs() {
    let folder = tempfile::tempdir().unwrap();
    let saved = |input: &str| {
        let path = path_text(&folder.path().join("talk.jsonl"));
        let input = format!("{input}/save {path}\n");
        let args = ["chat", "-m", &tiny_chat(), "--temp", "0", "--system", "Be brief."];
        run_with_input(&args, &input).ok();
        serde_json::from_str::<Value>(&fs::read_to_string(path).unwrap()).unwrap()["messages"].clone()
    };
    let brief = json!({ "role": "system", "content": "Be brief." });
    assert_eq!(saved("Hello\n/reset\n"), json!([brief]));
    assert_eq!(saved("/system\n"), json!([]));
    let answered = saved("Hello\n/system Answer in one word.\nWhat colour is the sky?\n");
    assert_eq!(
        answered,
        json!([
            { "role": "system", "content": "Answer in one word." },
            { "role": "user", "content": "What colour is the sky?" },
            { "role": "assistant", "content": "Blue." },
        ])
    );
}

#[test]
fn help_lists_the_commands_and_others_are_errors() {
    let model = tiny_chat();
    let help = run_with_input(&["chat", "-m", &model], "/help\n").ok();
    for command in ["/help", "/reset", "/system", "/save", "/quit"] {
        assert!(help.err.contains(command), "{command}: {}", help.err);
    }
    assert_eq!(help.out, "");
    run_with_input(&["chat", "-m", &model], "/sing\n").fails(1, &["error:", "/sing", "/help"]);
    run_with_input(&["chat", "-m", &model], "/save\n").fails(1, &["/save needs a file"]);
    run_with_input(&["chat", "-m", &model], "/save /nonexistent/talk.jsonl\n")
        .fails(1, &["/nonexistent/talk.jsonl"]);
}

#[test]
fn a_conversation_beyond_the_context_says_what_to_do() {
    let long = format!("{}\n", "Hello ".repeat(300));
    run_with_input(&["chat", "-m", &tiny_chat()], &long).fails(1, &["error:", "/reset", "256"]);
}

#[test]
fn a_model_without_a_template_cannot_chat() {
    let copy = copy_of_tiny_chat();
    fs::write(copy.path().join("tokenizer_config.json"), "{}").unwrap();
    run_with_input(&["chat", "-m", &path_text(copy.path())], "Hello\n")
        .fails(1, &["no chat template", "generate --raw"]);
}
