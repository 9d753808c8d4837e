//! What the program says, and where: results on stdout; progress, notes and errors on stderr.

use std::{
    fmt,
    io::{self, IsTerminal as _, Write as _},
};

use anyhow::{Context as _, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

/// Nobody reads our stdout any more.
#[derive(Debug)]
pub(crate) struct OutputClosed;

impl fmt::Display for OutputClosed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the output was closed")
    }
}

impl std::error::Error for OutputClosed {}

/// The two streams and how to use them.
#[derive(Debug)]
pub(crate) struct Console {
    quiet: bool,
    colour: bool,
}

/// How a piece of text on stderr looks on a terminal.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Look {
    Dim,
    Bold,
    Red,
}

impl Console {
    pub(crate) fn new(quiet: bool) -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let dumb = set("TERM").is_some_and(|terminal| terminal == "dumb");
        let colour = io::stderr().is_terminal() && set("NO_COLOR").is_none() && !dumb;
        Self { quiet, colour }
    }

    /// Writes a result to stdout and shows it at once.
    pub(crate) fn print(&self, text: &str) -> Result<()> {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(OutputClosed.into()),
            Err(error) => Err(error).context("cannot write to stdout"),
        }
    }

    /// Writes a value as JSON to stdout.
    pub(crate) fn print_json(&self, value: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_string_pretty(value).context("cannot write the result as JSON")?;
        text.push('\n');
        self.print(&text)
    }

    /// A line on stderr, unless the user wants quiet.
    pub(crate) fn note(&self, text: impl fmt::Display) {
        if !self.quiet {
            self.say(format_args!("{}\n", self.styled(Look::Dim, &text)));
        }
    }

    /// Text on stderr, quiet or not: prompts of the chat, answers to its commands.
    pub(crate) fn say(&self, text: impl fmt::Display) {
        // If stderr is gone there is nobody left to tell.
        let mut stderr = io::stderr().lock();
        write!(stderr, "{text}").and_then(|()| stderr.flush()).ok();
    }

    /// The error and its causes, without repeating what a message already says.
    pub(crate) fn error(&self, error: &anyhow::Error) {
        let mut said = String::new();
        for (depth, cause) in error.chain().map(ToString::to_string).enumerate() {
            if depth == 0 {
                self.say(format_args!("{} {cause}\n", self.styled(Look::Red, &"error:")));
            } else if !said.contains(&cause) {
                self.say(format_args!("  because: {cause}\n"));
            }
            said += &cause;
        }
    }

    /// The text in colour where that is wanted.
    pub(crate) fn styled<'a>(&self, look: Look, text: &'a dyn fmt::Display) -> Styled<'a> {
        Styled { look: self.colour.then_some(look), text }
    }

    /// A progress bar for bytes on stderr; hidden unless stderr is a terminal.
    pub(crate) fn bytes_bar(&self, label: &str, total: u64) -> ProgressBar {
        self.bar(label, total, "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}")
    }

    /// A progress bar for things that are counted.
    pub(crate) fn count_bar(&self, label: &str, total: u64) -> ProgressBar {
        self.bar(label, total, "{msg} [{bar:30}] {pos}/{len} {eta}")
    }

    /// A progress bar for training steps with a message; its length is set later.
    pub(crate) fn step_bar(&self) -> ProgressBar {
        self.bar("", 0, "[{bar:10}] {pos}/{len}  {wide_msg}")
    }

    fn bar(&self, label: &str, total: u64, template: &str) -> ProgressBar {
        let target = if self.quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let style = ProgressStyle::with_template(template).expect("the templates above are valid");
        let bar = ProgressBar::with_draw_target(Some(total), target);
        bar.with_style(style.progress_chars("=> ")).with_message(label.to_owned())
    }
}

/// Text with a look; see [`Console::styled`].
pub(crate) struct Styled<'a> {
    look: Option<Look>,
    text: &'a dyn fmt::Display,
}

impl fmt::Display for Styled<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = match self.look {
            None => return self.text.fmt(formatter),
            Some(Look::Dim) => "2",
            Some(Look::Bold) => "1",
            Some(Look::Red) => "1;31",
        };
        write!(formatter, "\x1b[{code}m{}\x1b[0m", self.text)
    }
}

/// Bytes for people: `1.2 GiB`.
pub(crate) fn human_bytes(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut amount = bytes as f64;
    let mut unit = 0;
    while amount >= 1024.0 && unit + 1 < units.len() {
        amount /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{amount:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_rounded_for_people() {
        assert_eq!(human_bytes(1023), "1023 B");
        assert_eq!(human_bytes(1536), "1.5 KiB");
        assert_eq!(human_bytes(988_097_824), "942.3 MiB");
        assert_eq!(human_bytes(u64::MAX), "16777216.0 TiB");
    }

    #[test]
    fn colour_is_only_added_where_it_is_wanted() {
        let text = |colour| Console { quiet: false, colour }.styled(Look::Red, &"no").to_string();
        assert_eq!(text(false), "no");
        assert_eq!(text(true), "\u{1b}[1;31mno\u{1b}[0m");
    }
}
