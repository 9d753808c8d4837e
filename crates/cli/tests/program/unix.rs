//! Signals and pipes.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, Command},
};

use crate::support::{path_text, program, tiny_chat};

/// Starts the program and waits until its stderr has a line with these words.
fn started(args: &[&str], words: &str) -> Child {
    let mut child = program(args).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains(words) {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0, "the program ended without saying {words}");
    }
    // What follows is not looked at, but the pipe must stay open.
    std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
    child
}

fn interrupt(child: &Child) {
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
}

#[test]
fn ctrl_c_ends_the_program_with_130() {
    let mut chat = started(&["chat", "-m", &tiny_chat()], "ready");
    // `wait` would close it, and a chat whose input has ended ends well.
    let input = chat.stdin.take();
    interrupt(&chat);
    assert_eq!(chat.wait().unwrap().code(), Some(130));
    drop(input);
    let many = ["bench", "--shape", "tiny", "--repetitions", "100000000"];
    let mut bench = started(&many, "random weights");
    interrupt(&bench);
    assert_eq!(bench.wait().unwrap().code(), Some(130));
}

#[test]
fn ctrl_c_leaves_the_trace_of_what_ran() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace.json");
    let (model, text) = (tiny_chat(), path_text(&path));
    let mut chat = started(&["chat", "-m", &model, "--trace", &text], "ready");
    let input = chat.stdin.take();
    interrupt(&chat);
    assert_eq!(chat.wait().unwrap().code(), Some(130));
    drop(input);
    let trace: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    assert!(events.iter().any(|event| event["name"] == "load_model"), "{trace}");
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let model = tiny_chat();
    let args = ["generate", "-m", &model, "--raw", "--prompt", "Once there was", "-n", "200", "--ignore-eos"];
    let mut child = program(&args).spawn().unwrap();
    drop(child.stdout.take());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(!said.contains("error") && !said.contains("panicked"), "{said}");
}

#[test]
fn a_full_disk_is_an_error() {
    let Ok(full) = std::fs::OpenOptions::new().write(true).open("/dev/full") else { return };
    let outcome = program(&["doctor"]).stdout(full).output().unwrap();
    assert_eq!(outcome.status.code(), Some(1));
    let said = String::from_utf8(outcome.stderr).unwrap();
    assert!(said.contains("cannot write to stdout"), "{said}");
}
