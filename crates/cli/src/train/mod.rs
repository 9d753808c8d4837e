//! What a user sees of a training run in the terminal.

pub(crate) mod next;
pub(crate) mod progress;
pub(crate) mod sparkline;
