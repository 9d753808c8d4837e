//! Ctrl-C: ends the program with code 130, or only the answer that is being given in a chat.

use std::{
    io::Write as _,
    sync::atomic::{AtomicU8, Ordering},
};

use anyhow::{Context as _, Result};

/// By convention 128 plus the number of the signal.
const EXIT_CODE: i32 = 130;

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
pub(crate) fn install() -> Result<()> {
    ctrlc::set_handler(|| {
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
            std::process::exit(EXIT_CODE);
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
