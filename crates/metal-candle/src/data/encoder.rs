//! From a record to tokens, and which of them count.

use std::{ops::Range, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{DataError, Record, turns::Conversation};
use crate::{
    LanguageModel, Result,
    text::{ChatTemplate, LocalTime, Tokenizer},
};

/// Which tokens of a line count in the loss; the table in [`crate::data`] says it form by form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Supervise {
    /// All that the assistant says.
    #[default]
    Assistant,
    /// What the assistant says last (`--mask-prompt` of mlx-lm).
    LastTurn,
    /// What follows the prompt: all that the assistant says after the user's last message.
    Completion,
    /// Every token.
    All,
}

/// How `prompt` and `completion` become one text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CompletionForm {
    /// The completion follows the prompt as it is (as in TRL).
    #[default]
    Plain,
    /// They are a user's and an assistant's message for the chat template (as in mlx-lm).
    Chat,
}

/// From a record to tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EncoderOptions {
    /// Which tokens count.
    pub supervise: Supervise,
    /// What `prompt` and `completion` are.
    pub completion: CompletionForm,
    /// Put the end-of-sequence token after a text or a plain completion, unless it ends with it already. It counts: a
    /// model learns from it to stop. Conversations end as their template ends them.
    pub append_end: bool,
}

impl Default for EncoderOptions {
    fn default() -> Self {
        Self { supervise: Supervise::default(), completion: CompletionForm::default(), append_end: true }
    }
}

/// Tokens, and which of them count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// The tokens.
    pub tokens: Vec<u32>,
    /// For every token whether its prediction counts; never the first.
    pub counted: Vec<bool>,
}

/// Makes examples of records. Immutable: share it with `Arc`.
#[derive(Debug)]
pub struct Encoder {
    tokenizer: Arc<Tokenizer>,
    chat_template: Option<Arc<ChatTemplate>>,
    end: Option<u32>,
    options: EncoderOptions,
    now: LocalTime,
}

impl Encoder {
    /// With a model's tokenizer and chat template. `end` is what [`EncoderOptions::append_end`] appends.
    pub fn new(
        tokenizer: Arc<Tokenizer>,
        chat_template: Option<Arc<ChatTemplate>>,
        end: Option<u32>,
        options: EncoderOptions,
    ) -> Self {
        Self { tokenizer, chat_template, end, options, now: LocalTime::now() }
    }

    /// For a model. A sequence ends with the tokenizer's `eos_token`, or else with the first token that ends the model's
    /// sequences.
    pub fn of(language_model: &LanguageModel, options: EncoderOptions) -> Self {
        let tokenizer = language_model.tokenizer();
        let end = tokenizer.named_token_id("eos_token").or(language_model.end_of_sequence().first().copied());
        Self::new(Arc::clone(tokenizer), language_model.chat_template().cloned(), end, options)
    }

    /// Lets chat templates that print the date take this for now, instead of the time when the encoder was made: a run
    /// that goes on another day still sees the same tokens.
    #[must_use]
    pub fn at_time(mut self, now: LocalTime) -> Self {
        self.now = now;
        self
    }

    /// How records are encoded.
    pub fn options(&self) -> &EncoderOptions {
        &self.options
    }

    /// What a text ends with, if anything is appended.
    pub fn end(&self) -> Option<u32> {
        self.end.filter(|_| self.options.append_end)
    }

    /// The tokens of a record.
    pub fn encode(&self, record: &Record) -> Result<Example> {
        match record {
            Record::Text(text) => self.text(text, 0),
            Record::Completion { prompt, completion } => match self.options.completion {
                CompletionForm::Plain => self.text(&format!("{prompt}{completion}"), prompt.len()),
                CompletionForm::Chat => {
                    let message = |role, content| json!({ "role": role, "content": content });
                    self.chat(&[message("user", prompt), message("assistant", completion)], None, 1)
                }
            },
            Record::Messages { messages, tools, prompt } => self.chat(messages, tools.as_deref(), *prompt),
        }
    }

    /// A text of which what follows the prompt counts.
    fn text(&self, text: &str, prompt: usize) -> Result<Example> {
        let from = if self.options.supervise == Supervise::All { 0 } else { prompt };
        let mut example = self.tokens(text, true, std::slice::from_ref(&(from..text.len())))?;
        if let Some(end) = self.end().filter(|end| example.tokens.last() != Some(end)) {
            example.counted.push(!example.tokens.is_empty());
            example.tokens.push(end);
        }
        Ok(example)
    }

    fn chat(&self, messages: &[Value], tools: Option<&[Value]>, prompt: usize) -> Result<Example> {
        let template = self.chat_template.as_deref().ok_or(DataError::NoTemplate)?;
        let conversation = Conversation { template, messages, tools, now: self.now };
        let (text, turns) = if self.options.supervise == Supervise::All {
            let text = conversation.text()?;
            let whole = 0..text.len();
            (text, vec![whole])
        } else {
            conversation.text_and_turns(&supervised(messages, prompt, self.options.supervise))?
        };
        self.tokens(&text, false, &turns)
    }

    /// Counts the tokens that begin in these bytes.
    fn tokens(&self, text: &str, add_special_tokens: bool, counted: &[Range<usize>]) -> Result<Example> {
        let encoded = self.tokenizer.encode_with_offsets(text, add_special_tokens)?;
        let last_of_text = encoded.iter().rposition(|(_, bytes)| !bytes.is_empty());
        let counts = |index: usize, bytes: &Range<usize>| {
            // Tokens that the tokenizer adds stand for no bytes: those after the text count where its end does.
            let is_after = bytes.is_empty() && last_of_text.is_none_or(|last| index > last);
            counted
                .iter()
                .any(|part| if is_after { part.end == text.len() } else { part.contains(&bytes.start) })
        };
        let counted =
            encoded.iter().enumerate().map(|(index, (_, bytes))| index > 0 && counts(index, bytes)).collect();
        Ok(Example { tokens: encoded.into_iter().map(|(id, _)| id).collect(), counted })
    }
}

impl Example {
    /// How many tokens count.
    pub fn targets(&self) -> usize {
        self.counted.iter().filter(|&&counted| counted).count()
    }

    /// Cuts to this many tokens; says whether any were lost.
    pub fn truncate(&mut self, length: usize) -> bool {
        let cut = self.tokens.len() > length;
        self.tokens.truncate(length);
        self.counted.truncate(length);
        cut
    }
}

/// The messages of the assistant that count, by their position.
fn supervised(messages: &[Value], prompt: usize, supervise: Supervise) -> Vec<usize> {
    let role = |index: &usize, role: &str| messages[*index]["role"] == role;
    let mut from = prompt;
    if supervise == Supervise::Completion && prompt == 0 {
        let last_question = (0..messages.len()).rfind(|index| role(index, "user"));
        from = last_question.map_or(0, |index| index + 1);
    }
    let mut turns: Vec<usize> = (from..messages.len()).filter(|index| role(index, "assistant")).collect();
    if supervise == Supervise::LastTurn {
        turns.drain(..turns.len().saturating_sub(1));
    }
    turns
}
