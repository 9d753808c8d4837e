//! Help, version and wrong usage.

use crate::support::{run, tiny_chat};

const COMMANDS: [&str; 10] =
    ["quickstart", "train", "generate", "chat", "prompt", "eval", "adapter", "report", "bench", "doctor"];

#[test]
fn the_program_tells_a_newcomer_what_to_type() {
    let help = run(&["--help"]).ok();
    for command in COMMANDS {
        assert!(help.out.contains(&format!("  {command} ")), "{}", help.out);
    }
    for words in ["metal-candle bench --shape qwen2.5-0.5b", "Exit codes", "org/name@revision"] {
        assert!(help.out.contains(words), "{words}: {}", help.out);
    }
    // Without a command the same text comes, as an error.
    let bare = run(&[]).fails(2, &["First steps"]);
    assert!(bare.err.contains("generate"));
}

#[test]
fn every_command_has_help_with_examples() {
    for command in COMMANDS {
        let help = run(&[command, "--help"]).ok();
        assert!(help.out.contains("Usage: metal-candle"), "{command}: {}", help.out);
        assert!(help.out.contains(&format!("\n  metal-candle {command}")), "{command}: {}", help.out);
        assert_eq!(help.err, "");
    }
}

#[test]
fn the_version_is_that_of_the_package() {
    let expected = format!("metal-candle {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(run(&["--version"]).ok().out, expected);
}

#[test]
fn wrong_usage_is_explained() {
    let model = tiny_chat();
    run(&["generate", "--modle", "x"]).fails(2, &["--modle", "a similar argument exists: '--model'"]);
    run(&["genrate"]).fails(2, &["genrate", "generate"]);
    run(&["generate", "-m", &model]).fails(2, &["--prompt <TEXT>", "--prompt-file <FILE>"]);
    run(&["generate", "-m", &model, "--prompt", "x", "--prompt-file", "y"])
        .fails(2, &["cannot be used with"]);
    run(&["generate", "-m", &model, "--prompt", "x", "--logprobs", "2"]).fails(2, &["--json"]);
    run(&["generate", "-m", &model, "--prompt", "x", "--system", "y", "--raw"])
        .fails(2, &["cannot be used with"]);
    run(&["generate", "-m", &model, "--prompt", "x", "--logit-bias", "5"]).fails(2, &["ID=V", "42=-1.5"]);
    run(&["generate", "-m", &model, "--prompt", "x", "--device", "gpu"]).fails(2, &["`gpu`", "cuda:N"]);
    run(&["generate", "-m", &model, "--prompt", "x", "--dtype", "int8"]).fails(2, &["bf16"]);
    run(&["generate", "-m", &model, "--prompt", "x", "--threads", "0"]).fails(2, &["--threads"]);
    run(&["bench"]).fails(2, &["--shape"]);
    run(&["bench", "--shape", "qwen"]).fails(2, &["qwen2.5-0.5b"]);
    run(&["bench", "--shape", "tiny", "--tokens", "0"]).fails(2, &["1 or more"]);
    run(&["bench", "--shape", "tiny", "--model", &model]).fails(2, &["cannot be used with"]);
}
