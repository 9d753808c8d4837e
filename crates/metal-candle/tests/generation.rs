//! Generation end to end on a tiny chat model that was trained to say a few sentences.
#![allow(clippy::unwrap_used)]

use std::{ops::ControlFlow, sync::Arc};

use metal_candle::{
    Error, LanguageModel,
    eval::evaluate,
    generate::{
        Engine, EngineOptions, FinishReason, GenerateError, Generation, Prompt, Request, StreamToken,
        sampler::SamplingParams,
    },
    model::LoadOptions,
};
use metal_candle_testkit::{
    golden,
    tolerance::{Gate, Precision, assert_close, tolerance},
};
use serde_json::Value;

fn tiny_chat() -> Arc<LanguageModel> {
    let folder = golden::root().join("models/tiny-chat");
    Arc::new(LanguageModel::load(&folder, &LoadOptions::default(), &mut |_, _| ()).unwrap())
}

fn expected() -> Value {
    golden::json("models/tiny-chat/expected.json")
}

fn greedy(prompt: &str) -> Request {
    Request { prompt: Prompt::Rendered(prompt.to_owned()), max_tokens: Some(60), ..Request::default() }
}

fn collect(language_model: &Arc<LanguageModel>, request: &Request) -> Vec<StreamToken> {
    Generation::start(language_model, request).unwrap().map(Result::unwrap).collect()
}

fn text(tokens: &[StreamToken]) -> String {
    tokens.iter().map(|token| token.text.as_str()).collect()
}

#[test]
fn answers_what_transformers_answers() {
    let language_model = tiny_chat();
    for kind in ["chat", "completion"] {
        let expected = &expected()[kind];
        let tokens = collect(&language_model, &greedy(expected["prompt"].as_str().unwrap()));
        assert_eq!(text(&tokens), expected["answer"]);
        let mut ids: Vec<u32> = serde_json::from_value(expected["answer_ids"].clone()).unwrap();
        ids.push(u32::try_from(expected["stopped_by"].as_u64().unwrap()).unwrap());
        assert_eq!(tokens.iter().map(|token| token.id).collect::<Vec<_>>(), ids);
        assert_eq!(tokens.last().unwrap().finish, Some(FinishReason::EndOfSequence));
        assert!(tokens.iter().rev().skip(1).all(|token| token.finish.is_none()));
    }
}

#[test]
fn generation_defaults_come_from_the_model() {
    let language_model = tiny_chat();
    let sampling = language_model.sampling();
    assert_eq!((sampling.temperature, sampling.top_k, sampling.top_p), (0.7, 20, 0.8));
    assert_eq!(language_model.end_of_sequence(), [396, 394]);
}

#[test]
fn stops_before_stop_strings_and_after_max_tokens() {
    let language_model = tiny_chat();
    let prompt = expected()["chat"]["prompt"].as_str().unwrap().to_owned();
    // The stop string begins and ends within tokens.
    let request = Request { stop: vec!["elp y".to_owned()], ..greedy(&prompt) };
    let tokens = collect(&language_model, &request);
    assert_eq!(text(&tokens), "Hello! How can I h");
    assert_eq!(tokens.last().unwrap().finish, Some(FinishReason::StopString));

    let request = Request { max_tokens: Some(3), ..greedy(&prompt) };
    let tokens = collect(&language_model, &request);
    assert_eq!(tokens.len(), 3);
    assert_eq!(tokens.last().unwrap().finish, Some(FinishReason::Length));

    let request = Request { max_tokens: Some(20), ignore_eos: true, ..greedy(&prompt) };
    assert_eq!(collect(&language_model, &request).len(), 20);
}

#[test]
fn a_generation_ends_with_the_context() {
    let language_model = tiny_chat();
    let context = language_model.model().spec().max_positions;
    let prompt = Prompt::Tokens(vec![270; context - 5]);
    let request = Request { prompt, ignore_eos: true, ..Request::default() };
    let tokens = collect(&language_model, &request);
    assert_eq!(tokens.len(), 5);
    assert_eq!(tokens.last().unwrap().finish, Some(FinishReason::Length));
}

#[test]
fn a_callback_can_stop() {
    let language_model = tiny_chat();
    let generation = Generation::start(&language_model, &greedy("Once there was")).unwrap();
    assert_eq!(generation.prompt_tokens(), 7);
    let mut seen = 0;
    let completion = generation.run(|_| {
        seen += 1;
        if seen == 4 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let completion = completion.unwrap();
    assert_eq!((completion.tokens.len(), completion.finish), (4, FinishReason::Cancelled));
    assert_eq!(completion.text, " a small boat");
}

#[test]
fn requests_in_one_engine_equal_requests_alone() {
    let language_model = tiny_chat();
    let seeded =
        SamplingParams { temperature: 1.0, seed: Some(7), logprobs: Some(2), ..SamplingParams::default() };
    let prompts = ["Once there was", "Hello", "The quick brown fox", "A", "sea sea sea sea sea sea"];
    let requests: Vec<Request> = prompts
        .iter()
        .enumerate()
        .map(|(index, prompt)| Request {
            sampling: if index % 2 == 0 { seeded.clone() } else { SamplingParams::default() },
            max_tokens: Some(5 + 7 * index),
            ..greedy(prompt)
        })
        .collect();
    // Two run at a time and prompts arrive in pieces of a few rows.
    let options = EngineOptions { max_sequences: 2, max_rows: 4, kept_prefixes: 0 };
    let mut engine = Engine::new(Arc::clone(&language_model), options);
    let ids: Vec<_> = requests.iter().map(|request| engine.submit(request).unwrap()).collect();
    let mut batched = vec![Vec::new(); requests.len()];
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            let index = ids.iter().position(|id| *id == event.request).unwrap();
            batched[index].push(event.outcome.unwrap());
        }
    }
    for (request, batched) in requests.iter().zip(batched) {
        let alone = collect(&language_model, request);
        assert_eq!(text(&alone), text(&batched));
        assert_eq!(alone.len(), batched.len());
        for (alone, batched) in alone.iter().zip(&batched) {
            assert_eq!((alone.id, alone.finish), (batched.id, batched.finish));
            assert_eq!(alone.top_logprobs.len(), batched.top_logprobs.len());
            if let (Some(alone), Some(batched)) = (alone.logprob, batched.logprob) {
                assert!((alone - batched).abs() < 1e-4);
            }
        }
    }
}

#[test]
fn a_kept_prefix_changes_nothing() {
    let language_model = tiny_chat();
    let options = EngineOptions { kept_prefixes: 2, ..EngineOptions::default() };
    let mut engine = Engine::new(Arc::clone(&language_model), options);
    let mut prompt = "Once there was".to_owned();
    for _ in 0..3 {
        let kept = Generation::start_on(&mut engine, &greedy(&prompt)).unwrap();
        let kept: Vec<_> = kept.map(Result::unwrap).collect();
        let fresh = collect(&language_model, &greedy(&prompt));
        assert_eq!(kept, fresh);
        prompt += &text(&kept);
        prompt += " And";
    }
}

#[test]
fn an_answer_that_is_stopped_keeps_its_prefix() {
    let language_model = tiny_chat();
    let options = EngineOptions { kept_prefixes: 1, max_rows: 4, ..EngineOptions::default() };
    let mut engine = Engine::new(Arc::clone(&language_model), options);
    let goes_on = |engine: &mut Engine, tokens: &[u32], cached: usize| {
        let request = Request { prompt: Prompt::Tokens(tokens.to_vec()), ..greedy("") };
        let generation = Generation::start_on(engine, &request).unwrap();
        assert_eq!(generation.cached_tokens(), cached);
        let kept: Vec<_> = generation.map(Result::unwrap).collect();
        assert_eq!(kept, collect(&language_model, &request));
    };
    let prompt = Prompt::Text("Once there was".to_owned());
    let mut tokens = language_model.prompt_tokens(&prompt).unwrap();
    let request = Request { prompt, ..greedy("") };

    // By the callback: the cache holds all but the last token.
    let generation = Generation::start_on(&mut engine, &request).unwrap();
    assert_eq!(generation.cached_tokens(), 0);
    let mut seen = 0;
    let stopped = generation.run(|_| {
        seen += 1;
        if seen == 4 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    tokens.extend(stopped.unwrap().tokens);
    let held = tokens.len() - 1;
    tokens.push(5);
    goes_on(&mut engine, &tokens, held);

    // By dropping the iterator, after a token of an unrelated prompt that takes several pieces.
    let other: Vec<u32> = (20..30).collect();
    let request = Request { prompt: Prompt::Tokens(other.clone()), ..greedy("") };
    assert!(Generation::start_on(&mut engine, &request).unwrap().next().is_some());
    goes_on(&mut engine, &[&other[..], &[5, 6]].concat(), other.len());

    // What never ran has nothing to keep, and must not push out what is kept.
    drop(Generation::start_on(&mut engine, &greedy("Hello")).unwrap());
    goes_on(&mut engine, &[&other[..], &[5, 7]].concat(), other.len() + 1);
}

#[test]
fn requests_that_cannot_be_served_are_refused() {
    let language_model = tiny_chat();
    let refused = |request: Request| match Generation::start(&language_model, &request) {
        Err(Error::Generate(error)) => error,
        other => panic!("expected a refusal, found {other:?}"),
    };
    let empty = Request { prompt: Prompt::Text(String::new()), ..Request::default() };
    assert!(matches!(refused(empty), GenerateError::EmptyPrompt));
    let nothing = Request { prompt: Prompt::Tokens(Vec::new()), ..Request::default() };
    assert!(matches!(refused(nothing), GenerateError::EmptyPrompt));
    let long = Request { prompt: Prompt::Tokens(vec![1; 256]), ..Request::default() };
    let error = refused(long);
    assert!(matches!(error, GenerateError::PromptTooLong { tokens: 256, context: 256 }), "{error}");
    let none = Request { max_tokens: Some(0), ..greedy("A") };
    assert!(matches!(refused(none), GenerateError::NoTokens));
    let sampling = SamplingParams { top_p: 1.5, ..SamplingParams::default() };
    assert!(matches!(refused(Request { sampling, ..greedy("A") }), GenerateError::Sampling(_)));
    let stop = vec![String::new()];
    assert!(matches!(refused(Request { stop, ..greedy("A") }), GenerateError::Stop(_)));
    let outside = Request { prompt: Prompt::Tokens(vec![1000]), ..Request::default() };
    let mut generation = Generation::start(&language_model, &outside).unwrap();
    assert!(matches!(generation.next(), Some(Err(Error::Model(_)))));
    assert!(generation.next().is_none());
}

#[test]
fn losses_equal_transformers() {
    let language_model = tiny_chat();
    let expected = &expected()["eval"];
    let allowed = tolerance(Gate::Loss, Precision::F32);
    let mut all = String::new();
    for case in expected["texts"].as_array().unwrap() {
        let line = serde_json::json!({ "text": case["text"] }).to_string();
        let report = evaluate(&language_model, "file", line.as_bytes(), None, None, &mut |_| ()).unwrap();
        assert_eq!(report.tokens as u64, case["tokens"].as_u64().unwrap());
        let loss = case["loss"].as_f64().unwrap() as f32;
        // A loss near zero is a difference of logits near 10: its error is theirs.
        assert_close(&[report.loss as f32, 10.0], &[loss, 10.0], allowed, &line);
        all += &(line + "\n");
    }
    let report = evaluate(&language_model, "file", all.as_bytes(), None, None, &mut |_| ()).unwrap();
    let loss = expected["loss"].as_f64().unwrap();
    assert_close(&[report.loss as f32], &[loss as f32], allowed, "all texts");
    assert_close(
        &[report.perplexity as f32],
        &[loss.exp() as f32],
        tolerance(Gate::Loss, Precision::F16),
        "e^loss",
    );
    assert_eq!((report.examples, report.truncated), (3, 0));
}

#[test]
fn only_completions_and_assistant_turns_count() {
    let language_model = tiny_chat();
    let count =
        |line: &str| evaluate(&language_model, "file", line.as_bytes(), None, None, &mut |_| ()).unwrap();
    let completion = count(r#"{"prompt": "Once there was", "completion": " a small boat that"}"#);
    assert_eq!(completion.tokens, 6);
    assert!(completion.loss < 0.1, "the model knows this by heart: {completion:?}");
    let chat = count(
        r#"{"messages": [{"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hello! How can I help you today?"}]}"#
            .replace('\n', " ")
            .as_str(),
    );
    // The answer, the end-of-turn token and the line break that the template writes after it.
    assert_eq!(chat.tokens, 11);
    let cut = evaluate(
        &language_model,
        "file",
        br#"{"text": "A candle on a small boat"}"#.as_slice(),
        None,
        Some(4),
        &mut |_| (),
    );
    let cut = cut.unwrap();
    assert_eq!((cut.tokens, cut.truncated), (3, 1));
    for bad in ["", "\n\n", "{\"text\": \"\"}", "{\"prompt\": \"a\"}"] {
        assert!(evaluate(&language_model, "file", bad.as_bytes(), None, None, &mut |_| ()).is_err(), "{bad}");
    }
}

#[cfg(feature = "stream")]
mod stream {
    use std::{
        future::poll_fn,
        pin::{Pin, pin},
        sync::Arc,
        task::{Context, Poll, Wake, Waker},
        thread::{self, Thread},
    };

    use futures_core::Stream;
    use metal_candle::generate::TokenStream;

    use super::{collect, greedy, tiny_chat};

    struct Unpark(Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut future = pin!(future);
        loop {
            match future.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(value) => return value,
                Poll::Pending => thread::park(),
            }
        }
    }

    #[test]
    fn a_stream_delivers_what_the_iterator_delivers() {
        let language_model = tiny_chat();
        let request = greedy("Once there was");
        let mut stream = TokenStream::start(&language_model, &request).unwrap();
        let mut found = Vec::new();
        while let Some(token) = block_on(poll_fn(|context| Pin::new(&mut stream).poll_next(context))) {
            found.push(token.unwrap());
        }
        assert_eq!(found, collect(&language_model, &request));
    }

    #[test]
    fn dropping_a_stream_ends_its_thread() {
        let language_model = tiny_chat();
        let request =
            metal_candle::generate::Request { ignore_eos: true, max_tokens: Some(200), ..greedy("A") };
        drop(TokenStream::start(&language_model, &request).unwrap());
        // The thread holds the model; it lets go at its next token.
        while Arc::strong_count(&language_model) > 1 {
            thread::yield_now();
        }
    }
}
