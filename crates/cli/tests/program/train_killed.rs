//! A run that is killed or interrupted, and goes on.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use crate::{
    support::{path_text, program, run},
    train::{bench, command},
};

const STEPS: &str = "40";

fn result(folder: &Path, output: &str) -> Vec<u8> {
    fs::read(folder.join(output).join("adapter_model.safetensors")).unwrap()
}

fn words(command: &[String]) -> Vec<&str> {
    command.iter().map(String::as_str).collect()
}

/// Times that look random and are the same in every run of the tests.
fn pauses() -> impl Iterator<Item = Duration> {
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        Duration::from_millis(state % 120)
    })
}

#[test]
fn a_killed_run_ends_with_the_same_bytes() {
    let folder = bench();
    let all = ["--iters", STEPS, "--save-every", "1", "--steps-per-eval", "7", "--keep-last", "2"];
    run(&words(&command(folder.path(), "whole", &all))).ok();
    let started = command(folder.path(), "killed", &all);
    let checkpoints = folder.path().join("killed/checkpoints");
    let mut pauses = pauses();
    let mut kills = 0;
    loop {
        let has_saved = fs::read_dir(&checkpoints).is_ok_and(|entries| {
            entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("step-"))
        });
        let mut args = started.clone();
        args.extend(has_saved.then(|| "--resume".to_owned()));
        let mut process = program(&words(&args)).stderr(Stdio::null()).spawn().unwrap();
        // From the moment on when the run has made a step: before, there is only loading.
        let before = fs::metadata(folder.path().join("killed/metrics.jsonl")).map_or(0, |file| file.len());
        let metrics =
            || fs::metadata(folder.path().join("killed/metrics.jsonl")).map_or(0, |file| file.len());
        while metrics() == before && process.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(2));
        }
        if kills < 6 {
            std::thread::sleep(pauses.next().unwrap());
            process.kill().unwrap();
        }
        let status = process.wait().unwrap();
        if status.success() {
            break;
        }
        assert!(status.code().is_none(), "it failed by itself: {status}");
        kills += 1;
    }
    assert!(kills > 0, "the run was over before it could be killed");
    assert!(result(folder.path(), "killed") == result(folder.path(), "whole"));
}

#[test]
fn an_interrupted_run_saves_and_says_how_to_go_on() {
    let folder = bench();
    let all = ["--iters", "100000", "--save-every", "100000", "--steps-per-report", "1"];
    let mut process = program(&words(&command(folder.path(), "out", &all))).spawn().unwrap();
    let mut stderr = BufReader::new(process.stderr.take().unwrap());
    let mut said = String::new();
    while !said.contains("step 2/") {
        assert!(stderr.read_line(&mut said).unwrap() > 0, "{said}");
    }
    let sent = Command::new("kill").args(["-INT", &process.id().to_string()]).status().unwrap();
    assert!(sent.success());
    std::io::Read::read_to_string(&mut stderr, &mut said).unwrap();
    assert_eq!(process.wait().unwrap().code(), Some(130), "{said}");
    let out = path_text(&folder.path().join("out"));
    assert!(said.contains(&format!("metal-candle train --resume --adapter-path {out}")), "{said}");
    let saved = fs::read_dir(folder.path().join("out/checkpoints")).unwrap().count();
    assert_eq!(saved, 1);
    assert!(!folder.path().join("out/adapter_model.safetensors").exists());
    // The settings are those of the run; only its end is new.
    let step: u64 = {
        let entry = fs::read_dir(folder.path().join("out/checkpoints")).unwrap().next().unwrap().unwrap();
        entry.file_name().to_string_lossy().strip_prefix("step-").unwrap().parse().unwrap()
    };
    let end = (step + 3).to_string();
    run(&["train", "--resume", "--adapter-path", &out, "--iters", &end, "--device", "cpu"]).ok();
    run(&words(&command(folder.path(), "whole", &["--iters", &end]))).ok();
    assert!(result(folder.path(), "out") == result(folder.path(), "whole"));
}
