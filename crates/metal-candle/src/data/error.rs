//! What is wrong with data.

use std::fmt;

/// A data file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// A line that cannot be used.
    #[error("{path}, line {line}: {reason}")]
    Line {
        /// The file.
        path: String,
        /// From 1.
        line: u64,
        /// What is wrong.
        reason: String,
    },
    /// Lines that are not one of the forms.
    #[error("{path}: {bad}\ncorrect them, or have bad lines passed over")]
    BadLines {
        /// The file.
        path: String,
        /// How many, and the first of them.
        bad: BadLines,
    },
    /// Nothing to learn or measure.
    #[error("{path} holds no examples; write one JSON object per line, such as {{\"text\": \"…\"}}")]
    Empty {
        /// The file.
        path: String,
    },
    /// There are examples, but no token of them counts.
    #[error(
        "{path}: none of {examples} examples has a token that counts; supervise more of each line, or raise the sequence \
         length if it cuts off what counts"
    )]
    NothingCounts {
        /// The file.
        path: String,
        /// How many there are.
        examples: u64,
    },
    /// A folder without training data.
    #[error(
        "{folder} has no train.jsonl; a data folder holds train.jsonl and, if wanted, valid.jsonl and test.jsonl"
    )]
    NoTrainFile {
        /// The folder.
        folder: String,
    },
    /// The file is not what it was.
    #[error(
        "{path} has changed since it was first read ({reason}); leave data alone while it is in use, and start again"
    )]
    Changed {
        /// The file.
        path: String,
        /// What was seen.
        reason: String,
    },
    /// Messages for a model without a chat template.
    #[error(
        "the data has `messages`, but the model has no chat template; use `text` or `prompt` and `completion`"
    )]
    NoTemplate,
    /// The assistant's turns cannot be told apart.
    #[error(
        "the chat template rewrites earlier messages when later ones follow, so the assistant's turns cannot be found \
         in its text; a template with `generation` blocks says where they are"
    )]
    TurnsNotFound,
    /// Options that cannot be meant.
    #[error("{option} must be {expected}, found {found}")]
    Option {
        /// Which.
        option: &'static str,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        found: usize,
    },
    /// A cursor from somewhere else.
    #[error("cannot go on at the saved place in {path}: {reason}")]
    Cursor {
        /// The file.
        path: String,
        /// What does not fit.
        reason: &'static str,
    },
}

/// Lines that cannot be used: how many, and the first few.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BadLines {
    /// How many.
    pub count: u64,
    /// The first of them.
    pub first: Vec<BadLine>,
}

/// One line that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadLine {
    /// From 1.
    pub line: u64,
    /// What is wrong with it.
    pub reason: String,
}

impl BadLines {
    /// How many are kept with their reasons.
    pub const SHOWN: usize = 10;

    /// Counts one more.
    pub fn add(&mut self, line: u64, reason: String) {
        self.count += 1;
        if self.first.len() < Self::SHOWN {
            self.first.push(BadLine { line, reason });
        }
    }

    /// Counts those of another part of the file.
    pub fn extend(&mut self, other: &Self) {
        self.count += other.count;
        let room = Self::SHOWN.saturating_sub(self.first.len());
        self.first.extend(other.first.iter().take(room).cloned());
    }
}

impl fmt::Display for BadLines {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} bad line{}", self.count, if self.count == 1 { "" } else { "s" })?;
        for BadLine { line, reason } in &self.first {
            write!(formatter, "\n  line {line}: {reason}")?;
        }
        match self.count - self.first.len() as u64 {
            0 => Ok(()),
            more => write!(formatter, "\n  and {more} more"),
        }
    }
}
