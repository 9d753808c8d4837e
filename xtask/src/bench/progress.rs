//! How far a run is: a bar on a terminal, a line now and then in a pipe.

use std::{
    cell::Cell,
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

/// Between two lines in a pipe.
const QUIET: Duration = Duration::from_secs(10);

pub(crate) struct Progress {
    bar: ProgressBar,
    is_terminal: bool,
    last_line: Cell<Instant>,
}

impl Progress {
    pub(crate) fn new(what: &'static str, length: usize) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        let bar = if is_terminal { ProgressBar::new(length as u64) } else { ProgressBar::hidden() };
        bar.set_length(length as u64);
        let template = "{prefix} {bar:30} {pos}/{len}  {eta} left  {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_prefix(what);
        Self { bar, is_terminal, last_line: Cell::new(Instant::now()) }
    }

    pub(crate) fn step(&self, message: &str) {
        self.bar.set_message(message.to_owned());
        self.bar.inc(1);
        if !self.is_terminal && self.last_line.get().elapsed() >= QUIET {
            self.last_line.set(Instant::now());
            let length = self.bar.length().unwrap_or_default();
            eprintln!("{} {} of {length}: {message}", self.bar.prefix(), self.bar.position());
        }
    }

    /// A line that stays, above the bar.
    pub(crate) fn say(&self, line: &str) {
        if self.is_terminal { self.bar.println(line) } else { eprintln!("{line}") }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
