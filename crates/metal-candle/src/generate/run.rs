//! One request at a time: by callback or as an iterator, over the same engine.

use std::{ops::ControlFlow, sync::Arc};

use super::{Completion, Engine, EngineOptions, FinishReason, Request, RequestId, StreamToken};
use crate::{Result, language_model::LanguageModel};

/// A running generation: an iterator of tokens. Dropping it ends the generation; an engine that keeps prefixes keeps
/// what has been run.
#[derive(Debug)]
pub struct Generation<'engine> {
    engine: EngineRef<'engine>,
    request: RequestId,
    prompt_tokens: usize,
    cached_tokens: usize,
    done: bool,
}

#[derive(Debug)]
enum EngineRef<'engine> {
    Owned(Box<Engine>),
    Borrowed(&'engine mut Engine),
}

impl Generation<'static> {
    /// Starts a generation with an engine of its own.
    pub fn start(language_model: &Arc<LanguageModel>, request: &Request) -> Result<Self> {
        let options = EngineOptions { max_sequences: 1, ..EngineOptions::default() };
        let engine = Engine::new(Arc::clone(language_model), options);
        Self::on(EngineRef::Owned(Box::new(engine)), request)
    }
}

impl<'engine> Generation<'engine> {
    /// Starts a generation on an engine that stays, and that keeps prefixes for the next one.
    pub fn start_on(engine: &'engine mut Engine, request: &Request) -> Result<Self> {
        Self::on(EngineRef::Borrowed(engine), request)
    }

    fn on(mut engine: EngineRef<'engine>, request: &Request) -> Result<Self> {
        let request = engine.get().submit(request)?;
        let (prompt_tokens, cached_tokens) = engine.get().prompt_tokens(request);
        Ok(Self { engine, request, prompt_tokens, cached_tokens, done: false })
    }

    /// Tokens of the prompt.
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// Tokens at the start of the prompt that need not run, because the engine kept them from an earlier request.
    pub fn cached_tokens(&self) -> usize {
        self.cached_tokens
    }

    /// Runs to the end; `observe` sees every token and may stop.
    pub fn run(mut self, mut observe: impl FnMut(&StreamToken) -> ControlFlow<()>) -> Result<Completion> {
        let mut completion = Completion {
            text: String::new(),
            tokens: Vec::new(),
            finish: FinishReason::Cancelled,
            prompt_tokens: self.prompt_tokens,
        };
        for token in &mut self {
            let token = token?;
            completion.text += &token.text;
            completion.tokens.push(token.id);
            if observe(&token).is_break() && token.finish.is_none() {
                break;
            }
            if let Some(finish) = token.finish {
                completion.finish = finish;
            }
        }
        Ok(completion)
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<StreamToken>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.done {
            let events = match self.engine.get().step() {
                Ok(events) => events,
                Err(error) => {
                    self.done = true;
                    return Some(Err(error));
                }
            };
            let own = events.into_iter().find(|event| event.request == self.request);
            if let Some(event) = own {
                self.done = !matches!(&event.outcome, Ok(token) if token.finish.is_none());
                return Some(event.outcome);
            }
        }
        None
    }
}

impl Drop for Generation<'_> {
    fn drop(&mut self) {
        let request = self.request;
        self.engine.get().cancel(request);
    }
}

impl EngineRef<'_> {
    fn get(&mut self) -> &mut Engine {
        match self {
            Self::Owned(engine) => engine,
            Self::Borrowed(engine) => engine,
        }
    }
}
