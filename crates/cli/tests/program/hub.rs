//! Models by name, from a stand-in hub on this machine.

use std::{fs, path::Path};

use metal_candle_testkit::hub_server::HubServer;

use crate::support::{Outcome, expected, finish, program, tiny_chat};

fn hub() -> HubServer {
    let files = [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
    ];
    let contents = files.map(|name| (name, fs::read(Path::new(&tiny_chat()).join(name)).unwrap()));
    HubServer::start("org/tiny-chat", &contents).unwrap()
}

fn run(hub: &HubServer, home: &Path, args: &[&str], input: &str) -> Outcome {
    let mut command = program(args);
    command.env("HF_ENDPOINT", hub.endpoint()).env("HF_HOME", home).env("HF_HUB_OFFLINE", "0");
    for name in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        command.env_remove(name);
    }
    finish(command, input)
}

#[test]
fn a_model_is_downloaded_once_and_then_used_offline() {
    let (hub, home) = (hub(), tempfile::tempdir().unwrap());
    let answer = format!("{}\n", expected()["chat"]["answer"].as_str().unwrap());
    let args = ["generate", "-m", "org/tiny-chat", "--prompt", "Hello", "--temp", "0"];
    let first = run(&hub, home.path(), &args, "").ok();
    assert_eq!(first.out, answer);
    assert!(first.err.contains("downloading 5 files"), "{}", first.err);
    let requests = hub.requests().len();
    let offline = run(&hub, home.path(), &[&args[..], &["--offline"]].concat(), "").ok();
    assert_eq!((offline.out, hub.requests().len()), (answer, requests));
}

#[test]
fn prompt_fetches_no_weights() {
    let (hub, home) = (hub(), tempfile::tempdir().unwrap());
    let messages = expected()["chat"]["messages"].to_string();
    let args = ["prompt", "-m", "org/tiny-chat@main", "--messages", "-"];
    let outcome = run(&hub, home.path(), &args, &messages).ok();
    assert_eq!(outcome.out, expected()["chat"]["prompt"].as_str().unwrap());
    let requests = hub.requests();
    assert!(requests.iter().any(|request| request.contains("tokenizer_config.json")), "{requests:?}");
    assert!(!requests.iter().any(|request| request.contains("safetensors")), "{requests:?}");
}

#[test]
fn a_model_that_the_hub_lacks_is_an_error() {
    let (hub, home) = (hub(), tempfile::tempdir().unwrap());
    let args = ["generate", "-m", "org/other", "--prompt", "Hello"];
    run(&hub, home.path(), &args, "").fails(1, &["cannot get the model org/other", "no model"]);
}
