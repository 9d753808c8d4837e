//! Batches that are made while others are used.

use std::{
    panic::resume_unwind,
    sync::mpsc::{Receiver, sync_channel},
    thread::{self, JoinHandle},
};

use super::{Batch, Loader, Tally};
use crate::{Result, data::DataError};

/// A loader in a thread of its own, a few batches ahead: the same batches and errors in the same order. Dropping it ends
/// the thread, once the batches that it is making are made.
#[derive(Debug)]
pub struct Prefetch {
    receiver: Option<Receiver<(Result<Batch>, Tally)>>,
    thread: Option<JoinHandle<()>>,
    tally: Tally,
}

impl Prefetch {
    /// A good number of batches to be ahead: small beside a model, and most of the time that the next window takes is
    /// hidden behind them.
    pub const DEPTH: usize = 64;

    /// Starts the thread. It waits while `depth` batches are ready.
    pub fn new(mut loader: Loader, depth: usize) -> Result<Self> {
        let path = loader.file().path().display().to_string();
        let (sender, receiver) = sync_channel(depth);
        let work = move || {
            while let Some(batch) = loader.next() {
                if sender.send((batch, loader.tally().clone())).is_err() {
                    break;
                }
            }
        };
        let thread = thread::Builder::new().name("training-data".to_owned()).spawn(work);
        let thread = thread.map_err(|source| DataError::Read { path, source })?;
        Ok(Self { receiver: Some(receiver), thread: Some(thread), tally: Tally::default() })
    }

    /// What had been met when the last batch was made.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    fn stop(&mut self) -> thread::Result<()> {
        // Without a receiver the thread's next batch is its last.
        self.receiver = None;
        self.thread.take().map_or(Ok(()), JoinHandle::join)
    }
}

impl Iterator for Prefetch {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        let received = self.receiver.as_ref()?.recv();
        match received {
            Ok((batch, tally)) => {
                self.tally = tally;
                Some(batch)
            }
            Err(_) => {
                if let Err(panic) = self.stop() {
                    resume_unwind(panic);
                }
                None
            }
        }
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        // A panic has been passed on by `next`, or nobody waits for what it would have made.
        let _ = self.stop();
    }
}
