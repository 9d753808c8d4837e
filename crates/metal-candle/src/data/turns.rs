//! Where in a rendered conversation the assistant speaks.

use std::ops::Range;

use serde_json::Value;

use super::DataError;
use crate::{
    Result,
    text::{ChatInput, ChatTemplate, LocalTime},
};

/// A conversation and the template that writes it.
pub(super) struct Conversation<'a> {
    pub(super) template: &'a ChatTemplate,
    pub(super) messages: &'a [Value],
    pub(super) tools: Option<&'a [Value]>,
    /// What the template takes for now.
    pub(super) now: LocalTime,
}

impl Conversation<'_> {
    /// The text.
    pub(super) fn text(&self) -> Result<String> {
        Ok(self.template.render(&self.input(self.messages.len(), false))?)
    }

    /// The text, and the bytes of it that these messages of the assistant say, its end marks included.
    pub(super) fn text_and_turns(&self, messages: &[usize]) -> Result<(String, Vec<Range<usize>>)> {
        let (text, spans) = self.template.render_with_spans(&self.input(self.messages.len(), false))?;
        let turns = messages.iter().map(|&message| {
            if spans.is_empty() {
                self.turn(&text, message).map(|turn| vec![turn])
            } else {
                // A message may have any number of blocks.
                let range = self.spans_before(message)?..self.spans_before(message + 1)?;
                Ok(spans.get(range).ok_or(DataError::TurnsNotFound)?.to_vec())
            }
        });
        let turns = turns.collect::<Result<Vec<_>>>()?.concat();
        Ok((text, turns))
    }

    fn input(&self, count: usize, add_generation_prompt: bool) -> ChatInput<'_> {
        ChatInput {
            tools: self.tools,
            add_generation_prompt,
            now: Some(self.now),
            ..ChatInput::new(&self.messages[..count])
        }
    }

    fn spans_before(&self, message: usize) -> Result<usize> {
        if message == 0 {
            return Ok(0);
        }
        Ok(self.template.render_with_spans(&self.input(message, false))?.1.len())
    }

    /// The bytes of a turn for a template without `generation` blocks.
    fn turn(&self, whole: &str, message: usize) -> Result<Range<usize>> {
        let start = self.start(whole, message)?;
        let until_here = self.template.render(&self.input(message + 1, false))?;
        if until_here.len() >= start && whole.starts_with(&until_here) {
            return Ok(start..until_here.len());
        }
        // Some templates write more for the last message than for an earlier one: reasoning first, which they leave out
        // once another question follows. Then the turn in the whole is how the turn ends when it stands last.
        let alone = until_here.strip_prefix(&whole[..start]).ok_or(DataError::TurnsNotFound)?;
        let said_last = said_last(&self.messages[message]).ok_or(DataError::TurnsNotFound)?;
        let rest = &whole[start..];
        let mut endings = alone.char_indices().map(|(at, _)| &alone[at..]);
        let turn = endings.find(|ending| rest.starts_with(ending)).filter(|turn| turn.contains(said_last));
        Ok(start..start + turn.ok_or(DataError::TurnsNotFound)?.len())
    }

    /// Where a turn begins, after the header of the assistant's answer.
    fn start(&self, whole: &str, message: usize) -> Result<usize> {
        if message > 0 {
            let header = self.template.render(&self.input(message, true))?;
            return Ok(if whole.starts_with(&header) {
                header.len()
            } else {
                return Err(DataError::TurnsNotFound.into());
            });
        }
        // No template writes the header alone.
        let with_header = self.template.render(&self.input(1, true))?;
        let without = self.template.render(&self.input(1, false))?;
        let header = with_header.strip_prefix(&without).filter(|header| !header.is_empty());
        let found = header.and_then(|header| Some(whole.find(header)? + header.len()));
        Ok(found.ok_or(DataError::TurnsNotFound)?)
    }
}

/// The last word of a message, or else the name of the last function that it calls.
fn said_last(message: &Value) -> Option<&str> {
    let word = message["content"].as_str().and_then(|content| content.split_whitespace().last());
    let call = || {
        let call = message["tool_calls"].as_array()?.last()?;
        call["function"]["name"].as_str().or_else(|| call["name"].as_str())
    };
    call().or(word)
}
