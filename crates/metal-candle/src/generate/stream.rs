//! A generation as a `futures::Stream`: it runs on a thread of its own, so polling never blocks.

mod threads;

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
};

use futures_core::Stream;

use super::{GenerateError, Generation, Request, StreamToken};
use crate::{Result, language_model::LanguageModel};

/// Tokens that may wait for a slow reader before the generation pauses.
const CAPACITY: usize = 64;

/// Tokens of one generation as they come. Dropping it ends the generation.
#[derive(Debug)]
pub struct TokenStream {
    channel: Arc<Channel>,
}

#[derive(Debug, Default)]
struct Channel {
    state: Mutex<State>,
    room: Condvar,
}

#[derive(Debug, Default)]
struct State {
    tokens: VecDeque<Result<StreamToken>>,
    waker: Option<Waker>,
    finished: bool,
    dropped: bool,
}

impl TokenStream {
    /// Starts a generation. A request that cannot be served is refused here.
    pub fn start(language_model: &Arc<LanguageModel>, request: &Request) -> Result<Self> {
        let generation = Generation::start(language_model, request)?;
        let channel = Arc::new(Channel::default());
        let sender = Sender(Arc::clone(&channel));
        threads::run(Box::new(move || {
            for token in generation {
                if !sender.send(token) {
                    break;
                }
            }
        }));
        Ok(Self { channel })
    }
}

impl Stream for TokenStream {
    type Item = Result<StreamToken>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut state = self.channel.lock();
        if let Some(token) = state.tokens.pop_front() {
            self.channel.room.notify_one();
            return Poll::Ready(Some(token));
        }
        if state.finished {
            return Poll::Ready(None);
        }
        state.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for TokenStream {
    fn drop(&mut self) {
        self.channel.lock().dropped = true;
        self.channel.room.notify_one();
    }
}

impl Channel {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is a queue and flags: whole at every moment, so a panic elsewhere cannot have torn it.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The generating side; its end, by whatever way, ends the stream.
struct Sender(Arc<Channel>);

impl Sender {
    /// Waits for room; false once nobody listens.
    fn send(&self, token: Result<StreamToken>) -> bool {
        let mut state = self.0.lock();
        while state.tokens.len() >= CAPACITY && !state.dropped {
            state = self.0.room.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        if state.dropped {
            return false;
        }
        state.tokens.push_back(token);
        if let Some(waker) = state.waker.take() {
            drop(state);
            waker.wake();
        }
        true
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if std::thread::panicking() {
            state.tokens.push_back(Err(GenerateError::Panicked.into()));
        }
        state.finished = true;
        if let Some(waker) = state.waker.take() {
            drop(state);
            waker.wake();
        }
    }
}
