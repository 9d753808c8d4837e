//! What is timed.

use std::hint::black_box;

use anyhow::Result;

/// A step that can be repeated, and what has to happen before each one without being timed.
pub struct Call {
    steps: Box<dyn Steps>,
    is_prepared: bool,
}

trait Steps {
    fn prepare(&mut self) -> Result<()>;
    fn run(&mut self) -> Result<()>;
}

impl Call {
    /// Nothing has to happen between two runs.
    pub fn new<T, E: Into<anyhow::Error>>(mut run: impl FnMut() -> Result<T, E> + 'static) -> Self {
        let run = move |(): &mut ()| run().map_err(Into::into);
        Self {
            steps: Box::new(Prepared { state: (), prepare: |(): &mut ()| Ok(()), run }),
            is_prepared: false,
        }
    }

    /// `prepare` puts `state` back before each run.
    pub fn prepared<S: 'static, T>(
        state: S,
        prepare: impl FnMut(&mut S) -> Result<()> + 'static,
        run: impl FnMut(&mut S) -> Result<T> + 'static,
    ) -> Self {
        Self { steps: Box::new(Prepared { state, prepare, run }), is_prepared: true }
    }

    /// Whether runs have to be timed one by one.
    pub fn is_prepared(&self) -> bool {
        self.is_prepared
    }

    /// Before each run; not timed.
    pub fn prepare(&mut self) -> Result<()> {
        self.steps.prepare()
    }

    /// One run. What it makes is dropped within it.
    #[inline]
    pub fn run(&mut self) -> Result<()> {
        self.steps.run()
    }
}

struct Prepared<S, P, R> {
    state: S,
    prepare: P,
    run: R,
}

impl<S, T, P: FnMut(&mut S) -> Result<()>, R: FnMut(&mut S) -> Result<T>> Steps for Prepared<S, P, R> {
    fn prepare(&mut self) -> Result<()> {
        (self.prepare)(&mut self.state)
    }

    fn run(&mut self) -> Result<()> {
        black_box((self.run)(&mut self.state)?);
        Ok(())
    }
}
