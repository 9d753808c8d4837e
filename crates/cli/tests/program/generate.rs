//! `generate` against the golden text.

use serde_json::{Value, json};

use crate::support::{expected, file, run, run_with_input, tiny_chat};

fn text<'a>(value: &'a Value, part: &str, key: &str) -> &'a str {
    value[part][key].as_str().unwrap()
}

#[test]
fn a_prompt_is_answered_as_the_reference_answers_it() {
    let expected = expected();
    let question = expected["chat"]["messages"][0]["content"].as_str().unwrap();
    let outcome = run(&["generate", "-m", &tiny_chat(), "--prompt", question, "--temp", "0"]).ok();
    assert_eq!(outcome.out, format!("{}\n", text(&expected, "chat", "answer")));
    assert!(outcome.err.contains("device: cpu (auto"), "{}", outcome.err);
    assert!(outcome.err.contains("prompt: 11 tokens"), "{}", outcome.err);
    assert!(!outcome.err.contains('\u{1b}'), "no colours in a pipe: {}", outcome.err);
}

#[test]
fn raw_continues_plain_text() {
    let expected = expected();
    let prompt = text(&expected, "completion", "prompt");
    for flag in ["--raw", "--ignore-chat-template"] {
        let outcome = run(&["generate", "-m", &tiny_chat(), flag, "-q", "--prompt", prompt, "--temp=0"]).ok();
        assert_eq!(outcome.out, format!("{}\n", text(&expected, "completion", "answer")));
        assert_eq!(outcome.err, "", "--quiet says nothing");
    }
}

#[test]
fn prompts_come_from_files_and_stdin_too() {
    let expected = expected();
    let prompt = format!("{}\n", text(&expected, "completion", "prompt"));
    let answer = format!("{}\n", text(&expected, "completion", "answer"));
    let model = tiny_chat();
    let (_folder, path) = file("prompt.txt", &prompt);
    let base = ["generate", "-m", model.as_str(), "--raw", "--temp", "0"];
    assert_eq!(run(&[&base[..], &["--prompt-file", &path]].concat()).ok().out, answer);
    assert_eq!(run_with_input(&[&base[..], &["--prompt", "-"]].concat(), &prompt).ok().out, answer);
    assert_eq!(run_with_input(&[&base[..], &["--prompt-file", "-"]].concat(), &prompt).ok().out, answer);
}

#[test]
fn json_says_everything_once() {
    let expected = expected();
    let model = tiny_chat();
    let prompt = text(&expected, "completion", "prompt");
    let args =
        ["generate", "-m", &model, "--raw", "--prompt", prompt, "--temp", "0", "--json", "--logprobs", "3"];
    let result = run(&args).json();
    assert_eq!(result["text"], expected["completion"]["answer"]);
    let mut ids = expected["completion"]["answer_ids"].as_array().unwrap().clone();
    ids.push(expected["completion"]["stopped_by"].clone());
    assert_eq!(result["tokens"], json!(ids));
    assert_eq!(result["finish_reason"], "stop");
    assert_eq!(result["usage"], json!({ "prompt_tokens": 7, "completion_tokens": ids.len() }));
    assert_eq!((&result["device"], &result["dtype"]), (&json!("cpu"), &json!("f32")));
    for key in ["load_s", "prefill_s", "prefill_tok_s", "decode_s", "decode_tok_s"] {
        assert!(result["timings"][key].as_f64().unwrap() > 0.0, "{key}: {result}");
    }
    let logprobs = result["logprobs"].as_array().unwrap();
    assert_eq!(logprobs.len(), ids.len());
    for (entry, id) in logprobs.iter().zip(&ids) {
        // Greedy: the choice is the most likely one.
        assert_eq!((&entry["id"], &entry["top"][0]["id"]), (id, id));
        assert_eq!(entry["logprob"], entry["top"][0]["logprob"]);
        let top: Vec<f64> =
            entry["top"].as_array().unwrap().iter().map(|e| e["logprob"].as_f64().unwrap()).collect();
        assert!(top.len() == 3 && top[0] >= top[1] && top[1] >= top[2] && top[0] <= 0.0, "{entry}");
    }
}

#[test]
fn limits_and_stop_strings_end_the_text() {
    let model = tiny_chat();
    let base =
        ["generate", "-m", model.as_str(), "--raw", "--prompt", "Once there was", "--temp", "0", "--json"];
    let short = run(&[&base[..], &["-n", "3"]].concat()).json();
    assert_eq!((&short["finish_reason"], short["tokens"].as_array().unwrap().len()), (&json!("length"), 3));
    let stopped = run(&[&base[..], &["--stop", "sailed", "--stop", "nowhere"]].concat()).json();
    assert_eq!(
        (&stopped["text"], &stopped["finish_reason"]),
        (&json!(" a small boat that "), &json!("stop"))
    );
    let on = run(&[&base[..], &["--ignore-eos", "-n", "40"]].concat()).json();
    assert_eq!((&on["finish_reason"], on["tokens"].as_array().unwrap().len()), (&json!("length"), 40));
}

#[test]
fn the_model_advises_sampling_and_flags_overrule_it() {
    let model = tiny_chat();
    let base =
        ["generate", "-m", model.as_str(), "--raw", "--prompt", "A", "--ignore-eos", "-n", "30", "--json"];
    let with = |more: &[&str]| run(&[&base[..], more].concat()).json()["tokens"].clone();
    // generation_config.json asks for sampling: two seeds differ, the same seed does not.
    assert_eq!(with(&["--seed", "1"]), with(&["--seed", "1"]));
    assert_ne!(with(&["--seed", "1", "--temp", "2"]), with(&["--seed", "2", "--temp", "2"]));
    // Flags win.
    let greedy = with(&["--temp", "0"]);
    assert_eq!(with(&["--top-k", "1", "--seed", "3"]), greedy);
    let first = greedy[0].as_u64().unwrap();
    let banned = with(&["--temp", "0", "--logit-bias", &format!("{first}=-inf")]);
    assert!(!banned.as_array().unwrap().contains(&json!(first)), "{banned}");
    // A drawn seed is told, and gives the same text again.
    let drawn = run(&[&base[..], &["--temp", "2"]].concat()).json();
    let seed = drawn["seed"].to_string();
    assert_eq!(with(&["--temp", "2", "--seed", &seed]), drawn["tokens"]);
}

#[test]
fn instructions_come_before_the_prompt() {
    let model = tiny_chat();
    let args = ["--system", "Answer in one word.", "--prompt", "What colour is the sky?", "--temp", "0"];
    assert_eq!(run(&[&["generate", "-m", &model][..], &args].concat()).ok().out, "Blue.\n");
}

#[test]
fn dtypes_and_threads_act() {
    let model = tiny_chat();
    let base =
        ["generate", "-m", model.as_str(), "--prompt", "Hello", "--temp", "0", "--json", "--threads", "1"];
    for dtype in ["f32", "bf16", "f16"] {
        let result = run(&[&base[..], &["--dtype", dtype, "--device", "cpu"]].concat()).json();
        assert_eq!(result["dtype"], dtype);
        assert_eq!(result["text"], expected()["chat"]["answer"], "{dtype}");
    }
}
