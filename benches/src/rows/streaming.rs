//! What it costs to watch a generation: the whole text at the end, a callback, an iterator, an async stream.
//!
//! The model is tiny, so that the cost per token shows; compare the difference of two rows with the time that a token of
//! a real model takes.

use std::{
    hint::black_box,
    ops::ControlFlow,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
};

use anyhow::Result;
use futures_core::Stream;
use metal_candle::{
    LanguageModel,
    generate::{Generation, Prompt, Request, TokenStream},
};

use crate::{Call, Row, Work, tiny};

pub(super) fn rows() -> Vec<Row> {
    let ways: [(&str, Way); 4] =
        [("plain", plain), ("callback", callback), ("iterator", iterator), ("async_stream", async_stream)];
    let mut rows = Vec::new();
    for tokens in [10, 50, 100] {
        for (name, way) in ways {
            let id = format!("streaming_overhead/{name}/{tokens}");
            let row = Row::new(id, Work::none().yields("tokens", tokens), move |bench| {
                let language_model = tiny::language_model(bench)?;
                let prompt = Prompt::Text("Once there was".to_owned());
                let max_tokens = Some(tokens);
                let request = Request { prompt, max_tokens, ignore_eos: true, ..Request::default() };
                Ok(Call::new(move || way(&language_model, &request)))
            });
            // Threads of their own, and a whole model.
            rows.push(row.without_instructions());
        }
    }
    rows
}

/// Serves a request; returns the bytes of text.
type Way = fn(&Arc<LanguageModel>, &Request) -> Result<usize>;

fn plain(language_model: &Arc<LanguageModel>, request: &Request) -> Result<usize> {
    let completion = Generation::start(language_model, request)?.run(|_| ControlFlow::Continue(()))?;
    Ok(completion.text.len())
}

fn callback(language_model: &Arc<LanguageModel>, request: &Request) -> Result<usize> {
    let mut bytes = 0;
    Generation::start(language_model, request)?.run(|token| {
        bytes += black_box(&token.text).len();
        ControlFlow::Continue(())
    })?;
    Ok(bytes)
}

fn iterator(language_model: &Arc<LanguageModel>, request: &Request) -> Result<usize> {
    let mut bytes = 0;
    for token in Generation::start(language_model, request)? {
        bytes += token?.text.len();
    }
    Ok(bytes)
}

fn async_stream(language_model: &Arc<LanguageModel>, request: &Request) -> Result<usize> {
    let mut stream = TokenStream::start(language_model, request)?;
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut bytes = 0;
    loop {
        match Pin::new(&mut stream).poll_next(&mut context) {
            Poll::Ready(Some(token)) => bytes += token?.text.len(),
            Poll::Ready(None) => return Ok(bytes),
            Poll::Pending => thread::park(),
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
