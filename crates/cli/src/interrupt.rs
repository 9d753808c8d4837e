//! Ctrl-C: ends the program with code 130, or only the answer that is being given in a chat.

use std::{
    fmt,
    io::Write as _,
    sync::atomic::{AtomicU8, Ordering},
};

use anyhow::{Context as _, Result};

use crate::{console::Console, tracing};

/// By convention 128 plus the number of the signal.
pub(crate) const EXIT_CODE: u8 = 130;

/// Ctrl-C was pressed, and all that could be saved is saved.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

static STATE: AtomicU8 = AtomicU8::new(State::Idle as u8);

/// What Ctrl-C does right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum State {
    /// It ends the program.
    Idle,
    /// It asks the answer to stop.
    Answering,
    /// It was pressed during this answer; once more ends the program.
    StopAsked,
}

/// Takes over Ctrl-C.
pub(crate) fn install(quiet: bool) -> Result<()> {
    ctrlc::set_handler(move || {
        // No load-then-store: an answer may end at the same moment.
        let answering = STATE.compare_exchange(
            State::Answering as u8,
            State::StopAsked as u8,
            Ordering::SeqCst,
            Ordering::SeqCst,
        );
        if answering.is_err() {
            // The cursor may stand behind a prompt or a progress bar.
            writeln!(std::io::stderr()).ok();
            let console = Console::new(quiet);
            if let Err(error) = tracing::end(&console) {
                console.error(&error);
            }
            std::process::exit(i32::from(EXIT_CODE));
        }
    })
    .context("cannot handle Ctrl-C")
}

/// While this lives, the first Ctrl-C only sets [`Answer::stop_asked`].
#[derive(Debug)]
pub(crate) struct Answer(());

impl Answer {
    pub(crate) fn begin() -> Self {
        STATE.store(State::Answering as u8, Ordering::SeqCst);
        Self(())
    }

    pub(crate) fn stop_asked(&self) -> bool {
        STATE.load(Ordering::SeqCst) == State::StopAsked as u8
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        STATE.store(State::Idle as u8, Ordering::SeqCst);
    }
}
