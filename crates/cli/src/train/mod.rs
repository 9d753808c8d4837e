//! What a user sees of a training run in the terminal.

pub(crate) mod next;
#[expect(dead_code, reason = "only the train command shows it")]
pub(crate) mod progress;
pub(crate) mod sparkline;
