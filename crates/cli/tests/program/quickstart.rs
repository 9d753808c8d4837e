//! `metal-candle quickstart`, and the model inside the program.

use std::path::Path;

use crate::support::{finish, path_text, program, run};

/// The program with a cache of its own, in this folder.
fn in_folder(folder: &Path, args: &[&str]) -> crate::support::Outcome {
    let mut command = program(args);
    command.current_dir(folder).env("XDG_CACHE_HOME", folder.join("cache"));
    finish(command, "").ok()
}

#[test]
fn a_first_run_teaches_writes_and_says_how_to_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let outcome = in_folder(folder.path(), &["quickstart", "--steps", "100", "--device", "cpu"]);
    for file in
        ["adapter_config.json", "adapter_model.safetensors", "report.html", "loss.png", "data/train.jsonl"]
    {
        assert!(folder.path().join("quickstart").join(file).is_file(), "{file}");
    }
    let said = |marker: &str| -> Vec<&str> {
        outcome.out.lines().filter_map(|line| line.trim_start().strip_prefix(marker)).collect()
    };
    let (before, after) = (said("before:"), said("after:"));
    assert_eq!((before.len(), after.len()), (3, 3), "{}", outcome.out);
    let at_sea = |text: &&str| {
        ["sailor", "captain", "back to the ship", "the sea is wide"].iter().any(|words| text.contains(words))
    };
    assert!(!before.iter().any(at_sea) && after[..2].iter().all(at_sea), "{}", outcome.out);

    let commands: Vec<&str> = outcome
        .out
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix(env!("CARGO_BIN_EXE_metal-candle")))
        .collect();
    let commands: Vec<Vec<&str>> = commands.iter().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(commands.iter().map(|words| words[0]).collect::<Vec<_>>(), ["chat", "train", "adapter"]);
    // What it says can be typed.
    in_folder(folder.path(), &commands[0]);
    in_folder(folder.path(), &commands[2]);
    assert!(folder.path().join("quickstart/merged/model.safetensors").is_file());

    in_folder(folder.path(), &["quickstart", "--steps", "1", "--device", "cpu", "--quiet"]);
    assert!(folder.path().join("quickstart-2/adapter_model.safetensors").is_file());
}

#[test]
fn the_model_inside_goes_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let ask = ["generate", "-m", "tiny", "--prompt", "What colour is the sky?", "--temp", "0", "--quiet"];
    assert_eq!(in_folder(folder.path(), &ask).out.trim(), "The sky is blue.");
    assert!(folder.path().join("cache/metal-candle").is_dir());
}

#[test]
fn a_folder_that_is_in_use_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let output = path_text(&folder.path().join("run"));
    let args = ["quickstart", "--steps", "1", "--device", "cpu", "--output", &output];
    in_folder(folder.path(), &args);
    let adapter = folder.path().join("run/adapter_model.safetensors");
    let before = std::fs::read(&adapter).unwrap();
    let mut again = program(&args);
    again.env("XDG_CACHE_HOME", folder.path().join("cache"));
    finish(again, "").fails(1, &["is already there"]);
    assert_eq!(std::fs::read(&adapter).unwrap(), before);
    run(&["quickstart", "--steps", "0"]).fails(2, &["--steps"]);
}
