//! Lines of JSONL → tokens, and which of them count in the loss.
//!
//! | line | tokens | [`Assistant`] | [`LastTurn`] | [`Completion`] | [`All`] |
//! |---|---|---|---|---|---|
//! | `{"text"}` | the text with the tokenizer's special tokens | all | all | all | all |
//! | `{"prompt", "completion"}`, both text | both as one text, likewise | the completion | the completion | the completion | all |
//! | … both lists of messages | as `messages` | the completion's assistant turns | the last of them | all of them | all |
//! | `{"messages", "tools"?}` | what the chat template makes of them | every assistant turn | the last one | those after the last user message | all |
//!
//! The first token never counts: nothing predicts it. A token counts where it begins. Other keys of a line are columns of
//! a data set and do not matter. A chat template that marks assistant turns with `generation` blocks decides what belongs
//! to them; for others a turn reaches from the header that `add_generation_prompt` adds to the end of what the template
//! writes for the message, its end mark included.
//!
//! [`Assistant`]: Supervise::Assistant
//! [`LastTurn`]: Supervise::LastTurn
//! [`Completion`]: Supervise::Completion
//! [`All`]: Supervise::All

mod encoder;
mod error;
mod record;
mod turns;

pub use encoder::{CompletionForm, Encoder, EncoderOptions, Example, Supervise};
pub use error::{BadLine, BadLines, DataError};
pub use record::{Record, records};
pub(crate) use record::{is_blank, without_mark};
