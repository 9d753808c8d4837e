//! Lines of JSONL → tokens, and which of them count in the loss.
//!
//! | line | tokens | counted |
//! |---|---|---|
//! | `{"text"}` | the text with the tokenizer's special tokens | every token after the first |
//! | `{"prompt", "completion"}` | both as one text, likewise | those that begin in the completion |
//! | `{"messages", "tools"?}` | what the chat template makes of them | those of every assistant turn |
//!
//! Other keys of a line are columns of a data set and do not matter. A chat template that marks assistant turns
//! with `generation` blocks decides what belongs to them; for others a turn reaches from the header that
//! `add_generation_prompt` adds to the end of what the template writes for the message.

use std::{io::BufRead, ops::Range};

use serde_json::Value;

use crate::{
    Error, LanguageModel, Result,
    text::{ChatInput, ChatTemplate, TextError},
};

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
    /// A line that is not one of the forms.
    #[error("line {line}: {reason}")]
    Line {
        /// From 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// Nothing to learn or measure.
    #[error("{path} holds no examples; write one JSON object per line, such as {{\"text\": \"…\"}}")]
    Empty {
        /// The file.
        path: String,
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
}

/// One line of a data file.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// Plain text.
    Text(String),
    /// A text in two parts, of which the second counts.
    Completion {
        /// What is given.
        prompt: String,
        /// What is to be said.
        completion: String,
    },
    /// A conversation.
    Messages {
        /// Objects with `role` and `content`.
        messages: Vec<Value>,
        /// Functions that the assistant may call.
        tools: Option<Vec<Value>>,
    },
}

/// Tokens, and which of them count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// The tokens.
    pub tokens: Vec<u32>,
    /// For every token whether its prediction counts; never the first.
    pub counted: Vec<bool>,
}

impl Record {
    /// Parses one line; the error says what it should look like.
    pub fn parse(line: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(line).map_err(|error| format!("not JSON: {error}"))?;
        let Value::Object(mut object) = value else { return Err("not a JSON object".to_owned()) };
        let mut take = |key: &str| object.remove(key);
        match (take("text"), take("prompt"), take("completion"), take("messages")) {
            (Some(text), None, None, None) => Ok(Self::Text(string("text", text)?)),
            (None, Some(prompt), Some(completion), None) => Ok(Self::Completion {
                prompt: string("prompt", prompt)?,
                completion: string("completion", completion)?,
            }),
            (None, None, None, Some(messages)) => Ok(Self::Messages {
                messages: list("messages", messages)?,
                tools: take("tools")
                    .filter(|tools| !tools.is_null())
                    .map(|tools| list("tools", tools))
                    .transpose()?,
            }),
            _ => Err("needs either `text`, or `prompt` and `completion`, or `messages`".to_owned()),
        }
    }
}

fn string(key: &str, value: Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(format!("`{key}` must be text, found {other}")),
    }
}

fn list(key: &str, value: Value) -> Result<Vec<Value>, String> {
    match value {
        Value::Array(items) => Ok(items),
        other => Err(format!("`{key}` must be a list, found {other}")),
    }
}

/// The records of a file with their line numbers, one by one; blank lines are passed over.
pub fn records(path: &str, reader: impl BufRead) -> impl Iterator<Item = Result<(usize, Record), DataError>> {
    let path = path.to_owned();
    let lines = reader.lines().enumerate().map(move |(index, line)| {
        let line = line.map_err(|source| DataError::Read { path: path.clone(), source })?;
        Ok((index + 1, line))
    });
    let filled = lines.filter(|line| !matches!(line, Ok((_, text)) if text.trim().is_empty()));
    filled.map(|line| {
        let (line, text) = line?;
        // Files that Windows wrote may begin with a byte order mark.
        let record = Record::parse(text.trim_start_matches('\u{feff}'));
        Ok((line, record.map_err(|reason| DataError::Line { line, reason })?))
    })
}

impl Example {
    /// The tokens of a record.
    pub fn new(record: &Record, language_model: &LanguageModel) -> Result<Self> {
        match record {
            Record::Text(text) => Self::encode(language_model, text, true, &|_| true, true),
            Record::Completion { prompt, completion } => {
                let text = format!("{prompt}{completion}");
                Self::encode(language_model, &text, true, &|range| range.start >= prompt.len(), false)
            }
            Record::Messages { messages, tools } => {
                let template = language_model.chat_template().ok_or(DataError::NoTemplate)?;
                let (text, turns) = assistant_turns(template, messages, tools.as_deref())?;
                let in_turn = |range: &Range<usize>| turns.iter().any(|turn| turn.contains(&range.start));
                Self::encode(language_model, &text, false, &in_turn, false)
            }
        }
    }

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

    fn encode(
        language_model: &LanguageModel,
        text: &str,
        add_special_tokens: bool,
        counts: &dyn Fn(&Range<usize>) -> bool,
        count_added: bool,
    ) -> Result<Self> {
        let encoded = language_model.tokenizer().encode_with_offsets(text, add_special_tokens)?;
        // Tokens that the tokenizer adds stand for no text.
        let count = |range: &Range<usize>| if range.is_empty() { count_added } else { counts(range) };
        let mut counted: Vec<bool> = encoded.iter().map(|(_, range)| count(range)).collect();
        let tokens = encoded.into_iter().map(|(id, _)| id).collect();
        if let Some(first) = counted.first_mut() {
            *first = false;
        }
        Ok(Self { tokens, counted })
    }
}

/// The text of a conversation and the bytes of it that the assistant says.
fn assistant_turns(
    template: &ChatTemplate,
    messages: &[Value],
    tools: Option<&[Value]>,
) -> Result<(String, Vec<Range<usize>>)> {
    let input = |count: usize, add_generation_prompt: bool| ChatInput {
        tools,
        add_generation_prompt,
        ..ChatInput::new(&messages[..count])
    };
    let (text, spans) = template.render_with_spans(&input(messages.len(), false))?;
    if !spans.is_empty() {
        return Ok((text, spans));
    }
    let mut turns = Vec::new();
    for (index, message) in messages.iter().enumerate() {
        if message["role"] != "assistant" {
            continue;
        }
        let before = prefix(&text, template.render(&input(index, true)))?;
        let after = prefix(&text, template.render(&input(index + 1, false)))?;
        turns.push(before..after);
    }
    Ok((text, turns))
}

/// The length of a rendered part, which must be how the whole begins.
fn prefix(whole: &str, part: Result<String, TextError>) -> Result<usize> {
    let part = part?;
    if whole.starts_with(&part) { Ok(part.len()) } else { Err(Error::from(DataError::TurnsNotFound)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_three_forms_and_names_bad_lines() {
        let file = "\u{feff}{\"text\": \"a\", \"id\": 7}\n\n{\"prompt\": \"b\", \"completion\": \"c\"}\n\
                    {\"messages\": [], \"tools\": null}\n{\"prompt\": \"b\"}\n{\"text\": 3}\n[1]\n{";
        let found: Vec<_> = records("file", file.as_bytes()).collect();
        assert!(matches!(&found[0], Ok((1, Record::Text(text))) if text == "a"));
        assert!(matches!(&found[1], Ok((3, Record::Completion { .. }))));
        assert!(matches!(&found[2], Ok((4, Record::Messages { tools: None, .. }))));
        for (index, line) in [(3, 5), (4, 6), (5, 7), (6, 8)] {
            assert!(matches!(&found[index], Err(DataError::Line { line: found, .. }) if *found == line));
        }
    }
}
