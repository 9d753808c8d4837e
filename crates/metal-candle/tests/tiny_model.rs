//! The model in `models/tiny`: it is small, it loads, and it knows English.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{fs, io::BufReader, ops::ControlFlow, path::PathBuf, sync::Arc};

use metal_candle::{
    LanguageModel,
    eval::evaluate,
    generate::{Generation, Prompt, Request, sampler::SamplingParams},
    model::LoadOptions,
    text::ChatInput,
};
use serde_json::json;

/// Bytes in the repository, recipe and all.
const MOST_BYTES: u64 = 5_000_000;
/// Nats per token on text that it did not learn from; it has 0.395 there, and a model that knows nothing 7.5.
const MOST_LOSS: f64 = 0.42;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny")
}

fn tiny() -> Arc<LanguageModel> {
    Arc::new(LanguageModel::load(&folder(), &LoadOptions::default(), &mut |_, _| ()).unwrap())
}

fn bytes_below(folder: &std::path::Path) -> u64 {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let bytes =
        |path: PathBuf| if path.is_dir() { bytes_below(&path) } else { path.metadata().unwrap().len() };
    entries.map(bytes).sum()
}

#[test]
fn it_is_small() {
    assert!(bytes_below(&folder()) <= MOST_BYTES);
}

#[test]
fn it_predicts_text_that_it_has_not_seen() {
    let path = folder().join("held_out.jsonl");
    let reader = BufReader::new(fs::File::open(&path).unwrap());
    let report = evaluate(&tiny(), "held_out.jsonl", reader, None, None, &mut |_| ()).unwrap();
    assert_eq!((report.examples, report.truncated), (40, 0));
    assert!(report.loss < MOST_LOSS, "{report:?}");
}

#[test]
fn it_answers() {
    let model = tiny();
    for (question, answer) in [
        ("What colour is the sky?", "The sky is blue."),
        ("Where does a fox live?", "A fox lives in a den in the forest."),
        ("What does a dog say?", "A dog barks."),
    ] {
        let messages = [json!({"role": "user", "content": question})];
        let prompt =
            Prompt::Rendered(model.chat_template().unwrap().render(&ChatInput::new(&messages)).unwrap());
        let sampling = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        let request = Request { prompt, sampling, max_tokens: Some(24), ..Request::default() };
        let said = Generation::start(&model, &request).unwrap().run(|_| ControlFlow::Continue(())).unwrap();
        assert_eq!(said.text.trim(), answer, "{question}");
    }
}
