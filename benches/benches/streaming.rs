//! What it costs to watch a generation: the whole text at the end, a callback, an async stream.
//!
//! The model is tiny (some 50 µs per token), so that the cost per token shows; compare the difference of two rows
//! with the time that a token of a real model takes.

use std::{
    hint::black_box,
    ops::ControlFlow,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use futures_core::Stream;
use metal_candle::{
    LanguageModel,
    generate::{Generation, Prompt, Request, TokenStream},
    model::LoadOptions,
};

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Reads a stream to its end on this thread; returns the bytes of text.
fn drain(mut stream: TokenStream) -> usize {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut bytes = 0;
    loop {
        match Pin::new(&mut stream).poll_next(&mut context) {
            Poll::Ready(Some(token)) => bytes += token.expect("the model runs").text.len(),
            Poll::Ready(None) => return bytes,
            Poll::Pending => thread::park(),
        }
    }
}

fn streaming(criterion: &mut Criterion) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden/models/tiny-chat");
    let language_model = LanguageModel::load(&folder, &LoadOptions::default(), &mut |_, _| ());
    let language_model = Arc::new(language_model.expect("the golden model loads"));
    let mut group = criterion.benchmark_group("streaming_overhead");
    for tokens in [10, 50, 100] {
        let prompt = Prompt::Text("Once there was".to_owned());
        let request = Request { prompt, max_tokens: Some(tokens), ignore_eos: true, ..Request::default() };
        let start = || Generation::start(&language_model, &request).expect("the request can be served");
        group.bench_function(BenchmarkId::new("plain", tokens), |bencher| {
            bencher.iter(|| black_box(start().run(|_| ControlFlow::Continue(()))));
        });
        group.bench_function(BenchmarkId::new("callback", tokens), |bencher| {
            bencher.iter(|| {
                let mut bytes = 0;
                let completion = start().run(|token| {
                    bytes += black_box(&token.text).len();
                    ControlFlow::Continue(())
                });
                black_box((bytes, completion))
            });
        });
        group.bench_function(BenchmarkId::new("iterator", tokens), |bencher| {
            bencher.iter(|| {
                black_box(start().map(|token| token.expect("the model runs").text.len()).sum::<usize>())
            });
        });
        group.bench_function(BenchmarkId::new("async_stream", tokens), |bencher| {
            let start = || TokenStream::start(&language_model, &request).expect("the request can be served");
            bencher.iter(|| black_box(drain(start())));
        });
    }
    group.finish();
}

criterion_group!(benches, streaming);
criterion_main!(benches);
